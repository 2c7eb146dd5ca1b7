//! What the old primary, the other nodes and the server that this standby follows say, all asked at once.

use std::time::Duration;

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::preflight::chain;
use pgpool_recovery_core::preflight::promote::{self, Node, Own};
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::protocol::describe::Description;
use pgpool_recovery_core::wire::protocol::upstream::{Answer, Told};

use super::Old;
use super::heard::{Heard, Verdict, Wait};
use super::places::Places;
use super::questions::{
    ANSWER, Found, at_once, node_job, old_job, old_said_job, old_speaks_job, runs, upstream_job, upstream_of,
};
use super::told::{after, untold};
use crate::commands::clock::Clock;
use crate::pg::catalog;
use crate::pg::threads::{self, DropAside};
use crate::settings::{OtherNode, Settings};

/// How long when it is asked again, if it has answered before, and if it has not.
const AGAIN: Duration = Duration::from_secs(3);
const SILENT: Duration = Duration::from_secs(1);

/// What was said.
pub(super) struct Asked<'a> {
    named: Option<&'a Old>,
    settings: &'a Settings,
    others: Vec<OtherNode>,
    /// A session with the host of the old primary, if one is named.
    pub(super) old: Option<Result<DropAside<Session>>>,
    /// Whether that host has ever answered.
    old_has_answered: bool,
    /// What the old primary said of itself.
    old_said: Option<Box<Description>>,
    /// Whether a server spoke where the old primary listened, when it was asked last.
    old_speaks: bool,
    /// Why it could not be asked whether one speaks there.
    old_unasked: Option<Error>,
    /// Whether this standby's own primary was stopped there: what still speaks where it was said to listen is another one, a connection
    /// pooler for instance. If it runs again, its host says so.
    old_has_ended: bool,
    /// The nodes, without the old primary.
    pub(super) nodes: Vec<Node>,
    /// Those of them whose host was reached, and does not tell what its server is now, and why.
    closed: Vec<Option<Error>>,
    /// What the server that this standby follows is, if it follows one.
    upstream: Option<Told>,
    /// The same of each node, by its own host's word: this standby's way to a primary that lives may be cut.
    upstreams: Vec<Option<Told>>,
    /// What this standby's own walreceiver has heard of it.
    heard: Heard,
}

/// Who is asked.
#[derive(Clone, Copy)]
enum Whom {
    Old,
    OldSaid,
    OldSpeaks,
    Upstream,
    Node(usize),
    UpstreamOf(usize),
}

impl<'a> Asked<'a> {
    pub(super) fn ask(named: Option<&'a Old>, settings: &'a Settings, clock: &Clock) -> Result<Self> {
        let others = others(named, &settings.nodes);
        let unasked = |node: &OtherNode| Node {
            name: node.name(),
            found: Err(Error::new(Kind::Internal, "it was not asked")),
        };
        let nodes = others.iter().map(unasked).collect();
        let upstreams = vec![None; others.len()];
        let heard = Heard::since_now()?;
        let mut asked = Self {
            named,
            settings,
            old: None,
            old_has_answered: false,
            old_said: None,
            old_speaks: false,
            old_unasked: None,
            old_has_ended: false,
            closed: vec![None; others.len()],
            others,
            nodes,
            upstream: None,
            upstreams,
            heard,
        };
        let upstreams = (0..asked.others.len()).map(Whom::UpstreamOf);
        let whom: Vec<Whom> = asked.all().into_iter().chain([Whom::OldSaid]).chain(upstreams).collect();
        asked.ask_these(&whom, |_| ANSWER, Some(clock))?;
        if let Some(node) = asked.named.filter(|_| asked.old_is_standby()).map(Old::as_node) {
            asked.nodes.push(unasked(&node));
            asked.others.push(node);
            asked.closed.push(None);
            asked.upstreams.push(None);
            let at = asked.nodes.len() - 1;
            asked.ask_these(&[Whom::Node(at), Whom::UpstreamOf(at)], |_| ANSWER, Some(clock))?;
        }
        Ok(asked)
    }

    /// Whether what was named as the old primary is a standby: then it is one of the nodes.
    fn old_is_standby(&self) -> bool {
        matches!(&self.old, Some(Ok(session)) if session.target().backup.has_standby_signal)
    }

    /// Asks all again. What was silent before has little time.
    pub(super) fn ask_again(&mut self, clock: &Clock) -> Result<()> {
        self.ask_these(&self.all(), again, Some(clock))
    }

    /// Asks all for the last time. What decides has the time for it that the first look had, whatever is left of the whole.
    pub(super) fn ask_last(&mut self) -> Result<()> {
        let heard = (0..self.nodes.len()).filter(|&at| self.nodes[at].found.is_ok());
        let whom: Vec<Whom> = self.all().into_iter().chain(heard.map(Whom::UpstreamOf)).collect();
        self.ask_these(&whom, |has_answered| if has_answered { ANSWER } else { SILENT }, None)
    }

    /// Asks the old primary's host and the upstream server again.
    pub(super) fn ask_old_again(&mut self, clock: &Clock) -> Result<()> {
        self.ask_these(&[Whom::Old, Whom::OldSpeaks, Whom::Upstream], |_| ANSWER, Some(clock))
    }

    /// After a primary was stopped: was it the one? What was said before counts no more: a proxy in between may just fall silent.
    pub(super) fn ask_upstream_again(&mut self, clock: &Clock) -> Result<()> {
        let mut whom = vec![Whom::Upstream];
        self.upstream = None;
        for (at, told) in self.upstreams.iter_mut().enumerate() {
            if matches!(self::answer(told), Some(Ok(answer)) if answer.may_be_primary()) {
                *told = None;
                whom.push(Whom::UpstreamOf(at));
            }
        }
        self.ask_these(&whom, |_| ANSWER, Some(clock))
    }

    fn all(&self) -> Vec<Whom> {
        let nodes = (0..self.others.len()).map(Whom::Node);
        [Whom::Old, Whom::OldSpeaks, Whom::Upstream].into_iter().chain(nodes).collect()
    }

    /// `time`: how long one may take that has answered before, or has not.
    fn ask_these(&mut self, whom: &[Whom], time: fn(bool) -> Duration, clock: Option<&Clock>) -> Result<()> {
        let within = |time: Duration| clock.map_or(time, |clock| time.min(clock.left()));
        let system_identifier = catalog::primary()?.system_identifier;
        let (mut asked, mut jobs) = (Vec::new(), Vec::new());
        for &whom in whom {
            let job = match whom {
                Whom::Old => {
                    let time = within(time(self.old_has_answered));
                    self.named.map(|old| old_job(old, self.settings, time)).transpose()?
                }
                Whom::OldSaid => {
                    let time = within(ANSWER);
                    self.named.map(|old| old_said_job(old, self.settings, time)).transpose()?
                }
                Whom::OldSpeaks if self.old_has_ended => None,
                Whom::OldSpeaks => {
                    let time = within(time(self.old_speaks));
                    self.named.map(|old| old_speaks_job(old, time)).transpose()?
                }
                Whom::Upstream => {
                    let full = time(matches!(answer(&self.upstream), Some(Ok(_))));
                    upstream_job(system_identifier, full, within(full))?
                }
                Whom::UpstreamOf(at) => {
                    let full = time(true);
                    Some(upstream_of(&self.others[at], self.settings, full, within(full))?)
                }
                Whom::Node(at) => {
                    let time = within(time(self.nodes[at].found.is_ok()));
                    Some(node_job(&self.others[at], self.settings, time)?)
                }
            };
            if let Some(job) = job {
                asked.push(whom);
                jobs.push(job);
            }
        }
        for (whom, answer) in asked.into_iter().zip(at_once(jobs)?) {
            self.hear(whom, answer);
        }
        Ok(())
    }

    /// Takes an answer. Silence takes none back, save that of the old primary's host, which is asked for what it says now.
    fn hear(&mut self, whom: Whom, answer: Result<Found>) {
        match (whom, answer) {
            (_, Ok(Found::Old(session))) => {
                self.old_has_answered = true;
                self.old = Some(Ok(*session));
            }
            (_, Ok(Found::OldSaid(description))) => self.old_said = Some(description),
            // a server that is stopped, or hangs
            (Whom::OldSaid, Err(_)) => {}
            (_, Ok(Found::OldSpeaks(speaks))) => (self.old_speaks, self.old_unasked) = (speaks, None),
            // it adds to what its host says, which is asked beside it
            (Whom::OldSpeaks, Err(error)) => {
                self.old_speaks = false;
                self.old_unasked = Some(error).filter(|error| error.kind == Kind::NotAsked);
            }
            (_, Ok(Found::Upstream(told))) => self.upstream = Some(after(self.upstream.take(), told)),
            (Whom::UpstreamOf(at), Ok(Found::UpstreamOf(told))) => {
                let before = self.upstreams[at].take();
                self.upstreams[at] = told.map(|told| after(before, told));
            }
            (_, Ok(Found::UpstreamOf(_))) => {}
            // a host that is silent says nothing of another one; one that has been heard, and fails here, may know of a primary
            (Whom::UpstreamOf(at), Err(error)) => {
                if self.nodes[at].found.is_ok() && self.upstreams[at].is_none() {
                    self.upstreams[at] = Some(untold(error));
                }
            }
            (Whom::Node(at), Ok(Found::Node(description))) => {
                self.nodes[at].found = Ok(*description);
                self.closed[at] = None;
            }
            (Whom::Node(at), Ok(Found::Closed(error))) => {
                self.closed[at] = Some(error.clone());
                self.hear(whom, Err(error));
            }
            (_, Ok(Found::Node(_) | Found::Closed(_))) => {}
            (Whom::Old, Err(error)) => self.old = Some(Err(error)),
            // a question that could not be asked is answered by nobody's silence
            (Whom::Upstream, Err(error)) => {
                self.upstream = Some(after(self.upstream.take(), untold(error)));
            }
            (Whom::Node(at), Err(error)) => {
                let found = &mut self.nodes[at].found;
                match found {
                    // it may have been promoted since
                    Ok(_) => self.closed[at] = Some(error),
                    Err(_) => *found = Err(error),
                }
            }
        }
    }

    /// The nodes that have never answered.
    pub(super) fn silent(&self) -> Vec<&OtherNode> {
        let nodes = self.others.iter().zip(&self.nodes);
        nodes.filter(|(_, node)| node.found.is_err()).map(|(other, _)| other).collect()
    }

    /// The nodes that were fenced for another promotion and have not run since. Their hosts have said so, so they are not silent.
    pub(super) fn fenced(&self) -> Vec<&OtherNode> {
        let is_fenced = |node: &Node| match &node.found {
            Ok(found) => found.running.is_none() && !found.has_standby_signal && found.fence.is_some(),
            Err(_) => false,
        };
        let nodes = self.others.iter().zip(&self.nodes);
        nodes.filter(|(_, node)| is_fenced(node)).map(|(other, _)| other).collect()
    }

    /// Whether a server runs where the old primary should be, or may do so.
    pub(super) fn old_runs(&self) -> bool {
        match &self.old {
            Some(Ok(session)) => runs(session),
            _ => false,
        }
    }

    /// Whether a primary of this system runs there by now.
    pub(super) fn old_runs_as_primary(&self, system_identifier: u64) -> bool {
        match &self.old {
            Some(Ok(session)) => promote::lives(session.target(), system_identifier).is_some(),
            _ => false,
        }
    }

    /// Why the old primary is known to live, by its own host's word. A host that has told and tells no more is no proof of the
    /// contrary.
    pub(super) fn old_lives(&self, system_identifier: u64) -> Option<String> {
        match &self.old {
            Some(Ok(session)) => promote::lives(session.target(), system_identifier),
            Some(Err(error)) if self.old_has_answered => Some(format!(
                "Its host has answered before, and does not say any more whether it runs: {}.",
                error.message
            )),
            _ => None,
        }
    }

    /// That a server speaks with clients where the old primary listened, if its host does not say what that is, or that none runs in the
    /// old primary's directory.
    pub(super) fn old_speaks(&self) -> Option<String> {
        let why = match self.old.as_ref().filter(|_| self.old_speaks)? {
            Err(error) => format!("its host does not say what that is: {}", ended(&error.message)),
            Ok(session) if !runs(session) && !self.old_is_standby() => {
                format!("it is not in \"{}\", where none runs", session.target().directory.display())
            }
            Ok(_) => return None,
        };
        Some(format!("A server speaks with clients where it listened, and {why}."))
    }

    /// After a server was stopped in the old primary's directory: what spoke before was that one. `is_own`: this standby's primary.
    pub(super) fn old_has_stopped(&mut self, is_own: bool) {
        (self.old_speaks, self.old_has_ended) = (false, is_own);
        if is_own {
            self.old_unasked = None;
        }
    }

    /// Why the old primary could not be asked, if that failed here, or if its host was reached and does not tell: no silence of its own.
    fn old_unasked(&self) -> Option<String> {
        let of_host = self.old.as_ref().and_then(|old| old.as_ref().err());
        let of_host = of_host.filter(|error| {
            matches!(
                error.kind,
                Kind::NotAsked | Kind::AuthenticationFailed | Kind::TargetRefused | Kind::ConnectionLost
            )
        });
        let error = of_host.or(self.old_unasked.as_ref())?;
        Some(format!("The old primary could not be asked: {}.", ended(&error.message)))
    }

    /// Why the server that this standby or a node follows is known to live, if it is a primary or may be one.
    pub(super) fn upstream_lives(&self) -> Option<String> {
        let lives = |who: &str, told: &Option<Told>| match answer(told) {
            Some(Ok(Answer::Primary(timeline))) => Some(format!(
                "The server that {who} follows (primary_conninfo) answers as a primary on timeline {timeline}."
            )),
            Some(Ok(Answer::Lives(why))) => {
                Some(format!("The server that {who} follows (primary_conninfo) lives: {}.", ended(why)))
            }
            _ => None,
        };
        self.find_upstream(lives)
    }

    /// Why it is not known whether one of these lives.
    pub(super) fn upstream_unknown(&self) -> Option<String> {
        let closed = self.nodes.iter().zip(&self.closed).find_map(|(node, closed)| {
            let why = ended(&closed.as_ref()?.message);
            Some(format!("The host of {} does not tell what its server is: {why}.", node.name))
        });
        let unknown = |who: &str, told: &Option<Told>| match answer(told) {
            Some(Ok(Answer::Unknown(why))) => Some(format!(
                "The server that {who} follows (primary_conninfo) could not be asked: {}.",
                ended(why)
            )),
            _ => None,
        };
        closed.or_else(|| self.old_unasked()).or_else(|| self.find_upstream(unknown))
    }

    fn find_upstream(&self, tell: impl Fn(&str, &Option<Told>) -> Option<String>) -> Option<String> {
        let mut of_nodes = self.nodes.iter().zip(&self.upstreams);
        tell("this standby", &self.upstream)
            .or_else(|| of_nodes.find_map(|(node, told)| tell(&node.name, told)))
    }

    /// Whether the server that this standby follows lives, by what the walreceiver here has got of it. That of a standby says
    /// nothing of the primary. Whose messages `wait` tells.
    pub(super) fn upstream_heard(&self, wait: Wait, clock: &Clock, reserve: Duration) -> Result<Verdict> {
        match &self.upstream {
            None => Ok(Verdict::Silent),
            Some(told) => self.heard.verdict(wait, told, clock, reserve),
        }
    }

    /// Counts only what the walreceiver hears from now on.
    pub(super) fn hear_anew(&mut self) -> Result<()> {
        self.heard = Heard::since_now()?;
        Ok(())
    }

    /// Refuses a promotion after another one that the old primary's directory knows of.
    pub(super) fn demand_old_not_replaced(&self, own: &Own) -> Result<()> {
        match (self.named, &self.old) {
            (Some(named), Some(Ok(session))) => {
                let target = session.target();
                if promote::lives(target, own.system_identifier).is_some() {
                    // it is refused for that
                    return Ok(());
                }
                own.demand_not_replaced(&named.name(), target.system_identifier, target.timeline)
            }
            _ => Ok(()),
        }
    }

    /// How far the old primary had written its WAL, if it is that of this standby's timeline and said so.
    pub(super) fn old_position(&self, own: &Own) -> Option<Lsn> {
        let found = self.old_said.as_ref()?;
        let said = found.said.as_ref()?.as_ref().ok()?;
        let is_own = found.control.system_identifier == own.system_identifier
            && !said.in_recovery
            && said.timeline == own.history.timeline();
        is_own.then_some(said.position)
    }

    /// Why nobody tells whether the primary lives beyond the standbys that this one follows, if it follows any.
    pub(super) fn open_end(&self, own: &Own) -> Result<Option<String>> {
        let Some(told) = &self.upstream else { return Ok(None) };
        let all = self.upstreams.iter().flatten().chain([told]);
        let endpoints = all.flat_map(|told| told.standbys.iter().chain(&told.silent));
        let hosts = endpoints.flat_map(|endpoint| [&endpoint.host, &endpoint.address]).cloned();
        let old = self.named.map(Old::as_node);
        let hosts = hosts.chain(self.others.iter().chain(&old).map(|node| node.host.clone())).collect();
        let own_server = catalog::own_address()?;
        let cancel = Cancel::new();
        let places = threads::wait(&cancel, &mut || Ok(()), || Ok(Places::find(hosts, &cancel)))?;
        let nodes: Vec<_> =
            self.nodes.iter().zip(&self.upstreams).map(|(node, told)| (node, told.as_ref())).collect();
        Ok(chain::open_end(own, told, &nodes, self.old_may_be_own(own), |endpoint, by| {
            places.whose(endpoint, by, &self.others, old.as_ref(), &own_server)
        }))
    }

    /// Whether the old primary may have been that of this standby: one on an earlier timeline was replaced, by another one.
    fn old_may_be_own(&self, own: &Own) -> bool {
        match &self.old {
            Some(Ok(session)) => {
                session.target().timeline.is_none_or(|timeline| timeline >= own.history.timeline())
            }
            _ => true,
        }
    }
}

const fn answer(told: &Option<Told>) -> Option<&Result<Answer>> {
    match told {
        Some(told) => Some(&told.answer),
        None => None,
    }
}

/// Without the full stop of its own.
fn ended(text: &str) -> &str {
    text.trim_end().trim_end_matches('.')
}

const fn again(has_answered: bool) -> Duration {
    if has_answered { AGAIN } else { SILENT }
}

/// The nodes that are not the old primary.
fn others(old: Option<&Old>, nodes: &[OtherNode]) -> Vec<OtherNode> {
    nodes.iter().filter(|node| !old.is_some_and(|old| old.is(node))).cloned().collect()
}

impl Old {
    /// As a node.
    fn as_node(&self) -> OtherNode {
        let (host, directory) = (self.host.clone(), self.directory.clone());
        OtherNode { host, directory, port: self.port, id: None }
    }

    /// Whether a node is this one.
    pub(super) fn is(&self, node: &OtherNode) -> bool {
        self.host == node.host && (self.directory == node.directory || self.port == node.port)
    }
}

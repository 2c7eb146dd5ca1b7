//! What the old primary, the other nodes and the server that this standby follows say, all asked at once.

use std::path::PathBuf;
use std::time::Duration;

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::upstream::{self, Endpoint, Told, Upstream};
use pgpool_recovery_core::preflight::promote::{self, Node, Own};
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::parallel::{self, Job};
use pgpool_recovery_core::wire::protocol::describe::Description;
use pgpool_recovery_core::wire::protocol::upstream::Answer;

use super::Old;
use super::heard::{Heard, Verdict, Wait};
use crate::commands::clock::Clock;
use crate::pg::threads::{self, DropAside};
use crate::pg::{catalog, log};
use crate::preflight::reach::Way;
use crate::settings::{OtherNode, Settings};

/// How long each may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How much longer an answer may take than what it says that it takes.
const ON_THE_WAY: Duration = Duration::from_secs(1);

/// What the first questions take.
pub(super) const QUESTIONS: Duration = ANSWER.saturating_add(ON_THE_WAY);

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
    /// The nodes, without the old primary.
    pub(super) nodes: Vec<Node>,
    /// What the server that this standby follows is, if it follows one.
    upstream: Option<Result<Answer>>,
    /// The hosts that it may be which have answered as a standby.
    standbys: Vec<Endpoint>,
    /// The same of each node, by its own host's word: this standby's way to a primary that lives may be cut.
    upstreams: Vec<Option<Result<Answer>>>,
    /// What this standby's own walreceiver has heard of it.
    heard: Heard,
}

/// Who is asked.
#[derive(Clone, Copy)]
enum Whom {
    Old,
    OldSaid,
    Upstream,
    Node(usize),
    UpstreamOf(usize),
}

/// One answer.
enum Found {
    Old(Box<DropAside<Session>>),
    OldSaid(Box<Description>),
    Node(Box<Description>),
    Upstream(Told),
    UpstreamOf(Option<Result<Answer>>),
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
            others,
            old: None,
            old_has_answered: false,
            old_said: None,
            nodes,
            upstream: None,
            standbys: Vec::new(),
            upstreams,
            heard,
        };
        let upstreams = (0..asked.others.len()).map(Whom::UpstreamOf);
        let whom: Vec<Whom> = asked.all().into_iter().chain([Whom::OldSaid]).chain(upstreams).collect();
        asked.ask_these(&whom, |_| ANSWER, clock)?;
        Ok(asked)
    }

    /// Asks all again. What was silent before has little time.
    pub(super) fn ask_again(&mut self, clock: &Clock) -> Result<()> {
        self.ask_these(&self.all(), again, clock)
    }

    /// Asks the old primary's host and the upstream server again.
    pub(super) fn ask_old_again(&mut self, clock: &Clock) -> Result<()> {
        self.ask_these(&[Whom::Old, Whom::Upstream], |_| ANSWER, clock)
    }

    /// After a primary was stopped: was it the one? What was said before counts no more: a proxy in between may just fall silent.
    pub(super) fn ask_upstream_again(&mut self, clock: &Clock) -> Result<()> {
        let mut whom = vec![Whom::Upstream];
        self.upstream = None;
        for (at, answer) in self.upstreams.iter_mut().enumerate() {
            if matches!(answer, Some(Ok(answer)) if answer.may_be_primary()) {
                *answer = None;
                whom.push(Whom::UpstreamOf(at));
            }
        }
        self.ask_these(&whom, |_| ANSWER, clock)
    }

    fn all(&self) -> Vec<Whom> {
        let nodes = (0..self.others.len()).map(Whom::Node);
        [Whom::Old, Whom::Upstream].into_iter().chain(nodes).collect()
    }

    fn ask_these(&mut self, whom: &[Whom], time: fn(bool) -> Duration, clock: &Clock) -> Result<()> {
        let system_identifier = catalog::primary()?.system_identifier;
        let (mut asked, mut jobs) = (Vec::new(), Vec::new());
        for &whom in whom {
            let job = match whom {
                Whom::Old => {
                    let time = time(self.old_has_answered).min(clock.left());
                    self.named.map(|old| old_job(old, self.settings, time)).transpose()?
                }
                Whom::OldSaid => {
                    let time = ANSWER.min(clock.left());
                    self.named.map(|old| old_said_job(old, self.settings, time)).transpose()?
                }
                Whom::Upstream => {
                    let full = time(matches!(self.upstream, Some(Ok(_))));
                    upstream_job(system_identifier, full, full.min(clock.left()))?
                }
                Whom::UpstreamOf(at) => {
                    let full = time(true);
                    Some(upstream_of(&self.others[at], self.settings, full, full.min(clock.left()))?)
                }
                Whom::Node(at) => {
                    let time = time(self.nodes[at].found.is_ok()).min(clock.left());
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
            (_, Ok(Found::Upstream(Told { answer, standbys }))) => {
                let before = self.upstream.take();
                self.upstream = Some(after(before, answer));
                self.standbys.extend(standbys);
            }
            (Whom::UpstreamOf(at), Ok(Found::UpstreamOf(answer))) => {
                let before = self.upstreams[at].take();
                self.upstreams[at] = answer.map(|answer| after(before, answer));
            }
            (_, Ok(Found::UpstreamOf(_))) => {}
            // a host that is silent says nothing of another one; one that has been heard, and fails here, may know of a primary
            (Whom::UpstreamOf(at), Err(error)) => {
                if self.nodes[at].found.is_ok() && self.upstreams[at].is_none() {
                    self.upstreams[at] = Some(Ok(Answer::Unknown(error.message)));
                }
            }
            (Whom::Node(at), Ok(Found::Node(description))) => self.nodes[at].found = Ok(*description),
            (_, Ok(Found::Node(_))) => {}
            (Whom::Old, Err(error)) => self.old = Some(Err(error)),
            // a question that could not be asked is answered by nobody's silence
            (Whom::Upstream, Err(error)) => {
                let unknown = Answer::Unknown(error.message);
                self.upstream = Some(Ok(after_answer(self.upstream.take(), unknown)));
            }
            (Whom::Node(at), Err(error)) => {
                let Node { name, found } = &mut self.nodes[at];
                match found {
                    Ok(_) => log::warning(&format!("{name} did not answer again: {}", error.message)),
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

    /// Whether a server runs where the old primary should be, or may do so.
    pub(super) fn old_runs(&self) -> bool {
        match &self.old {
            Some(Ok(session)) => {
                session.target().running.is_some() || session.target().doubts.server.is_some()
            }
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

    /// Why the server that this standby or a node follows is known to live, if it is a primary or may be one.
    pub(super) fn upstream_lives(&self) -> Option<String> {
        let lives = |who: &str, answer: &Option<Result<Answer>>| match answer {
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
        self.find_upstream(|who, answer| match answer {
            Some(Ok(Answer::Unknown(why))) => Some(format!(
                "The server that {who} follows (primary_conninfo) could not be asked: {}.",
                ended(why)
            )),
            _ => None,
        })
    }

    fn find_upstream(
        &self,
        tell: impl Fn(&str, &Option<Result<Answer>>) -> Option<String>,
    ) -> Option<String> {
        let mut of_nodes = self.nodes.iter().zip(&self.upstreams);
        tell("this standby", &self.upstream)
            .or_else(|| of_nodes.find_map(|(node, answer)| tell(&node.name, answer)))
    }

    /// Whether the server that this standby follows lives, by what the walreceiver here has got of it. That of a standby says
    /// nothing of the primary. Whose messages `wait` tells.
    pub(super) fn upstream_heard(&self, wait: Wait, clock: &Clock, reserve: Duration) -> Result<Verdict> {
        if self.upstream.is_none() {
            return Ok(Verdict::Silent);
        }
        self.heard.verdict(wait, &self.standbys, clock, reserve)
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

    /// Whether this standby follows another one, and no node that answers as a standby follows anything else than a standby: then
    /// nobody tells whether the primary lives.
    pub(super) fn follows_an_unknown_standby(&self) -> bool {
        let is_standby = |node: &Node| matches!(&node.found, Ok(Description { said: Some(Ok(said)), .. }) if said.in_recovery);
        let follows_a_standby = |answer: &Option<Result<Answer>>| matches!(answer, Some(Ok(Answer::Standby)));
        let mut nodes = self.nodes.iter().zip(&self.upstreams);
        matches!(self.upstream, Some(Ok(Answer::Standby)))
            && !nodes.any(|(node, upstream)| is_standby(node) && !follows_a_standby(upstream))
    }
}

/// Without the full stop of its own.
fn ended(text: &str) -> &str {
    text.trim_end().trim_end_matches('.')
}

/// What counts of the server that is followed once it is asked again.
fn after(before: Option<Result<Answer>>, now: Result<Answer>) -> Result<Answer> {
    match now {
        Ok(answer) => Ok(after_answer(before, answer)),
        Err(silence) => after_silence(before, silence),
    }
}

/// The same if it answers: that a question fails takes nothing back.
fn after_answer(before: Option<Result<Answer>>, now: Answer) -> Answer {
    match (before, now) {
        (Some(Ok(before @ (Answer::Primary(_) | Answer::Lives(_)))), Answer::Unknown(_)) => before,
        (_, now) => now,
    }
}

const fn again(has_answered: bool) -> Duration {
    if has_answered { AGAIN } else { SILENT }
}

/// What counts of the server that is followed once it is silent: a refused connection tells that it has ended.
fn after_silence(before: Option<Result<Answer>>, silence: Error) -> Result<Answer> {
    match before {
        Some(Ok(answer)) if !upstream::is_refused(&silence) => Ok(answer),
        _ => Err(silence),
    }
}

/// Silence counts only if there was time enough to speak.
fn unless_hurried(answer: Result<Answer>, full: Duration, time: Duration) -> Result<Answer> {
    match answer {
        Err(error) if time < full && upstream::is_silence(&error) && !upstream::is_refused(&error) => {
            let time = time.as_secs_f32();
            Ok(Answer::Unknown(format!("no answer within {time:.1} s, and \"deadline\" leaves it no more")))
        }
        answer => answer,
    }
}

/// The nodes that are not the old primary.
fn others(old: Option<&Old>, nodes: &[OtherNode]) -> Vec<OtherNode> {
    nodes.iter().filter(|node| !old.is_some_and(|old| old.is(node))).cloned().collect()
}

impl Old {
    /// Whether a node is this one.
    pub(super) fn is(&self, node: &OtherNode) -> bool {
        self.host == node.host && (self.directory == node.directory || self.port == node.port)
    }
}

fn old_job(old: &Old, settings: &Settings, time: Duration) -> Result<Job<'static, Found>> {
    let way = Way::to(&old.host, &old.directory, settings)?;
    let look = move |cancel: &Cancel| way.look(cancel).map(|session| Found::Old(Box::new(session)));
    Ok(Job { name: old.name(), time, work: Box::new(look) })
}

fn old_said_job(old: &Old, settings: &Settings, time: Duration) -> Result<Job<'static, Found>> {
    let way = Way::to(&old.host, &old.directory, settings)?;
    let describe = move |cancel: &Cancel| Ok(Found::OldSaid(Box::new(way.look(cancel)?.describe()?)));
    Ok(Job { name: old.name(), time, work: Box::new(describe) })
}

fn node_job(node: &OtherNode, settings: &Settings, time: Duration) -> Result<Job<'static, Found>> {
    let way = Way::to(&node.host, &node.directory, settings)?;
    let describe = move |cancel: &Cancel| {
        let description = way.look(cancel)?.describe()?;
        Ok(Found::Node(Box::new(description)))
    };
    Ok(Job { name: node.name(), time, work: Box::new(describe) })
}

/// What a node's own upstream is, asked by its host over the node's own connection string. Fails only if the host is silent: one that
/// was reached and does not tell, or not in time, may know of a primary.
fn upstream_of(
    node: &OtherNode,
    settings: &Settings,
    full: Duration,
    time: Duration,
) -> Result<Job<'static, Found>> {
    let way = Way::to(&node.host, &node.directory, settings)?;
    let ask = move |cancel: &Cancel| {
        let mut session = way.look(cancel)?;
        Ok(Found::UpstreamOf(match session.upstream(time) {
            Ok(answer) => answer.map(|answer| unless_hurried(answer, full, time)),
            Err(error) => Some(Ok(Answer::Unknown(error.message))),
        }))
    };
    Ok(Job {
        name: format!("the server that {} follows", node.name()),
        time: time + ON_THE_WAY,
        work: Box::new(ask),
    })
}

fn upstream_job(
    system_identifier: u64,
    full: Duration,
    time: Duration,
) -> Result<Option<Job<'static, Found>>> {
    let Some(conninfo) = catalog::setting("primary_conninfo")?.filter(|conninfo| !conninfo.is_empty()) else {
        return Ok(None);
    };
    let (programs, directory) =
        (PathBuf::from(catalog::bin_directory()?), PathBuf::from(catalog::data_directory()?));
    // the walreceiver has the same
    let environment: Vec<_> = std::env::vars_os().collect();
    let ask = move |cancel: &Cancel| {
        let upstream = Upstream {
            bin_directory: &programs,
            data_directory: &directory,
            conninfo: &conninfo,
            environment: &environment,
            system_identifier,
        };
        let Told { answer, standbys } = upstream.ask(time, cancel)?;
        Ok(Found::Upstream(Told { answer: unless_hurried(answer, full, time), standbys }))
    };
    // it keeps to its time itself
    let time = time + ON_THE_WAY;
    Ok(Some(Job { name: "the server that this standby follows".to_owned(), time, work: Box::new(ask) }))
}

fn at_once(jobs: Vec<Job<'_, Found>>) -> Result<Vec<Result<Found>>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let cancel = Cancel::new();
    threads::wait(&cancel, &mut || Ok(()), || Ok(parallel::ask(jobs, &cancel)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_if_there_was_time_to_speak() {
        let silent = |detail: &str| Err(Error::new(Kind::Unreachable, "no answer").detail(detail));
        let second = Duration::from_secs(1);
        assert!(unless_hurried(silent("timeout expired"), ANSWER, ANSWER).is_err());
        assert!(unless_hurried(silent("Connection refused"), ANSWER, second).is_err(), "it is none");
        let hurried = unless_hurried(silent("timeout expired"), ANSWER, second);
        assert!(matches!(hurried, Ok(Answer::Unknown(why)) if why.contains("deadline")));
        assert_eq!(unless_hurried(Ok(Answer::Standby), ANSWER, second), Ok(Answer::Standby));
    }

    #[test]
    fn silence_does_not_take_back_that_a_primary_lives() {
        let silence = |detail: &str| Error::new(Kind::Unreachable, "no answer").detail(detail);
        let after = |before, detail| after_silence(before, silence(detail));
        assert!(after(None, "timeout expired").is_err());
        assert!(after(Some(Err(silence("timeout expired"))), "timeout expired").is_err());
        assert_eq!(after(Some(Ok(Answer::Standby)), "timeout expired"), Ok(Answer::Standby));
        let unknown = || Answer::Unknown("no psql".to_owned());
        for lives in [Answer::Primary(1), Answer::Lives("FATAL: no".to_owned()), unknown()] {
            assert_eq!(after(Some(Ok(lives.clone())), "timeout expired"), Ok(lives.clone()));
            assert!(after(Some(Ok(lives.clone())), "Connection refused").is_err());
            assert_eq!(after_answer(Some(Ok(lives.clone())), unknown()), lives);
            assert_eq!(after_answer(Some(Ok(lives)), Answer::Standby), Answer::Standby);
        }
        for before in [None, Some(Ok(Answer::Standby)), Some(Err(silence("timeout expired")))] {
            assert_eq!(after_answer(before, unknown()), unknown());
        }
    }
}

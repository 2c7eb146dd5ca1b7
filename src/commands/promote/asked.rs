//! What the old primary, the other nodes and the server that this standby follows say, all asked at once.

use std::path::PathBuf;
use std::time::Duration;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::upstream::{self, Upstream};
use pgpool_recovery_core::preflight::promote::{self, Node};
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::parallel::{self, Job};
use pgpool_recovery_core::wire::protocol::describe::Description;
use pgpool_recovery_core::wire::protocol::upstream::Answer;

use super::Old;
use super::heard::{Heard, Wait};
use crate::commands::clock::Clock;
use crate::pg::threads::{self, DropAside};
use crate::pg::{catalog, log};
use crate::preflight::reach::Way;
use crate::settings::{OtherNode, Settings};

/// How long each may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

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
    /// The nodes, without the old primary.
    pub(super) nodes: Vec<Node>,
    /// What the server that this standby follows is, if it follows one.
    upstream: Option<Result<Answer>>,
    /// The same of each node, by its own host's word: this standby's way to a primary that lives may be cut.
    upstreams: Vec<Option<Result<Answer>>>,
    /// What this standby's own walreceiver has heard of it.
    heard: Heard,
}

/// Who is asked.
#[derive(Clone, Copy)]
enum Whom {
    Old,
    Upstream,
    Node(usize),
    UpstreamOf(usize),
}

/// One answer.
enum Found {
    Old(Box<DropAside<Session>>),
    Node(Box<Description>),
    Upstream(Answer),
    UpstreamOf(Option<Answer>),
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
            nodes,
            upstream: None,
            upstreams,
            heard,
        };
        let upstreams = (0..asked.others.len()).map(Whom::UpstreamOf);
        let whom: Vec<Whom> = asked.all().into_iter().chain(upstreams).collect();
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
                Whom::Upstream => {
                    let time = time(matches!(self.upstream, Some(Ok(_)))).min(clock.left());
                    upstream_job(system_identifier, time)?
                }
                Whom::UpstreamOf(at) => {
                    Some(upstream_of(&self.others[at], self.settings, time(true).min(clock.left()))?)
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
            (_, Ok(Found::Upstream(answer))) => {
                self.upstream = Some(Ok(after_answer(self.upstream.take(), answer)));
            }
            (Whom::UpstreamOf(at), Ok(Found::UpstreamOf(answer))) => {
                let before = self.upstreams[at].take();
                self.upstreams[at] = answer.map(|answer| Ok(after_answer(before, answer)));
            }
            (_, Ok(Found::UpstreamOf(_))) => {}
            (Whom::UpstreamOf(at), Err(error)) => {
                self.upstreams[at] = Some(after_silence(self.upstreams[at].take(), error));
            }
            (Whom::Node(at), Ok(Found::Node(description))) => self.nodes[at].found = Ok(*description),
            (_, Ok(Found::Node(_))) => {}
            (Whom::Old, Err(error)) => self.old = Some(Err(error)),
            (Whom::Upstream, Err(error)) if upstream::is_silence(&error) => {
                self.upstream = Some(after_silence(self.upstream.take(), error));
            }
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

    /// Why the server that this standby follows is known to live, by what the walreceiver here has got of it. That of a standby says
    /// nothing of the primary. Whose messages `wait` tells.
    pub(super) fn upstream_heard(
        &self,
        wait: Wait,
        clock: &Clock,
        reserve: Duration,
    ) -> Result<Option<String>> {
        if matches!(self.upstream, None | Some(Ok(Answer::Standby))) {
            return Ok(None);
        }
        Ok(self.heard.lives(wait, clock, reserve)?.then(|| {
            format!("The server that this standby follows (primary_conninfo) lives: {}.", upstream::HEARD)
        }))
    }

    /// Counts only what the walreceiver hears from now on.
    pub(super) fn hear_anew(&mut self) -> Result<()> {
        self.heard = Heard::since_now()?;
        Ok(())
    }

    /// On which timeline the old primary's directory was found.
    pub(super) fn old_timeline(&self) -> Option<u32> {
        self.old.as_ref()?.as_ref().ok()?.target().timeline
    }

    /// Whether this standby follows another one, and no node that answers as a standby may be that one: then nobody tells whether the
    /// primary lives.
    pub(super) fn follows_an_unknown_standby(&self) -> bool {
        let is_standby = |node: &Node| matches!(&node.found, Ok(Description { said: Some(Ok(said)), .. }) if said.in_recovery);
        matches!(self.upstream, Some(Ok(Answer::Standby))) && !self.nodes.iter().any(is_standby)
    }
}

/// Without the full stop of its own.
fn ended(text: &str) -> &str {
    text.trim_end().trim_end_matches('.')
}

/// What counts of the server that this standby follows once it is asked again: that a question fails takes nothing back.
fn after_answer(before: Option<Result<Answer>>, now: Answer) -> Answer {
    match (before, now) {
        (Some(Ok(before @ (Answer::Primary(_) | Answer::Lives(_)))), Answer::Unknown(_)) => before,
        (_, now) => now,
    }
}

const fn again(has_answered: bool) -> Duration {
    if has_answered { AGAIN } else { SILENT }
}

/// What counts of the server that this standby follows once it is silent: a refused connection tells that it has ended.
fn after_silence(before: Option<Result<Answer>>, silence: Error) -> Result<Answer> {
    match before {
        Some(Ok(answer)) if answer.may_be_primary() && !upstream::is_refused(&silence) => Ok(answer),
        _ => Err(silence),
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

fn node_job(node: &OtherNode, settings: &Settings, time: Duration) -> Result<Job<'static, Found>> {
    let way = Way::to(&node.host, &node.directory, settings)?;
    let describe = move |cancel: &Cancel| {
        let description = way.look(cancel)?.describe()?;
        Ok(Found::Node(Box::new(description)))
    };
    Ok(Job { name: node.name(), time, work: Box::new(describe) })
}

/// What a node's own upstream is, asked by its host over the node's own connection string.
fn upstream_of(node: &OtherNode, settings: &Settings, time: Duration) -> Result<Job<'static, Found>> {
    let way = Way::to(&node.host, &node.directory, settings)?;
    let ask = move |cancel: &Cancel| way.look(cancel)?.upstream(time).map(Found::UpstreamOf);
    Ok(Job { name: format!("the server that {} follows", node.name()), time, work: Box::new(ask) })
}

fn upstream_job(system_identifier: u64, time: Duration) -> Result<Option<Job<'static, Found>>> {
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
        upstream.ask(time, cancel).map(Found::Upstream)
    };
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
    fn silence_does_not_take_back_that_a_primary_lives() {
        let silence = |detail: &str| Error::new(Kind::Unreachable, "no answer").detail(detail);
        let after = |before, detail| after_silence(before, silence(detail));
        assert!(after(None, "timeout expired").is_err());
        assert!(after(Some(Ok(Answer::Other)), "timeout expired").is_err());
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

//! May this standby be promoted? What the other nodes say, and what is known of the old primary.
//!
//! Two primaries are worse than none, so a primary that is known to live is a refusal; and so is a standby that has more of the
//! history, since promoting another one loses what it has.

use pgdata::wal::Lsn;

use crate::compare::wal_map::Lineage;
use crate::error::{Error, Kind, Result};
use crate::wire::protocol::describe::Description;
use crate::wire::protocol::fence::Fenced;
use crate::wire::protocol::message::TargetInfo;
use crate::wire::protocol::stop::Role;

/// The standby that is to be promoted, by its own word.
#[derive(Debug, Clone)]
pub struct Own {
    /// Its system identifier.
    pub system_identifier: u64,
    /// The timeline that it replays, and those before it.
    pub history: Lineage,
    /// How much WAL it has received.
    pub received: Lsn,
}

/// Another node, and what its host says of it.
#[derive(Debug, Clone)]
pub struct Node {
    /// How it is called in messages: `node 2 (db2:5432)`.
    pub name: String,
    /// What was found, or why nothing was.
    pub found: Result<Description>,
}

impl Own {
    /// Refuses a promotion that would make a second primary or lose what another node has. Returns what an operator should
    /// know of nodes that say too little.
    pub fn demand_foremost(&self, nodes: &[Node]) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for node in nodes {
            warnings.extend(self.compare(node)?);
        }
        Ok(warnings)
    }

    /// Whether one of them has received more.
    pub fn lacks(&self, nodes: &[Node]) -> bool {
        nodes.iter().any(|node| match &node.found {
            Ok(Description { control, said: Some(Ok(said)), .. }) => {
                control.system_identifier == self.system_identifier
                    && said.in_recovery
                    && self.is_less_than(said.timeline, said.reached())
            }
            _ => false,
        })
    }

    /// The name of another standby that may be about to be promoted.
    pub fn rival<'a>(&self, nodes: &'a [Node]) -> Option<&'a str> {
        let rival = nodes.iter().find(|node| match &node.found {
            Ok(found) => {
                found.is_busy
                    && found.running.is_some()
                    && found.control.system_identifier == self.system_identifier
            }
            Err(_) => false,
        });
        rival.map(|node| node.name.as_str())
    }

    /// Refuses a promotion after another one: the directory of the old primary has a timeline that this server does not know.
    pub fn demand_not_replaced(
        &self,
        name: &str,
        system_identifier: Option<u64>,
        timeline: Option<u32>,
    ) -> Result<()> {
        let is_kin = system_identifier == Some(self.system_identifier);
        match timeline.filter(|timeline| is_kin && self.is_unknown(*timeline)) {
            Some(timeline) => Err(self.later(name, timeline)),
            None => Ok(()),
        }
    }

    /// Whether a timeline is later than the own one, and not in its history. A server of it was promoted, whether one runs there now
    /// or not.
    fn is_unknown(&self, timeline: u32) -> bool {
        timeline > self.history.timeline() && self.history.range(timeline).is_none()
    }

    fn later(&self, name: &str, timeline: u32) -> Error {
        let own = self.history.timeline();
        let message = format!("{name} is on timeline {timeline}, this standby on timeline {own}");
        Error::new(Kind::WrongState, message)
            .detail("So another server has been promoted already; promoting this one would make a second primary.")
            .hint("Find the primary of that timeline. If there is none any more, promote the standby that is on it, or do not name the node.")
    }

    fn compare(&self, Node { name, found }: &Node) -> Result<Option<String>> {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                return Ok(Some(format!(
                    "{name} did not say how much WAL it has received: {}",
                    error.message
                )));
            }
        };
        let theirs = found.control.system_identifier;
        if theirs != self.system_identifier {
            return Ok(Some(format!("{name} is of another system: its system identifier is {theirs}")));
        }
        let is_standby = found.has_standby_signal;
        let writes = matches!(&found.said, Some(Ok(said)) if !said.in_recovery);
        let latest = found.history.timeline();
        if self.is_unknown(latest) && !(writes && found.running.is_some()) {
            return Err(self.later(name, latest));
        }
        if found.running.is_none() {
            let reached = found.control.recovery.min_recovery_point;
            if is_standby && self.is_less_than(found.history.timeline(), reached) {
                return Err(self.behind(name, reached));
            }
            return Ok(Some(format!("{name} is not running")));
        }
        match &found.said {
            Some(Ok(said)) if !said.in_recovery => Err(second_primary(name, said.timeline)),
            Some(Ok(said)) => self.compare_standby(name, said.timeline, said.reached()),
            // what a server does not say its files may tell
            _ if !is_standby => Err(second_primary(name, found.history.timeline())),
            silent => {
                let why = match silent {
                    Some(Err(error)) => error.message.clone(),
                    _ => "it says nothing".to_owned(),
                };
                Ok(Some(format!("{name} did not say how much WAL it has received: {why}")))
            }
        }
    }

    fn compare_standby(&self, name: &str, timeline: u32, reached: Lsn) -> Result<Option<String>> {
        if self.is_less_than(timeline, reached) {
            return Err(self.behind(name, reached));
        }
        match self.history.range(timeline) {
            Some((_, end)) if reached <= end => Ok(None),
            None if self.is_unknown(timeline) => Err(self.later(name, timeline)),
            _ => Ok(Some(format!(
                "{name} has left the history of this standby: it is on timeline {timeline} at {reached}"
            ))),
        }
    }

    /// Whether another standby on this server's own timeline has more.
    fn is_less_than(&self, timeline: u32, reached: Lsn) -> bool {
        timeline == self.history.timeline() && reached > self.received
    }

    fn behind(&self, name: &str, reached: Lsn) -> Error {
        let message = format!("{name} has received more WAL than this standby");
        Error::new(Kind::WrongState, message)
            .detail(format!(
                "It has received WAL up to {reached}, this standby up to {}; what lies between would be lost.",
                self.received
            ))
            .hint("Promote that node instead. To give up what it has, leave it out of \"nodes\".")
    }
}

fn second_primary(name: &str, timeline: u32) -> Error {
    Error::new(Kind::WrongState, format!("{name} runs as a primary already"))
        .detail(format!("It is on timeline {timeline}. Promoting this standby would make a second primary."))
        .hint("If that server is the primary now, let this one follow it. Otherwise stop it first.")
}

const REPLACED_BEFORE: &str =
    "It had been replaced before, so that its end says nothing of the primary that this standby follows.";

/// How much is made of the old primary's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fencing {
    /// It is left alone.
    Off,
    /// It is stopped if it can be reached.
    BestEffort,
    /// Without its end nothing is promoted.
    Required,
}

/// What is known of the old primary.
#[derive(Debug, Clone)]
pub struct OldPrimary {
    /// What became of its fencing; none if that was not tried.
    pub fenced: Option<Result<Fenced>>,
    /// Why it is known to live, if it is.
    pub lives: Option<String>,
    /// Why it is not known whether it lives.
    pub unknown: Option<String>,
}

impl OldPrimary {
    /// Whether it was stopped for good.
    pub const fn is_fenced(&self) -> bool {
        matches!(self.fenced, Some(Ok(_)))
    }

    /// What an operator should know of WAL that the old primary has written and this standby has not `received`.
    pub fn lost(&self, received: Lsn) -> Option<String> {
        let Some(Ok(Fenced { checkpoint: Some(end), .. })) = &self.fenced else { return None };
        (*end > received).then(|| {
            format!("the old primary has written WAL up to {end}, this standby has received WAL up to {received}: what lies between is lost")
        })
    }

    /// Whether that was the primary of the timeline that this standby is on: then there is no other. The end of one that had been
    /// replaced before says nothing of the primary.
    pub const fn own_has_ended(&self) -> bool {
        matches!(self.fenced, Some(Ok(Fenced { role: Role::OwnPrimary, .. })))
    }

    /// Refuses a promotion beside a primary that lives, or one whose end was required. Returns what an operator should know
    /// if it goes on without.
    pub fn demand_gone(&self, fencing: Fencing) -> Result<Option<String>> {
        let failure = match &self.fenced {
            Some(Err(error)) => Some(error),
            _ => None,
        };
        if let Some(lives) = &self.lives {
            let mut detail = lives.clone();
            if let Some(error) = failure {
                detail = format!("{detail} It could not be fenced: {}.", error.message);
                detail.extend(error.detail.iter().flat_map(|more| [" ", more]));
            }
            let hint =
                failure.and_then(|error| error.hint.as_deref()).unwrap_or("Name it as the old primary.");
            return Err(Error::new(Kind::WrongState, "another primary is alive: nothing is promoted")
                .detail(detail)
                .hint(format!("Stop it first, or let it be stopped. {hint}")));
        }
        if let Some(unknown) = &self.unknown
            && !self.own_has_ended()
        {
            let mut detail = unknown.clone();
            if let Some(error) = failure {
                detail = format!("{detail} The old primary could not be fenced: {}.", error.message);
            }
            let message = "cannot tell whether the primary lives: nothing is promoted";
            return Err(Error::new(Kind::WrongState, message).detail(detail).hint(
                "Mend what keeps psql from logging in there as the walreceiver does, or name the old primary, so that the agent on its \
                 host stops it. If it is known to be gone, empty primary_conninfo (of another node: leave that out of \"nodes\"), and \
                 promote again.",
            ));
        }
        match (fencing, failure) {
            (Fencing::Required, Some(error)) => {
                let mut error = error.clone();
                error.message = format!("the old primary could not be fenced: {}", error.message);
                let hint = error.hint.take().map_or_else(String::new, |hint| format!(" {hint}"));
                Err(error.hint(format!("\"fence\" is \"required\", so nothing was promoted.{hint}")))
            }
            (Fencing::Required, None) if self.fenced.is_none() => Err(Error::new(
                Kind::InvalidArgument,
                "no old primary is named, but \"fence\" is \"required\"",
            )
            .detail("What is not known cannot be fenced.")
            .hint("Pass old_host, old_dir and old_port, or another value of option \"fence\".")),
            (Fencing::Required, None) if !self.own_has_ended() => {
                let message = "what was fenced is an earlier primary, but \"fence\" is \"required\"";
                Err(Error::new(Kind::WrongState, message).detail(REPLACED_BEFORE).hint(
                    "Name the primary of this standby's own timeline, or pass another value of option \"fence\".",
                ))
            }
            (_, None) if self.is_fenced() && !self.own_has_ended() => {
                Ok(Some(format!("what was fenced is an earlier primary. {REPLACED_BEFORE}")))
            }
            (_, Some(error)) => Ok(Some(format!("the old primary could not be fenced: {}", error.message))),
            _ => Ok(None),
        }
    }
}

/// Why the server in a directory is a primary of this system that lives, as its host says; none if it is known not to be.
pub fn lives(target: &TargetInfo, system_identifier: u64) -> Option<String> {
    let directory = target.directory.display();
    if let Some(doubt) = &target.doubts.server {
        return Some(format!("Its host cannot tell whether it runs: {}.", doubt.message));
    }
    let process = target.running?;
    if target.system_identifier.is_some_and(|theirs| theirs != system_identifier) {
        return None;
    }
    use pgdata::control_file::State;
    let in_production = target
        .control
        .as_ref()
        .is_none_or(|control| matches!(control.state, State::InProduction | State::ShuttingDown));
    (!target.backup.has_standby_signal || in_production)
        .then(|| format!("The server in \"{directory}\" runs as a primary (process {process})."))
}

#[cfg(test)]
pub(super) mod tests {
    use pgdata::control_file::{ControlFile, State, sample};
    use pgdata::history::Ancestor;

    use super::*;
    use crate::wire::protocol::describe::Said;

    const ANCESTORS: [Ancestor; 1] = [Ancestor { timeline: 1, end: Lsn(100) }];

    /// A standby on timeline 2, which has sprung from 1 at 100, and has received 200.
    pub(in crate::preflight) fn own() -> Own {
        Own { system_identifier: 42, history: Lineage::new(2, &ANCESTORS), received: Lsn(200) }
    }

    pub(in crate::preflight) fn said(timeline: u32, reached: u64, in_recovery: bool) -> Said {
        Said {
            in_recovery,
            timeline,
            position: Lsn(reached),
            received: None,
            replayed: None,
            is_paused: false,
            apply_delay: 0,
        }
    }

    pub(in crate::preflight) fn description(said: Option<Result<Said>>) -> Description {
        let mut control = ControlFile::parse(&sample(42)).expect("a sample");
        control.state = State::InArchiveRecovery;
        control.recovery.min_recovery_point = Lsn(150);
        Description {
            stopped_startup: None,
            running: said.as_ref().map(|_| 77),
            has_standby_signal: true,
            control,
            major_version: Some("15".to_owned()),
            history: Lineage::new(2, &ANCESTORS),
            landmark: None,
            said,
            is_busy: false,
            fence: None,
            second_stage: None,
        }
    }

    fn judge(found: Result<Description>) -> std::result::Result<Vec<String>, Error> {
        own().demand_foremost(&[Node { name: "node 2 (db2:5432)".to_owned(), found }])
    }

    fn standby(timeline: u32, reached: u64) -> std::result::Result<Vec<String>, Error> {
        judge(Ok(description(Some(Ok(said(timeline, reached, true))))))
    }

    #[test]
    fn a_standby_that_has_received_more_is_named() {
        assert_eq!(standby(2, 200), Ok(Vec::new()));
        assert_eq!(standby(2, 150), Ok(Vec::new()));
        assert_eq!(standby(1, 100), Ok(Vec::new()), "it has not come to this timeline yet");
        let error = standby(2, 201).expect_err("refused");
        assert_eq!(
            (error.kind, error.message.as_str()),
            (Kind::WrongState, "node 2 (db2:5432) has received more WAL than this standby")
        );
        assert!(error.detail.is_some_and(|detail| detail.contains("0/C9") && detail.contains("0/C8")));
        let mut stopped = description(None);
        assert_eq!(judge(Ok(stopped.clone())).expect("goes on").len(), 1, "it is not running");
        stopped.control.recovery.min_recovery_point = Lsn(201);
        assert!(judge(Ok(stopped)).expect_err("refused").message.contains("received more"));
    }

    #[test]
    fn a_second_primary_is_named() {
        for (timeline, reached) in [(1, 50), (2, 100), (3, 300)] {
            let error =
                judge(Ok(description(Some(Ok(said(timeline, reached, false)))))).expect_err("refused");
            assert_eq!(error.message, "node 2 (db2:5432) runs as a primary already");
        }
        let error = standby(3, 150).expect_err("a primary of that timeline was promoted");
        assert!(
            error.message.contains("timeline 3")
                && error.detail.is_some_and(|it| it.contains("second primary"))
        );
        // one that says nothing, and has no signal file
        let silent = || Some(Err(Error::new(Kind::StartFailed, "no login")));
        let mute = Description { has_standby_signal: false, ..description(silent()) };
        assert!(judge(Ok(mute)).expect_err("refused").message.contains("runs as a primary"));
        let [warning] = judge(Ok(description(silent()))).expect("goes on").try_into().expect("one");
        assert!(warning.contains("no login"), "{warning}");
    }

    #[test]
    fn a_node_that_is_none_of_this_history_hinders_nothing() {
        let mut other = description(Some(Ok(said(2, 900, true))));
        other.control.system_identifier = 7;
        let unreachable = Err(Error::new(Kind::Unreachable, "no agent"));
        for (found, why) in [(Ok(other), "another system"), (unreachable, "no agent")] {
            let [warning] = judge(found).expect("goes on").try_into().expect("one");
            assert!(warning.contains(why) && warning.starts_with("node 2"), "{warning}");
        }
        let [diverged] = standby(1, 150).expect("goes on").try_into().expect("one");
        assert!(diverged.contains("left the history"), "{diverged}");
    }

    fn failed() -> Option<Result<Fenced>> {
        Some(Err(Error::new(Kind::Unreachable, "no agent").detail("Detail.").hint("Hint.")))
    }

    fn done() -> Option<Result<Fenced>> {
        fenced(Role::OwnPrimary)
    }

    fn fenced(role: Role) -> Option<Result<Fenced>> {
        Some(Ok(Fenced { role, stopped: None, checkpoint: None }))
    }

    #[test]
    fn what_lives_is_a_refusal_whatever_is_asked_for() {
        for fencing in [Fencing::Off, Fencing::BestEffort, Fencing::Required] {
            for fenced in [failed(), None] {
                let old = OldPrimary { lives: Some("It answers.".to_owned()), ..of(fenced) };
                let error = old.demand_gone(fencing).expect_err("refused");
                assert_eq!((error.kind, error.message.contains("alive")), (Kind::WrongState, true));
                assert!(error.hint.is_some() && error.detail.is_some_and(|it| it.starts_with("It answers.")));
            }
            assert_eq!(of(done()).demand_gone(fencing), Ok(None));
        }
    }

    fn of(fenced: Option<Result<Fenced>>) -> OldPrimary {
        OldPrimary { fenced, lives: None, unknown: None }
    }

    #[test]
    fn what_is_not_known_is_a_refusal_unless_the_primary_was_stopped() {
        for fencing in [Fencing::Off, Fencing::BestEffort, Fencing::Required] {
            let unknown = |fenced| {
                OldPrimary { unknown: Some("No psql.".to_owned()), ..of(fenced) }.demand_gone(fencing)
            };
            for fenced in [failed(), None, fenced(Role::FormerPrimary)] {
                let error = unknown(fenced).expect_err("refused");
                assert_eq!((error.kind, error.message.contains("cannot tell")), (Kind::WrongState, true));
                assert!(error.hint.is_some() && error.detail.is_some_and(|it| it.starts_with("No psql.")));
            }
            assert_eq!(unknown(done()), Ok(None));
        }
    }

    #[test]
    fn what_the_old_primary_had_more_is_told() {
        let ended = |checkpoint| of(Some(Ok(Fenced { role: Role::OwnPrimary, stopped: None, checkpoint })));
        assert!(
            ended(Some(Lsn(201))).lost(Lsn(200)).is_some_and(|it| it.contains("0/C9") && it.contains("0/C8"))
        );
        assert_eq!(ended(Some(Lsn(200))).lost(Lsn(200)), None);
        assert_eq!(ended(None).lost(Lsn(0)), None);
        assert_eq!(of(failed()).lost(Lsn(0)), None);
    }

    #[test]
    fn the_end_of_an_earlier_primary_is_none_of_this_one() {
        let gone = |fencing| of(fenced(Role::FormerPrimary)).demand_gone(fencing);
        let error = gone(Fencing::Required).expect_err("refused");
        assert!(error.message.contains("earlier primary") && error.kind == Kind::WrongState, "{error:?}");
        let warning = gone(Fencing::BestEffort).expect("goes on").expect("a warning");
        assert!(warning.contains("replaced before"), "{warning}");
    }

    #[test]
    fn a_later_timeline_is_a_refusal_whether_its_server_runs_or_not() {
        let mut later = description(None);
        later.history = Lineage::new(3, &[Ancestor { timeline: 2, end: Lsn(150) }]);
        for has_standby_signal in [true, false] {
            let silent = Some(Err(Error::new(Kind::StartFailed, "no login")));
            for said in [None, silent] {
                later.running = said.as_ref().map(|_| 77);
                let found = Description { has_standby_signal, said, ..later.clone() };
                let error = judge(Ok(found)).expect_err("another one was promoted");
                assert!(error.message.contains("is on timeline 3"), "{error:?}");
            }
        }
        let error = own().demand_not_replaced("it", Some(42), Some(3)).expect_err("refused");
        assert!(error.message.contains("timeline 3"), "{error:?}");
        for (system_identifier, timeline) in
            [(Some(42), Some(2)), (Some(42), Some(1)), (Some(7), Some(3)), (None, None)]
        {
            assert_eq!(own().demand_not_replaced("it", system_identifier, timeline), Ok(()));
        }
    }

    #[test]
    fn a_fence_that_fails_counts_as_much_as_is_asked_for() {
        let gone = |fenced, fencing| of(fenced).demand_gone(fencing);
        let warning = gone(failed(), Fencing::BestEffort).expect("goes on").expect("a warning");
        assert!(warning.contains("no agent"), "{warning}");
        let error = gone(failed(), Fencing::Required).expect_err("refused");
        assert!(error.message.contains("no agent") && error.kind == Kind::Unreachable, "{error:?}");
        assert_eq!(gone(None, Fencing::BestEffort), Ok(None), "none was known");
        assert_eq!(gone(None, Fencing::Off), Ok(None));
        assert_eq!(gone(None, Fencing::Required).expect_err("refused").kind, Kind::InvalidArgument);
    }
}

//! Blocks that WAL proves equal: from the setting to what the report says of them.

use pgdata::wal::Lsn;
use pgpool_recovery_core::compare::wal_map::Reason;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sender::proof::{Account, Proof, Rejected, Source};
use pgpool_recovery_core::sender::skip::{Skip, Skipped};
use pgpool_recovery_core::wire::protocol::message::{Content, TargetInfo};
use serde_json::{Value, json};

use crate::history::History;
use crate::pg::slot::Slot;
use crate::pg::threads::DropAside;
use crate::pg::{backup, catalog};
use crate::preflight::PrimaryFacts;
use crate::run::Run;
use crate::settings::SkipUnchanged;

/// How a run deals with blocks that need not be read.
pub(crate) struct Unchanged {
    mode: SkipUnchanged,
    sampled: u64,
    state: State,
}

/// How far the proof has come.
enum State {
    /// The setting is off, or there is nothing that could be left out.
    Unused(Option<&'static str>),
    /// It holds so far. A thread reads the WAL on: its end is waited for as that of any other.
    Proved(DropAside<Box<(Source, Proof)>>),
    /// It holds.
    Decided(Box<Account>),
    /// It does not hold.
    Rejected(Rejected),
}

impl Unchanged {
    /// Reads the WAL of both sides before the backup, while there is most of it.
    pub(crate) fn prove(
        facts: &PrimaryFacts,
        target: &TargetInfo,
        session: DropAside<Session>,
        run: &mut Run<'_>,
    ) -> Result<(DropAside<Session>, Self)> {
        let request = &facts.request;
        let mode = match facts.settings.skip_unchanged {
            // what has failed once must prove itself again
            SkipUnchanged::On if is_contradicted(&request.dest_host, &request.dest_dir)? => {
                SkipUnchanged::Shadow
            }
            mode => mode,
        };
        let share = facts.settings.skip_sample;
        let made = |state| Self { mode, sampled: (100.0 / share) as u64, state };
        if mode == SkipUnchanged::Off {
            return Ok((session, made(State::Unused(None))));
        }
        let unused = if facts.primary.in_recovery {
            // what it has flushed is another server's WAL
            Some("this server is a standby")
        } else {
            (target.content != Content::Cluster).then_some("the target has no data")
        };
        if unused.is_some() {
            return Ok((session, made(State::Unused(unused))));
        }
        if !target.control_in_place {
            let rejected = Rejected::Reasons(vec![Reason::ControlAside]);
            return Ok((session, made(State::Rejected(rejected))));
        }
        let resource_managers = catalog::foreign_resource_managers()?;
        let flushed = backup::flushed();
        let tablespaces = run.blocking(|_| facts.tablespaces())?;
        let (session, state) = run.step(session, None, |session: Session| {
            let (control, timeline) = (facts.control.clone(), facts.primary.timeline);
            let source = Source::of(&facts.data_directory, control, timeline, resource_managers, tablespaces);
            let source = match source {
                Ok(source) => source,
                Err(error) => return Ok((session, State::Rejected(Rejected::Failed(error)))),
            };
            let cancel = session.cancel().clone();
            Ok(match session.prove(&source, flushed, &cancel)? {
                Ok(proof) => (session, State::Proved(DropAside::new(Box::new((source, proof))))),
                Err(rejected) => (session, State::Rejected(rejected)),
            })
        })?;
        Ok((session, made(state)))
    }

    /// Reads the rest of the WAL, up to where the backup starts.
    pub(crate) fn complete(
        self,
        start: Option<Lsn>,
        slot: Option<&Slot>,
        run: &mut Run<'_>,
    ) -> Result<(Self, Option<Skip>)> {
        let Self { mode, sampled, state } = self;
        let State::Proved(proved) = state else { return Ok((Self { mode, sampled, state }, None)) };
        let completed = run.blocking_with(slot, |cancel| {
            let (source, proof) = *proved.into_inner();
            proof.complete(&source, start, cancel)
        })?;
        Ok(match completed {
            Ok((skip, account)) => {
                let skip = Skip { leaves_out: mode == SkipUnchanged::On, sampled, ..skip };
                (Self { mode, sampled, state: State::Decided(Box::new(account)) }, Some(skip))
            }
            Err(rejected) => (Self { mode, sampled, state: State::Rejected(rejected) }, None),
        })
    }

    /// In one line, for a NOTICE and the log; `None` where the setting is off.
    pub(crate) fn notice(&self) -> Option<String> {
        Some(match &self.state {
            State::Unused(None) => return None,
            State::Unused(Some(why)) => format!("nothing is left out: {why}"),
            State::Proved(_) => "the proof is not complete".to_owned(),
            State::Decided(account) => {
                let decision = &account.decision;
                let what = if self.mode == SkipUnchanged::On { "left out" } else { "watched" };
                format!(
                    "blocks that the WAL from {} to {} does not name are {what} (hint rule {})",
                    decision.from, decision.to, decision.rule,
                )
            }
            State::Rejected(rejected) => {
                format!("everything is compared: {}", rejected.lines().first().map_or("", String::as_str))
            }
        })
    }

    /// Whether pages contradict the proof; `None` if nothing was found out: a sample that finds nothing proves nothing.
    pub(crate) fn is_contradicted(&self, skipped: Option<&Skipped>) -> Option<bool> {
        let skipped = skipped?;
        match self.mode {
            _ if skipped.refuted > 0 => Some(true),
            SkipUnchanged::Shadow => Some(false),
            SkipUnchanged::Off | SkipUnchanged::On => None,
        }
    }

    /// The answer of a check.
    pub(crate) fn answer(&self) -> Result<String> {
        match (&self.state, self.notice()) {
            (State::Rejected(rejected), _) => {
                Err(Error::new(Kind::WrongState, "every block would be compared")
                    .detail(rejected.lines().join("\n"))
                    .hint("See docs/wal-map.md: what a primary and its standbys need for it."))
            }
            (_, None) => Ok("skip_unchanged is off: every block is compared".to_owned()),
            (_, Some(notice)) => Ok(notice),
        }
    }

    /// What the report says.
    pub(crate) fn report(&self, skipped: Option<&Skipped>) -> Value {
        let mode = match self.mode {
            SkipUnchanged::Off => return Value::Null,
            SkipUnchanged::Shadow => "shadow",
            SkipUnchanged::On => "on",
        };
        match &self.state {
            State::Unused(why) => json!({ "mode": mode, "rule": "hash", "rejected": why.map(|why| [why]) }),
            State::Proved(_) => json!({ "mode": mode, "rule": "hash", "rejected": [] }),
            State::Rejected(rejected) => {
                json!({ "mode": mode, "rule": "hash", "rejected": rejected.lines() })
            }
            State::Decided(account) => decided(mode, account, skipped),
        }
    }
}

fn decided(mode: &str, account: &Account, skipped: Option<&Skipped>) -> Value {
    let Account { decision, source_bytes, summaries, target_bytes, rejoin } = account;
    let rejoin: Value = match rejoin {
        None => json!({ "possible": true }),
        Some(reasons) => {
            let reasons: Vec<String> = reasons.iter().map(Reason::to_string).collect();
            json!({ "possible": false, "reasons": reasons })
        }
    };
    let bytes = skipped.map(|skipped| {
        let bytes = &skipped.breakdown;
        json!({
            "known": bytes.known,
            "listed": bytes.listed,
            "limit": bytes.limit,
            "always": bytes.always,
            "tail": bytes.tail,
        })
    });
    let refutations: Vec<String> = skipped.map(|skipped| refutations(skipped).collect()).unwrap_or_default();
    json!({
        "mode": mode,
        "rule": if skipped.is_some_and(|skipped| skipped.is_left_out) { "wal_map" } else { "hash" },
        "hint_rule": decision.rule,
        "from": decision.from.to_string(),
        "to": decision.to.to_string(),
        "common_to": decision.common_to.to_string(),
        "source": { "wal_bytes": source_bytes, "summaries": summaries },
        "target": { "wal_bytes": target_bytes, "end": decision.target_end.to_string() },
        "bytes": bytes,
        "looked_at": skipped.map(|skipped| skipped.looked),
        "unlogged_differences": skipped.map(|skipped| skipped.unlogged),
        "refuted": skipped.map(|skipped| skipped.refuted),
        "refutations": refutations,
        "rejoin": rejoin,
    })
}

/// The pages that contradict the proof, in words.
pub(crate) fn refutations(skipped: &Skipped) -> impl Iterator<Item = String> {
    skipped.refutations.iter().map(|refutation| {
        format!(
            "page {} of \"{}\": {} (LSN {} on the primary, {} on the target)",
            refutation.page, refutation.file, refutation.why, refutation.source, refutation.target
        )
    })
}

/// Whether the last recoveries of a target found that its WAL does not say everything.
fn is_contradicted(host: &str, directory: &str) -> Result<bool> {
    let last = History::of_this_server()?.recall(host, directory);
    Ok(last.is_some_and(|last| last.is_contradicted))
}

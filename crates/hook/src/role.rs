//! What a node's server says of itself: whether it is a primary or a standby, and of which history.

use std::time::{Duration, Instant};

use crate::Context;
use crate::conf::Node;
use crate::event::Place;
use crate::failure::{Failure, Result};
use crate::silence;
use crate::sql::within;

/// How long a node may take to say what it is.
pub(crate) const LIMIT: Duration = Duration::from_secs(8);

/// A standby's timeline is the latest that it has anything of: it has followed a primary there. Its WAL tells that also after the end
/// of its walreceiver, and before its next restartpoint.
const ROLE: &str = "SELECT json_build_object('is_standby', pg_is_in_recovery(), 'system', \
                    (SELECT system_identifier::text FROM pg_control_system()), 'timeline', CASE WHEN pg_is_in_recovery() \
                    THEN greatest((SELECT timeline_id FROM pg_control_checkpoint()), \
                    (SELECT min_recovery_end_timeline FROM pg_control_recovery()), \
                    (SELECT max(('x' || substr(name, 1, 8))::bit(32)::integer) FROM pg_ls_waldir() \
                    WHERE name ~ '^[0-9A-F]{8}([0-9A-F]{16}|\\.history)$')) \
                    ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::integer END)";

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Role {
    pub(crate) is_standby: bool,
    pub(crate) system: String,
    pub(crate) timeline: u64,
}

/// What the node's server is.
fn role(context: &Context, node: &Node, limit: Duration) -> Result<Role> {
    let said = context.login.json(&node.place(), ROLE, &[], within(limit, context.end));
    let said = said.map_err(|failure| failure.at(node.name()))?;
    match (said["is_standby"].as_bool(), said["system"].as_str(), said["timeline"].as_u64()) {
        (Some(is_standby), Some(system), Some(timeline)) => {
            Ok(Role { is_standby, system: system.to_owned(), timeline })
        }
        _ => Err(Failure::new(format!("{} gave an unexpected answer: {said}", node.name()))),
    }
}

/// Whether the server there is a standby.
pub(crate) fn is_standby(context: &Context, place: &Place, end: Instant) -> Result<bool> {
    let said = context.login.json(place, "SELECT to_json(pg_is_in_recovery())", &[], end)?;
    said.as_bool().ok_or_else(|| Failure::new(format!("it gave an unexpected answer: {said}")))
}

/// What these nodes are, asked side by side.
pub(crate) fn roles<'a>(
    context: &Context,
    nodes: impl IntoIterator<Item = &'a Node>,
    limit: Duration,
) -> Vec<(&'a Node, Result<Role>)> {
    at_once(nodes, |node| role(context, node, limit))
}

/// Which of these nodes are standbys, asked side by side. It takes no right but to log in. One that is said to be silent has been asked at
/// each of its addresses, too.
pub(crate) fn standbys<'a>(
    context: &Context,
    nodes: impl IntoIterator<Item = &'a Node>,
    limit: Duration,
) -> Vec<(&'a Node, Result<bool>)> {
    at_once(nodes, |node| {
        let place = node.place();
        let asked = place.clone();
        // one that answers is not kept waiting for it
        let silent = std::thread::spawn(move || silence::demand(&asked));
        match is_standby(context, &place, within(limit, context.end)) {
            Err(failure) if failure.is_silence() => {
                let silent = silent.join().unwrap_or_else(|_| Err(Failure::new("the question failed")));
                Err(silent.err().unwrap_or(failure))
            }
            said => said,
        }
    })
}

fn at_once<'a, T: Send>(
    nodes: impl IntoIterator<Item = &'a Node>,
    question: impl Fn(&Node) -> Result<T> + Sync,
) -> Vec<(&'a Node, Result<T>)> {
    let question = &question;
    std::thread::scope(|scope| {
        let ask = |node| (node, scope.spawn(move || question(node)));
        let asked: Vec<_> = nodes.into_iter().map(ask).collect();
        let answers = asked.into_iter().map(|(node, answer)| {
            let answer = answer.join().unwrap_or_else(|_| Err(Failure::new("the question failed")));
            (node, answer)
        });
        answers.collect()
    })
}

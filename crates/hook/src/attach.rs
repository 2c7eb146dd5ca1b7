//! `attach`: Pgpool-II attaches whatever it is told to, running or not; this asks first.

use std::time::Instant;

use serde_json::Value;

use crate::Context;
use crate::conf::Node;
use crate::failure::{Failure, Result};
use crate::follow::{let_follow, node};
use crate::pcp::Status;
use crate::role::{LIMIT, Role, roles};

/// Returns what was done.
pub(crate) fn attach(context: &Context, id: u32) -> Result<String> {
    let wanted = node(context, id)?;
    let started = Instant::now();
    let roles = roles(context, &context.nodes, LIMIT);
    let own = roles.iter().find(|(node, _)| node.id == id).map(|(_, role)| role.clone());
    let own = own.unwrap_or_else(|| Err(Failure::new("it was not asked")))?;
    let found = primary(&roles, id)?;
    if found.is_some() || !own.is_standby {
        // else there is none to be wrong about
        let status = |node: &Node| context.pcp.status(node.id, context.end);
        let (one, role) = found.unwrap_or((wanted, &own));
        demand_heard(&roles, one, id, status)?;
        demand_latest(&roles, one, role, id)?;
    }
    let report = match found {
        Some((primary, role)) => {
            if !own.is_standby {
                return Err(Failure::new(format!(
                    "{} is a primary, and so is {}",
                    wanted.name(),
                    primary.name()
                ))
                .hint("Rebuild one of the two with pcp_recovery_node."));
            }
            if own.system != role.system {
                return Err(Failure::new(format!(
                    "{} has system identifier {}, the primary {} {}",
                    wanted.name(),
                    own.system,
                    primary.name(),
                    role.system
                )));
            }
            let_follow(context, wanted, &primary.place(), context.end)
                .map_err(|failure| failure.at(wanted.name()))?
        }
        None if own.is_standby => {
            return Err(Failure::new(format!("{} is a standby, and no node is a primary", wanted.name()))
                .hint(failures(&roles)));
        }
        // the primary itself
        None => Value::Null,
    };
    if context.pcp.status(id, context.end).is_ok_and(|status| status == Status::Up) {
        return Ok(format!("{} is up already: {report}", wanted.name()));
    }
    context.pcp.attach(id, context.end).map_err(|failure| failure.at(wanted.name()))?;
    let seconds = started.elapsed().as_secs_f32();
    Ok(format!("{} is attached, after {seconds:.1} s: {report}", wanted.name()))
}

type Answers<'a> = [(&'a Node, Result<Role>)];

/// The one primary among the other nodes.
fn primary<'a, 'b>(roles: &'b Answers<'a>, except: u32) -> Result<Option<(&'a Node, &'b Role)>> {
    let mut primaries = roles.iter().filter_map(|(node, role)| match role {
        Ok(role) if !role.is_standby && node.id != except => Some((*node, role)),
        _ => None,
    });
    let first = primaries.next();
    if let (Some((one, _)), Some((other, _))) = (first, primaries.next()) {
        return Err(Failure::new(format!("two nodes are primaries: {} and {}", one.name(), other.name()))
            .hint("Stop the wrong one and rebuild it with pcp_recovery_node."));
    }
    Ok(first)
}

/// Refuses to take a node for the primary while another one is silent that may be the one: whatever Pgpool-II does not hold down.
fn demand_heard(
    roles: &Answers<'_>,
    primary: &Node,
    wanted: u32,
    status: impl Fn(&Node) -> Result<Status>,
) -> Result<()> {
    for (node, role) in roles.iter().filter(|(node, _)| node.id != wanted) {
        let Err(failure) = role else { continue };
        let held = match status(node) {
            Ok(Status::Down) => continue,
            Ok(status) => format!("Pgpool-II has it as {status:?}."),
            Err(failure) => format!("Pgpool-II does not tell how it has it: {failure}."),
        };
        return Err(Failure {
            detail: Some(format!("{failure} {held}")),
            ..Failure::new(format!(
                "cannot tell whether {} is the primary: {} does not answer, and may be the one",
                primary.name(),
                node.name()
            ))
            .hint("See to that node; if it is down for good, pcp_detach_node says so. Then attach again.")
        });
    }
    Ok(())
}

/// Refuses to take a node for the primary while another one has followed a later one.
fn demand_latest(roles: &Answers<'_>, primary: &Node, own: &Role, wanted: u32) -> Result<()> {
    let others = roles.iter().filter(|(node, _)| node.id != wanted && node.id != primary.id);
    let known = others.filter_map(|(node, role)| Some((node, role.as_ref().ok()?)));
    let mut later = known.filter(|(_, role)| role.system == own.system && role.timeline > own.timeline);
    let Some((node, role)) = later.next() else { return Ok(()) };
    Err(Failure {
        detail: Some(format!(
            "It is on timeline {}, {} on timeline {}.",
            own.timeline,
            node.name(),
            role.timeline
        )),
        ..Failure::new(format!("{} is not the last primary", primary.name()))
            .hint("Find the primary of that timeline, and rebuild the wrong one with pcp_recovery_node.")
    })
}

/// Why nodes did not answer.
fn failures(roles: &Answers<'_>) -> String {
    let failures = roles.iter().filter_map(|(_, role)| Some(role.as_ref().err()?.to_string()));
    let failures: Vec<_> = failures.collect();
    if failures.is_empty() { "All nodes are standbys: promote one.".to_owned() } else { failures.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u32) -> Node {
        Node {
            id,
            host: format!("host{id}"),
            port: 5432,
            data_directory: String::new(),
            application_name: String::new(),
            flags: String::new(),
        }
    }

    #[test]
    fn a_silent_node_may_be_the_primary_unless_pgpool_holds_it_down() {
        let (a, b, c) = (node(0), node(1), node(2));
        let own = Role { is_standby: false, system: "1".to_owned(), timeline: 1 };
        let roles = [(&a, Ok(own)), (&b, Err(Failure::new("rejected"))), (&c, Err(Failure::new("itself")))];
        let heard = |status: Result<Status>| demand_heard(&roles, &a, 2, |_| status.clone());
        heard(Ok(Status::Down)).expect("somebody has said so");
        for status in [Ok(Status::Up), Ok(Status::Quarantined), Ok(Status::Unused), Err(Failure::new("pcp"))]
        {
            let failure = heard(status).expect_err("cannot tell");
            assert!(failure.message.contains("host1:5432") && failure.hint.is_some(), "{failure}");
            assert!(failure.detail.is_some_and(|detail| detail.contains("rejected")));
        }
    }

    #[test]
    fn a_node_on_a_later_timeline_has_followed_another_primary() {
        let (a, b, c) = (node(0), node(1), node(2));
        let role = |system: &str, timeline| Role { is_standby: true, system: system.to_owned(), timeline };
        let own = role("1", 2);
        let latest = |other: Role| {
            let roles = [(&a, Ok(own.clone())), (&b, Ok(other)), (&c, Ok(role("1", 7)))];
            demand_latest(&roles, &a, &own, 2)
        };
        latest(role("1", 2)).expect("the same");
        latest(role("2", 3)).expect("another system's");
        let failure = latest(role("1", 3)).expect_err("a later one");
        assert!(failure.detail.is_some_and(|detail| detail.contains("host1:5432) on timeline 3")));
    }

    #[test]
    fn two_primaries_are_refused() {
        let (a, b, c) = (node(0), node(1), node(2));
        let role = |is_standby: bool| Ok(Role { is_standby, system: "1".to_owned(), timeline: 1 });
        let one = [(&a, role(true)), (&b, role(false)), (&c, Err(Failure::new("it is down")))];
        assert_eq!(primary(&one, 0).expect("one").map(|(node, _)| node.id), Some(1));
        assert_eq!(primary(&one, 1), Ok(None), "itself does not count");
        assert!(failures(&one).contains("it is down"));
        let two = [(&a, role(false)), (&b, role(false)), (&c, role(true))];
        assert!(primary(&two, 2).expect_err("two").message.contains("host1:5432"));
    }
}

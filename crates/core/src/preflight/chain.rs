//! A standby that follows standbys: do those know that the primary is gone?
//!
//! A standby that answers says nothing of the primary beyond it. So each must be one of the nodes that were asked, and what those
//! follow, and so on, must come to an end at a server that is silent.

use std::collections::BTreeSet;

use super::promote::{Node, Own};
use crate::wire::protocol::describe::Description;
use crate::wire::protocol::upstream::{Endpoint, Told};

/// Whose server it is that was found at an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// That of the standby that is to be promoted.
    Own,
    /// That of the node at this place of the list.
    Node(usize),
    /// Another one, or one of which this cannot be told.
    Unknown,
}

/// Why it is not known whether the primary lives; `None` if it is. `told`: what this standby follows, `nodes`: the other ones, and what
/// they follow. `whose`: whose server is found where a node, or this standby (`None`), looks for one.
pub fn open_end(
    own: &Own,
    told: &Told,
    nodes: &[(&Node, Option<&Told>)],
    whose: impl Fn(&Endpoint, Option<usize>) -> Whose,
) -> Option<String> {
    let mut ends = told.answer.is_err();
    let mut seen = BTreeSet::new();
    let mut waiting: Vec<(&Endpoint, Option<usize>)> = told.standbys.iter().map(|at| (at, None)).collect();
    if waiting.is_empty() {
        return None;
    }
    while let Some((endpoint, by)) = waiting.pop() {
        let at = match whose(endpoint, by) {
            Whose::Own => continue,
            Whose::Node(at) if !seen.insert(at) => continue,
            Whose::Node(at) => at,
            Whose::Unknown => {
                return Some(format!("the standby at {} is none of \"nodes\"", endpoint.shown()));
            }
        };
        let (node, told) = nodes[at];
        let follows = told.filter(|_| is_on_own_timeline(own, node));
        let Some(told) = follows else {
            return Some(format!("{} does not tell what it follows on this standby's timeline", node.name));
        };
        ends |= told.answer.is_err();
        waiting.extend(told.standbys.iter().map(|endpoint| (endpoint, Some(at))));
    }
    if ends { None } else { Some("the standbys follow each other".to_owned()) }
}

fn is_on_own_timeline(own: &Own, node: &Node) -> bool {
    match &node.found {
        Ok(Description { control, said: Some(Ok(said)), .. }) => {
            control.system_identifier == own.system_identifier
                && said.in_recovery
                && said.timeline == own.history.timeline()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind, Result};
    use crate::preflight::promote::tests::{description, own, said};
    use crate::wire::protocol::upstream::Answer;

    fn endpoint(host: &str) -> Endpoint {
        Endpoint { host: host.to_owned(), port: "5432".to_owned() }
    }

    fn told(answer: Result<Answer>, standbys: &[&str]) -> Told {
        Told { answer, standbys: standbys.iter().map(|host| endpoint(host)).collect() }
    }

    fn silence() -> Result<Answer> {
        Err(Error::new(Kind::Unreachable, "no answer"))
    }

    fn standby(name: &str, timeline: u32) -> Node {
        let found = Ok(description(Some(Ok(said(timeline, 150, true)))));
        Node { name: name.to_owned(), found }
    }

    /// By their names: "own", and those of the nodes.
    fn open(own_told: &Told, nodes: &[(&Node, Option<&Told>)]) -> Option<String> {
        open_end(&own(), own_told, nodes, |endpoint, _| {
            let at = nodes.iter().position(|(node, _)| node.name == endpoint.host);
            if endpoint.host == "own" { Whose::Own } else { at.map_or(Whose::Unknown, Whose::Node) }
        })
    }

    #[test]
    fn a_chain_ends_at_a_server_that_was_asked_and_is_silent() {
        let (relay, other) = (standby("relay", 2), standby("other", 2));
        let (silent, below) = (told(silence(), &[]), told(Ok(Answer::Standby), &["relay"]));
        assert_eq!(open(&silent, &[]), None, "it follows no standby");
        assert_eq!(open(&below, &[(&relay, Some(&silent))]), None);
        let further = told(Ok(Answer::Standby), &["other"]);
        assert_eq!(open(&below, &[(&relay, Some(&further)), (&other, Some(&silent))]), None);
        // all nodes are in the strings of all, and the primary is dead
        let (of_own, of_relay) = (told(silence(), &["relay", "own"]), told(silence(), &["own", "relay"]));
        assert_eq!(open(&of_own, &[(&relay, Some(&of_relay))]), None);
    }

    #[test]
    fn a_chain_that_nobody_knows_to_its_end_is_open() {
        let (relay, beside) = (standby("relay", 2), standby("beside", 2));
        let (silent, below) = (told(silence(), &[]), told(Ok(Answer::Standby), &["relay"]));
        let says = |nodes: &[(&Node, Option<&Told>)]| open(&below, nodes).expect("open");
        assert!(says(&[]).contains("relay:5432 is none of"));
        // of others nothing follows, whatever they follow
        for of_beside in [Some(&silent), Some(&below), None] {
            assert!(says(&[(&beside, of_beside)]).contains("none of"));
        }
        // a dead host in the string hides no primary beyond the one that answers
        assert!(open(&told(silence(), &["relay"]), &[]).is_some());
        assert!(
            says(&[(&relay, None)]).contains("relay does not tell"),
            "it follows nobody, or was not heard"
        );
        let behind = standby("relay", 1);
        assert!(says(&[(&behind, Some(&silent))]).contains("does not tell"), "it follows an earlier primary");
        let mute = Node { name: "relay".to_owned(), found: Err(Error::new(Kind::Unreachable, "no agent")) };
        assert!(says(&[(&mute, Some(&silent))]).contains("does not tell"));
        let further = told(Ok(Answer::Standby), &["elsewhere"]);
        assert!(says(&[(&relay, Some(&further))]).contains("elsewhere:5432"));
        let back = told(Ok(Answer::Standby), &["own"]);
        assert!(says(&[(&relay, Some(&back))]).contains("each other"));
    }
}

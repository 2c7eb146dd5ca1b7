//! A standby that follows standbys: do those know that the primary is gone?
//!
//! A standby says nothing of the primary beyond it, whether it answers or is silent. So each that answers must be one of the nodes that were
//! asked, and what those follow, and so on, must come to an end at a server that is silent and is no standby.

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
    /// That of the named old primary.
    Old,
    /// Another one, or one of which this cannot be told.
    Unknown,
}

/// Why it is not known whether the primary lives; `None` if it is. `told`: what this standby follows, `nodes`: the other ones, and what
/// they follow. `old_may_be_it`: whether nothing is known of the named old primary by which it cannot be the primary of this standby.
/// `whose`: whose server is found where a node, or this standby (`None`), looks for one.
pub fn open_end(
    own: &Own,
    told: &Told,
    nodes: &[(&Node, Option<&Told>)],
    old_may_be_it: bool,
    whose: impl Fn(&Endpoint, Option<usize>) -> Whose,
) -> Option<String> {
    // what answers and is no standby was judged before
    if told.answer.is_ok() && told.standbys.is_empty() {
        return None;
    }
    let is_end = |told: &Told, by: Option<usize>| {
        let may_be_it = |silent: &Endpoint| match of_its_name(told, silent, |at| whose(at, by)) {
            Whose::Own => false,
            Whose::Node(at) => is_own_primary(own, nodes[at].0),
            Whose::Old => old_may_be_it,
            Whose::Unknown => true,
        };
        told.answer.is_err() && (told.silent.is_empty() || told.silent.iter().any(may_be_it))
    };
    let mut ends = is_end(told, None);
    let mut seen = BTreeSet::new();
    let mut waiting: Vec<(&Endpoint, Option<usize>)> = told.standbys.iter().map(|at| (at, None)).collect();
    while let Some((endpoint, by)) = waiting.pop() {
        let at = match whose(endpoint, by) {
            Whose::Own => continue,
            Whose::Node(at) if !seen.insert(at) => continue,
            Whose::Node(at) => at,
            Whose::Old | Whose::Unknown => {
                return Some(format!("the standby at {} is none of \"nodes\"", endpoint.shown()));
            }
        };
        let (node, told) = nodes[at];
        let follows = told.filter(|_| is_on_own_timeline(own, node));
        let Some(told) = follows else {
            return Some(format!("{} does not tell what it follows on this standby's timeline", node.name));
        };
        ends |= is_end(told, Some(at));
        waiting.extend(told.standbys.iter().map(|endpoint| (endpoint, Some(at))));
    }
    if ends {
        return None;
    }
    let silent = told.silent.first().filter(|_| told.answer.is_err());
    Some(match silent {
        Some(silent) if whose(silent, None) == Whose::Old => {
            format!("{} was replaced before, and silent", silent.shown())
        }
        Some(silent) => format!("{} is one of \"nodes\", and silent", silent.shown()),
        None => "the standbys follow each other".to_owned(),
    })
}

/// Whose server is found at an address of which this is not known: another address of the same name, if that leads to one node only, has that
/// node's, too. A name that leads to several servers, or to this one, is one for all of them.
fn of_its_name(told: &Told, at: &Endpoint, whose: impl Fn(&Endpoint) -> Whose) -> Whose {
    let found = whose(at);
    if found != Whose::Unknown {
        return found;
    }
    let all = told.standbys.iter().chain(&told.silent);
    let known = all.filter(|other| other.is_named_as(at)).map(whose);
    let mut known = known.filter(|known| *known != Whose::Unknown);
    match known.next() {
        Some(node @ Whose::Node(_)) if known.all(|other| other == node) => node,
        _ => Whose::Unknown,
    }
}

/// Whether a node's host says that it is no standby, and was this one's primary. What is one of the nodes is taken for a standby; and one that was
/// fenced, or is on an earlier timeline, has been replaced, by a primary that may live.
fn is_own_primary(own: &Own, node: &Node) -> bool {
    matches!(&node.found, Ok(found) if !found.has_standby_signal && found.fence.is_none()
        && found.history.timeline() == own.history.timeline())
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
    use crate::compare::wal_map::Lineage;
    use crate::error::{Error, Kind, Result};
    use crate::preflight::promote::tests::{description, own, said};
    use crate::wire::protocol::describe::FenceMark;
    use crate::wire::protocol::upstream::Answer;

    fn endpoint(host: &str) -> Endpoint {
        Endpoint::new(host, "5432")
    }

    fn told(answer: Result<Answer>, standbys: &[&str]) -> Told {
        Told { standbys: standbys.iter().map(|host| endpoint(host)).collect(), ..Told::of(answer) }
    }

    /// What a standby follows of which these do not answer.
    fn silent(hosts: &[&str]) -> Told {
        let silent = hosts.iter().copied().map(endpoint);
        Told { silent: silent.collect(), ..Told::of(silence()) }
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
        open_beside(own_told, nodes, true)
    }

    /// With "old", which may be this standby's primary or not. An endpoint's address, if it has one, is that of the server of this name.
    fn open_beside(own_told: &Told, nodes: &[(&Node, Option<&Told>)], old_may_be_it: bool) -> Option<String> {
        open_end(&own(), own_told, nodes, old_may_be_it, |endpoint, _| {
            let name = if endpoint.address.is_empty() { &endpoint.host } else { &endpoint.address };
            match (name.as_str(), nodes.iter().position(|(node, _)| node.name == *name)) {
                ("own", _) => Whose::Own,
                ("old", _) => Whose::Old,
                (_, at) => at.map_or(Whose::Unknown, Whose::Node),
            }
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
    fn the_silence_of_a_standby_is_not_that_of_the_primary() {
        let mut stopped = standby("relay", 2);
        let mute = Node { name: "mute".to_owned(), found: Err(Error::new(Kind::Unreachable, "no agent")) };
        assert_eq!(open(&silent(&["primary"]), &[(&stopped, None)]), None);
        assert_eq!(open(&silent(&["primary", "relay", "mute"]), &[(&stopped, None), (&mute, None)]), None);
        for node in [&stopped, &mute] {
            let why = open(&silent(&[&node.name]), &[(node, None)]).expect("open");
            assert!(why.contains(&format!("{}:5432 is one of", node.name)), "{why}");
        }
        assert!(open(&silent(&["own"]), &[]).is_some());
        // nor beyond another one that answers
        let below = told(Ok(Answer::Standby), &["other"]);
        let (other, of_other) = (standby("other", 2), silent(&["relay"]));
        assert!(open(&below, &[(&other, Some(&of_other)), (&stopped, None)]).is_some());
        // a host that says that it had the primary
        stopped.found.as_mut().expect("found").has_standby_signal = false;
        assert_eq!(open(&silent(&["relay"]), &[(&stopped, None)]), None);
        // which was replaced
        let (by, why) = ("the standby in \"/d\"".to_owned(), "a promotion".to_owned());
        let mark = FenceMark { note: String::new(), fenced: 0, by, why, lsn: None };
        stopped.found.as_mut().expect("found").fence = Some(mark);
        assert!(open(&silent(&["relay"]), &[(&stopped, None)]).is_some());
    }

    #[test]
    fn the_end_of_a_primary_that_was_replaced_before_says_nothing() {
        let (below, relay) = (silent(&["former", "relay"]), standby("relay", 2));
        let mut former = standby("former", 2);
        former.found.as_mut().expect("found").has_standby_signal = false;
        assert_eq!(open(&below, &[(&former, None), (&relay, None)]), None, "it was this standby's");
        former.found.as_mut().expect("found").history = Lineage::new(1, &[]);
        assert!(open(&below, &[(&former, None), (&relay, None)]).is_some());
        assert_eq!(open_beside(&silent(&["old"]), &[], true), None);
        let why = open_beside(&silent(&["old"]), &[], false).expect("open");
        assert!(why.contains("replaced before"), "{why}");
    }

    #[test]
    fn the_other_address_of_a_node_is_not_the_primarys() {
        let stopped = standby("relay", 2);
        let all = |addresses: &[&str]| {
            let at = |address: &&str| Endpoint { address: (*address).to_owned(), ..endpoint("name") };
            let silent = addresses.iter().map(at);
            Told { silent: silent.collect(), ..Told::of(silence()) }
        };
        let nodes = [(&stopped, None)];
        assert!(open(&all(&["relay", "192.0.2.1"]), &nodes).is_some());
        assert!(open(&all(&["192.0.2.1", "relay"]), &nodes).is_some());
        assert_eq!(open(&all(&["192.0.2.1"]), &nodes), None);
        // one name for all servers
        assert_eq!(open(&all(&["192.0.2.1", "own", "relay"]), &nodes), None);
        let other = standby("other", 2);
        assert_eq!(open(&all(&["192.0.2.1", "other", "relay"]), &[(&stopped, None), (&other, None)]), None);
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

//! `failover`: the primary failed, so another node becomes the primary and the rest follow it.

use std::time::Instant;

use serde_json::{Value, json};

use crate::Context;
use crate::conf::Node;
use crate::event::{Event, Place};
use crate::failure::{Failure, Result};
use crate::worker::{self, Job, Work};

/// What pgpool_recovery_promote has less of than the whole: a login before it, and what is said after it.
const MARGIN: u64 = 5;

const PROMOTE: &str = "SELECT pgpool_recovery_promote(NULLIF(:'old_host', ''), NULLIF(:'old_dir', ''), \
                       NULLIF(:'old_port', '')::integer, :'options'::jsonb)";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Decision<'a> {
    Nothing(String),
    /// That node becomes the primary in the place of another one, if that is known.
    Promote {
        new: &'a Place,
        old: Option<u32>,
    },
}

fn decide(event: &Event) -> Decision<'_> {
    let Some(new) = &event.new else {
        return Decision::Nothing(format!("node {} has failed, and no node is left", event.node));
    };
    match event.old_primary {
        Some(old) if old != event.node => {
            Decision::Nothing(format!("node {} has failed, a standby; node {old} is the primary", event.node))
        }
        old => Decision::Promote { new, old },
    }
}

/// Returns what was done.
pub(crate) fn failover(context: &Context, rebuilds: bool, words: &[String]) -> Result<String> {
    let event = Event::parse(words, &context.nodes)?;
    warn_of_other_names(&event, &context.nodes);
    let (new, old) = match decide(&event) {
        Decision::Nothing(why) => return Ok(format!("nothing to do: {why}")),
        Decision::Promote { new, old } => (new, old),
    };
    let started = Instant::now();
    let (new, report) = promote_foremost(context, &event, new, old)?;
    let of = |job, node: u32, rebuild| Work { job, node, primary: new.node, rebuild, after: None };
    let mut works = Vec::new();
    for (id, failure) in stray(&report) {
        crate::say("failover", &format!("node {id} does not follow: {failure}"));
        works.push(of(Job::Stray, id, rebuilds && is_diverged(&failure)));
    }
    // what it has committed alone is for a person to look at: it is never rebuilt unasked
    works.extend(old.map(|old| of(Job::Rejoin, old, false)));
    for work in &works {
        // the promotion is what counts
        if let Err(failure) = worker::spawn(&context.common, &context.conf.path, work) {
            crate::say("failover", &failure.to_string());
        }
    }
    Ok(format!(
        "node {} ({}:{}) is the primary, after {:.1} s: {report}",
        new.node,
        new.host,
        new.port,
        started.elapsed().as_secs_f32()
    ))
}

/// Pgpool-II may have been told other names since it read the file; it is the one that is believed.
fn warn_of_other_names(event: &Event, nodes: &[Node]) {
    let Some(new) = &event.new else { return };
    for (id, host, port) in [(event.node, &event.host, event.port), (new.node, &new.host, new.port)] {
        if let Some(node) =
            nodes.iter().find(|node| node.id == id && (node.host != *host || node.port != port))
        {
            crate::say(
                "failover",
                &format!("Pgpool-II has node {id} at {host}:{port}, pgpool.conf {}", node.name()),
            );
        }
    }
}

/// Promotes the new main node, which Pgpool-II has chosen by its number, or the node that has more than that.
fn promote_foremost(
    context: &Context,
    event: &Event,
    chosen: &Place,
    old: Option<u32>,
) -> Result<(Place, Value)> {
    let mut asked = Vec::new();
    let mut new = chosen.clone();
    loop {
        asked.push(new.node);
        let failure = match promote(context, event, &new, old) {
            Ok(report) => return Ok((new, report)),
            Err(failure) => failure,
        };
        let excluded: Vec<u32> = asked.iter().copied().chain([event.node]).collect();
        let Some(other) = better(&failure, &context.nodes, &excluded) else {
            return Err(failure.at(format!("node {} ({}:{})", new.node, new.host, new.port)));
        };
        crate::say("failover", &format!("node {} is not promoted but {}: {failure}", new.node, other.name()));
        new = other.place();
    }
}

fn promote(context: &Context, event: &Event, new: &Place, old: Option<u32>) -> Result<Value> {
    let others = context.nodes.iter().filter(|node| node.id != new.node && node.id != event.node);
    let (known, unknown): (Vec<_>, Vec<_>) = others.partition(|node| !node.data_directory.is_empty());
    for node in unknown {
        let name = node.name();
        crate::say("failover", &format!("{name} is left out: backend_data_directory{} is empty", node.id));
    }
    let nodes: Vec<Value> = known
        .iter()
        .map(|node| {
            json!({
                "node_id": node.id,
                "host": node.host,
                "port": node.port,
                "directory": node.data_directory,
            })
        })
        .collect();
    let left = context.end.saturating_duration_since(Instant::now()).as_secs();
    let options = json!({ "nodes": nodes, "deadline": left.saturating_sub(MARGIN).max(1) });
    let port = event.port.to_string();
    // the node that failed is the old primary, if one was known
    let (host, directory, port) = match old {
        Some(_) if event.directory.is_empty() => {
            let id = event.node;
            crate::say("failover", &format!("node {id} is not fenced: its data directory is not known"));
            ("", "", "")
        }
        Some(_) => (event.host.as_str(), event.directory.as_str(), port.as_str()),
        None => ("", "", ""),
    };
    let values =
        [("old_host", host), ("old_dir", directory), ("old_port", port), ("options", &options.to_string())];
    context.login.json(new, PROMOTE, &values, context.end)
}

/// The node that has received more than the one that was asked, if that is why it refused.
fn better<'a>(failure: &Failure, nodes: &'a [Node], excluded: &[u32]) -> Option<&'a Node> {
    if !failure.is("55000") || !failure.message.contains("received more") {
        return None;
    }
    // "node 2 (db2:5432) has received more WAL than this standby"
    let mut named =
        nodes.iter().filter(|node| failure.message.contains(&format!("({}:{})", node.host, node.port)));
    let found = named.next()?;
    (named.next().is_none() && !excluded.contains(&found.id)).then_some(found)
}

/// The nodes that the report says do not follow, and why.
fn stray(report: &Value) -> Vec<(u32, Failure)> {
    let nodes = report["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    nodes
        .iter()
        .filter_map(|node| {
            let id = u32::try_from(node["node_id"].as_u64()?).ok()?;
            let text = |key: &str| node[key].as_str().map(str::to_owned);
            let failure = Failure {
                sqlstate: text("sqlstate"),
                message: text("error")?,
                detail: text("detail"),
                hint: text("hint"),
            };
            Some((id, failure))
        })
        .collect()
}

/// Whether only a rebuild helps.
pub(crate) fn is_diverged(failure: &Failure) -> bool {
    failure.text().contains("diverged")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(node: u32, new: Option<u32>, old_primary: Option<u32>) -> Event {
        Event {
            node,
            host: format!("host{node}"),
            port: 5432,
            directory: "/data".to_owned(),
            new: new.map(|node| Place { node, host: format!("host{node}"), port: 5432 }),
            old_primary,
        }
    }

    fn nodes() -> Vec<Node> {
        let node = |id: u32| Node {
            id,
            host: format!("host{id}"),
            port: 5432,
            data_directory: "/data".to_owned(),
            application_name: String::new(),
            flags: String::new(),
        };
        (0..4).map(node).collect()
    }

    #[test]
    fn only_the_primarys_failure_promotes() {
        let is_nothing = |event: &Event| matches!(decide(event), Decision::Nothing(_));
        assert!(is_nothing(&event(1, Some(0), Some(0))), "a standby failed");
        assert!(is_nothing(&event(0, None, Some(0))), "no node is left");
        assert!(is_nothing(&event(0, None, None)));
        let primary = event(0, Some(1), Some(0));
        assert!(matches!(decide(&primary), Decision::Promote { new, old: Some(0) } if new.node == 1));
        let unknown = event(0, Some(1), None);
        assert!(matches!(decide(&unknown), Decision::Promote { new, old: None } if new.node == 1));
    }

    #[test]
    fn the_node_that_has_received_more_is_asked_instead() {
        let refusal = |message: &str| Failure {
            sqlstate: Some("55000".to_owned()),
            ..Failure::new(message.to_owned())
        };
        let better = |failure: &Failure| better(failure, &nodes(), &[1, 0]).map(|node| node.id);
        let more = |place: &str| format!("node 2 ({place}) has received more WAL than this standby");
        assert_eq!(better(&refusal(&more("host2:5432"))), Some(2));
        assert_eq!(better(&refusal("node 2 (host2:5432) runs as a primary already")), None, "another reason");
        assert_eq!(better(&refusal(&more("host0:5432"))), None, "the one that failed");
        assert_eq!(better(&refusal(&more("host1:5432"))), None, "one that was asked");
        assert_eq!(better(&refusal(&more("thehost2:5432"))), None, "another host");
        assert_eq!(better(&Failure::new(more("host2:5432"))), None, "no ERROR of the server's");
    }

    #[test]
    fn the_report_tells_who_does_not_follow() {
        let report = json!({ "nodes": [
            { "node_id": 2, "host": "b", "port": 5432, "slot": "b" },
            { "node_id": 3, "host": "c", "port": 5432, "error": "the server in \"/d\" has diverged", "sqlstate": "55000",
              "detail": null, "hint": "Rebuild it." },
        ]});
        let stray = stray(&report);
        assert_eq!((stray.len(), stray[0].0), (1, 3));
        assert!(is_diverged(&stray[0].1) && stray[0].1.is("55000"));
        assert!(super::stray(&json!({ "result": "already_primary" })).is_empty());
    }
}

//! `follow`: a node follows the new primary, then it is attached.

use std::time::Instant;

use serde_json::Value;

use crate::Context;
use crate::ancestors::follow_process;
use crate::conf::Node;
use crate::event::{Event, Place};
use crate::failover::is_diverged;
use crate::failure::{Failure, Result};
use crate::worker::{self, Job, Work};

const FOLLOW: &str = "SELECT :\"extension\".pgpool_recovery_follow(:'host'::text, :'dir'::text, :'port'::integer, \
                      :'primary_host'::text, :'primary_port'::integer, :'node'::integer, '{}'::jsonb)";

/// Returns what was done.
pub(crate) fn follow(context: &Context, rebuilds: bool, words: &[String]) -> Result<String> {
    let event = Event::parse(words, &context.nodes)?;
    let Some(primary) = &event.new else {
        return Err(Failure::new(format!("node {} has no new primary to follow", event.node)));
    };
    let node = Node {
        host: event.host.clone(),
        port: event.port,
        data_directory: event.directory.clone(),
        ..node(context, event.node)?.clone()
    };
    match let_follow(context, &node, primary, context.end) {
        Ok(report) => {
            context.pcp.attach(node.id, context.end).map_err(|failure| failure.at(node.name()))?;
            Ok(format!("{} follows {}:{} and is attached: {report}", node.name(), primary.host, primary.port))
        }
        // what an old primary has committed alone is for a person to look at
        Err(failure) if rebuilds && event.old_primary != Some(node.id) && is_diverged(&failure) => {
            let work = Work {
                job: Job::Rebuild,
                node: node.id,
                primary: primary.node,
                rebuild: true,
                after: follow_process(),
            };
            worker::spawn(&context.common, &context.conf.path, &work)?;
            Err(failure.at(format!(
                "{} cannot follow, and will be rebuilt when Pgpool-II is ready for it",
                node.name()
            )))
        }
        Err(failure) => Err(failure.at(node.name())),
    }
}

/// The node of that number.
pub(crate) fn node(context: &Context, id: u32) -> Result<&Node> {
    context.nodes.iter().find(|node| node.id == id).ok_or_else(|| {
        let ids: Vec<_> = context.nodes.iter().map(|node| node.id.to_string()).collect();
        Failure::new(format!("pgpool.conf has no node {id}")).hint(format!("It has {}.", ids.join(", ")))
    })
}

/// Has the primary make the node follow it. It returns only if the node may be attached.
pub(crate) fn let_follow(context: &Context, node: &Node, primary: &Place, end: Instant) -> Result<Value> {
    if node.data_directory.is_empty() {
        return Err(Failure::new(format!("backend_data_directory{} is empty", node.id))
            .hint("Set it in pgpool.conf; the node's agent knows its servers by their data directories."));
    }
    let (port, primary_port, id) = (node.port.to_string(), primary.port.to_string(), node.id.to_string());
    let values = [
        ("host", node.host.as_str()),
        ("dir", &node.data_directory),
        ("port", &port),
        ("primary_host", &primary.host),
        ("primary_port", &primary_port),
        ("node", &id),
    ];
    context.login.json(primary, FOLLOW, &values, end)
}

//! `failover`: the primary failed, so another node becomes the primary and the rest follow it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::Context;
use crate::conf::Node;
use crate::event::{Event, Place};
use crate::failure::{Failure, Result};
use crate::role::{is_standby, standbys};
use crate::worker::{self, Job, Work};

/// What pgpool_recovery_promote has less of than the whole, for what is said after it, seconds.
const MARGIN: u64 = 5;

/// How long a server may take to say whether it was promoted all the same, and how long the call has at least that is repeated
/// then.
const LOOK: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_secs(10);

/// The time that is left is that after the login, by the clock of this host.
const PROMOTE: &str = "\\set now `date +%s`\n\
                       SELECT :\"extension\".pgpool_recovery_promote(NULLIF(:'old_host', ''), NULLIF(:'old_dir', ''), \
                       NULLIF(:'old_port', '')::integer, :'options'::jsonb || jsonb_build_object('deadline', \
                       greatest(1, least(:'left'::bigint, :'until'::bigint - NULLIF(:'now', '')::bigint))))";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Decision<'a> {
    Nothing(String),
    /// That node becomes the primary in the place of the one that failed.
    Promote(&'a Place),
}

fn decide(event: &Event) -> Decision<'_> {
    let Some(new) = &event.new else {
        return Decision::Nothing(format!("node {} has failed, and no node is left", event.node));
    };
    match event.old_primary {
        Some(old) if old != event.node => {
            Decision::Nothing(format!("node {} has failed, a standby; node {old} is the primary", event.node))
        }
        // of an unknown one this may be the primary: what is no primary is not fenced
        _ => Decision::Promote(new),
    }
}

/// Returns what was done.
pub(crate) fn failover(context: &Context, rebuilds: bool, words: &[String]) -> Result<String> {
    let event = Event::parse(words, &context.nodes)?;
    warn_of_other_names(&event, &context.nodes);
    let new = match decide(&event) {
        Decision::Nothing(why) => return Ok(format!("nothing to do: {why}")),
        Decision::Promote(new) => new,
    };
    let started = Instant::now();
    demand_no_other_primary(&unlisted(context, &event, new))?;
    let (new, report) = promote_foremost(context, &event, new)?;
    let works = works(&report, &context.nodes, &event, new.node, rebuilds);
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

/// What is left to be done after the promotion, and says so.
fn works(report: &Value, nodes: &[Node], event: &Event, primary: u32, rebuilds: bool) -> Vec<Work> {
    let of = |job, node: u32, rebuild| Work { job, node, primary, rebuild, after: None };
    let (stray, reported) = (stray(report), reported(report));
    let mut works = Vec::new();
    for node in nodes.iter().filter(|node| node.id != event.node && node.id != primary) {
        if let Some((_, failure)) = stray.iter().find(|(id, _)| *id == node.id) {
            crate::say("failover", &format!("node {} does not follow: {failure}", node.id));
            works.push(of(Job::Stray, node.id, rebuilds && is_diverged(failure)));
        } else if node.data_directory.is_empty() {
            let name = node.name();
            crate::say(
                "failover",
                &format!("{name} follows nobody: backend_data_directory{} is empty", node.id),
            );
            works.push(of(Job::Stray, node.id, false));
        } else if !reported.contains(&node.id) {
            works.push(of(Job::Survivor, node.id, rebuilds));
        }
    }
    // A server that was down before has been stopped by somebody and is not started unasked. Nor is an old primary ever
    // rebuilt unasked: a person has to look at what it committed alone.
    if report["fenced"]["was_running"] == true {
        works.push(of(Job::Rejoin, event.node, false));
    }
    works
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

/// Which of the nodes without a data directory are standbys. They are not passed to the server that is promoted, so only the hook can ask
/// them; the one that failed, too, since it is not stopped then.
fn unlisted<'a>(context: &'a Context, event: &Event, new: &Place) -> Vec<(&'a Node, Result<bool>)> {
    let is_unlisted = |node: &&Node| {
        let directory = if node.id == event.node { &event.directory } else { &node.data_directory };
        node.id != new.node && directory.is_empty()
    };
    standbys(context, context.nodes.iter().filter(is_unlisted), LOOK)
}

/// Refuses a promotion beside a node that is a primary, whatever has become of the one that failed, or that may be one. One that gives no
/// answer may have died with it.
fn demand_no_other_primary(nodes: &[(&Node, Result<bool>)]) -> Result<()> {
    let refusal = |message: String| Failure { sqlstate: Some("55000".to_owned()), ..Failure::new(message) };
    for (node, is_standby) in nodes {
        let name = node.name();
        match is_standby {
            Ok(true) => {}
            Ok(false) => {
                let failure = refusal(format!("{name} runs as a primary already")).hint(
                    "If that server is the primary now, let the others follow it. Otherwise stop it first.",
                );
                let detail = "Promoting another node would make a second primary.".to_owned();
                return Err(Failure { detail: Some(detail), ..failure });
            }
            Err(failure) if failure.is_silence() => {
                crate::say("failover", &format!("{name} did not say whether it is a primary: {failure}"));
            }
            Err(failure) => {
                let detail = Some(failure.to_string());
                let failure = refusal(format!("cannot tell whether {name} is a primary"));
                return Err(Failure { detail, ..failure }.hint(format!(
                    "Let this role log in there; or set backend_data_directory{}, so that the node's agent is asked.",
                    node.id
                )));
            }
        }
    }
    Ok(())
}

/// Promotes the new main node, which Pgpool-II has chosen by its number, or the node that has more than that.
fn promote_foremost(context: &Context, event: &Event, chosen: &Place) -> Result<(Place, Value)> {
    let mut asked = Vec::new();
    let mut new = chosen.clone();
    loop {
        asked.push(new.node);
        let failure = match promote(context, event, &new, context.end) {
            Ok(report) => return Ok((new, report)),
            Err(failure) => failure,
        };
        if may_be_promoted(&failure)
            && is_standby(context, &new, Instant::now() + LOOK).is_ok_and(|is_standby| !is_standby)
        {
            crate::say("failover", &format!("node {} is promoted all the same: {failure}", new.node));
            // which leads the other nodes
            let end = context.end.max(Instant::now() + AGAIN);
            let report = promote(context, event, &new, end)
                .unwrap_or_else(|failure| json!({ "result": "promoted", "error": failure.to_string() }));
            return Ok((new, report));
        }
        let excluded: Vec<u32> = asked.iter().copied().chain([event.node]).collect();
        let Some(other) = better(&failure, &context.nodes, &excluded) else {
            return Err(failure.at(format!("node {} ({}:{})", new.node, new.host, new.port)));
        };
        crate::say("failover", &format!("node {} is not promoted but {}: {failure}", new.node, other.name()));
        new = other.place();
    }
}

/// Whether a promotion may have happened that failed with this: what a server refuses it has not done, and where there is no
/// login nothing was asked.
fn may_be_promoted(failure: &Failure) -> bool {
    let has_refused = failure.is("55000") || failure.is("42883") || failure.is("42501");
    let has_no_login = failure.sqlstate.is_none() && failure.message.starts_with("connection to server at ");
    !has_refused && !has_no_login
}

fn promote(context: &Context, event: &Event, new: &Place, end: Instant) -> Result<Value> {
    let others = context.nodes.iter().filter(|node| node.id != new.node && node.id != event.node);
    let known = others.filter(|node| !node.data_directory.is_empty());
    let nodes: Vec<Value> = known
        .map(|node| {
            json!({
                "node_id": node.id,
                "host": node.host,
                "port": node.port,
                "directory": node.data_directory,
            })
        })
        .collect();
    let options = json!({ "nodes": nodes }).to_string();
    let left = end.saturating_duration_since(Instant::now()).as_secs().saturating_sub(MARGIN).max(1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let (left, until) = (left.to_string(), (now + left).to_string());
    let port = event.port.to_string();
    let (host, directory, port) = if event.directory.is_empty() {
        let id = event.node;
        crate::say("failover", &format!("node {id} is not fenced: its data directory is not known"));
        ("", "", "")
    } else {
        (event.host.as_str(), event.directory.as_str(), port.as_str())
    };
    let values = [
        ("old_host", host),
        ("old_dir", directory),
        ("old_port", port),
        ("options", &options),
        ("left", &left),
        ("until", &until),
    ];
    context.login.json(new, PROMOTE, &values, end)
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

/// The nodes of which the report says anything.
fn reported(report: &Value) -> Vec<u32> {
    let nodes = report["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    nodes.iter().filter_map(|node| u32::try_from(node["node_id"].as_u64()?).ok()).collect()
}

/// Whether only a rebuild helps: a rebuild takes away what the node has. The SQLSTATE says that the server refused, and the
/// message, which every version of the extension ends so, why. DETAIL and HINT may have lines of a server's log, and those what any
/// client has put there.
pub(crate) fn is_diverged(failure: &Failure) -> bool {
    failure.is("55000") && failure.message.ends_with("\" has diverged from this primary")
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
        assert!(matches!(decide(&primary), Decision::Promote(new) if new.node == 1));
        let unknown = event(0, Some(1), None);
        assert!(matches!(decide(&unknown), Decision::Promote(new) if new.node == 1));
    }

    const CONNECTION: &str = "connection to server at \"host3\" (203.0.113.3), port 5432 failed: ";

    #[test]
    fn beside_another_primary_nothing_is_promoted() {
        let nodes = nodes();
        let role = |is_standby| Ok(is_standby);
        let silent = || Err(Failure::new(format!("{CONNECTION}timeout expired")));
        demand_no_other_primary(&[]).expect("none");
        demand_no_other_primary(&[(&nodes[2], role(true)), (&nodes[3], silent())]).expect("a standby");
        let two = [(&nodes[2], silent()), (&nodes[3], role(false))];
        let failure = demand_no_other_primary(&two).expect_err("a primary");
        assert!(failure.message.contains("node 3 (host3:5432) runs as a primary"), "{failure}");
        assert!(failure.detail.is_some() && failure.hint.is_some());
        let spoken = Failure::new(format!("{CONNECTION}FATAL:  pg_hba.conf rejects connection"));
        let denied = Failure { sqlstate: Some("42501".to_owned()), ..Failure::new("permission denied") };
        for said in [spoken, denied] {
            let failure = demand_no_other_primary(&[(&nodes[3], Err(said))]).expect_err("it lives");
            assert!(
                failure.message.contains("cannot tell whether node 3") && failure.is("55000"),
                "{failure}"
            );
        }
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
    fn what_is_left_to_do_is_what_the_report_does_not_tell() {
        let mut nodes = nodes();
        nodes.extend([Node { id: 4, data_directory: String::new(), ..nodes[0].clone() }]);
        let works = |report: &Value, rebuilds| {
            let works = super::works(report, &nodes, &event(0, Some(1), None), 1, rebuilds);
            works.iter().map(|work| (work.job, work.node, work.rebuild)).collect::<Vec<_>>()
        };
        let report = json!({ "fenced": { "fenced": true, "was_running": true }, "nodes": [
            { "node_id": 2, "slot": "b" },
            { "node_id": 3, "error": "the server in \"/d\" has diverged from this primary", "sqlstate": "55000" },
        ]});
        let stray = |id, rebuild| (Job::Stray, id, rebuild);
        assert_eq!(works(&report, true), [stray(3, true), stray(4, false), (Job::Rejoin, 0, false)]);
        // it was down before; and a server that was the primary already has told no node to follow
        let report = json!({ "fenced": { "fenced": true, "was_running": false }, "nodes": [] });
        let survivor = |id| (Job::Survivor, id, false);
        assert_eq!(works(&report, false), [survivor(2), survivor(3), stray(4, false)]);
    }

    #[test]
    fn what_a_server_refuses_it_has_not_done() {
        let failure = |sqlstate: &str| Failure { sqlstate: Some(sqlstate.to_owned()), ..Failure::new("x") };
        assert!(!may_be_promoted(&failure("55000")));
        assert!(may_be_promoted(&failure("57014")), "it took too long");
        assert!(may_be_promoted(&failure("57P01")), "its session was ended");
        assert!(may_be_promoted(&Failure::new("h:1 gave no answer within 30 s")));
        let no_login = Failure::new("connection to server at \"h\", port 1 failed: timeout expired");
        assert!(!may_be_promoted(&no_login));
        assert!(
            may_be_promoted(&Failure { sqlstate: Some("08006".to_owned()), ..no_login }),
            "a server's word"
        );
    }

    #[test]
    fn the_report_tells_who_does_not_follow() {
        let report = json!({ "nodes": [
            { "node_id": 2, "host": "b", "port": 5432, "slot": "b" },
            { "node_id": 3, "host": "c", "port": 5432, "error": "the server in \"/d\" has diverged from this primary",
              "sqlstate": "55000", "detail": null, "hint": "Rebuild it." },
        ]});
        let stray = stray(&report);
        assert_eq!((stray.len(), stray[0].0), (1, 3));
        assert!(is_diverged(&stray[0].1) && stray[0].1.is("55000"));
        assert!(super::stray(&json!({ "result": "already_primary" })).is_empty());
    }

    #[test]
    fn what_a_client_puts_into_a_log_has_nothing_rebuilt() {
        let diverged = Failure {
            sqlstate: Some("55000".to_owned()),
            ..Failure::new("the server in \"/d\" has diverged from this primary")
        };
        assert!(is_diverged(&diverged));
        let lines = "ERROR:  relation \"the server in \"/d\" has diverged from this primary\" does not exist";
        for failure in [
            Failure {
                message: "the server in \"/d\" does not stream from this primary".to_owned(),
                detail: Some(format!("Its log says:\n{lines}")),
                ..diverged.clone()
            },
            Failure { sqlstate: None, ..diverged.clone() },
            Failure { sqlstate: Some("57014".to_owned()), ..diverged.clone() },
            Failure { message: lines.to_owned(), ..diverged.clone() },
        ] {
            assert!(!is_diverged(&failure), "{failure}");
        }
    }
}

//! `check`: what would fail at a failover, before there is one. Changes nothing.

use std::process::ExitCode;

use serde_json::Value;

use crate::Context;
use crate::conf::{Conf, Node};
use crate::failure::{Result, one_line};
use crate::pcp::Status;
use crate::role::{LIMIT, Role, roles};

/// What a login finds out besides the role. A role that may not read everything gets NULLs.
const LOOK: &str = "SELECT json_build_object(
    'missing', ARRAY(SELECT name FROM unnest(ARRAY[
        'pgpool_recovery_promote(text,text,integer,jsonb)',
        'pgpool_recovery_follow(text,text,integer,text,integer,integer,jsonb)',
        'pgpool_recovery_check(text,text,integer,jsonb)']) name
        WHERE to_regprocedure(format('%I.%s', :'extension', name)) IS NULL),
    'denied', ARRAY(SELECT name FROM unnest(ARRAY[
        'pgpool_recovery_promote(text,text,integer,jsonb)',
        'pgpool_recovery_follow(text,text,integer,text,integer,integer,jsonb)',
        'pgpool_recovery_check(text,text,integer,jsonb)']) name
        WHERE NOT has_function_privilege(to_regprocedure(format('%I.%s', :'extension', name))::oid, 'EXECUTE')),
    'sender', (SELECT sender_host FROM pg_stat_wal_receiver),
    'conninfo', (SELECT conninfo FROM pg_stat_wal_receiver),
    'standbys', ARRAY(SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'))";

/// What is wrong with the way to a node's agent, as the primary sees it.
const AGENT: &str = "SELECT COALESCE(json_agg(json_build_object('step', step, 'detail', detail)), '[]')
    FROM :\"extension\".pgpool_recovery_check(:'host'::text, :'dir'::text, :'port'::integer, json_build_object('node_id', :'node'::integer)::jsonb)
    WHERE NOT ok AND step IN ('arguments', 'caller', 'target_host', 'target_reachable', 'secret', 'agent_version')";

/// What is found.
#[derive(Debug, Default, PartialEq, Eq)]
struct Findings(Vec<(Kind, String)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Good,
    Note,
    Bad,
}

impl Findings {
    fn good(&mut self, text: impl Into<String>) {
        self.0.push((Kind::Good, text.into()));
    }

    fn note(&mut self, text: impl Into<String>) {
        self.0.push((Kind::Note, text.into()));
    }

    fn bad(&mut self, text: impl Into<String>) {
        self.0.push((Kind::Bad, text.into()));
    }
}

/// Prints what is found, a line each; the exit status is 1 if anything would fail.
pub(crate) fn print(context: Result<Context>) -> ExitCode {
    let findings = match context {
        Ok(context) => check(&context),
        Err(failure) => Findings(vec![(Kind::Bad, failure.to_string())]),
    };
    for (kind, text) in &findings.0 {
        let label = match kind {
            Kind::Good => "ok  ",
            Kind::Note => "note",
            Kind::Bad => "FAIL",
        };
        println!("{label}  {text}");
    }
    let is_bad = findings.0.iter().any(|(kind, _)| *kind == Kind::Bad);
    if is_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn check(context: &Context) -> Findings {
    let mut findings = Findings::default();
    findings.good(format!("{}: {} nodes", context.conf.path.display(), context.nodes.len()));
    check_settings(&context.conf, &context.nodes, &mut findings);
    check_nodes(context, &mut findings);
    check_pcp(context, &mut findings);
    findings
}

fn check_settings(conf: &Conf, nodes: &[Node], findings: &mut Findings) {
    let mode = conf.get("backend_clustering_mode");
    let is_streaming = match mode {
        // up to 4.1
        "" => conf.is_on("master_slave_mode") && conf.get("master_slave_sub_mode") == "stream",
        mode => mode == "streaming_replication",
    };
    // streaming replication is the default of 4.2 and later
    let is_unset = mode.is_empty() && conf.get("master_slave_mode").is_empty();
    if !is_streaming && !is_unset {
        findings.bad("Pgpool-II is not in streaming replication mode: it promotes nothing");
    }
    if !conf.get("failover_command").contains("pgpool-recovery-hook") {
        findings.note("failover_command does not call pgpool-recovery-hook");
    }
    let follow = conf.get("follow_primary_command");
    let follow = if follow.is_empty() { conf.get("follow_master_command") } else { follow };
    if !follow.is_empty() {
        if conf.is_on("auto_failback") {
            findings.bad(
                "auto_failback is on and follow_primary_command is set: Pgpool-II may attach a node again before it \
                 follows, and then calls no follow command for it",
            );
        }
        findings.note(
            "follow_primary_command is set: at a failover Pgpool-II takes every standby out of use, and handles no second \
             failover until the command has ended for each of them. With the hook as failover_command it can be ''",
        );
    }
    for node in nodes {
        if node.flags.to_ascii_uppercase().contains("DISALLOW_TO_FAILOVER") {
            findings.bad(format!("backend_flag{} has DISALLOW_TO_FAILOVER: no failover happens", node.id));
        }
        if node.data_directory.is_empty() {
            findings.bad(format!("backend_data_directory{} is empty", node.id));
        }
        if node.application_name.is_empty() {
            findings.bad(format!(
                "backend_application_name{} is empty: Pgpool-II does not see whether the node streams",
                node.id
            ));
        }
        let twin = |other: &&Node| other.id < node.id && other.application_name == node.application_name;
        if let Some(other) = nodes.iter().find(twin).filter(|_| !node.application_name.is_empty()) {
            findings.bad(format!(
                "nodes {} and {} have one backend_application_name, \"{}\"",
                other.id, node.id, node.application_name
            ));
        }
    }
}

fn check_nodes(context: &Context, findings: &mut Findings) {
    let roles = roles(context, &context.nodes, LIMIT);
    let mut primary: Option<(&Node, Role)> = None;
    for (node, role) in &roles {
        match role {
            Ok(role) if role.is_standby => {}
            Ok(role) => match &primary {
                Some((other, _)) => {
                    findings.bad(format!("{} and {} are both primaries", other.name(), node.name()));
                }
                None => primary = Some((node, role.clone())),
            },
            Err(failure) => findings.bad(failure.to_string()),
        }
    }
    if primary.is_none() {
        findings.bad("no node is a primary");
    }
    let mut streaming = None;
    for (node, role) in roles.iter().filter_map(|(node, role)| Some((node, role.as_ref().ok()?))) {
        if let Some((other, of_primary)) = &primary
            && role.system != of_primary.system
        {
            findings.bad(format!("{} has another system than {}", node.name(), other.name()));
        }
        match context.login.json(&node.place(), LOOK, &[], context.end) {
            Ok(found) => {
                let is_good = check_functions(node, &found, findings);
                if role.is_standby {
                    if let Some((primary, _)) = &primary {
                        check_standby(node, primary, &found, findings);
                    }
                } else {
                    streaming = Some(strings(&found["standbys"]));
                }
                if is_good {
                    let what = if role.is_standby { "standby" } else { "primary" };
                    findings.good(format!("{}: {what}, login and functions", node.name()));
                }
            }
            Err(failure) => findings.bad(failure.at(node.name()).to_string()),
        }
    }
    let (Some((primary, _)), Some(streaming)) = (primary, streaming) else { return };
    for (node, role) in &roles {
        if role.as_ref().is_ok_and(|role| role.is_standby) && !streaming.contains(&node.application_name) {
            findings.bad(format!(
                "no standby streams from {} under the name of backend_application_name{}, \"{}\"; those that stream: {}",
                primary.name(),
                node.id,
                node.application_name,
                streaming.join(", ")
            ));
        }
        if node.id != primary.id && !node.data_directory.is_empty() {
            check_agent(context, primary, node, findings);
        }
    }
}

fn strings(list: &Value) -> Vec<String> {
    let values = list.as_array().map(Vec::as_slice).unwrap_or_default();
    values.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
}

fn check_functions(node: &Node, found: &Value, findings: &mut Findings) -> bool {
    let mut is_good = true;
    for (key, what) in [
        ("missing", "lacks functions (CREATE EXTENSION pgpool_recovery, or ALTER EXTENSION ... UPDATE)"),
        ("denied", "does not let the role call functions (GRANT EXECUTE)"),
    ] {
        let names = strings(&found[key]);
        if !names.is_empty() {
            is_good = false;
            findings.bad(format!("{} {what}: {}", node.name(), names.join(", ")));
        }
    }
    is_good
}

/// The primary's host in its connection string, and its own name there, are compared by Pgpool-II as text.
fn check_standby(node: &Node, primary: &Node, found: &Value, findings: &mut Findings) {
    let Some(conninfo) = found["conninfo"].as_str() else {
        findings.note(format!(
            "{}: whom it streams from is not shown to this role (GRANT pg_monitor), or it does not stream",
            node.name()
        ));
        return;
    };
    if let Some(host) = word(conninfo, "host").filter(|host| *host != primary.host) {
        findings.bad(format!(
            "{} streams from \"{host}\", and backend_hostname{} is \"{}\": Pgpool-II does not see that they are the same",
            node.name(),
            primary.id,
            primary.host
        ));
    }
    if let Some(name) = word(conninfo, "application_name").filter(|name| *name != node.application_name) {
        findings.bad(format!(
            "{} calls itself \"{name}\", and backend_application_name{} is \"{}\"",
            node.name(),
            node.id,
            node.application_name
        ));
    }
}

/// A value of a connection string, as pg_stat_wal_receiver shows it.
fn word<'a>(conninfo: &'a str, name: &str) -> Option<&'a str> {
    let mut words = conninfo.split_whitespace().filter_map(|word| word.split_once('='));
    words.find(|(key, _)| *key == name).map(|(_, value)| value.trim_matches('\''))
}

fn check_agent(context: &Context, primary: &Node, node: &Node, findings: &mut Findings) {
    let (port, id) = (primary.port.to_string(), node.id.to_string());
    let values =
        [("host", node.host.as_str()), ("dir", &node.data_directory), ("port", &port), ("node", &id)];
    let what = format!("{}: what {} says of the way to it", node.name(), primary.name());
    match context.login.json(&primary.place(), AGENT, &values, context.end) {
        Ok(Value::Array(rows)) if rows.is_empty() => {
            findings.good(format!("{}: its agent, or its directory on the primary's host", node.name()));
        }
        Ok(rows) => {
            for row in rows.as_array().map(Vec::as_slice).unwrap_or_default() {
                let (step, detail) = (row["step"].as_str(), row["detail"].as_str());
                let (step, detail) = (step.unwrap_or_default(), detail.unwrap_or_default());
                findings.bad(format!("{what}: {step}: {}", one_line(detail)));
            }
        }
        Err(failure) => findings.bad(failure.at(what).to_string()),
    }
}

fn check_pcp(context: &Context, findings: &mut Findings) {
    match context.pcp.count(context.end) {
        Ok(count) if count == context.nodes.len() => {}
        Ok(count) => {
            findings.bad(format!("Pgpool-II has {count} nodes, and pgpool.conf {}", context.nodes.len()));
        }
        Err(failure) => {
            findings.bad(format!("PCP at {}:{}: {failure}", context.pcp.host, context.pcp.port));
            return;
        }
    }
    for node in &context.nodes {
        match context.pcp.status(node.id, context.end) {
            Ok(Status::Up) => findings.good(format!("{}: up", node.name())),
            Ok(status) => findings.note(format!("{}: Pgpool-II does not use it ({status:?})", node.name())),
            Err(failure) => findings.bad(failure.at(node.name()).to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(settings: &str) -> Vec<(Kind, String)> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let nodes = "backend_hostname0 = 'a'\nbackend_data_directory0 = '/d'\nbackend_application_name0 = 'a'\n\
                     failover_command = 'pgpool-recovery-hook failover'\n";
        std::fs::write(file.path(), nodes.to_owned() + settings).expect("write");
        let conf = Conf::read(file.path()).expect("good");
        let mut findings = Findings::default();
        check_settings(&conf, &conf.nodes().expect("nodes"), &mut findings);
        findings.0
    }

    #[test]
    fn settings_that_would_fail_are_named() {
        assert_eq!(found(""), []);
        assert_eq!(found("backend_clustering_mode = 'streaming_replication'\n"), []);
        assert_eq!(found("master_slave_mode = on\nmaster_slave_sub_mode = 'stream'\n"), [], "4.1");
        for (settings, named) in [
            ("backend_clustering_mode = 'native_replication'\n", "streaming replication mode"),
            ("master_slave_mode = off\n", "streaming replication mode"),
            ("backend_flag0 = 'DISALLOW_TO_FAILOVER'\n", "backend_flag0"),
            ("backend_data_directory0 = ''\n", "backend_data_directory0"),
            ("backend_application_name0 = ''\n", "backend_application_name0"),
            ("auto_failback = on\nfollow_primary_command = 'x'\n", "auto_failback"),
            ("auto_failback = on\nfollow_master_command = 'x'\n", "auto_failback"),
            (
                "backend_hostname1 = 'b'\nbackend_data_directory1 = '/d'\nbackend_application_name1 = 'a'\n",
                "nodes 0 and 1",
            ),
        ] {
            let found = found(settings);
            let is_named = found.iter().any(|(kind, text)| *kind == Kind::Bad && text.contains(named));
            assert!(is_named, "{settings}: {found:?}");
        }
        assert!(found("auto_failback = on\n").is_empty(), "without a follow command it may be on");
        assert_eq!(found("failover_command = 'x'\n")[0].0, Kind::Note);
    }

    #[test]
    fn names_are_compared_as_text() {
        let node = |id: u32, host: &str, name: &str| Node {
            id,
            host: host.to_owned(),
            port: 5432,
            data_directory: String::new(),
            application_name: name.to_owned(),
            flags: String::new(),
        };
        let (primary, standby) = (node(0, "node1", "node1"), node(1, "node2", "node2"));
        let of = |conninfo: &str| {
            let mut findings = Findings::default();
            check_standby(&standby, &primary, &serde_json::json!({ "conninfo": conninfo }), &mut findings);
            findings.0
        };
        assert_eq!(of("user=repl host=node1 port=5432 application_name=node2"), []);
        let wrong = of("user=repl host=10.0.0.1 port=5432 application_name=walreceiver");
        assert!(wrong[0].1.contains("10.0.0.1") && wrong[1].1.contains("walreceiver"), "{wrong:?}");
    }
}

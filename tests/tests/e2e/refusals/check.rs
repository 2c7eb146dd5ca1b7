//! `pgpool_recovery_check`: every question, all answers at once, nothing changed.

use std::collections::BTreeMap;
use std::net::TcpListener;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::mount::Tmpfs;
use pgpool_recovery_e2e::snapshot::Snapshot;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, ports, probe, workload};
use serde_json::{Value, json};

/// Whether each step is well, and what it says.
fn check(
    primary: &Cluster,
    host: &str,
    directory: &str,
    options: &Value,
) -> BTreeMap<String, (bool, String)> {
    let sql = "SELECT step, ok, concat_ws(' ', detail, hint) FROM pgpool_recovery_check($1, $2, $3, $4)";
    let port = i32::from(primary.port());
    let rows = primary.connect().query(sql, &[&host, &directory, &port, options]).expect(sql);
    rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect()
}

/// The steps that are not well.
fn bad(answers: &BTreeMap<String, (bool, String)>) -> Vec<&str> {
    answers.iter().filter(|(_, (ok, _))| !ok).map(|(step, _)| step.as_str()).collect()
}

#[test]
fn every_step_is_there() {
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary"))
        .with("pgpool_recovery.secret_file", secret.display())
        .with("pgpool_recovery.transport", "agent")
        .into_primary();
    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
    standby.kill();
    let agent = Agent::start(&scratch, &Host::here(), &secret, &[standby.directory()]);
    let before = Snapshot::of(standby.directory());
    let answers = check(&primary, "127.0.0.1", standby.dir(), &json!({ "agent_port": agent.port() }));
    let steps: Vec<&str> = answers.keys().map(String::as_str).collect();
    let expected = [
        "agent_version",
        "caller",
        "clocks",
        "collation",
        "configuration",
        "conflicting_settings",
        "former_slot",
        "minor_versions",
        "port",
        "primary_files",
        "primary_is_primary",
        "replication_login",
        "replication_slot",
        "replication_user",
        "secret",
        "skip_unchanged",
        "slot_limits",
        "space",
        "standby_parameters",
        "start_command",
        "tablespaces",
        "target_free",
        "target_identity",
        "target_is_not_primary",
        "target_reachable",
        "target_stopped",
        "target_version",
        "target_wal",
        "target_writable",
        "unarchived_wal",
        "wal_level",
        "wal_senders",
    ];
    assert_eq!(steps, expected);
    assert!(bad(&answers).is_empty(), "{answers:#?}");
    before.assert_unchanged(standby.directory());
    probe::assert_nothing_left(&primary);

    // what keeps one from the target does not keep the rest from being asked
    let other = agent::secret(&scratch, "other");
    let wrong = json!({ "agent_port": agent.port(), "secret_file": other, "replication_user": "nobody" });
    let answers = check(&primary, "127.0.0.1", standby.dir(), &wrong);
    assert_eq!(bad(&answers), ["replication_user", "secret"], "{answers:#?}");
    let nobody = json!({ "agent_port": ports::Port::claim().number(), "slot_name": "x" });
    let answers = check(&primary, "127.0.0.1", standby.dir(), &nobody);
    assert_eq!(bad(&answers), ["target_reachable"], "{answers:#?}");
    let answers = check(&primary, "no-such-host.invalid", standby.dir(), &json!({ "transport": "auto" }));
    assert_eq!(bad(&answers), ["target_host"], "{answers:#?}");
    assert!(answers.contains_key("wal_level"), "{answers:#?}");
}

#[test]
fn all_problems_at_once() {
    let scratch = Scratch::new();
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary")).into_primary();
    workload::fill(&primary, 30);
    let small = Tmpfs::new(&scratch, "small", 20);
    let directory = small.path().join("data");
    let directory = directory.to_str().expect("UTF-8");
    // 127.0.0.1 as a host name is this host: written directly, to a file system with too little room, for a
    // server on the primary's own port, which would log in as a role that may not
    primary.set_hba("local all all trust\nhost all all 127.0.0.1/32 trust\n");
    primary.reload();
    let answers = check(&primary, "localhost", directory, &json!({}));
    assert_eq!(bad(&answers), ["port", "replication_login", "space"], "{answers:#?}");
    assert!(answers["port"].1.contains("is in use"), "{answers:#?}");
    assert!(answers["space"].1.contains("MB are free"), "{answers:#?}");
    assert!(!std::path::Path::new(directory).exists(), "it is not made");
    probe::assert_nothing_left(&primary);
}

/// Two primaries that may claim one target, which an agent serves.
#[test]
fn a_recovery_that_runs_is_seen_by_others() {
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let one = probe::quiet(Cluster::place(&scratch, &Host::here(), "one"))
        .with("pgpool_recovery.secret_file", secret.display())
        .with("pgpool_recovery.transport", "agent")
        .into_primary();
    workload::fill(&one, 20);
    let other = Cluster::standby_by_basebackup(&one, &Host::here(), "other");
    other.promote();
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let agent = Agent::start(&scratch, &Host::here(), &secret, &[target.directory()]);
    let recovery =
        Recovery::of(&target, &one).option("agent_port", agent.port()).option("slot_name", "target");
    let options = json!({ "agent_port": agent.port(), "slot_name": "target_2" });
    let running = Running::start(&one, &recovery.option("max_rate", 4000), "");
    running.wait_for_bytes(&one, 4 << 20);
    for (primary, whose) in
        [(&one, "of this server works on it"), (&other, "The primary at 127.0.0.1 works on it")]
    {
        let answers = check(primary, "localhost", target.dir(), &options);
        let (ok, said) = &answers["target_free"];
        assert!(!ok && said.contains(whose), "{answers:#?}");
        let dry =
            Recovery::of(&target, primary).option("agent_port", agent.port()).option("slot_name", "target_2");
        dry.option("dry_run", true).fail(primary).expect("55006").says("is running");
    }
    running.finish_within(std::time::Duration::from_secs(60)).expect("nobody was in its way");
    for primary in [&one, &other] {
        assert!(check(primary, "localhost", target.dir(), &options)["target_free"].0);
    }
}

#[test]
fn a_port_that_is_taken_does_not_stop_a_recovery() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    // not one that the kernel gives to connections, which would be in use again at once
    let claim = ports::Port::claim();
    let port = claim.number();
    let other = TcpListener::bind(("127.0.0.1", port)).expect("listen");
    let recovery = Recovery::of(&target, &primary).option("dest_port", port);
    let report = recovery.run(&primary);
    assert!(report.at("/warnings").to_string().contains(&format!("port {port} is in use")), "{}", report.0);
    // its own configuration says the same from now on
    let answers = check(&primary, "localhost", target.dir(), &json!({}));
    assert_eq!(bad(&answers), ["port"], "{answers:#?}");
    drop(other);
    let answers = check(&primary, "localhost", target.dir(), &json!({}));
    assert!(bad(&answers).is_empty(), "{answers:#?}");
}

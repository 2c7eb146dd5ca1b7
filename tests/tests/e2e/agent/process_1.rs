//! An agent that is process 1, as in a container without an init.

use std::fs;
use std::time::Duration;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::recovery::remote_start;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, process, wait, workload};
use rustix::process::{Signal, kill_process};

/// A field of /proc/N/status.
fn status(process: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(field)).map(|value| value.trim().to_owned())
}

/// The process ids, as this test sees them, of a pid namespace.
fn processes_of(namespace: &std::path::Path) -> Vec<u32> {
    let all =
        fs::read_dir("/proc").expect("it").filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|process| fs::read_link(format!("/proc/{process}/ns/pid")).is_ok_and(|of| of == namespace))
        .collect()
}

#[test]
fn a_killed_server_can_be_started_again_where_the_agent_is_process_1() {
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let primary = Cluster::place(&scratch, &Host::here(), "primary")
        .with("pgpool_recovery.secret_file", secret.display())
        .with("pgpool_recovery.transport", "agent")
        .into_primary();
    workload::fill(&primary, 2);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let mut agent = Agent::start_as_process_1(&scratch, &secret, &[target.directory()]);
    primary.use_agent(agent.port());
    let recovery = Recovery::to("127.0.0.1", target.dir(), primary.port())
        .option("dest_port", target.port())
        .option("start", true);
    recovery.run(&primary);
    let first = process::children(agent.pid())[0];
    let namespace = fs::read_link(format!("/proc/{first}/ns/pid")).expect("process 1 of the container");

    let postmaster = || {
        let inside = target.read("postmaster.pid").lines().next().expect("a process id").to_owned();
        processes_of(&namespace).into_iter().find(|&process| {
            status(process, "NSpid:").is_some_and(|ids| ids.split_whitespace().last() == Some(&inside))
        })
    };
    for _ in 0..2 {
        let server = postmaster().expect("the standby runs in the container");
        kill_process(process::pid(server), Signal::KILL).expect("killed");
        wait::until_true("the server to be reaped", wait::PATIENCE, || status(server, "State:").is_none());
        remote_start(&primary, "127.0.0.1", target.dir());
    }
    wait::until_true("all orphans to be reaped", wait::PATIENCE, || {
        processes_of(&namespace)
            .iter()
            .all(|&process| status(process, "State:").is_none_or(|state| !state.starts_with('Z')))
    });

    // signals reach the agent, and its end is that of the container
    kill_process(process::pid(first), Signal::HUP).expect("sent");
    wait::until_true("the reload", wait::PATIENCE, || agent.log().contains("reloaded"));
    kill_process(process::pid(first), Signal::TERM).expect("sent");
    wait::until_true("the end", Duration::from_secs(30), || processes_of(&namespace).is_empty());
    assert!(agent.log().contains("stopped"), "{}", agent.log());
    agent.kill();
}

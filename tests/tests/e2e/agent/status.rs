//! Watching an agent: its `status` command, and what it tells Prometheus.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::ports::Port;
use pgpool_recovery_e2e::process::{self, Finished};
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, probe, server, wait, workload};
use serde_json::Value;

fn status(agent: &Agent, arguments: &[&str]) -> Finished {
    let mut command = Host::here().agent();
    command.args(["status", "--config"]).arg(agent.config()).args(arguments);
    process::run(command)
}

/// The only directory's part of `status --json`.
fn json(agent: &Agent) -> Value {
    let text = status(agent, &["--json"]).ok();
    let status: Value = serde_json::from_str(&text).expect(&text);
    status["directories"][0].clone()
}

fn get(port: u16, path: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("the endpoint listens");
    write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("ask");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    answer
}

/// The value of a metric of the only directory; `labels` are the others.
fn metric(port: u16, directory: &str, name: &str, labels: &str) -> u64 {
    let page = get(port, "/metrics");
    let start = format!("pgpool_recovery_agent_{name}{{data_directory=\"{directory}\"{labels}}} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&start));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {start} in\n{page}"))
}

#[test]
fn a_recovery_is_watched_from_its_beginning_to_its_end() {
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let primary = probe::quiet(Cluster::place(&scratch, &Host::here(), "primary"))
        .with("pgpool_recovery.secret_file", secret.display())
        .with("pgpool_recovery.transport", "agent")
        .into_primary();
    workload::fill(&primary, 20);
    let target = Cluster::place(&scratch, &Host::here(), "target");
    let claim = Port::claim();
    let port = claim.number();
    let settings = format!(
        "metrics = \"127.0.0.1:{port}\"\n[[cluster]]\ndata_directory = \"{}\"\nbin_directory = \"{}\"\n",
        target.dir(),
        server::programs().display()
    );
    let mut agent = Agent::start_with(&scratch, &Host::here(), &secret, &settings);
    let outcomes =
        |outcome: &str| metric(port, target.dir(), "runs_total", &format!(",outcome=\"{outcome}\""));

    let text = status(&agent, &[]).ok();
    assert!(text.contains(target.dir()) && text.contains("none in progress"), "{text}");
    assert_eq!([outcomes("succeeded"), outcomes("failed"), outcomes("given_up")], [0; 3]);
    assert!(!target.directory().exists(), "watching makes nothing");

    let recovery = Recovery::to("127.0.0.1", target.dir(), primary.port())
        .option("agent_port", agent.port())
        .option("dest_port", target.port());
    let running = Running::start(&primary, &recovery.clone().option("max_rate", 4000), "");
    running.wait_for_bytes(&primary, 1);
    let told = json(&agent);
    let run = &told["account"]["running"];
    assert_eq!((&run["state"], &told["incomplete"]), (&"data".into(), &true.into()), "{told}");
    assert!(run["bytes"].as_u64() > Some(20 << 20) && run["moved"]["compared"].as_u64() > Some(0), "{told}");
    let text = status(&agent, &["--host", "localhost"]).ok();
    assert!(text.contains("in progress: ") && text.contains(", from 127.0.0.1"), "{text}");
    let value = |name| metric(port, target.dir(), name, "");
    assert_eq!((value("run_in_progress"), value("directory_incomplete")), (1, 1));
    assert!(value("run_planned_bytes") > 20 << 20 && value("run_compared_bytes") > 0);
    running.cancel();
    running.finish_within(wait::PATIENCE).expect_err("canceled");
    wait::until_true("the agent to notice", wait::PATIENCE, || outcomes("given_up") == 1);
    assert_eq!((value("run_in_progress"), value("directory_incomplete")), (0, 1));
    let ended = |outcome| {
        metric(port, target.dir(), "last_run_end_timestamp_seconds", &format!(",outcome=\"{outcome}\""))
    };
    let given_up = ended("given_up");
    let text = status(&agent, &[]).ok();
    assert!(text.contains("broke off") && text.contains("last      given up by the primary"), "{text}");

    let report = recovery.option("start", true).run_when_let_in(&primary);
    let told = json(&agent);
    assert_eq!(told["account"]["last"]["state"], "succeeded", "{told}");
    assert_eq!(told["account"]["last"]["moved"]["compared"], *report.at("/bytes/compared"), "{told}");
    // of WAL, pages of zeros are counted there and not sent
    let received = told["account"]["last"]["moved"]["received"].as_u64().expect("a number");
    let (sent, wal) = (report.number("/bytes/sent"), report.number("/bytes/wal"));
    assert!((sent + 1..=sent + wal).contains(&received), "{told} {}", report.0);
    assert_eq!(told["server"].as_u64(), target.postmaster().map(u64::from), "{told}");
    assert_eq!((outcomes("succeeded"), value("directory_incomplete"), value("server_running")), (1, 0, 1));
    assert!(value("received_bytes_total") > received, "with the run that was given up");
    assert!(value("last_success_timestamp_seconds") > 1_700_000_000);
    assert_eq!(ended("succeeded"), value("last_success_timestamp_seconds"));
    assert!(given_up > 1_700_000_000 && given_up <= ended("succeeded"), "{given_up}");

    assert!(get(port, "/").starts_with("HTTP/1.1 404 "));
    let secret = fs::read_to_string(&secret).expect("the secret");
    assert!(
        !get(port, "/metrics").contains(secret.trim())
            && !status(&agent, &["--json"]).ok().contains(secret.trim())
    );

    agent.stop();
    let gone = status(&agent, &[]);
    assert_eq!((gone.status.code(), gone.stdout.as_str()), (Some(1), ""), "{}", gone.stderr);
    for word in
        [&format!("could not connect to the agent at 127.0.0.1:{}", agent.port()), "DETAIL: ", "HINT: Is it"]
    {
        assert!(gone.stderr.contains(word), "{}", gone.stderr);
    }
}

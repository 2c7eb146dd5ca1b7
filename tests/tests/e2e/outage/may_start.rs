//! `pgpool-recovery-agent may-start`: an old primary that boots again asks the other nodes' agents first.

use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::process::{self, Finished};
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::{Cluster, Host, Scratch};

/// A primary that was shut down, its standby that still runs, and the standby's agent.
struct Pair {
    agent: Agent,
    standby: Cluster,
    primary: Cluster,
    secret: PathBuf,
    scratch: Scratch,
}

impl Pair {
    fn new() -> Self {
        let scratch = Scratch::new();
        let primary = Cluster::primary(&scratch);
        let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
        let secret = agent::secret(&scratch, "secret");
        let agent = Agent::start_with(&scratch, &Host::here(), &secret, &agent::cluster(standby.directory()));
        primary.stop(Stop::Fast);
        Self { agent, standby, primary, secret, scratch }
    }

    /// The standby's agent as agent.toml has it.
    fn node(&self) -> String {
        node(self.agent.port(), &self.standby)
    }

    /// May the primary be started, by an agent.toml whose section of it ends with these lines?
    fn ask(&self, lines: &str) -> Finished {
        self.ask_with(lines, &self.secret)
    }

    fn ask_with(&self, lines: &str, secret: &std::path::Path) -> Finished {
        let text = agent::config("127.0.0.1:9", secret, &[self.primary.directory()]) + lines;
        let config = self.scratch.write("may-start.toml", &text, 0o600);
        let mut command = Host::here().agent();
        command.args(["may-start", "--config"]).arg(config).arg(self.primary.directory());
        process::run(command)
    }
}

fn node(port: u16, cluster: &Cluster) -> String {
    format!("{{ host = '127.0.0.1', port = {port}, data_directory = '{}' }}", cluster.dir())
}

#[track_caller]
fn refused(finished: &Finished, words: &[&str]) {
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    let line = finished.stderr.lines().find(|line| line.contains("must not be started"));
    let line = line.unwrap_or_else(|| panic!("{finished:?}"));
    for word in words {
        assert!(line.contains(word), "no \"{word}\" in {line}");
    }
}

#[track_caller]
fn granted(finished: &Finished, words: &str) {
    assert!(finished.status.success(), "{finished:?}");
    assert!(finished.stderr.contains("may be started") && finished.stderr.contains(words), "{finished:?}");
}

#[test]
fn an_old_primary_is_not_started_once_another_node_was_promoted() {
    let pair = Pair::new();
    let nodes = format!("nodes = [{}]\n", pair.node());
    granted(&pair.ask(&nodes), "no node that was heard (1) has a later timeline than 1");
    pair.standby.promote();
    let port = format!("127.0.0.1:{}", pair.agent.port());
    refused(&pair.ask(&nodes), &[&port, "runs this system as a primary on timeline 2", "reached timeline 1"]);
    // when all hosts boot together, agents may be up before servers are
    pair.standby.stop(Stop::Fast);
    refused(&pair.ask(&nodes), &["not running", "timeline 2"]);
    pair.standby.start();
    // the third node, which follows the new primary, knows it, too
    let third = Cluster::standby_by_basebackup(&pair.standby, &Host::here(), "third");
    let agent =
        Agent::start_with(&pair.scratch, &Host::here(), &pair.secret, &agent::cluster(third.directory()));
    let two = format!("nodes = [{}, {}]\n", node(1, &pair.standby), node(agent.port(), &third));
    refused(&pair.ask(&two), &["runs a standby of this system on timeline 2"]);
    // a standby may always start
    write_as_postgres(&pair.primary.directory().join("standby.signal"), "", 0o600);
    granted(&pair.ask(&nodes), "standby");
}

#[test]
fn the_new_primary_may_start_beside_the_old_one() {
    let pair = Pair::new();
    pair.standby.promote();
    let scratch = &pair.scratch;
    let old =
        Agent::start_with(scratch, &Host::here(), &pair.secret, &agent::cluster(pair.primary.directory()));
    pair.primary.start();
    pair.standby.stop(Stop::Fast);
    let text = agent::config("127.0.0.1:9", &pair.secret, &[pair.standby.directory()])
        // the list may hold the node itself, so that all hosts have one file
        + &format!("nodes = [{}, {}]\n", pair.node(), node(old.port(), &pair.primary));
    let config = scratch.write("new.toml", &text, 0o600);
    let mut command = Host::here().agent();
    command.args(["may-start", "--config"]).arg(config).arg(pair.standby.directory());
    let finished = process::run(command);
    granted(&finished, "no node that was heard (1)");
    assert!(finished.stderr.contains("stop that server"), "{finished:?}");
}

#[test]
fn marks_in_the_directory_forbid_a_start() {
    let pair = Pair::new();
    let nodes = format!("nodes = [{}]\n", pair.node());
    for (mark, said) in [
        ("pgpool_recovery.fenced", "another node was promoted"),
        ("pgpool_recovery.incomplete", "a recovery of it broke off"),
    ] {
        let path = pair.primary.directory().join(mark);
        write_as_postgres(&path, "at noon", 0o600);
        refused(&pair.ask(&nodes), &[said]);
        std::fs::remove_file(&path).expect("remove");
    }
    granted(&pair.ask(&nodes), "");
}

/// Another node keeps the question waiting for 5 s.
#[test]
fn what_happens_while_nodes_are_waited_for_forbids_the_start_too() {
    let pair = Pair::new();
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let hanging = silent.local_addr().expect("address").port();
    let nodes = format!("nodes = [{}, {}]\n", pair.node(), node(hanging, &pair.standby));
    let ask_meanwhile = |change: &dyn Fn()| {
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| pair.ask(&nodes));
            std::thread::sleep(Duration::from_millis(2500));
            change();
            asked.join().expect("no panic")
        })
    };
    granted(&ask_meanwhile(&|| {}), "no node that was heard (1)");
    let mark = pair.primary.directory().join("pgpool_recovery.fenced");
    let marked = ask_meanwhile(&|| write_as_postgres(&mark, "at noon", 0o600));
    refused(&marked, &["another node was promoted"]);
    std::fs::remove_file(&mark).expect("remove");
    refused(&ask_meanwhile(&|| pair.standby.promote()), &["runs this system as a primary on timeline 2"]);
}

#[test]
fn a_host_that_boots_alone_starts_and_says_so_unless_it_must_not() {
    let pair = Pair::new();
    pair.standby.promote();
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let hanging = silent.local_addr().expect("address").port();
    let nodes = format!(
        "nodes = [{}, {}, {{ host = 'no-such-host.invalid' }}]\n",
        node(1, &pair.standby),
        node(hanging, &pair.standby)
    );
    let started = Instant::now();
    let alone = pair.ask(&nodes);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    granted(&alone, "none of the other 3 nodes was heard");
    for place in ["127.0.0.1:1 ", &format!("127.0.0.1:{hanging} "), "no-such-host.invalid:9897 "] {
        assert!(alone.stderr.contains(&format!("the agent at {place}was not heard")), "{alone:?}");
    }
    refused(&pair.ask(&(nodes + "start_alone = false\n")), &["none of the other 3 nodes was heard"]);
    granted(&pair.ask(""), "lists no nodes");
}

#[test]
fn a_node_that_does_not_know_the_secret_or_has_another_system_was_not_heard() {
    let pair = Pair::new();
    pair.standby.promote();
    let nodes = format!("nodes = [{}]\n", pair.node());
    let other = agent::secret(&pair.scratch, "another-secret");
    granted(&pair.ask_with(&nodes, &other), "none of the other 1 nodes was heard");
    let strict = format!("{nodes}start_alone = false\n");
    refused(&pair.ask_with(&strict, &other), &["start_alone is off"]);
    refused(&pair.ask_with(&strict, &pair.scratch.join("no-secret")), &["start_alone is off"]);
    let foreign = Cluster::place(&pair.scratch, &Host::here(), "foreign")
        .initdb_argument("--data-checksums")
        .into_primary();
    let agent =
        Agent::start_with(&pair.scratch, &Host::here(), &pair.secret, &agent::cluster(foreign.directory()));
    let asked = pair.ask(&format!("nodes = [{}]\n", node(agent.port(), &foreign)));
    granted(&asked, "it has another system");
}

#[test]
fn what_is_no_data_directory_or_not_listed_is_refused() {
    let pair = Pair::new();
    let ask = |directory: &std::path::Path, listed: &std::path::Path| {
        let text = agent::config("127.0.0.1:9", &pair.secret, &[listed]);
        let config = pair.scratch.write("may-start.toml", &text, 0o600);
        let mut command = Host::here().agent();
        command.args(["may-start", "--config"]).arg(config).arg(directory);
        let finished = process::run(command);
        assert_eq!(finished.status.code(), Some(1), "{finished:?}");
        finished.stderr
    };
    let plain = pair.scratch.mkdir("plain");
    assert!(ask(&plain, &plain).contains("is not a PostgreSQL data directory"));
    let missing = pair.scratch.join("missing");
    assert!(ask(&missing, &missing).contains("No such file"));
    assert!(ask(&plain, pair.primary.directory()).contains("does not serve directory"));
}

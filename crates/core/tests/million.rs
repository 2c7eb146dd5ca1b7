//! A million files on both sides, each side in a process of its own: how long every phase takes, and the most memory of each, of
//! several runs one after the other.
//!
//! It takes a minute and two million inodes, so it is run by hand:
//! `TMPDIR=/dev/shm cargo test -p pgpool-recovery-core --test million -- --ignored --nocapture`

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgdata::wal::Lsn;
use pgpool_recovery_core::compare::wal_map::{BlockMap, Layout, Reach};
use pgpool_recovery_core::host::policy::{Cluster, Policy};
use pgpool_recovery_core::receiver::Receiver;
use pgpool_recovery_core::sender::skip::Skip;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::link::dial::AgentConnector;
use pgpool_recovery_core::wire::link::{Connector, tls};
use pgpool_recovery_core::wire::protocol::message::Purpose;
use pgpool_recovery_core::wire::secret::Secret;

use fixture::Hosts;

mod fixture;

/// Names the directory of a test whose agent this process is.
const TOP: &str = "MILLION_TOP";

/// How many files; fewer for a look at how it grows.
const COUNT: &str = "MILLION_FILES";

/// Most memory of each side, MiB.
const MOST: u64 = 64;

#[test]
#[ignore = "a minute, and two million inodes"]
fn a_million_files_need_little_memory_on_both_sides() {
    if let Some(top) = std::env::var_os(TOP) {
        return agent(Path::new(&top));
    }
    let count: u32 = std::env::var(COUNT).ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let hosts = Hosts::new();
    let base = hosts.path("primary/base/5");
    for number in 0..count {
        let file = File::create(base.join((1_000_000 + number).to_string())).expect("make");
        file.set_len(8192).expect("extend");
    }
    let agent = Agent::start(&hosts);
    let connector = agent.connector(&hosts);
    // what was given back must do for what comes
    let runs = [
        ("full copy", false),
        ("compared", false),
        ("left out", true),
        ("compared again", false),
        ("left out again", true),
    ];
    for (what, is_skipped) in runs {
        run(&hosts, &connector, what, is_skipped);
        println!("{what}: the sender had {} MiB at most, the receiver {}", peak("self"), agent.peak());
    }
    assert_eq!(fs::read_dir(hosts.path("standby/base/5")).expect("list").count(), count as usize);
    if count >= 1_000_000 {
        assert!(peak("self") <= MOST && agent.peak() <= MOST, "more than {MOST} MiB");
    }
}

fn run(hosts: &Hosts, connector: &Arc<dyn Connector>, what: &str, is_skipped: bool) {
    let mut phase = Instant::now();
    let mut passed = |name: &str| {
        println!("{what}: {name} {:.2} s", phase.elapsed().as_secs_f64());
        phase = Instant::now();
    };
    let (session, _) = hosts.open(connector, Purpose::Recover).expect("opens");
    passed("open");
    let (plan, header) = hosts.list(&session).expect("lists");
    passed("list");
    let (session, _) = session.plan(plan, header).expect("plans");
    passed("plan");
    let session = hosts.begin(session).expect("begins");
    passed("begin");
    let skip = is_skipped.then(|| Skip {
        map: BlockMap::default(),
        last_changed: BlockMap::default(),
        layout: Layout { segment_blocks: 131_072, first_blocks: false },
        reach: Reach { from: Lsn(0), to: Lsn(0), target_end: Lsn(0) },
        leaves_out: true,
        is_tried: false,
        sampled: 1,
        seed: 1,
    });
    let sent = session.send_data(&hosts.path("primary"), hosts.options(), skip);
    let (session, _) = sent.expect("sends");
    passed("data");
    let (session, _) = session.reconcile().expect("reconciles");
    passed("reconcile");
    hosts.finish(session).expect("finishes");
    passed("finish");
}

/// The receiving side, in another process.
struct Agent(Child);

impl Agent {
    fn start(hosts: &Hosts) -> Self {
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--ignored", "--exact", "a_million_files_need_little_memory_on_both_sides"])
            .env(TOP, hosts.path(""))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("start"))
    }

    fn connector(&self, hosts: &Hosts) -> Arc<dyn Connector> {
        let address = hosts.path("address");
        let until = Instant::now() + Duration::from_secs(60);
        while !address.exists() {
            assert!(Instant::now() < until, "the agent has not started");
            std::thread::sleep(Duration::from_millis(10));
        }
        let port = fs::read_to_string(address).expect("read").parse().expect("a port");
        let secret = Secret::read(&hosts.path("secret")).expect("a secret");
        Arc::new(AgentConnector::new("127.0.0.1", port, secret, Arc::default()).expect("connector"))
    }

    fn peak(&self) -> u64 {
        peak(&self.0.id().to_string())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves until it is killed.
fn agent(top: &Path) {
    let secret = Secret::random().expect("random");
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    let cluster = Cluster::new(top.join("standby"), top.join("bin"));
    let receiver = Arc::new(Receiver::new(Policy::Listed(vec![cluster])));
    secret.write(&top.join("secret")).expect("write");
    fs::write(top.join("port"), port.to_string()).expect("write");
    fs::rename(top.join("port"), top.join("address")).expect("rename");
    let config = tls::server_config().expect("configuration");
    for socket in listener.incoming().map_while(Result::ok) {
        let (receiver, config, secret) = (Arc::clone(&receiver), Arc::clone(&config), secret.clone());
        std::thread::spawn(move || {
            let cancel = Cancel::new();
            let link = tls::accept(socket, &config, &secret, &cancel, "primary")?;
            receiver.serve(link, &cancel)
        });
    }
}

/// The most memory that a process ever had, MiB.
fn peak(process: &str) -> u64 {
    let path = PathBuf::from("/proc").join(process).join("status");
    let status = fs::read_to_string(path).expect("read");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let kilobytes: u64 = line.trim_end_matches("kB").trim().parse().expect("a number");
    kilobytes >> 10
}

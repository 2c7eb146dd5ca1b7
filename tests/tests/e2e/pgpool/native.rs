//! Native replication and snapshot isolation: online recovery of a node that is a server of its own, while clients write.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::pgpool::{self, Pgpool, Setup};
use pgpool_recovery_e2e::stages::{self, FIRST, SECOND};
use pgpool_recovery_e2e::{Cluster, Host, Scratch, probe, wait};

const WRITERS: i32 = 3;

struct Nodes {
    nodes: [Cluster; 2],
    pgpool: Pgpool,
}

impl Nodes {
    /// A main node with data, a second node that is nothing yet, and a Pgpool-II of this mode.
    fn start(scratch: &Scratch, mode: &str) -> Self {
        let node = |name| {
            let isolation = if mode == "snapshot_isolation" { "repeatable read" } else { "read committed" };
            stages::node(scratch, name).with("default_transaction_isolation", isolation)
        };
        let main = node("node0").into_primary();
        stages::make_sequences(&main);
        main.execute(
            "CREATE TABLE told (writer int, n int, value bigint, object oid, PRIMARY KEY (writer, n))",
        );
        for writer in 0..WRITERS {
            main.execute(&format!("CREATE SEQUENCE writer{writer}"));
        }
        let other = node("node1");
        let pgpool = Setup::new(scratch, &Host::here(), &[&main, &other])
            .of_servers(mode)
            .with_node_down(1)
            .with("failover_command", "")
            .with("recovery_1st_stage_command", FIRST)
            .with("recovery_2nd_stage_command", SECOND)
            .start();
        let nodes = Self { nodes: [main, other], pgpool };
        nodes.wait_for(1, "down");
        nodes
    }

    fn wait_for(&self, id: usize, status: &str) {
        // one that is down is not asked first
        let is_first = id == 0 && status == "up";
        let [first, other] = pgpool::roles_of_servers();
        self.pgpool.wait_for_node(id, status, if is_first { first } else { other }, "");
    }

    /// Recovers a node from the other one while clients write through Pgpool-II; each has a sequence of its own, so that the order
    /// in which they come does not matter. Returns how long the longest of them waited.
    fn recover_under_load(&self, id: usize) -> Duration {
        let main = &self.nodes[1 - id];
        self.await_end_of_failover();
        let (ends, told) = (AtomicBool::new(false), AtomicI32::new(0));
        let longest = std::thread::scope(|scope| {
            let (ends, told) = (&ends, &told);
            let writers: Vec<_> = (0..WRITERS)
                .map(|writer| scope.spawn(move || self.write(main, writer, ends, told)))
                .collect();
            let written = told.load(Ordering::Relaxed);
            wait::until_true("rows", wait::PATIENCE, || told.load(Ordering::Relaxed) > written + 20);
            let recovered = self.pgpool.recover(id);
            let written = told.load(Ordering::Relaxed);
            // clients are let in again, whatever became of it
            let goes_on = wait::try_until(wait::PATIENCE, || told.load(Ordering::Relaxed) > written + 20);
            ends.store(true, Ordering::Relaxed);
            let waits = writers.into_iter().map(|writer| writer.join().expect("a writer"));
            let longest = waits.max().expect("writers");
            recovered.unwrap_or_else(|error| {
                panic!("{error}\n{}\n{}\n{}", main.log(), self.nodes[id].log(), self.pgpool.log())
            });
            assert!(goes_on, "clients are not let in\n{}", self.pgpool.log());
            longest
        });
        self.wait_for(id, "up");
        longest
    }

    /// Waits until Pgpool-II has done with its last failover or failback. Up to 4.4 its main process then waits for the PCP
    /// process, which, if a recovery has begun by then, ends with that: the node is attached after clients were let in.
    fn await_end_of_failover(&self) {
        wait::until_true("the end of Pgpool-II's failover", wait::PATIENCE, || {
            // "LOG:  failover done.", from 4.6 on "LOG:  === Failover done."
            let log = self.pgpool.log().replace("=== F", "f");
            let count = |text: &str| log.matches(text).count();
            let changes = count("LOG:  failover done.") + count("LOG:  failback done.");
            count("fork a new PCP child") >= changes
        });
    }

    /// Writes a row with a value of a sequence and a large object, a session each, until it ends.
    fn write(&self, main: &Cluster, writer: i32, ends: &AtomicBool, told: &AtomicI32) -> Duration {
        let first: i32 = main.get("SELECT coalesce(max(n), 0) + 1 FROM told WHERE writer = $1", &[&writer]);
        let mut longest = Duration::ZERO;
        let mut last = Instant::now();
        for n in first.. {
            if ends.load(Ordering::Relaxed) {
                break;
            }
            let object = 1_000_000 + writer * 100_000 + n;
            let sql = format!(
                "INSERT INTO told SELECT {writer}, {n}, nextval('writer{writer}'), lo_from_bytea({object}, 'object {n}')"
            );
            // a session may be refused, or ended, while the node is attached: then the row is not counted
            if self.pgpool.connect().batch_execute(&sql).is_ok() {
                told.fetch_add(1, Ordering::Relaxed);
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
        }
        longest
    }
}

fn recovers(mode: &str) {
    let scratch = Scratch::new();
    let nodes = Nodes::start(&scratch, mode);
    let [main, other] = &nodes.nodes;
    let longest = nodes.recover_under_load(1);
    // Pgpool-II polls every 3 s, for the last client to leave and for the node to answer
    assert!(longest < Duration::from_secs(30), "clients waited for {longest:?}");
    assert!(!other.in_recovery());
    assert_eq!(probe::slots(main), Vec::<String>::new());
    stages::assert_same(main, other);

    // It dies, clients write on, and it comes back: on a timeline of its own, which is no surprise.
    other.stop(Stop::Immediate);
    nodes.wait_for(1, "down");
    nodes.recover_under_load(1);
    stages::assert_same(main, other);
    // pg_control has it after the next checkpoint only
    let timeline =
        |node: &Cluster| node.get::<String>("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)", &[]);
    assert_ne!(timeline(main), timeline(other));

    // The main node dies, and is recovered from the node that was recovered from it.
    main.stop(Stop::Immediate);
    nodes.wait_for(0, "down");
    nodes.recover_under_load(0);
    stages::assert_same(other, main);
}

#[test]
fn a_node_of_native_replication_is_recovered() {
    recovers("native_replication");
}

#[test]
fn a_node_of_snapshot_isolation_is_recovered() {
    if pgpool::version() < (4, 2) {
        eprintln!("this Pgpool-II has no such mode");
        return;
    }
    recovers("snapshot_isolation");
}

#[test]
fn a_second_stage_that_fails_lets_clients_in_again() {
    let scratch = Scratch::new();
    let nodes = Nodes::start(&scratch, "native_replication");
    let Nodes { nodes: [main, other], pgpool } = &nodes;
    main.append_conf("pgpool_recovery.deadline", 4);
    main.reload();
    // somebody beside Pgpool-II
    let mut client = main.connect();
    client.batch_execute("BEGIN; CREATE TABLE open ()").expect("open");
    nodes.await_end_of_failover();
    let shown = pgpool.recover(1).expect_err("a transaction is open");
    assert!(shown.contains("2nd stage"), "{shown}");
    main.wait_for_log("has an open transaction");
    pgpool.connect().batch_execute("INSERT INTO told VALUES (-1, 1, 1, 1)").expect("let in");
    nodes.wait_for(1, "down");
    assert!(other.in_recovery());

    // The standby is there still, and need not be copied again.
    client.batch_execute("COMMIT").expect("ended");
    main.append_conf("pgpool_recovery.deadline", "60s");
    main.reload();
    nodes.recover_under_load(1);
    assert!(main.log().contains("nothing is copied") || pgpool.log().contains("nothing is copied"));
    stages::assert_same(main, other);
}

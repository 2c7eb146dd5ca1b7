//! The lean set-up: `pgpool-recovery-hook` is the failover_command, and there is no follow_primary_command.

use pgpool_recovery_e2e::pgpool::{self, Pgpool, Setup};
use pgpool_recovery_e2e::{Cluster, Host, Scratch, wait};

/// Three nodes on one host are told apart by the node id.
fn node(scratch: &Scratch, id: usize) -> Cluster {
    Cluster::place(scratch, &Host::here(), &format!("node{id}"))
        .with("pgpool_recovery.application_name", "server%n")
        .with("pgpool_recovery.slot_name", "server%n")
        .with("pgpool_recovery.primary_host", "127.0.0.1")
}

/// A primary and two standbys behind Pgpool-II, all up.
pub(super) struct Lean {
    pub(super) pgpool: Pgpool,
    pub(super) nodes: Vec<Cluster>,
    pub(super) scratch: Scratch,
}

impl Lean {
    pub(super) fn new() -> Self {
        Self::with(|setup, scratch| setup.with("failover_command", Self::hook(scratch, "failover")))
    }

    pub(super) fn with(commands: impl FnOnce(Setup, &Scratch) -> Setup) -> Self {
        let scratch = Scratch::new();
        let first = node(&scratch, 0).into_primary();
        let nodes = vec![first, node(&scratch, 1), node(&scratch, 2)];
        let setup = Setup::new(&scratch, &Host::here(), &nodes.iter().collect::<Vec<_>>());
        let pgpool = commands(setup.with("health_check_max_retries", 0), &scratch).start();
        let lean = Self { pgpool, nodes, scratch };
        for id in [1, 2] {
            lean.pgpool.wait_for_node(id, "down", "standby", "");
            lean.pgpool.recover(id).unwrap_or_else(|error| panic!("{error}\n{}", lean.nodes[0].log()));
            lean.pgpool.wait_for_node(id, "up", "standby", "streaming");
        }
        lean.execute("CREATE TABLE seen (id int)");
        // whoever has more is promoted
        lean.nodes[1].wait_for_replay(&lean.nodes[0]);
        for id in [2, 1] {
            lean.nodes[id].wait_for_what_is_flushed(&lean.nodes[0]);
        }
        lean
    }

    /// As pgpool.conf has it; the shell gives it the password of PCP.
    pub(super) fn hook(scratch: &Scratch, command: &str) -> String {
        let mut hook = Host::here().hook();
        hook.arg(command);
        format!(
            "PCPPASSFILE={} {} {command} %d %h %p %D %m %H %M %P %r %R %N %S",
            scratch.join("pcppass").display(),
            hook.get_program().to_string_lossy()
        )
    }

    /// From now on it receives nothing.
    pub(super) fn cut_off(&self, id: usize) {
        self.nodes[id].execute("ALTER SYSTEM SET primary_conninfo = ''");
        self.nodes[id].reload();
        wait::until_true("the walreceiver to end", wait::PATIENCE, || {
            self.nodes[id].get::<i64>("SELECT count(*) FROM pg_stat_wal_receiver", &[]) == 0
        });
    }

    pub(super) fn execute(&self, sql: &str) {
        self.pgpool.connect().batch_execute(sql).expect(sql);
    }

    #[track_caller]
    pub(super) fn wait_for_promotion(&self, id: usize) {
        wait::until_true(&format!("node {id} to be promoted"), wait::PATIENCE, || {
            !self.nodes[id].in_recovery()
        });
        self.pgpool.wait_for_node(id, "up", "primary", "");
    }

    /// Its row in the primary's pg_stat_replication.
    #[track_caller]
    pub(super) fn wait_for_follower(&self, id: usize, primary: usize) {
        self.nodes[primary].wait_for_standby(&format!("server{id}"));
        self.pgpool.wait_for_node(id, "up", "standby", "streaming");
        self.nodes[id].wait_for_replay(&self.nodes[primary]);
    }

    /// Pgpool-II has never taken it out of use since `from`, a length of its log.
    #[track_caller]
    pub(super) fn assert_never_detached(&self, id: usize, from: usize) {
        let log = self.pgpool.log();
        let since = &log[from..];
        let port = self.nodes[id].port();
        for words in [
            format!("starting degeneration. shutdown host 127.0.0.1({port})"),
            "follow backends have been degenerated".to_owned(),
            format!("shutdown host 127.0.0.1({port})"),
        ] {
            assert!(!since.contains(&words), "\"{words}\" in {since}");
        }
        assert_eq!(pgpool::nodes(&self.scratch, self.pgpool.port()).expect("answers")[id].status, "up");
    }
}

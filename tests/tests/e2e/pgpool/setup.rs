//! Pgpool-II's own `pgpool_setup` makes three nodes, with its conventions: all on localhost, a script
//! `basebackup.sh` as first stage, targets fresh from initdb, `myrecovery.conf` edited by its follow_primary.sh.
//! Its scripts are there and are not run: they need ssh.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgpool_recovery_e2e::cluster::Cluster;
use pgpool_recovery_e2e::pgpool::{self, Node};
use pgpool_recovery_e2e::ports::Port;
use pgpool_recovery_e2e::process::{self, Finished};
use pgpool_recovery_e2e::{Host, Scratch, server, wait};
use rustix::process::Signal;

const NODES: u16 = 3;
/// A fail-over takes it several health checks, 10 s apart.
const LONG: Duration = Duration::from_secs(120);

struct Installation {
    scratch: Scratch,
    base: PathBuf,
    prefix: PathBuf,
    /// Pgpool-II, its pcp port, the nodes.
    first_port: u16,
    _pool_ports: Vec<Port>,
    nodes: Vec<Cluster>,
}

impl Installation {
    fn new() -> Self {
        let scratch = Scratch::new();
        let mut ports = Port::claim_run(2 + NODES);
        let first_port = ports[0].number();
        let node_ports = ports.split_off(2);
        let base = scratch.mkdir("base");
        // What Debian has in /usr/sbin it looks for in a prefix.
        let prefix = scratch.mkdir("prefix");
        for name in ["bin", "sbin"] {
            symlink("/usr/sbin", prefix.join(name)).expect("a link");
        }
        let nodes = node_ports.into_iter().enumerate().map(|(id, port)| {
            let name = format!("data{id}");
            Cluster::place(&scratch, &Host::here(), &name).at(base.join(&name)).listening_on(port)
        });
        let nodes = nodes.collect();
        Self { scratch: scratch.clone(), base, prefix, first_port, _pool_ports: ports, nodes }
    }

    /// PostgreSQL's programs, with an initdb that adds to postgresql.conf what an administrator would.
    fn programs(&self) -> PathBuf {
        let programs = self.scratch.mkdir("programs");
        for entry in fs::read_dir(server::programs()).expect("PostgreSQL's programs") {
            let entry = entry.expect("an entry");
            if entry.file_name() != "initdb" {
                symlink(entry.path(), programs.join(entry.file_name())).expect("a link");
            }
        }
        let initdb = server::program("initdb");
        let text = format!(
            "#!/bin/sh\n{} \"$@\" || exit\n[ \"$1\" = -D ] || exit 0\ncat >>\"$2/postgresql.conf\" <<END\n\
             fsync = off\nshared_buffers = 32MB\n\
             pgpool_recovery.scripts = 'ignore'\npgpool_recovery.overwrite = 'any_cluster'\n\
             pgpool_recovery.application_name = 'server%n'\npgpool_recovery.slot_name = ''\n\
             pgpool_recovery.restore_command = 'cp {}/archivedir/$(basename \"$2\")/%f \"%p\" 2> /dev/null'\nEND\n",
            initdb.display(),
            self.base.display()
        );
        self.scratch.write("programs/initdb", &text, 0o700);
        programs
    }

    /// Runs a program in its directory.
    fn run(&self, program: &Path, arguments: &[&str], programs: &Path) -> Finished {
        let mut command = Host::here().command(program);
        command.args(arguments).current_dir(&self.base);
        command.env("PGPOOL_INSTALL_DIR", &self.prefix).env("PGBIN", programs);
        command.env("PGPOOLDIR", "/usr/share/doc/pgpool2/examples");
        command.env("PGSOCKET_DIR", self.scratch.sockets());
        command.env("PCPPASSFILE", self.base.join("pcppass"));
        process::run_within(command, LONG + LONG)
    }

    fn log(&self) -> String {
        fs::read(self.base.join("log/pgpool.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until the nodes have these roles, are up, and the standbys stream.
    fn wait_for(&self, roles: [&str; NODES as usize]) {
        let wanted = roles.map(|role| Node {
            status: "up".to_owned(),
            role: role.to_owned(),
            replication_state: if role == "standby" { "streaming" } else { "" }.to_owned(),
        });
        let mut last = None;
        let start = std::time::Instant::now();
        while start.elapsed() < LONG {
            last = pgpool::nodes(&self.scratch, self.first_port);
            if last.as_deref() == Some(wanted.as_slice()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        panic!("not {roles:?} but {last:?}\n{}", process::tail(&self.log(), 100));
    }

    fn execute(&self, sql: &str) {
        wait::until(sql, LONG, || {
            let mut config = postgres::Config::new();
            config.host_path(self.scratch.sockets()).port(self.first_port).user("postgres").dbname("test");
            config.connect(postgres::NoTls).ok()?.batch_execute(sql).ok()
        });
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        // Its own stop waits for the process to be gone, and that is ours to reap.
        let Ok(text) = fs::read_to_string(self.base.join("run/pgpool.pid")) else { return };
        // Pgpool-II ends the number with a NUL
        let number = text.trim_matches(|c: char| !c.is_ascii_digit());
        if let Some(pid) = number.parse().ok().filter(|pid| process::is_alive(*pid)) {
            let _ = rustix::process::kill_process(process::pid(pid), Signal::QUIT);
            process::reap(pid);
        }
    }
}

fn count(cluster: &Cluster) -> i64 {
    let mut client = cluster.connect_to("test");
    client.query_one("SELECT count(*) FROM seen", &[]).expect("the table").get(0)
}

#[test]
fn three_nodes_a_failover_and_a_follower() {
    let installation = Installation::new();
    let programs = installation.programs();
    let (first, nodes) = (installation.first_port.to_string(), NODES.to_string());
    let (of_nodes, pcp) =
        ((installation.first_port + 2).to_string(), (installation.first_port + 1).to_string());
    let arguments = ["-n", &nodes, "-p", &first, "-pg", &of_nodes];
    let setup = installation.run(Path::new("pgpool_setup"), &arguments, &programs);
    let said = format!("{}{}", setup.stdout, setup.stderr);
    let recovered = said.matches("pcp_recovery_node -- Command Successful").count();
    assert_eq!(recovered, usize::from(NODES) - 1, "{said}\n{}", installation.log());
    // the script of that name is there, and was not run
    assert!(installation.nodes[0].has("basebackup.sh"));
    assert!(!installation.base.join("log/recovery.log").exists(), "basebackup.sh was run");

    installation.run(&installation.base.join("startall"), &[], &programs).ok();
    installation.wait_for(["primary", "standby", "standby"]);
    installation.execute("CREATE TABLE seen AS SELECT 1 AS one");

    // The primary dies: failover.sh promotes node 1, follow_primary.sh turns node 2 to it.
    installation.nodes[2].wait_for_replay(&installation.nodes[0]);
    installation.nodes[1].wait_for_replay(&installation.nodes[0]);
    installation.nodes[0].kill();
    wait::until_true("the promotion", LONG, || !installation.nodes[1].in_recovery());
    wait::until_true("the follower", LONG, || {
        let port = format!("port={}", installation.nodes[1].port());
        // not there while a recovery of the node runs, which is what the script falls back to
        let path = installation.nodes[2].directory().join("myrecovery.conf");
        fs::read_to_string(path).is_ok_and(|text| text.contains(&port))
    });
    wait::until_true("node 2 to be attached again", LONG, || {
        let nodes = pgpool::nodes(&installation.scratch, installation.first_port).unwrap_or_default();
        nodes.len() == 3
            && nodes[0].status == "down"
            && nodes[1].role == "primary"
            && nodes[2].status == "up"
            && nodes[2].replication_state == "streaming"
    });
    installation.execute("INSERT INTO seen VALUES (2)");
    let edited = installation.nodes[2].read("myrecovery.conf");
    assert!(edited.contains("/archivedir/data1/%f"), "{edited}");

    // The old primary comes back under the new one.
    let arguments = ["-w", "-h", "localhost", "-p", &pcp, "-n", "0"];
    let recovery = wait::until("no operation in progress", LONG, || {
        let recovery = installation.run(Path::new("pcp_recovery_node"), &arguments, &programs);
        let busy = "failed to process PCP request at the moment";
        (!format!("{}{}", recovery.stdout, recovery.stderr).contains(busy)).then_some(recovery)
    });
    assert!(recovery.stdout.contains("Command Successful"), "{recovery:?}\n{}", installation.log());
    installation.wait_for(["standby", "primary", "standby"]);
    for id in [0, 2] {
        installation.nodes[id].wait_for_replay(&installation.nodes[1]);
        assert_eq!(count(&installation.nodes[id]), 2, "node {id}");
    }
}

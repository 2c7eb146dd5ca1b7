//! A real Pgpool-II, in streaming replication mode unless told otherwise.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use postgres::{Client, NoTls};
use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::conf::Conf;
use crate::host::Host;
use crate::ports::Port;
use crate::process::{self, Daemon, Finished};
use crate::scratch::Scratch;
use crate::{server, wait};

const PCP_USER: &str = "operator";
const PCP_PASSWORD: &str = "a pcp password";

/// How Pgpool-II is set up, before it runs.
#[derive(Debug)]
pub struct Setup {
    scratch: Scratch,
    host: Host,
    port: Port,
    pcp_port: Port,
    conf: Conf,
    is_down: Vec<bool>,
}

/// A running Pgpool-II.
#[derive(Debug)]
pub struct Pgpool {
    daemon: Daemon,
    scratch: Scratch,
    host: Host,
    port: Port,
    pcp_port: Port,
    passfile: PathBuf,
}

/// A line of `show pool_nodes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub status: String,
    pub role: String,
    pub replication_state: String,
}

impl Setup {
    /// Backends in the order of their node ids, each at its host's address.
    pub fn new(scratch: &Scratch, host: &Host, backends: &[&Cluster]) -> Self {
        let (port, pcp_port) = (Port::claim(), Port::claim());
        let failover = failover_script(scratch);
        let mut conf = Conf::default();
        if version() < (4, 2) {
            conf.set("master_slave_mode", "on").set("master_slave_sub_mode", "stream");
        } else {
            conf.set("backend_clustering_mode", "streaming_replication");
        }
        let socket_directory = if version() < (4, 4) { "socket_dir" } else { "unix_socket_directories" };
        conf.set("listen_addresses", "127.0.0.1")
            .set("port", port.number())
            .set(socket_directory, scratch.sockets().display())
            .set("pcp_listen_addresses", "127.0.0.1")
            .set("pcp_port", pcp_port.number())
            .set("pcp_socket_dir", scratch.sockets().display())
            .set("pid_file_name", scratch.join("pgpool.pid").display())
            .set("logdir", scratch.path().display())
            .set("pool_passwd", scratch.join("pool_passwd").display())
            .set("enable_pool_hba", "off")
            .set("num_init_children", 8)
            .set("load_balance_mode", "off")
            .set("sr_check_period", 1)
            .set("sr_check_user", "postgres")
            .set("sr_check_database", "postgres")
            .set("health_check_period", 1)
            .set("health_check_timeout", 5)
            .set("health_check_user", "postgres")
            .set("health_check_database", "postgres")
            .set("health_check_max_retries", 1)
            .set("health_check_retry_delay", 1)
            .set("failover_command", format!("{} %d %P %H %r", failover.display()))
            .set("recovery_user", "postgres")
            .set("recovery_1st_stage_command", "pgpool_recovery_1st_stage");
        for (id, cluster) in backends.iter().enumerate() {
            conf.set(format!("backend_hostname{id}"), cluster.host().address())
                .set(format!("backend_port{id}"), cluster.port())
                .set(format!("backend_weight{id}"), 1)
                .set(format!("backend_data_directory{id}"), cluster.dir())
                .set(format!("backend_application_name{id}"), format!("server{id}"))
                .set(format!("backend_flag{id}"), "ALLOW_TO_FAILOVER");
        }
        let is_down = vec![false; backends.len()];
        Self { scratch: scratch.clone(), host: host.clone(), port, pcp_port, conf, is_down }
    }

    /// Changes a setting of pgpool.conf.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.conf.set(name, value);
        self
    }

    /// Pgpool-II starts knowing that this node is down, as after a restart. Otherwise it fails over while it starts, and 4.7 may then
    /// accept no client ("failed to lock semaphore: Invalid argument").
    #[must_use]
    pub fn with_node_down(mut self, id: usize) -> Self {
        self.is_down[id] = true;
        self
    }

    /// Of servers of their own, `native_replication` or `snapshot_isolation`, instead of standbys.
    #[must_use]
    pub fn of_servers(mut self, mode: &str) -> Self {
        if version() < (4, 2) {
            assert_eq!(mode, "native_replication", "the other one came with 4.2");
            self.conf.set("master_slave_mode", "off").set("replication_mode", "on");
        } else {
            self.conf.set("backend_clustering_mode", mode);
        }
        self
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Pgpool {
        let conf = self.scratch.write("pgpool.conf", &self.conf.text(), 0o600);
        let pcp = self.scratch.write("pcp.conf", &format!("{PCP_USER}:{}\n", md5(&self.host)), 0o600);
        // The servers trust; without the file Pgpool-II warns at every connection.
        self.scratch.write("pool_passwd", "", 0o600);
        let hba = self.scratch.write("pool_hba.conf", "", 0o600);
        if self.is_down.contains(&true) {
            // a line for each node
            let status = |is_down: &bool| if *is_down { "down\n" } else { "up\n" };
            let text: String = self.is_down.iter().map(status).collect();
            self.scratch.write("pgpool_status", &text, 0o600);
        }
        let line = format!("127.0.0.1:{}:{PCP_USER}:{PCP_PASSWORD}\n", self.pcp_port.number());
        let passfile = self.scratch.write("pcppass", &line, 0o600);
        let mut command = self.host.command("pgpool");
        command.arg("-n").arg("-f").arg(conf).arg("-F").arg(pcp).arg("-a").arg(hba);
        command.current_dir(self.scratch.path());
        // SIGINT is Pgpool-II's fast stop.
        let daemon = Daemon::spawn(command, &self.scratch.join("pgpool.log"), Signal::INT);
        let mut pgpool = Pgpool {
            daemon,
            scratch: self.scratch,
            host: self.host,
            port: self.port,
            pcp_port: self.pcp_port,
            passfile,
        };
        wait::until_true("Pgpool-II to answer", wait::PATIENCE, || {
            assert!(pgpool.daemon.ended().is_none(), "Pgpool-II ended: {}", pgpool.log());
            pgpool.try_connect().is_some()
        });
        pgpool
    }
}

/// Its release line: (4, 3), say.
pub fn version() -> (u32, u32) {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let mut command = Host::here().command("pgpool");
        command.arg("--version");
        // "pgpool-II version 4.3.5 (tamahomeboshi)", on the standard error
        let said = process::run(command);
        let text = format!("{}{}", said.stdout, said.stderr);
        let numbers = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        let mut numbers = numbers.unwrap_or_default().split('.').map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(line)), Some(Ok(minor))) => (line, minor),
            _ => panic!("no version in \"{text}\""),
        }
    })
}

/// What `show pool_nodes` calls the servers of a Pgpool-II of servers: the one that is asked first, and any other.
pub fn roles_of_servers() -> [&'static str; 2] {
    if version() < (4, 2) { ["master", "slave"] } else { ["main", "replica"] }
}

/// The setting of what is called for each node that is to follow a new primary.
pub fn follow_command() -> &'static str {
    if version() < (4, 2) { "follow_master_command" } else { "follow_primary_command" }
}

/// After the primary's death: promotes the node Pgpool-II chose. A standby's death needs nothing done.
fn failover_script(scratch: &Scratch) -> PathBuf {
    let psql = server::program("psql");
    let text = format!(
        "#!/bin/sh\n# failed node, old primary node, new main host, new main port\n\
         [ \"$1\" = \"$2\" ] || exit 0\n\
         exec {} -X -q -h \"$3\" -p \"$4\" -U postgres -d postgres -c 'SELECT pg_promote()'\n",
        psql.display()
    );
    scratch.write("failover.sh", &text, 0o700)
}

fn md5(host: &Host) -> String {
    let mut command = host.command("pg_md5");
    command.arg(PCP_PASSWORD);
    process::run(command).ok().trim().to_owned()
}

fn config(scratch: &Scratch, port: u16) -> postgres::Config {
    let mut config = postgres::Config::new();
    config.host_path(scratch.sockets()).port(port).user("postgres").dbname("postgres");
    config
}

fn try_connect(scratch: &Scratch, port: u16) -> Option<Client> {
    config(scratch, port).connect(NoTls).ok()
}

/// `show pool_nodes` of the Pgpool-II at this port, by node id.
pub fn nodes(scratch: &Scratch, port: u16) -> Option<Vec<Node>> {
    // Pgpool-II answers SHOW by itself, and in the simple protocol only.
    let messages = try_connect(scratch, port)?.simple_query("show pool_nodes").ok()?;
    let rows = messages.iter().filter_map(|message| match message {
        postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let nodes = rows.map(|row| {
        let text = |column| row.get(column).unwrap_or_default().to_owned();
        Node { status: text("status"), role: text("role"), replication_state: text("replication_state") }
    });
    Some(nodes.collect())
}

impl Pgpool {
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// kill -9 of Pgpool-II with all its processes.
    pub fn kill(&self) {
        let group = process::pid(self.daemon.pid());
        rustix::process::kill_process_group(group, Signal::KILL).expect("Pgpool-II runs");
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    fn try_connect(&self) -> Option<Client> {
        try_connect(&self.scratch, self.port())
    }

    /// How to reach it.
    pub fn config(&self) -> postgres::Config {
        config(&self.scratch, self.port())
    }

    /// A session through Pgpool-II.
    #[track_caller]
    pub fn connect(&self) -> Client {
        wait::until("a session through Pgpool-II", wait::PATIENCE, || self.try_connect())
    }

    /// `show pool_nodes`, by node id.
    pub fn nodes(&self) -> Vec<Node> {
        // A fail-over or failback closes sessions in the middle.
        wait::until("show pool_nodes", wait::PATIENCE, || nodes(&self.scratch, self.port()))
    }

    /// Waits until `show pool_nodes` has this for a node.
    #[track_caller]
    pub fn wait_for_node(&self, id: usize, status: &str, role: &str, replication_state: &str) {
        let wanted = Node {
            status: status.to_owned(),
            role: role.to_owned(),
            replication_state: replication_state.to_owned(),
        };
        let mut last = Vec::new();
        let start = std::time::Instant::now();
        while start.elapsed() < wait::PATIENCE {
            last = self.nodes();
            if last.get(id) == Some(&wanted) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        panic!("node {id} is not {wanted:?} but {last:?}");
    }

    /// A pcp command with arguments of its own.
    pub fn pcp(&self, program: &str, arguments: &[&str]) -> Finished {
        let mut command: Command = self.host.command(program);
        command.env("PCPPASSFILE", &self.passfile);
        command.args(["-h", "127.0.0.1", "-p", &self.pcp_port.number().to_string(), "-U", PCP_USER, "-w"]);
        command.args(arguments);
        process::run(command)
    }

    /// `pcp_recovery_node -n id`. Its exit status says nothing (it is 0 on failure too), its output does.
    pub fn recover(&self, id: usize) -> Result<(), String> {
        let finished = self.pcp("pcp_recovery_node", &["-n", &id.to_string()]);
        if finished.stdout.contains("pcp_recovery_node -- Command Successful") {
            Ok(())
        } else {
            Err(finished.stdout + &finished.stderr)
        }
    }
}

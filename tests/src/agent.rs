//! An agent, as the operator runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::process::Signal;

use crate::host::{Host, among_mounts, as_process_1, in_root};
use crate::ports::Port;
use crate::process::{self, Daemon, Finished};
use crate::scratch::Scratch;
use crate::{server, wait};

/// A running `pgpool-recovery-agent serve`.
#[derive(Debug)]
pub struct Agent {
    daemon: Daemon,
    config: PathBuf,
    log: PathBuf,
    host: Host,
    container: Container,
    port: u16,
    /// None: a port of a namespace, which no other process can take.
    _claim: Option<Port>,
}

/// What it has of its own.
#[derive(Debug, Clone)]
enum Container {
    None,
    /// A pid namespace, in which it is process 1.
    Processes,
    /// A mount namespace, in which each first file lies over the second one.
    Mounts(Vec<(PathBuf, PathBuf)>),
    /// The root directory of another Debian, with a directory of this one.
    Root(PathBuf, PathBuf),
}

impl Agent {
    /// An agent on `host` that allows `directories`, with the secret in `secret`.
    pub fn start(scratch: &Scratch, host: &Host, secret: &Path, directories: &[&Path]) -> Self {
        let claim = Port::claim();
        let mut agent = Self::start_at(scratch, host, claim.number(), secret, directories);
        agent._claim = Some(claim);
        agent
    }

    /// An agent on a port of the caller's choice.
    pub fn start_at(scratch: &Scratch, host: &Host, port: u16, secret: &Path, directories: &[&Path]) -> Self {
        let text = config(&format!("0.0.0.0:{port}"), secret, directories);
        Self::start_on(scratch, host, port, &text, Container::None)
    }

    /// The same with these `[[cluster]]` sections.
    pub fn start_at_with(scratch: &Scratch, host: &Host, port: u16, secret: &Path, clusters: &str) -> Self {
        let text = config(&format!("0.0.0.0:{port}"), secret, &[]) + clusters;
        Self::start_on(scratch, host, port, &text, Container::None)
    }

    /// An agent that is process 1 of a pid namespace of its own, as in a container. End it with [`Self::kill`].
    pub fn start_as_process_1(scratch: &Scratch, secret: &Path, directories: &[&Path]) -> Self {
        let claim = Port::claim();
        let port = claim.number();
        let text = config(&format!("0.0.0.0:{port}"), secret, directories);
        let mut agent = Self::start_on(scratch, &Host::here(), port, &text, Container::Processes);
        agent._claim = Some(claim);
        agent
    }

    /// An agent that sees other files than the rest of this machine: each first one in the place of the second one.
    pub fn start_among_mounts(
        scratch: &Scratch,
        secret: &Path,
        directories: &[&Path],
        mounts: &[(PathBuf, PathBuf)],
    ) -> Self {
        let claim = Port::claim();
        let port = claim.number();
        let text = config(&format!("0.0.0.0:{port}"), secret, directories);
        let mut agent =
            Self::start_on(scratch, &Host::here(), port, &text, Container::Mounts(mounts.to_vec()));
        agent._claim = Some(claim);
        agent
    }

    /// An agent with these settings and `[[cluster]]` sections.
    pub fn start_with(scratch: &Scratch, host: &Host, secret: &Path, clusters: &str) -> Self {
        let claim = Port::claim();
        let port = claim.number();
        let text = config(&format!("0.0.0.0:{port}"), secret, &[]) + clusters;
        let mut agent = Self::start_on(scratch, host, port, &text, Container::None);
        agent._claim = Some(claim);
        agent
    }

    /// An agent on another Debian, whose root directory is `root`: its libraries, its programs.
    pub fn start_in_root(scratch: &Scratch, root: &Path, secret: &Path, clusters: &str) -> Self {
        let claim = Port::claim();
        let text = config(&format!("0.0.0.0:{}", claim.number()), secret, &[]) + clusters;
        let container = Container::Root(root.to_owned(), scratch.path().to_owned());
        let mut agent = Self::start_on(scratch, &Host::here(), claim.number(), &text, container);
        agent._claim = Some(claim);
        agent
    }

    fn start_on(scratch: &Scratch, host: &Host, port: u16, text: &str, container: Container) -> Self {
        let name = format!("agent-{}-{port}", host.address());
        let config = scratch.write(format!("{name}.toml"), text, 0o600);
        let log = scratch.join(format!("{name}.log"));
        let daemon = Daemon::spawn(serve(host, &config, &container), &log, Signal::TERM);
        let mut agent = Self { daemon, config, log, host: host.clone(), container, port, _claim: None };
        agent.wait_until_listening();
        agent
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn log(&self) -> String {
        self.daemon.log()
    }

    pub fn pid(&self) -> u32 {
        self.daemon.pid()
    }

    /// Memory of its own, in kB.
    pub fn memory(&self) -> u64 {
        process::anonymous_memory(self.pid()).expect("the agent runs")
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the agent runs").count()
    }

    /// Sends it a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.daemon.signal(signal);
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.daemon.ended()
    }

    /// SIGTERM, and its exit status.
    pub fn stop(&mut self) -> ExitStatus {
        self.daemon.stop()
    }

    /// kill -9.
    pub fn kill(&mut self) -> ExitStatus {
        self.daemon.kill()
    }

    /// Starts it again on the same port with the same configuration.
    pub fn restart(&mut self) {
        self.daemon =
            Daemon::spawn(serve(&self.host, &self.config, &self.container), &self.log, Signal::TERM);
        self.wait_until_listening();
    }

    fn wait_until_listening(&mut self) {
        let wanted = format!(":{:04X}", self.port());
        let pid = self.daemon.pid();
        wait::until_true("the agent to listen", wait::PATIENCE, || {
            assert!(self.daemon.ended().is_none(), "the agent ended: {}", self.daemon.log());
            // Its own namespace's table of sockets: no connection disturbs it. State 0A is LISTEN.
            ["tcp", "tcp6"].iter().any(|table| {
                let path = format!("/proc/{pid}/net/{table}");
                std::fs::read_to_string(path).is_ok_and(|text| {
                    text.lines().any(|line| {
                        let mut fields = line.split_whitespace().skip(1);
                        fields.next().is_some_and(|local| local.ends_with(&wanted))
                            && fields.nth(1) == Some("0A")
                    })
                })
            })
        });
    }
}

fn serve(host: &Host, config: &Path, container: &Container) -> Command {
    let mut command = host.agent();
    command.args(["serve", "--config"]).arg(config);
    match container {
        Container::None => command,
        Container::Processes => as_process_1(&command),
        Container::Mounts(mounts) => among_mounts(&command, mounts),
        Container::Root(root, shared) => in_root(&command, root, shared),
    }
}

/// The text of an agent.toml.
pub fn config(listen: &str, secret: &Path, directories: &[&Path]) -> String {
    let mut text = format!("listen = \"{listen}\"\nsecret_file = \"{}\"\n", secret.display());
    for directory in directories {
        text += &cluster(directory);
    }
    text
}

/// The section of a directory; further lines may follow.
pub fn cluster(directory: &Path) -> String {
    format!(
        "\n[[cluster]]\ndata_directory = \"{}\"\nbin_directory = \"{}\"\n",
        directory.display(),
        server::programs().display()
    )
}

/// Makes a secret with the agent's own command; owned by `postgres`.
pub fn secret(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.join(name);
    let mut command = Host::here().agent();
    command.args(["secret", "--output"]).arg(&path);
    process::run(command).ok();
    path
}

/// `pgpool-recovery-agent check --config`.
pub fn check(config: &Path) -> Finished {
    let mut command = Host::here().agent();
    command.args(["check", "--config"]).arg(config);
    process::run(command)
}

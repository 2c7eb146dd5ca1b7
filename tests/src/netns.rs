//! Hosts with addresses of their own, made of network namespaces.
//!
//! Every host is a namespace with one interface on a bridge that lives in a namespace of its own, so
//! nothing appears in the machine's own network and the same addresses serve any number of tests at once.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::host::Host;
use crate::process;

/// Some hosts that reach each other and nothing else. They live as long as the [`Host`] values do.
#[derive(Debug)]
pub struct Network {
    name: String,
    hosts: Vec<Host>,
}

impl Network {
    pub fn new(hosts: u8) -> Self {
        static SEQUENCE: AtomicU32 = AtomicU32::new(0);
        let name = format!("ppr{}-{}", std::process::id(), SEQUENCE.fetch_add(1, Ordering::Relaxed));
        let hub = Arc::new(Namespace::new(format!("{name}-hub"), String::new(), None));
        hub.ip("link add bridge type bridge");
        hub.ip("link set bridge up");
        let hosts = (0..hosts)
            .map(|index| {
                let address = format!("10.83.0.{}", 10 + index);
                let host = Namespace::new(format!("{name}-{index}"), address, Some(Arc::clone(&hub)));
                host.ip(&format!("link add eth0 type veth peer name port{index} netns {}", hub.name));
                hub.ip(&format!("link set port{index} master bridge up"));
                host.ip(&format!("address add {}/24 dev eth0", host.address));
                host.ip("link set eth0 up");
                Host::inside(Arc::new(host))
            })
            .collect();
        Self { name, hosts }
    }

    /// What the names of its namespaces begin with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Lets every host send at most so many Mbit/s, as a network card of that speed would.
    pub fn limit(&self, megabits: u32) {
        for host in &self.hosts {
            let name = host.namespace.as_ref().map(|namespace| namespace.name.as_str());
            let mut command = Command::new("tc");
            command.args(["-n", name.expect("hosts of a network have a namespace")]);
            command.args(["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", &format!("{megabits}mbit")]);
            command.args(["burst", "256kb", "latency", "50ms"]);
            process::run(command).ok();
        }
    }

    /// Gives every host this address, as a bridge for containers has the same one on many hosts.
    pub fn share(&self, address: &str) {
        for host in &self.hosts {
            let namespace = host.namespace.as_ref().expect("hosts of a network have a namespace");
            namespace.ip(&format!("address add {address}/32 dev lo"));
        }
    }

    /// Takes a host off the network: what is sent to it is lost.
    pub fn cut(&self, index: usize) {
        self.port(index, "down");
    }

    /// Brings it back.
    pub fn mend(&self, index: usize) {
        self.port(index, "up");
    }

    fn port(&self, index: usize, how: &str) {
        let namespace = self.hosts[index].namespace.as_ref().expect("hosts of a network have a namespace");
        let hub = namespace.hub.as_ref().expect("and that has a hub");
        hub.ip(&format!("link set port{index} {how}"));
    }

    /// The host of this number, from 0.
    pub fn host(&self, index: usize) -> Host {
        self.hosts[index].clone()
    }
}

/// One namespace, removed with this value.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    address: String,
    /// The bridge's namespace must not go before its ports.
    hub: Option<Arc<Self>>,
}

impl Namespace {
    fn new(name: String, address: String, hub: Option<Arc<Self>>) -> Self {
        ip(&["netns", "add", &name]);
        let namespace = Self { name, address, hub };
        namespace.ip("link set lo up");
        namespace
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    fn ip(&self, arguments: &str) {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split(' '));
        ip(&all);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // No panic in a drop: a namespace that is gone already is what we want.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

fn ip(arguments: &[&str]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    process::run(command).ok();
}

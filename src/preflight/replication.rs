//! How the standby will listen, and how it will connect to the primary.

use std::net::IpAddr;

use pgpool_recovery_core::error::{Error, Result};
use pgpool_recovery_core::replication::own_address::{
    as_localhost, demand_own, for_standby, is_among, is_localhost, seen_at,
};
use pgpool_recovery_core::replication::standby::{Listening, ReplicationConfig};
use pgpool_recovery_core::sys::addresses::own_addresses;
use pgpool_recovery_core::sys::machine::network;
use pgpool_recovery_core::wire::protocol::message::TargetInfo;

use crate::preflight::PrimaryFacts;

/// Most addresses of the primary that a standby is given.
const MOST_ADDRESSES: usize = 4;

impl PrimaryFacts {
    /// Where the standby will listen.
    pub(crate) fn listening(&self, target: &TargetInfo) -> Listening {
        let adopted = || Listening {
            port: self.request.dest_port.unwrap_or(self.primary.port),
            addresses: self.primary.listen_addresses.clone(),
        };
        target.listening.clone().unwrap_or_else(adopted)
    }

    /// How the standby will connect, given what its host sees.
    pub(crate) fn replication(&self, target: &TargetInfo) -> Result<ReplicationConfig> {
        let Address { host, addresses: host_addresses, port } = self.primary_address(target)?;
        let replication = ReplicationConfig {
            host,
            host_addresses,
            port,
            user: self.settings.replication_user.clone(),
            application_name: self.application_name.clone(),
            passfile: self.settings.passfile.clone(),
            forbids_cleartext_password: self.forbids_cleartext_password,
            slot_name: self.slot_name.clone(),
            restore_command: self.settings.restore_command.clone(),
        };
        // what cannot be written down is refused before anything changes
        replication.myrecovery_conf(self.primary.server_version_num / 10_000)?;
        Ok(replication)
    }

    /// Where the standby connects. Of a caller who is not a superuser host and port have been judged together
    /// ([`crate::preflight::authority::demand_own_address`]), and where the host cannot be used, the port is not used either.
    fn primary_address(&self, target: &TargetInfo) -> Result<Address> {
        let is_superuser = self.settings.caller_is_superuser;
        let set_port = self.settings.set_port(self.primary.port);
        let port = self.request.port.unwrap_or(set_port);
        let (set_port, own_port) = if is_superuser { (port, port) } else { (set_port, self.primary.port) };
        let at = |host: String, addresses, port| Address { host, addresses, port };
        let own = || {
            let (host, addresses) = self.own_host();
            at(host, addresses, own_port)
        };
        let is_one_network = network().is_some_and(|own| target.network == Some(own));
        let theirs = if is_one_network { Some([].as_slice()) } else { target.addresses.as_deref() };
        let checked = theirs.map_or_else(Vec::new, |theirs| {
            for_standby(&self.request.primary_addresses, target.peer, theirs, MOST_ADDRESSES)
        });
        let is_usable = |host: &String| {
            let is_checked = !self.request.primary_addresses.is_empty();
            let leads_there = |theirs| host.parse().is_ok_and(|address| is_among(address, theirs));
            is_superuser
                // where the addresses there are not known, it might lead there
                || theirs.is_some_and(|theirs| if is_checked { !checked.is_empty() } else { !leads_there(theirs) })
        };
        let given = self.request.primary_host.clone().filter(is_usable).map(|host| (host, port));
        let given = given.or_else(|| Some((self.settings.set_host()?.to_owned(), set_port)));
        Ok(match (given, target.peer) {
            // Pgpool-II says localhost where it knows a socket directory
            (Some((host, _)), _)
                if host == "localhost" && self.is_local && self.first_address().is_none() =>
            {
                own()
            }
            (Some((host, port)), _) => at(host, checked, port),
            (None, Some(peer)) => {
                let seen = seen_at(peer, theirs)?;
                if !is_superuser {
                    demand_own(
                        seen,
                        &own_addresses().map_err(Error::on("list the network interfaces"))?,
                        &self.server,
                    )?;
                }
                at(seen.to_string(), Vec::new(), own_port)
            }
            (None, None) => own(),
        })
    }

    /// The first of `listen_addresses` at which the server does listen, as far as that can be told of a name.
    fn first_address(&self) -> Option<&str> {
        let listens = |address: &&str| match address.parse() {
            Ok(address) => self.server.listens_on(address),
            Err(_) if *address == "*" || is_localhost(address) => !as_localhost(&self.server).is_empty(),
            Err(_) => !address.is_empty(),
        };
        self.primary.listen_addresses.split(',').map(str::trim).find(listens)
    }

    /// This server, for a standby on its host.
    fn own_host(&self) -> (String, Vec<IpAddr>) {
        let directories = self.primary.unix_socket_directories.split(',');
        let mut directories = directories.map(|directory| directory.trim().trim_matches('"'));
        let socket = directories.find(|directory| !directory.is_empty());
        match self.first_address() {
            // of the addresses of this name another program may have one, even where the server is told to listen on both
            Some("*" | "0.0.0.0" | "::") => ("localhost".to_owned(), as_localhost(&self.server)),
            Some(address) if is_localhost(address) => (address.to_owned(), as_localhost(&self.server)),
            Some(address) => (address.to_owned(), Vec::new()),
            None => (socket.unwrap_or("localhost").to_owned(), Vec::new()),
        }
    }
}

/// Where a standby connects.
struct Address {
    host: String,
    /// Those of the host, where the name must not be looked up again.
    addresses: Vec<IpAddr>,
    port: u16,
}

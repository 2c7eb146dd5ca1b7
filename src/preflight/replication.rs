//! How the standby will listen, and how it will connect to the primary.

use std::net::IpAddr;

use pgpool_recovery_core::error::Result;
use pgpool_recovery_core::replication::own_address::{for_standby, is_among, is_localhost, seen_at};
use pgpool_recovery_core::replication::standby::{Listening, ReplicationConfig};
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
        let (host, host_addresses) = self.primary_host(target)?;
        let replication = ReplicationConfig {
            host,
            host_addresses,
            port: self.request.port.unwrap_or(match self.settings.primary_port {
                0 => self.primary.port,
                port => port,
            }),
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

    /// The host, and its addresses where the name must not be looked up again.
    fn primary_host(&self, target: &TargetInfo) -> Result<(String, Vec<IpAddr>)> {
        let tcp = self.primary.listen_addresses.split(',').map(str::trim).find(|address| !address.is_empty());
        let socket = || {
            let directories = self.primary.unix_socket_directories.split(',');
            directories
                .map(|directory| directory.trim().trim_matches('"'))
                .find(|directory| !directory.is_empty())
        };
        let own = || match tcp {
            // of the addresses of this name another program may have one, even where the server is told to listen on both
            Some("*" | "0.0.0.0" | "::") => ("localhost".to_owned(), self.localhost.clone()),
            Some(address) if is_localhost(address) => (address.to_owned(), self.localhost.clone()),
            Some(address) => (address.to_owned(), Vec::new()),
            None => (socket().unwrap_or("localhost").to_owned(), Vec::new()),
        };
        let is_one_network = network().is_some_and(|own| target.network == Some(own));
        let theirs = if is_one_network { Some([].as_slice()) } else { target.addresses.as_deref() };
        let checked = theirs.map_or_else(Vec::new, |theirs| {
            for_standby(&self.request.primary_addresses, target.peer, theirs, MOST_ADDRESSES)
        });
        let is_usable = |host: &String| {
            let is_checked = !self.request.primary_addresses.is_empty();
            let leads_there = |theirs| host.parse().is_ok_and(|address| is_among(address, theirs));
            self.settings.caller_is_superuser
                || *host == self.settings.primary_host
                // where the addresses there are not known, it might lead there
                || theirs.is_some_and(|theirs| if is_checked { !checked.is_empty() } else { !leads_there(theirs) })
        };
        let given = self.request.primary_host.clone().filter(is_usable);
        let given =
            given.or_else(|| Some(self.settings.primary_host.clone()).filter(|host| !host.is_empty()));
        Ok(match (given, target.peer) {
            // Pgpool-II says localhost where it knows a socket directory
            (Some(host), _) if host == "localhost" && self.is_local && tcp.is_none() => own(),
            (Some(host), _) => (host, checked),
            (None, Some(peer)) => (seen_at(peer, theirs)?.to_string(), Vec::new()),
            (None, None) => own(),
        })
    }
}

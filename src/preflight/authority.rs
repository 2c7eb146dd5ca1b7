//! What a caller who is no superuser does not decide: where a credential and the data go, and which directories of
//! this host are written. The settings decide; arguments may say the same.

use std::path::PathBuf;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::policy::Reach;
use pgpool_recovery_core::manifest::path::normalize_directory;
use pgpool_recovery_core::replication::own_address::{Leads, Server, leads};
use pgpool_recovery_core::sys::cancel::Cancel;

use crate::settings::request::{Request, shown};
use crate::settings::{Fence, Settings};

/// Reads `local_directories`: comma-separated absolute directories.
pub(crate) fn local_directories(text: &str) -> Result<Vec<PathBuf>> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            normalize_directory(name).map_err(|_| {
                Error::new(
                    Kind::InvalidArgument,
                    format!("invalid directory in \"local_directories\": {}", shown(name)),
                )
                .detail("It must be absolute, without \"..\", and not the root directory.")
                .hint("Separate directories by commas, as in: /srv/standbys, /data/standbys")
            })
        })
        .collect()
}

impl Settings {
    /// Which local directories the caller may have written.
    pub(crate) fn reach(&self) -> Result<Reach> {
        if self.caller_is_superuser {
            return Ok(Reach::Anywhere);
        }
        local_directories(&self.local_directories).map(Reach::Beneath)
    }
}

/// Refuses a function to all but superusers, in the C extension's words, so that what greps for them goes on working.
pub(crate) fn demand_superuser(is_superuser: bool, function: &str) -> Result<()> {
    if is_superuser {
        return Ok(());
    }
    Err(Error::new(Kind::InsufficientPrivilege, format!("must be superuser to use {function} function"))
        .hint("Connect as a superuser; the EXECUTE right is not enough here."))
}

/// Refuses the two stages of native replication and snapshot isolation mode to all but superusers: together they leave a second
/// server that writes, which in streaming replication would be a second primary.
pub(crate) fn demand_superuser_to_promote(settings: &Settings, script: &str) -> Result<()> {
    if settings.caller_is_superuser {
        return Ok(());
    }
    Err(Error::new(Kind::InsufficientPrivilege, format!("permission denied to use {script}"))
        .detail("Its end is a server of its own beside this one, which only a superuser may make.")
        .hint("Set recovery_user in pgpool.conf to a superuser; in streaming replication mode use pgpool_recovery_1st_stage."))
}

/// Refuses to stop a server for a caller who is no superuser, unless an administrator has said that recoveries may.
pub(crate) fn demand_may_stop(settings: &Settings) -> Result<()> {
    if settings.caller_is_superuser || settings.stop_target {
        return Ok(());
    }
    Err(Error::new(Kind::InsufficientPrivilege, "permission denied to stop a server")
        .detail("Only a superuser may, or a role that may recover standbys where pgpool_recovery.stop_target is on.")
        .hint("Ask an administrator to set pgpool_recovery.stop_target, or to stop the server."))
}

/// Refuses to promote with less of a fence than an administrator has set, for a caller who is no superuser. That he may
/// promote is the right to have exactly the primary of this standby stopped, so more of it is his to choose.
pub(crate) fn demand_no_weaker_fence(settings: &Settings, set: Fence) -> Result<()> {
    if settings.caller_is_superuser || settings.fence.fencing() >= set.fencing() {
        return Ok(());
    }
    Err(Error::new(Kind::InsufficientPrivilege, "permission denied to pass a weaker \"fence\" than is set")
        .detail("Only superusers may.")
        .hint("Leave the option out, or ask an administrator to set pgpool_recovery.fence."))
}

/// The addresses of this server.
pub(crate) struct Own {
    pub(crate) port: u16,
    pub(crate) server: Server,
}

/// Refuses another address for the primary than this server's, and has the standby connect where it was seen to lead. Host
/// and port are judged together: either both are what an administrator has set, or both are this server's own. A port that is
/// translated elsewhere may be any OS user's on this host, and so may this server's port at an address where it does not
/// listen. `is_local`: the standby is on this host. May ask the name service: not for the main thread.
pub(crate) fn demand_own_address(
    request: &mut Request,
    settings: &Settings,
    own: &Own,
    is_local: bool,
    cancel: &Cancel,
) -> Result<()> {
    if settings.caller_is_superuser {
        return Ok(());
    }
    let (set_host, set_port) = (settings.set_host(), settings.set_port(own.port));
    let port = request.port.unwrap_or(set_port);
    let host = request.primary_host.as_deref().or(set_host);
    if host.is_some() && host == set_host && port == set_port {
        (request.primary_host, request.port) = (None, None);
        return Ok(());
    }
    if port != own.port {
        return Err(other_address(host, port, settings, own));
    }
    request.port = Some(port);
    let Some(host) = host else { return Ok(()) };
    let unknown = "If this host cannot look its own name up, set pgpool_recovery.primary_host to it; otherwise check \
                   backend_hostname in pgpool.conf, and the name service of this host.";
    match leads(host, &own.server, is_local, cancel).map_err(|error| error.hint(unknown))? {
        Leads::Here => request.primary_host = Some(host.to_owned()),
        Leads::HereIn(directory) => request.primary_host = Some(directory),
        Leads::HereAt(addresses) => {
            request.primary_host = Some(host.to_owned());
            request.primary_addresses = addresses;
        }
        // the one that is set belongs to the port that is set
        Leads::HereOnly if Some(host) != set_host => request.primary_host = None,
        Leads::HereOnly | Leads::Elsewhere => return Err(other_address(Some(host), port, settings, own)),
    }
    Ok(())
}

fn other_address(host: Option<&str>, port: u16, settings: &Settings, own: &Own) -> Error {
    let host = host.map_or_else(|| "(its own)".to_owned(), shown);
    let set = match (settings.set_host(), settings.set_port(own.port)) {
        (Some(host), port) => format!("primary_host {} with port {port}", shown(host)),
        (None, port) if port != own.port => {
            format!("primary_port {port}, which belongs to no host as long as primary_host is empty")
        }
        (None, _) => "neither primary_host nor primary_port".to_owned(),
    };
    Error::new(
        Kind::InsufficientPrivilege,
        format!("permission denied to let a standby follow primary_host {host}, port {port}"),
    )
        .detail(format!(
            "The standby would follow, and log in to, the server there, and host and port together are not known to lead to this one. This server listens on port {} of its own addresses; the settings name {set}. Only a superuser may name another.",
            own.port
        ))
        .hint("If the standbys reach this server there (a virtual address, address translation, a container's published port), set both pgpool_recovery.primary_host and pgpool_recovery.primary_port; otherwise correct backend_hostname and backend_port of the primary in pgpool.conf.")
}

impl Settings {
    /// `primary_host`, unless it is empty.
    pub(crate) fn set_host(&self) -> Option<&str> {
        Some(self.primary_host.as_str()).filter(|host| !host.is_empty())
    }

    /// The port in `primary_conninfo` when the caller passes none; `own`: this server's.
    pub(crate) const fn set_port(&self, own: u16) -> u16 {
        match self.primary_port {
            0 => own,
            port => port,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Own {
        Own {
            port: 5432,
            server: Server {
                listening: vec!["0.0.0.0".parse().expect("an address"), "::".parse().expect("an address")],
                socket_directories: "/run/postgresql".to_owned(),
            },
        }
    }

    fn judged(host: &str, port: Option<u16>, settings: &Settings) -> Result<Request> {
        let primary_host = Some(host).filter(|host| !host.is_empty()).map(str::to_owned);
        let mut request = Request { primary_host, port, ..Request::default() };
        demand_own_address(&mut request, settings, &own(), false, &Cancel::new()).map(|()| request)
    }

    fn set(primary_host: &str, primary_port: u16) -> Settings {
        Settings { primary_host: primary_host.to_owned(), primary_port, ..Settings::default() }
    }

    #[test]
    fn directories_for_local_targets() {
        assert_eq!(local_directories("").expect("valid"), Vec::<PathBuf>::new());
        assert_eq!(
            local_directories(" /srv/a/, /srv//b ,").expect("valid"),
            [PathBuf::from("/srv/a"), PathBuf::from("/srv/b")]
        );
        for bad in ["srv", "/srv/../etc", "/", "/srv, .", "/a\nb"] {
            let error = local_directories(bad).expect_err(bad);
            assert_eq!(error.kind, Kind::InvalidArgument);
            assert!(error.message.contains("local_directories") && error.hint.is_some(), "{error:?}");
        }
    }

    #[test]
    fn only_superusers_reach_every_directory() {
        let user = Settings { local_directories: "/srv".to_owned(), ..Settings::default() };
        assert_eq!(user.reach(), Ok(Reach::Beneath(vec!["/srv".into()])));
        let wrong = Settings { local_directories: "srv".to_owned(), ..Settings::default() };
        assert!(wrong.reach().is_err());
        let superuser = Settings { caller_is_superuser: true, ..wrong };
        assert_eq!(superuser.reach(), Ok(Reach::Anywhere), "whom the setting does not bind");
    }

    #[test]
    fn a_server_is_stopped_for_superusers_or_where_an_administrator_lets_it() {
        let may = |caller_is_superuser, stop_target| {
            demand_may_stop(&Settings { caller_is_superuser, stop_target, ..Settings::default() })
        };
        assert!(may(true, false).is_ok() && may(false, true).is_ok());
        assert_eq!(may(false, false).expect_err("no right").kind, Kind::InsufficientPrivilege);
    }

    #[test]
    fn a_role_may_fence_more_than_is_set_and_not_less() {
        let may = |caller_is_superuser, fence, set| {
            let settings = Settings { caller_is_superuser, fence, ..Settings::default() };
            demand_no_weaker_fence(&settings, set).is_ok()
        };
        assert!(may(false, Fence::Required, Fence::BestEffort) && may(false, Fence::BestEffort, Fence::Off));
        assert!(may(false, Fence::Off, Fence::Off) && may(true, Fence::Off, Fence::Required));
        assert!(
            !may(false, Fence::Off, Fence::BestEffort) && !may(false, Fence::BestEffort, Fence::Required)
        );
    }

    #[test]
    fn host_and_port_are_this_servers_or_an_administrators_together() {
        let is_own = |request: Request| (request.primary_host.is_none(), request.port) == (true, Some(5432));
        let is_set = |request: Request| (request.primary_host.is_none(), request.port) == (true, None);
        // nothing is set; 192.0.2.1 belongs to no host
        for port in [None, Some(5432)] {
            assert!(judged("", port, &set("", 0)).is_ok_and(is_own), "{port:?}");
        }
        for (host, port) in [("", Some(5433)), ("192.0.2.1", None), ("localhost", Some(5433)), ("/tmp", None)]
        {
            refused(host, port, &set("", 0));
        }
        // what is right here is wrong on the standby's host, which is asked how it sees this one
        assert!(judged("localhost", Some(5432), &set("", 0)).is_ok_and(is_own));

        let virtual_address = set("192.0.2.1", 0);
        for (host, port) in [("", None), ("192.0.2.1", None), ("192.0.2.1", Some(5432)), ("", Some(5432))] {
            assert!(judged(host, port, &virtual_address).is_ok_and(is_set), "{host} {port:?}");
        }
        refused("192.0.2.1", Some(5433), &virtual_address);

        let translated = set("192.0.2.1", 15432);
        for (host, port) in [("", None), ("192.0.2.1", Some(15432)), ("", Some(15432)), ("192.0.2.1", None)] {
            assert!(judged(host, port, &translated).is_ok_and(is_set), "{host} {port:?}");
        }
        assert!(judged("localhost", Some(5432), &translated).is_ok_and(is_own));
        for (host, port) in [("localhost", 15432), ("192.0.2.1", 5432), ("", 5432), ("192.0.2.1", 1)] {
            refused(host, Some(port), &translated);
        }
        // an address of this host is no exception
        refused("127.0.0.2", Some(5432), &set("127.0.0.2", 15432));

        let port_alone = set("", 15432);
        assert!(judged("", Some(5432), &port_alone).is_ok_and(is_own));
        for (host, port) in [("", None), ("", Some(15432)), ("localhost", Some(15432)), ("localhost", None)] {
            assert!(
                refused(host, port, &port_alone).detail.is_some_and(|it| it.contains("belongs to no host"))
            );
        }
    }

    #[track_caller]
    fn refused(host: &str, port: Option<u16>, settings: &Settings) -> Error {
        let error = judged(host, port, settings).expect_err("another server");
        assert_eq!(error.kind, Kind::InsufficientPrivilege, "{error:?}");
        assert!(error.message.contains(host), "{error:?}");
        let hint = error.hint.as_deref().unwrap_or_default();
        assert!(hint.contains("primary_host") && hint.contains("primary_port"), "{error:?}");
        error
    }

    #[test]
    fn a_superuser_names_any_address() {
        let superuser = Settings { caller_is_superuser: true, ..set("vip", 15432) };
        let request = judged("192.0.2.1", Some(1), &superuser).expect("free");
        assert_eq!((request.primary_host.as_deref(), request.port), (Some("192.0.2.1"), Some(1)));
    }
}

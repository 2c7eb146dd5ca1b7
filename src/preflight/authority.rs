//! What a caller who is no superuser does not decide: where a credential and the data go, and which directories of
//! this host are written. The settings decide; arguments may say the same.

use std::path::PathBuf;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::policy::Reach;
use pgpool_recovery_core::manifest::path::normalize_directory;
use pgpool_recovery_core::replication::own_address::{Leads, Server, leads};
use pgpool_recovery_core::sys::cancel::Cancel;

use crate::settings::Settings;
use crate::settings::request::{Request, shown};

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

/// The addresses of this server.
pub(crate) struct Own {
    pub(crate) port: u16,
    pub(crate) server: Server,
}

/// Refuses another port for the primary than this server's, or the one at which it is reached by the settings: another
/// server may listen there.
pub(crate) fn demand_own_port(request: &Request, settings: &Settings, own: &Own) -> Result<()> {
    let is_own = |port| settings.caller_is_superuser || port == own.port || port == settings.primary_port;
    match request.port {
        Some(port) if !is_own(port) => Err(Error::new(
            Kind::InsufficientPrivilege,
            format!("permission denied to let a standby follow port {port}"),
        )
            .detail(format!(
                "The standby would follow, and log in to, the server at that port; this server's port is {}. Only a superuser may name another.",
                own.port
            ))
            .hint("If the standbys reach this server at that port (address translation, a container's published port), set pgpool_recovery.primary_port to it; otherwise correct backend_port of the primary in pgpool.conf.")),
        _ => Ok(()),
    }
}

/// Refuses another host for the primary than this server's, and has the standby connect where the host was seen to
/// lead. `is_local`: the standby is on this host. May ask the name service: not for the main thread.
pub(crate) fn demand_own_host(
    request: &mut Request,
    settings: &Settings,
    own: &Own,
    is_local: bool,
    cancel: &Cancel,
) -> Result<()> {
    let Some(host) = request.primary_host.as_deref() else {
        return Ok(());
    };
    if settings.caller_is_superuser || host == settings.primary_host {
        return Ok(());
    }
    let unknown = "If this host cannot look its own name up, set pgpool_recovery.primary_host to it; otherwise check \
                   backend_hostname in pgpool.conf, and the name service of this host.";
    match leads(host, &own.server, is_local, cancel).map_err(|error| error.hint(unknown))? {
        Leads::Here => {}
        Leads::HereIn(directory) => request.primary_host = Some(directory),
        Leads::HereAt(addresses) => request.primary_addresses = addresses,
        Leads::HereOnly => request.primary_host = None,
        Leads::Elsewhere => {
            return Err(Error::new(
                Kind::InsufficientPrivilege,
                format!("permission denied to let a standby follow primary_host {}", shown(host)),
            )
                .detail("The standby would follow, and log in to, the server there, and the host is not known to be this one. Only a superuser may name another.")
                .hint("If the standbys reach this server by that host (a virtual address, or address translation), set pgpool_recovery.primary_host to it; otherwise correct backend_hostname of the primary in pgpool.conf."));
        }
    }
    Ok(())
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

    fn host(host: &str, settings: &Settings) -> Result<Request> {
        let mut request = Request { primary_host: Some(host.to_owned()), ..Request::default() };
        demand_own_host(&mut request, settings, &own(), false, &Cancel::new()).map(|()| request)
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
    fn another_port_is_for_superusers_and_for_the_setting() {
        let with = |port| Request { port, ..Request::default() };
        let (user, superuser) =
            (Settings::default(), Settings { caller_is_superuser: true, ..Settings::default() });
        for port in [None, Some(5432)] {
            assert!(demand_own_port(&with(port), &user, &own()).is_ok());
        }
        assert!(demand_own_port(&with(Some(5433)), &superuser, &own()).is_ok());
        let translated = Settings { primary_port: 15432, ..Settings::default() };
        for port in [None, Some(5432), Some(15432)] {
            assert!(demand_own_port(&with(port), &translated, &own()).is_ok(), "{port:?}");
        }
        for settings in [&user, &translated] {
            let error = demand_own_port(&with(Some(5433)), settings, &own()).expect_err("another server's");
            assert_eq!(error.kind, Kind::InsufficientPrivilege);
            assert!(error.detail.is_some() && error.hint.is_some_and(|hint| hint.contains("primary_port")));
        }
    }

    #[test]
    fn another_host_is_for_superusers_and_for_the_setting() {
        let user = Settings { primary_host: "vip".to_owned(), ..Settings::default() };
        let superuser = Settings { caller_is_superuser: true, ..Settings::default() };
        assert_eq!(host("vip", &user).expect("the setting").primary_host.as_deref(), Some("vip"));
        assert_eq!(host("192.0.2.1", &superuser).expect("free").primary_host.as_deref(), Some("192.0.2.1"));
        for other in ["192.0.2.1", "/tmp"] {
            let error = host(other, &user).expect_err("another server");
            assert_eq!(error.kind, Kind::InsufficientPrivilege, "{error:?}");
            assert!(error.detail.is_some() && error.hint.is_some_and(|hint| hint.contains("primary_host")));
        }
        // what is right here is wrong on the standby's host, which is asked how it sees this one
        assert_eq!(host("localhost", &user).expect("this host").primary_host, None);
    }
}

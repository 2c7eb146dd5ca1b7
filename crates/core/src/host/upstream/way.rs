//! How psql gets to where a walreceiver gets to: the same connection string, environment and working directory.
//!
//! What the string says travels in a service file that only the psql itself sees, since it holds secrets and an argument could be
//! read by every user of the host. Only which of several hosts is asked stands in the arguments, where it overrides the file.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{ErrorKind, Seek, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::Upstream;
use crate::error::{Error, Kind, Result};
use crate::host::identify;
use crate::replication::conninfo::{self, quoted};
use crate::sys::cancel::Cancel;
use crate::sys::process;
use crate::wire::protocol::upstream::Endpoint;

/// The name of the service in our file.
const SERVICE: &str = "pgpool_recovery";

/// The longest line of a service file that every libpq reads: until version 12 it has a buffer of 256 bytes.
const LINE: usize = 250;

/// Where pg_service.conf is if the environment does not say so: as Debian and PGDG build libpq, and as it is built by default.
const SYSTEM: [&str; 3] = ["/etc/postgresql-common", "/etc/sysconfig/pgsql", "/usr/local/pgsql/etc"];

/// What psql or the server would take for something else, or what is given here.
const NOT_PASSED: [&str; 10] = [
    "PGDATA",
    "PGOPTIONS",
    "PGDATABASE",
    "PGCLIENTENCODING",
    "PGTZ",
    "PGDATESTYLE",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGCONNECT_TIMEOUT",
    "PGTARGETSESSIONATTRS",
];

/// What libpq's libraries read.
const LIBRARIES: [&str; 8] =
    ["HOME", "KRB5", "GSS", "SSL_CERT_", "OPENSSL_", "LDAP", "LOCALDOMAIN", "RES_OPTIONS"];

/// One server to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// Whether what follows overrides what the connection string says.
    is_chosen: bool,
    host: String,
    address: String,
    port: String,
}

/// All that a connection string, with its service and the environment, says.
#[derive(Debug)]
pub(super) struct Way {
    /// Keywords and values of the string itself.
    pairs: Vec<(String, String)>,
    /// The lines of its service.
    service: Vec<String>,
    environment: Vec<(OsString, OsString)>,
}

impl Way {
    pub(super) fn new(upstream: &Upstream<'_>) -> Result<Self> {
        let mut pairs = conninfo::pairs(upstream.conninfo).ok_or_else(|| {
            Error::new(Kind::InvalidArgument, "primary_conninfo of this standby cannot be read")
                .hint("See the log of the standby for what libpq says of it.")
        })?;
        let environment = upstream.environment.to_vec();
        let mut take = |key: &str| {
            let at = pairs.iter().position(|(name, _)| name == key)?;
            Some(pairs.remove(at).1)
        };
        let (name, file) = (take("service"), take("servicefile"));
        let mut way = Self { pairs, service: Vec::new(), environment };
        let name = name.or_else(|| way.variable("PGSERVICE")?.into_string().ok());
        if let Some(name) = name {
            way.service = way.service_lines(&name, file.map(PathBuf::from), upstream.data_directory)?;
        }
        Ok(way)
    }

    fn variable(&self, name: &str) -> Option<OsString> {
        self.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }

    /// The lines of a service, as parseServiceInfo in fe-connect.c finds it.
    fn service_lines(&self, name: &str, file: Option<PathBuf>, directory: &Path) -> Result<Vec<String>> {
        let in_home = || Some(PathBuf::from(self.variable("HOME")?).join(".pg_service.conf"));
        let first = file.or_else(|| self.variable("PGSERVICEFILE").map(PathBuf::from)).or_else(in_home);
        let system = self.variable("PGSYSCONFDIR").map_or_else(
            || SYSTEM.iter().map(PathBuf::from).collect(),
            |directory| vec![PathBuf::from(directory)],
        );
        let files = first.into_iter().chain(system.into_iter().map(|place| place.join("pg_service.conf")));
        for file in files {
            let file = directory.join(file);
            let text = match fs::read(&file) {
                Ok(text) => String::from_utf8_lossy(&text).into_owned(),
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::at("read file", &file, &error)),
            };
            if let Some(lines) = section(&text, name) {
                return Ok(lines);
            }
        }
        Err(Error::new(Kind::MissingFile, format!("service \"{name}\" of primary_conninfo is not defined")))
    }

    /// What libpq takes for a keyword. `None` if nothing says it, or only libpq knows.
    fn value(&self, key: &str, variable: &str) -> Option<String> {
        let own = self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        let of_service = || {
            // the first of several counts there
            let mut pairs = self.service.iter().filter_map(|line| line.split_once('='));
            pairs.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
        };
        own.or_else(of_service).or_else(|| self.variable(variable)?.into_string().ok())
    }

    /// The servers that the string names, each of its own.
    pub(super) fn hosts(&self) -> Vec<Host> {
        let as_it_is =
            Host { is_chosen: false, host: String::new(), address: String::new(), port: String::new() };
        // what a directory service adds is not known here
        if self.service.iter().any(|line| line.starts_with("ldap")) {
            return vec![as_it_is];
        }
        let list = |key, variable| -> Vec<String> {
            let value = self.value(key, variable).unwrap_or_default();
            if value.is_empty() { Vec::new() } else { value.split(',').map(str::to_owned).collect() }
        };
        let (hosts, addresses) = (list("host", "PGHOST"), list("hostaddr", "PGHOSTADDR"));
        let ports = list("port", "PGPORT");
        let count = if addresses.is_empty() { hosts.len() } else { addresses.len() };
        let fits =
            |list: &[String], one: bool| list.is_empty() || list.len() == count || one && list.len() == 1;
        // one that does not fit libpq refuses, and says so
        if count == 0 || !fits(&hosts, false) || !fits(&ports, true) {
            return vec![as_it_is];
        }
        let nth = |list: &[String], at: usize| list.get(at).cloned().unwrap_or_default();
        let host = |at: usize| Host {
            is_chosen: true,
            host: nth(&hosts, at),
            address: nth(&addresses, at),
            port: if ports.len() == 1 { nth(&ports, 0) } else { nth(&ports, at) },
        };
        (0..count).map(host).collect()
    }

    /// A psql that asks one of them. `seconds` is how long its connection may take to come about.
    pub(super) fn command(&self, upstream: &Upstream<'_>, host: &Host, seconds: u64) -> Result<Command> {
        // a server in recovery is read-only whatever its settings say, and this one only then
        let conninfo = format!(
            "service={SERVICE}{} target_session_attrs=any replication=true dbname=replication \
             connect_timeout={seconds} options='-c default_transaction_read_only=off'",
            host.words()
        );
        let mut command =
            identify::command(upstream.bin_directory, &conninfo, Some("SHOW transaction_read_only"));
        command.env_remove("HOME");
        for (name, value) in self.environment.iter().filter(|(name, _)| is_passed(name)) {
            command.env(name, value);
        }
        let (text, password) = self.service_file(host)?;
        if let Some(password) = password {
            command.env("PGPASSWORD", password);
        }
        let mut file = process::anonymous_file()?;
        file.write_all(text.as_bytes()).and_then(|()| file.rewind()).map_err(Error::on("write a service"))?;
        // psql opens it by this name; it has no other
        command.stdin(Stdio::from(file)).env("PGSERVICEFILE", "/proc/self/fd/0");
        // names of files in the string are meant from there
        command.current_dir(upstream.data_directory);
        // what libpq says is read here
        command.env("LC_ALL", "C");
        Ok(command)
    }

    /// The text of the service file, where the first of several values counts, and a password that none can hold.
    fn service_file(&self, host: &Host) -> Result<(String, Option<String>)> {
        let (mut text, mut password) = (format!("[{SERVICE}]\n"), None);
        for (key, value) in &self.pairs {
            // what the arguments override
            if host.is_chosen && matches!(key.as_str(), "host" | "hostaddr" | "port")
                || matches!(key.as_str(), "replication" | "dbname" | "options" | "connect_timeout")
            {
                continue;
            }
            let line = format!("{key}={value}");
            if line.trim_end() == line && !line.contains(['\n', '\r']) && line.len() <= LINE {
                text.push_str(&line);
                text.push('\n');
            } else if key == "password" {
                password = Some(value.clone());
            } else {
                let message = format!("\"{key}\" of primary_conninfo cannot be passed on to psql");
                return Err(Error::new(Kind::Unsupported, message)
                    .detail("It is too long, or holds a line break or ends with a blank."));
            }
        }
        for line in &self.service {
            text.push_str(line);
            text.push('\n');
        }
        Ok((text, password))
    }
}

impl Host {
    /// The same server at each of its addresses, which psql alone would try one after the other. Fails if the name service gives
    /// no answer in time.
    pub(super) fn at_its_addresses(self, time: Duration, cancel: &Cancel) -> Result<Vec<Self>, String> {
        if !self.is_name() {
            return Ok(vec![self]);
        }
        let getent = process::command(Path::new("getent"), ["ahosts", "--", &self.host]);
        let answer = match process::run_for(getent, time, cancel) {
            Ok(Some(outcome)) => outcome.stdout,
            Ok(None) => return Err(super::said::no_name(&self.host)),
            // then psql finds out itself
            Err(_) => return Ok(vec![self]),
        };
        let of_streams = answer.lines().filter(|line| line.contains("STREAM"));
        let mut addresses: Vec<&str> = of_streams.filter_map(|line| line.split_whitespace().next()).collect();
        addresses.dedup();
        if addresses.is_empty() {
            return Ok(vec![self]);
        }
        let at = |address: &str| Self { address: address.to_owned(), ..self.clone() };
        Ok(addresses.into_iter().map(at).collect())
    }

    /// Where a walreceiver that is connected to it says that it is.
    pub(super) fn endpoint(&self) -> Option<Endpoint> {
        let (host, address) = match self.host.as_str() {
            "" => (self.address.as_str(), ""),
            host => (host, self.address.as_str()),
        };
        let port = if self.port.is_empty() { "5432" } else { &self.port };
        (!host.is_empty()).then(|| Endpoint { address: address.to_owned(), ..Endpoint::new(host, port) })
    }

    /// Whether a name service is needed to find it.
    pub(super) fn is_name(&self) -> bool {
        self.address.is_empty()
            && !self.host.is_empty()
            && !self.host.starts_with(['/', '@'])
            && self.host.parse::<IpAddr>().is_err()
    }

    /// Whether it was taken out of the string; else that alone says what it is.
    pub(super) const fn is_chosen(&self) -> bool {
        self.is_chosen
    }

    /// As it stands in the arguments, behind another word.
    pub(super) fn words(&self) -> String {
        if !self.is_chosen {
            return String::new();
        }
        let words = [("host", &self.host), ("hostaddr", &self.address), ("port", &self.port)];
        words.map(|(key, value)| format!(" {key}={}", quoted(value))).concat()
    }
}

fn is_passed(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        let is_libpqs = name.starts_with("PG") && !NOT_PASSED.contains(&name);
        is_libpqs || LIBRARIES.iter().any(|prefix| name.starts_with(prefix))
    })
}

/// The lines of a group of a service file, up to the next one.
fn section(text: &str, name: &str) -> Option<Vec<String>> {
    let mut lines = text.lines().map(str::trim);
    let head = format!("[{name}]");
    lines.find(|line| line.starts_with(&head))?;
    let lines = lines.take_while(|line| !line.starts_with('['));
    Some(lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(conninfo: &str, environment: &[(&str, &str)]) -> Result<Way> {
        let environment: Vec<_> =
            environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Way::new(&Upstream {
            bin_directory: Path::new("/bin"),
            data_directory: Path::new("/nonexistent"),
            conninfo,
            environment: &environment,
            system_identifier: 42,
        })
    }

    fn words(conninfo: &str, environment: &[(&str, &str)]) -> Vec<String> {
        way(conninfo, environment).expect("a way").hosts().iter().map(Host::words).collect()
    }

    #[test]
    fn every_host_is_one_of_its_own() {
        assert_eq!(
            words("host=a,/run port=1,2", &[]),
            [" host=a hostaddr='' port=1", " host=/run hostaddr='' port=2"]
        );
        assert_eq!(words("postgres://a,b", &[("PGPORT", "5")]).len(), 2);
        assert_eq!(words("user=x", &[("PGHOST", "a")]), [" host=a hostaddr='' port=''"]);
        assert_eq!(words("hostaddr=::1,::2 port=7", &[])[1], " host='' hostaddr=::2 port=7");
        for as_it_is in ["user=x", "host=a,b port=1,2,3", "host=a hostaddr=::1,::2", "host=''"] {
            assert_eq!(words(as_it_is, &[]), [""], "{as_it_is}");
        }
    }

    #[test]
    fn a_service_is_found_where_libpq_finds_it() {
        let top = tempfile::tempdir().expect("temporary directory");
        let file = top.path().join("services");
        fs::write(&file, "[ups]\nport=1\n[up]\n# words\n host=db1,db2 \nport=5\n\n[other]\nport=9\n")
            .expect("write");
        let named = file.to_str().expect("a name");
        let expected = [" host=db1 hostaddr='' port=5", " host=db2 hostaddr='' port=5"];
        assert_eq!(words("service=up", &[("PGSERVICEFILE", named)]), expected);
        assert_eq!(words("", &[("PGSERVICE", "up"), ("PGSERVICEFILE", named)]), expected);
        assert_eq!(
            words("service=up port=6 host=db3", &[("PGSERVICEFILE", named)]),
            [" host=db3 hostaddr='' port=6"]
        );
        fs::rename(&file, top.path().join("pg_service.conf")).expect("renamed");
        let directory = top.path().to_str().expect("a name");
        assert_eq!(words("service=up", &[("PGSYSCONFDIR", directory)]), expected);
        let error = way("service=none", &[("PGSYSCONFDIR", directory)]).expect_err("there is none");
        assert!(error.message.contains("\"none\""), "{error}");
    }

    #[test]
    fn what_no_service_file_holds_is_not_lost() {
        let file = |conninfo: &str| {
            let way = way(conninfo, &[]).expect("a way");
            way.service_file(&way.hosts()[0])
        };
        let (text, password) = file("host=a user=x sslpassword='a b' password=' c'").expect("a file");
        assert_eq!(
            (text.as_str(), password),
            ("[pgpool_recovery]\nuser=x\nsslpassword=a b\npassword= c\n", None)
        );
        let (text, password) = file("user=x password='c '").expect("a file");
        assert_eq!((text.as_str(), password.as_deref()), ("[pgpool_recovery]\nuser=x\n", Some("c ")));
        assert!(file("sslpassword='c '").is_err());
        assert!(file(&format!("sslrootcert=/{}", "x".repeat(LINE))).is_err());
    }

    #[test]
    fn the_environment_is_that_of_the_server() {
        let passed = ["PGSSLROOTCERT", "PGPASSFILE", "PGHOST", "KRB5CCNAME", "SSL_CERT_FILE", "HOME"];
        assert!(passed.iter().all(|name| is_passed(OsStr::new(name))));
        let kept = ["PGDATA", "PGOPTIONS", "PGSERVICEFILE", "LD_PRELOAD", "PATH", "LANG"];
        assert!(kept.iter().all(|name| !is_passed(OsStr::new(name))));
    }
}

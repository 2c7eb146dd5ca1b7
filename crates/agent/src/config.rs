//! agent.toml.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::policy::{Cluster, resolve_timely};
use pgpool_recovery_core::manifest::path::normalize_path;
use serde::Deserialize;

/// The agent's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Where to listen.
    #[serde(default = "default_listen")]
    pub(crate) listen: SocketAddr,
    /// The cluster's shared secret.
    #[serde(default = "default_secret_file")]
    pub(crate) secret_file: PathBuf,
    /// Where to answer Prometheus, if at all; on loopback.
    #[serde(default)]
    pub(crate) metrics: Option<SocketAddr>,
    /// The clusters this agent takes care of.
    #[serde(default, rename = "cluster")]
    pub(crate) clusters: Vec<Cluster>,
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 9897))
}

fn default_secret_file() -> PathBuf {
    PathBuf::from("/etc/pgpool-recovery/secret")
}

impl Config {
    /// Reads and checks the file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::on_path("read configuration", &path))?;
        let config: Self = toml::from_str(&text).map_err(|error| {
            Error::new(Kind::InvalidArgument, format!("invalid configuration \"{}\"", path.display()))
                .detail(error.to_string().trim_end().to_owned())
                .hint("docs/reference.md lists every key.")
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        if let Some(address) = self.metrics.filter(|address| !address.ip().is_loopback()) {
            return Err(Error::new(
                Kind::InvalidArgument,
                format!("metrics address \"{address}\" is not of this host's loopback"),
            )
            .detail("Metrics are told to everybody who asks, without secret and encryption.")
            .hint("Write metrics = \"127.0.0.1:9899\"; for a Prometheus on another host put a proxy in between."));
        }
        if self.clusters.is_empty() {
            return Err(Error::new(Kind::InvalidArgument, "the configuration lists no [[cluster]]")
                .hint("Add a [[cluster]] with data_directory and bin_directory."));
        }
        let mut seen = Vec::new();
        for cluster in &self.clusters {
            let directory = normalize_path(&cluster.data_directory)?;
            let directory = resolve_timely(&directory).unwrap_or(directory);
            for root in &cluster.tablespace_roots {
                normalize_path(root)?;
            }
            for program in ["postgres", "pg_ctl", "psql"] {
                let path = cluster.bin_directory.join(program);
                if !path.is_file() {
                    return Err(Error::new(
                        Kind::MissingFile,
                        format!("\"{}\" does not exist", path.display()),
                    )
                    .hint("bin_directory must hold the server's programs, psql among them."));
                }
            }
            for (key, command, action) in [
                ("start_command", &cluster.start_command, "start"),
                ("stop_command", &cluster.stop_command, "stop"),
            ] {
                if command.as_ref().is_some_and(Vec::is_empty) {
                    return Err(Error::new(Kind::InvalidArgument, format!("{key} is empty")).hint(format!(
                        "Write the program and its arguments, as in [\"pg_ctlcluster\", \"15\", \"main\", \"{action}\"]."
                    )));
                }
            }
            for node in &cluster.nodes {
                if node.host.trim().is_empty() || node.port == 0 {
                    return Err(Error::new(
                        Kind::InvalidArgument,
                        format!("nodes has host \"{}\" and port {}", node.host, node.port),
                    )
                    .hint(
                        "Write the name or address of another node's agent, and its port if it is not 9897.",
                    ));
                }
                if let Some(directory) = &node.data_directory {
                    normalize_path(directory)?;
                }
            }
            if seen.contains(&directory) {
                return Err(Error::new(
                    Kind::InvalidArgument,
                    format!("\"{}\" is listed twice", directory.display()),
                )
                .hint("List every data directory once, by one of its names."));
            }
            seen.push(directory);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config> {
        let directory = tempfile::tempdir().expect("temporary directory");
        for program in ["postgres", "pg_ctl", "psql"] {
            std::fs::write(directory.path().join(program), "").expect("write");
        }
        let file = directory.path().join("agent.toml");
        std::fs::write(&file, text.replace("BIN", &directory.path().display().to_string())).expect("write");
        Config::read(&file)
    }

    #[test]
    fn the_smallest_configuration_has_the_documented_defaults() {
        let config = read("[[cluster]]\ndata_directory = '/d'\nbin_directory = 'BIN'\n").expect("valid");
        assert_eq!(config.listen.to_string(), "0.0.0.0:9897");
        assert_eq!(config.metrics, None);
        assert_eq!(config.secret_file, Path::new("/etc/pgpool-recovery/secret"));
        assert_eq!(
            (config.clusters[0].start_command.as_ref(), config.clusters[0].config_file.as_ref()),
            (None, None)
        );
    }

    #[test]
    fn metrics_stay_on_loopback() {
        for address in ["127.0.0.1:9899", "[::1]:9899"] {
            let text =
                format!("metrics = '{address}'\n[[cluster]]\ndata_directory = '/d'\nbin_directory = 'BIN'\n");
            assert_eq!(
                read(&text).expect("valid").metrics.map(|set| set.to_string()).as_deref(),
                Some(address)
            );
        }
    }

    #[test]
    fn mistakes_are_named() {
        let cluster = "[[cluster]]\ndata_directory = '/d'\nbin_directory = 'BIN'\n";
        for (text, named) in [
            ("metrics = '0.0.0.0:9899'\n".to_owned() + cluster, "0.0.0.0:9899"),
            ("metrics = '[2001:db8::1]:9899'\n".to_owned() + cluster, "2001:db8::1"),
            ("metrics = 'localhost'\n".to_owned() + cluster, "metrics"),
            ("listen = 'nonsense'\n".to_owned() + cluster, "listen"),
            ("lissten = '0.0.0.0:1'\n".to_owned() + cluster, "lissten"),
            (cluster.to_owned() + "data_dir = 1\n", "data_dir"),
            (String::new(), "no [[cluster]]"),
            (cluster.repeat(2), "listed twice"),
            (cluster.replace("/d", "d"), "not absolute"),
            (cluster.replace("BIN", "/nowhere"), "/nowhere/postgres"),
            (cluster.to_owned() + "start_command = []\n", "start_command"),
            (cluster.to_owned() + "stop_command = []\n", "stop_command"),
            (cluster.to_owned() + "nodes = [{ host = '' }]\n", "nodes"),
            (cluster.to_owned() + "nodes = [{ host = 'b', port = 0 }]\n", "port 0"),
            (cluster.to_owned() + "nodes = [{ host = 'b', data_directory = 'd' }]\n", "not absolute"),
            (cluster.to_owned() + "nodes = [{ host = 'b', prot = 1 }]\n", "prot"),
        ] {
            let error = read(&text).expect_err(named);
            assert!(error.to_string().contains(named), "{error}");
            assert!(error.hint.is_some() || error.detail.is_some());
        }
    }
}

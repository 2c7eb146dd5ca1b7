//! Which directories a receiver writes, and with what it starts them.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::path::normalize_directory;

/// A cluster this receiver takes care of.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// The data directory.
    pub data_directory: PathBuf,
    /// Where pg_ctl, postgres and psql are.
    pub bin_directory: PathBuf,
    /// postgresql.conf, where it lies outside the data directory (Debian).
    #[serde(default)]
    pub config_file: Option<PathBuf>,
    /// How to start the server; default: `pg_ctl -D data_directory -w start`.
    #[serde(default)]
    pub start_command: Option<Vec<String>>,
    /// The server's log, where it lies outside the data directory (Debian).
    #[serde(default)]
    pub log_file: Option<PathBuf>,
    /// Directories beneath which tablespaces (and a linked pg_wal) may lie.
    #[serde(default)]
    pub tablespace_roots: Vec<PathBuf>,
}

/// What a receiver may write.
#[derive(Debug, Clone)]
pub enum Policy {
    /// An agent: the clusters its configuration lists, nothing else.
    Listed(Vec<Cluster>),
    /// A local target: any directory, as the PostgreSQL OS user may; the caller was checked by SQL.
    Anywhere {
        /// The server's own programs start the target.
        bin_directory: PathBuf,
        /// The primary's data directory, from which files may be cloned.
        origin: PathBuf,
    },
}

impl Policy {
    /// The cluster in `directory`, or a refusal.
    pub fn cluster(&self, directory: &Path) -> Result<Cluster> {
        let shown = directory.display();
        let wanted = normalize_directory(&directory.to_string_lossy())?;
        match self {
            Self::Anywhere { bin_directory, .. } => Ok(Cluster {
                data_directory: resolve(&wanted),
                bin_directory: bin_directory.clone(),
                config_file: None,
                start_command: None,
                log_file: None,
                tablespace_roots: Vec::new(),
            }),
            Self::Listed(clusters) => {
                let resolved = resolve(&wanted);
                let listed = clusters.iter().find(|cluster| {
                    cluster.data_directory == wanted || resolve(&cluster.data_directory) == resolved
                });
                let cluster = listed.ok_or_else(|| {
                    Error::new(Kind::TargetRefused, format!("the agent does not serve directory \"{shown}\""))
                        .detail("An agent writes only the data directories that its configuration lists.")
                        .hint("List the directory as data_directory of a [[cluster]] in agent.toml and reload the agent.")
                })?;
                Ok(Cluster { data_directory: resolve(&cluster.data_directory), ..cluster.clone() })
            }
        }
    }

    /// The clusters that are listed.
    pub fn listed(&self) -> &[Cluster] {
        match self {
            Self::Listed(clusters) => clusters,
            Self::Anywhere { .. } => &[],
        }
    }

    /// Where the primary's files may be cloned from.
    pub(super) fn origin(&self) -> Result<&Path> {
        match self {
            Self::Anywhere { origin, .. } => Ok(origin),
            Self::Listed(_) => {
                Err(Error::new(Kind::ProtocolViolation, "an agent has no primary's files to clone"))
            }
        }
    }

    /// Whether a directory outside the data directory (a tablespace, a linked pg_wal) may be written.
    pub fn check_outside(&self, cluster: &Cluster, directory: &Path) -> Result<()> {
        let Self::Listed(_) = self else {
            return Ok(());
        };
        let wanted = resolve(&normalize_directory(&directory.to_string_lossy())?);
        let allowed = wanted.starts_with(&cluster.data_directory)
            || cluster.tablespace_roots.iter().any(|root| {
                let root = resolve(root);
                wanted.starts_with(&root) && wanted != root
            });
        if allowed {
            return Ok(());
        }
        Err(Error::new(Kind::TargetRefused, format!("the agent may not write to \"{}\"", directory.display()))
            .detail("The directory lies beneath none of the cluster's tablespace_roots.")
            .hint("Add a directory above it to tablespace_roots in agent.toml, or map the tablespace elsewhere with tablespace_mapping."))
    }
}

/// The path with symbolic links resolved as far as it exists.
pub fn resolve(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            let rest = path.strip_prefix(ancestor).unwrap_or(Path::new(""));
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn listed(data: &Path, roots: &[&Path]) -> Policy {
        Policy::Listed(vec![Cluster {
            data_directory: data.to_owned(),
            bin_directory: "/usr/lib/postgresql/15/bin".into(),
            config_file: None,
            start_command: None,
            log_file: None,
            tablespace_roots: roots.iter().map(|root| (*root).to_owned()).collect(),
        }])
    }

    #[test]
    fn only_listed_directories_are_served() {
        let top = tempfile::tempdir().expect("temporary directory");
        let top = top.path().canonicalize().expect("real path");
        let data = top.join("data");
        std::fs::create_dir(&data).expect("make");
        symlink(&data, top.join("alias")).expect("link");
        let policy = listed(&data, &[]);
        assert!(policy.cluster(&data).is_ok());
        assert!(policy.cluster(&top.join("alias")).is_ok(), "another name of the same directory");
        assert!(policy.cluster(Path::new(&format!("{}//", data.display()))).is_ok());
        for other in [top.clone(), data.join("base"), top.join("data2")] {
            let error = policy.cluster(&other).expect_err("refused");
            assert_eq!(error.kind, Kind::TargetRefused, "{}", other.display());
        }
        assert!(policy.cluster(&top.join("data/../data2")).is_err());
    }

    #[test]
    fn tablespaces_stay_beneath_their_roots() {
        let top = tempfile::tempdir().expect("temporary directory");
        let top = top.path().canonicalize().expect("real path");
        let (data, root) = (top.join("data"), top.join("spaces"));
        std::fs::create_dir(&root).expect("make");
        std::fs::create_dir(&data).expect("make");
        symlink("/etc", root.join("out")).expect("link");
        let policy = listed(&data, &[&root]);
        let cluster = policy.cluster(&data).expect("listed");
        assert!(policy.check_outside(&cluster, &root.join("one/two")).is_ok());
        for bad in [root.clone(), top.join("spaces2/x"), root.join("out/x"), root.join("../x")] {
            assert!(policy.check_outside(&cluster, &bad).is_err(), "{}", bad.display());
        }
    }
}

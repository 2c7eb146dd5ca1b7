//! Which directories a receiver writes, and with what it starts them.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::manifest::path::{demand_text, normalize_path};
use crate::sys::timely;

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
    /// Whether the server may be stopped.
    #[serde(default)]
    pub allow_stop: bool,
    /// How to stop the server; default: `pg_ctl -D data_directory -m fast stop`.
    #[serde(default)]
    pub stop_command: Option<Vec<String>>,
    /// The server's log, where it lies outside the data directory (Debian).
    #[serde(default)]
    pub log_file: Option<PathBuf>,
    /// Directories beneath which tablespaces (and a linked pg_wal) may lie.
    #[serde(default)]
    pub tablespace_roots: Vec<PathBuf>,
    /// Whether blocks that WAL proves equal may be left out (`pgpool_recovery.skip_unchanged`).
    #[serde(default = "allowed")]
    pub allow_skip: bool,
    /// The agents of the other nodes, which are asked before the server is started at a boot.
    #[serde(default)]
    pub nodes: Vec<Node>,
    /// Whether it may be started if none of them answers.
    #[serde(default = "allowed")]
    pub start_alone: bool,
    /// See [`Policy::Local`].
    #[serde(skip)]
    pub orphans_go_to_primary: bool,
}

/// Another host's agent, with the same secret.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Its name or address.
    pub host: String,
    /// Where it listens.
    #[serde(default = "usual_port")]
    pub port: u16,
    /// The data directory there, if it is another one than here.
    #[serde(default)]
    pub data_directory: Option<PathBuf>,
}

const fn usual_port() -> u16 {
    9897
}

const fn allowed() -> bool {
    true
}

impl Cluster {
    /// One with its configuration in its data directory, which pg_ctl starts.
    pub const fn new(data_directory: PathBuf, bin_directory: PathBuf) -> Self {
        Self {
            data_directory,
            bin_directory,
            config_file: None,
            start_command: None,
            allow_stop: false,
            stop_command: None,
            log_file: None,
            tablespace_roots: Vec::new(),
            allow_skip: allowed(),
            nodes: Vec::new(),
            start_alone: allowed(),
            orphans_go_to_primary: false,
        }
    }
}

/// What a receiver may write.
#[derive(Debug, Clone)]
pub enum Policy {
    /// An agent: the clusters its configuration lists, nothing else.
    Listed(Vec<Cluster>),
    /// A local target: what the PostgreSQL OS user may write, as far as the caller may use it.
    Local {
        /// The server's own programs start the target.
        bin_directory: PathBuf,
        /// The primary's data directory, from which files may be cloned.
        origin: PathBuf,
        /// Where the caller may have targets.
        reach: Reach,
        /// Whether the primary's postmaster is process 1, which gets the orphans of a server that is started here.
        orphans_go_to_primary: bool,
    },
}

/// Which local directories a caller may have written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// All: the caller is a superuser, who could do the same with COPY ... PROGRAM.
    Anywhere,
    /// What lies beneath these directories (`pgpool_recovery.local_directories`).
    Beneath(Vec<PathBuf>),
}

impl Reach {
    /// Refuses a directory that is out of reach. Nothing is learned of what is or is not there: only symbolic links
    /// are resolved, and the refusal is the same for every directory.
    pub fn check(&self, directory: &Path) -> Result<()> {
        let Self::Beneath(roots) = self else {
            return Ok(());
        };
        let wanted = resolve(&normalize_path(directory)?);
        if lies_beneath(&wanted, roots) {
            return Ok(());
        }
        Err(Error::new(
            Kind::InsufficientPrivilege,
            format!("permission denied to write local directory \"{}\"", directory.display()),
        )
        .detail("A caller who is not a superuser may use only directories beneath those that pgpool_recovery.local_directories lists.")
        .hint("Call as a superuser, or have a directory above it added to pgpool_recovery.local_directories."))
    }
}

/// Whether a resolved path lies strictly beneath one of the directories.
fn lies_beneath(path: &Path, roots: &[PathBuf]) -> bool {
    roots.iter().any(|root| {
        let root = resolve(root);
        path.starts_with(&root) && path != root
    })
}

impl Policy {
    /// The cluster in `directory`, or a refusal.
    pub fn cluster(&self, directory: &Path) -> Result<Cluster> {
        let cluster = self.served(directory)?;
        // where links lead is written into the standby's configuration
        demand_text(&cluster.data_directory)?;
        Ok(cluster)
    }

    fn served(&self, directory: &Path) -> Result<Cluster> {
        let shown = directory.display();
        let wanted = normalize_path(directory)?;
        match self {
            Self::Local { bin_directory, reach, orphans_go_to_primary, .. } => {
                reach.check(&wanted)?;
                Ok(Cluster {
                    // an agent's configuration allows a stop; here the caller's reach does
                    allow_stop: true,
                    orphans_go_to_primary: *orphans_go_to_primary,
                    ..Cluster::new(resolve(&wanted), bin_directory.clone())
                })
            }
            Self::Listed(clusters) => {
                // by its name first: another one's file system may not answer
                let named = clusters.iter().find(|cluster| cluster.data_directory == wanted);
                let listed = named.or_else(|| {
                    let resolved = Some(resolve(&wanted));
                    clusters.iter().find(|cluster| resolve_timely(&cluster.data_directory) == resolved)
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
            Self::Local { .. } => &[],
        }
    }

    /// The data directories of the other clusters that are listed.
    pub(crate) fn beside(&self, cluster: &Cluster) -> Vec<PathBuf> {
        let others = self.listed().iter().map(|other| {
            // where it does not answer, what asks on there is not answered either
            resolve_timely(&other.data_directory).unwrap_or_else(|| other.data_directory.clone())
        });
        others.filter(|other| *other != cluster.data_directory).collect()
    }

    /// Where the primary's files may be cloned from.
    pub(crate) fn origin(&self) -> Result<&Path> {
        match self {
            Self::Local { origin, .. } => Ok(origin),
            Self::Listed(_) => {
                Err(Error::new(Kind::ProtocolViolation, "an agent has no primary's files to clone"))
            }
        }
    }

    /// Whether a directory outside the data directory (a tablespace, a linked pg_wal) may be written.
    pub fn check_outside(&self, cluster: &Cluster, directory: &Path) -> Result<()> {
        if let Self::Local { reach, .. } = self {
            return reach.check(directory);
        }
        let wanted = resolve(&normalize_path(directory)?);
        if wanted.starts_with(&cluster.data_directory) || lies_beneath(&wanted, &cluster.tablespace_roots) {
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

/// The same; `None` if the file system does not answer in time.
pub fn resolve_timely(path: &Path) -> Option<PathBuf> {
    let asked = path.to_owned();
    timely::ask(path, move || resolve(&asked))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn listed(data: &Path, roots: &[&Path]) -> Policy {
        Policy::Listed(vec![Cluster {
            tablespace_roots: roots.iter().map(|root| (*root).to_owned()).collect(),
            ..Cluster::new(data.to_owned(), "/usr/lib/postgresql/15/bin".into())
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
    fn a_name_that_is_listed_goes_before_another_name_of_its_directory() {
        let top = tempfile::tempdir().expect("temporary directory");
        let top = top.path().canonicalize().expect("real path");
        let (data, alias) = (top.join("data"), top.join("alias"));
        std::fs::create_dir(&data).expect("make");
        symlink(&data, &alias).expect("link");
        let cluster = |directory: &Path, programs: &str| Cluster::new(directory.to_owned(), programs.into());
        let policy = Policy::Listed(vec![cluster(&alias, "/first"), cluster(&data, "/second")]);
        let found = policy.cluster(&data).expect("listed");
        assert_eq!((found.data_directory, found.bin_directory), (data, "/second".into()));
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

    #[test]
    fn a_local_target_stays_within_the_callers_reach() {
        let top = tempfile::tempdir().expect("temporary directory");
        let top = top.path().canonicalize().expect("real path");
        let (root, outside) = (top.join("standbys"), top.join("outside"));
        std::fs::create_dir(&root).expect("make");
        std::fs::create_dir(&outside).expect("make");
        symlink(&outside, root.join("out")).expect("link");
        symlink(&root, top.join("alias")).expect("link");
        let local = |reach| Policy::Local {
            bin_directory: "/bin".into(),
            origin: "/primary".into(),
            reach,
            orphans_go_to_primary: false,
        };
        let bounded = local(Reach::Beneath(vec![root.clone()]));
        let cluster = bounded.cluster(&root.join("one")).expect("beneath");
        assert_eq!(bounded.cluster(&top.join("alias/one")), Ok(cluster.clone()), "another name of the root");
        let unreachable = [
            root.clone(),
            outside.clone(),
            root.join("out"),
            root.join("out/new"),
            top.join("standbys2/one"),
        ];
        let mut refusals: Vec<_> = unreachable
            .iter()
            .map(|directory| {
                let error = bounded.cluster(directory).expect_err("out of reach");
                assert_eq!(error.kind, Kind::InsufficientPrivilege, "{error:?}");
                assert!(bounded.check_outside(&cluster, directory).is_err(), "for tablespaces, too");
                (error.detail, error.hint)
            })
            .collect();
        refusals.dedup();
        assert_eq!(refusals.len(), 1, "what is there is not told: {refusals:?}");
        assert!(bounded.check_outside(&cluster, &root.join("space/one")).is_ok());
        assert!(local(Reach::Beneath(Vec::new())).cluster(&root.join("one")).is_err());
        assert!(local(Reach::Anywhere).cluster(&outside).is_ok());
        assert!(local(Reach::Anywhere).check_outside(&cluster, &outside).is_ok());
    }
}

//! The configuration that the target's server reads.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pgdata::configuration::{self, Item, Reading, What};

use crate::host::policy::Cluster;
use crate::host::references::is_on;
use crate::manifest::exclude::{AUTO_CONF, MYRECOVERY_CONF, POSTGRESQL_CONF};
use crate::replication::standby;
use crate::replication::standby::Standby;
use crate::sys::small_file;

/// Longest command line that is read, bytes.
const MAX_OPTIONS: usize = 1 << 16;

/// How the standby in `directory` is set to follow its primary.
pub fn standby_of(directory: &Path) -> Option<Standby> {
    let text = configuration::content(&directory.join(MYRECOVERY_CONF), configuration::MAX_BYTES).ok()?;
    Some(standby::parse_myrecovery(&text))
}

/// The main configuration file of the cluster's server.
pub(crate) fn main_configuration(cluster: &Cluster) -> PathBuf {
    cluster.config_file.clone().unwrap_or_else(|| cluster.data_directory.join(POSTGRESQL_CONF))
}

/// What the main configuration says, with the files that it includes; the place of myrecovery.conf is marked.
pub(crate) fn configuration(cluster: &Cluster) -> Reading {
    Reading::of(&main_configuration(cluster), Some(&cluster.data_directory.join(MYRECOVERY_CONF)))
}

/// What ALTER SYSTEM set. A server reads it last.
pub(crate) fn auto_configuration(directory: &Path) -> Reading {
    Reading::of(&directory.join(AUTO_CONF), None)
}

/// Whether the server may have run without syncing what it wrote: its configuration says so, or cannot be told.
pub(crate) fn says_fsync_off(cluster: &Cluster) -> bool {
    let auto = auto_configuration(&cluster.data_directory);
    let is_off = |reading: &Reading| {
        let is_unknown = |item: &Item| matches!(item.what, What::Problem(_) | What::Skipped(_));
        reading.items.iter().any(is_unknown) || reading.value("fsync").is_some_and(|value| !is_on(value))
    };
    // the command line of its last start, one argument in quotes each: -F is -c fsync=off
    let options = small_file::read(&cluster.data_directory.join("postmaster.opts"), MAX_OPTIONS);
    let asked_for = |options: Option<Vec<u8>>| {
        let options = String::from_utf8_lossy(&options.unwrap_or_default()).to_ascii_lowercase();
        options.contains("fsync") || options.contains("\"-f\"")
    };
    if options.map_or(true, asked_for) {
        return true;
    }
    // ALTER SYSTEM may have changed it since the server ran: either of them is enough
    !may_be_there(&main_configuration(cluster))
        || is_off(&configuration(cluster))
        || (may_be_there(&cluster.data_directory.join(AUTO_CONF)) && is_off(&auto))
}

/// Whether something has this name, or may have it.
pub(super) fn may_be_there(path: &Path) -> bool {
    !fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// myrecovery.conf as a configuration names it.
pub fn myrecovery_path(directory: &Path) -> String {
    directory.join(MYRECOVERY_CONF).display().to_string()
}

/// A configuration that is a link is not extended: what it leads to may belong to others.
pub(super) fn is_regular(configuration: &Path) -> bool {
    fs::symlink_metadata(configuration).is_ok_and(|metadata| metadata.is_file())
}

/// Where the server writes its log, if its configuration says so.
pub(crate) fn log_directory(cluster: &Cluster) -> Option<PathBuf> {
    let (main, auto) = (configuration(cluster), auto_configuration(&cluster.data_directory));
    let value = auto.value("log_directory").or_else(|| main.value("log_directory"))?;
    Some(cluster.data_directory.join(configuration::path(value)))
}

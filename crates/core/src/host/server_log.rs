//! What a standby's server writes to its log.
//!
//! These lines travel to the caller. A log directory outside the data directory may hold what other programs write, and
//! one that is the data directory, or a part of it that belongs to the cluster, holds data: only the file that this
//! server itself names is read there.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::inspect;
use super::policy::Cluster;
use crate::manifest::exclude::is_of_the_copy;
use crate::sys::small_file;

/// Most of the standby's log that an error carries, bytes.
const LOG_TAIL: u64 = 4 << 10;

/// Most lines of it.
const LINES: usize = 20;

/// Where the standby's first words go, within its data directory.
pub(super) const START_LOG: &str = "log/pgpool_remote_start.log";

/// Where a server writes the names of its log files, one a line with the format before it (syslogger.c,
/// `update_metainfo_datafile`). The next server to start removes it.
const CURRENT_LOGFILES: &str = "current_logfiles";

/// The last lines of the server's log, whenever they were written.
pub(crate) fn tail(cluster: &Cluster) -> String {
    Logs { cluster: cluster.clone(), before: HashMap::new() }.tail()
}

/// The log files of a standby, and how long they were before it started.
pub(super) struct Logs {
    cluster: Cluster,
    before: HashMap<PathBuf, u64>,
}

impl Logs {
    pub(super) fn now(cluster: &Cluster) -> Self {
        let directory = &cluster.data_directory;
        let mut files = vec![directory.join(START_LOG)];
        files.extend(cluster.log_file.clone());
        for logs in directories(cluster) {
            files.extend(regular_files(&logs).map(|(path, _)| path));
        }
        let length = |path: &PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let before = files.into_iter().map(|path| (path.clone(), length(&path))).collect();
        Self { cluster: cluster.clone(), before }
    }

    /// The last lines written since.
    pub(super) fn tail(&self) -> String {
        let mut text = String::new();
        for path in log_files(&self.cluster) {
            let Ok(mut file) = fs::File::open(&path) else {
                continue;
            };
            let length = file.metadata().map_or(0, |metadata| metadata.len());
            let before = self.before.get(&path).copied().unwrap_or(0);
            // a shorter file was begun again
            let start = if before <= length { before } else { 0 };
            let from = start.max(length.saturating_sub(LOG_TAIL));
            let mut bytes = Vec::new();
            if file.seek(SeekFrom::Start(from)).is_ok() && file.take(LOG_TAIL).read_to_end(&mut bytes).is_ok()
            {
                text.push_str(&String::from_utf8_lossy(&bytes));
            }
        }
        let lines: Vec<&str> = text.trim().lines().collect();
        let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
        if last.is_empty() { "The standby's log has no new lines.".to_owned() } else { last }
    }
}

/// Where the server may write its log.
fn directories(cluster: &Cluster) -> Vec<PathBuf> {
    let directory = &cluster.data_directory;
    let mut directories = vec![directory.join("log"), directory.join("pg_log")];
    directories.extend(inspect::log_directory(cluster).filter(|own| !directories.contains(own)));
    directories
}

/// The start log, the newest file of a directory that holds nothing but logs, what the server names in another one, and the
/// file that the agent's configuration names.
fn log_files(cluster: &Cluster) -> Vec<PathBuf> {
    let directory = &cluster.data_directory;
    let mut files = vec![directory.join(START_LOG)];
    for logs in directories(cluster) {
        if holds_only_logs(directory, &logs) {
            let others = regular_files(&logs).filter(|(path, _)| *path != files[0]);
            let newest = others.map(|(path, metadata)| (metadata.modified().ok(), path)).max();
            files.extend(newest.map(|(_, path)| path));
        } else {
            files.extend(named_by_server(directory, &logs).filter(|path| !files.contains(path)));
        }
    }
    files.extend(cluster.log_file.clone());
    files
}

/// Whether a directory is one for logs alone: it lies within the data directory and is no part of the cluster.
fn holds_only_logs(directory: &Path, logs: &Path) -> bool {
    let Some((directory, logs)) = directory.canonicalize().ok().zip(logs.canonicalize().ok()) else {
        return false;
    };
    let inside = logs.strip_prefix(directory).ok().and_then(Path::to_str);
    inside.is_some_and(|inside| !inside.is_empty() && !is_of_the_copy(inside))
}

/// The file in this log directory that the server last said it writes.
fn named_by_server(directory: &Path, logs: &Path) -> Option<PathBuf> {
    let names = small_file::text(&directory.join(CURRENT_LOGFILES))?;
    let (_, name) = names.lines().next()?.split_once(' ')?;
    let path = directory.join(name);
    let is_there = path.parent()?.canonicalize().ok()? == logs.canonicalize().ok()?;
    (is_there && fs::symlink_metadata(&path).ok()?.is_file()).then_some(path)
}

fn regular_files(directory: &Path) -> impl Iterator<Item = (PathBuf, fs::Metadata)> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        metadata.is_file().then(|| (entry.path(), metadata))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const NOTHING: &str = "The standby's log has no new lines.";

    fn in_directory(directory: &Path) -> Cluster {
        Cluster::new(directory.to_owned(), "/nonexistent".into())
    }

    fn write(directory: &Path, name: &str, text: &str) {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("make");
        fs::write(path, text).expect("write");
    }

    /// A data directory and one outside of it, to which the configuration leads.
    fn logging_outside() -> (tempfile::TempDir, tempfile::TempDir) {
        let (data, outside) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        write(data.path(), "postgresql.conf", &format!("log_directory = '{}'\n", outside.path().display()));
        (data, outside)
    }

    #[test]
    fn only_new_lines_are_shown() {
        let data = tempfile::tempdir().expect("temporary directory");
        let log = data.path().join("log");
        write(&log, "postgresql-Mon.log", "old line\n");
        let outside = data.path().join("postgresql-15-main.log");
        fs::write(&outside, "line of yesterday\n").expect("write");
        let cluster = Cluster { log_file: Some(outside.clone()), ..in_directory(data.path()) };
        let logs = Logs::now(&cluster);
        assert_eq!(logs.tail(), NOTHING);
        write(&log, "postgresql-Mon.log", "old line\nFATAL:  new line\n");
        write(data.path(), START_LOG, "first words\n");
        assert_eq!(logs.tail(), "first words\nFATAL:  new line");
        fs::write(&outside, "line of yesterday\nLOG:  line of today\n").expect("write");
        assert_eq!(logs.tail(), "first words\nFATAL:  new line\nLOG:  line of today");
        fs::write(&outside, "begun again\n").expect("write");
        assert_eq!(logs.tail(), "first words\nFATAL:  new line\nbegun again");
    }

    #[test]
    fn old_lines_of_a_file_that_comes_into_use_are_not_shown() {
        let (data, outside) = logging_outside();
        write(outside.path(), "server-Mon.log", "line of last Monday\n");
        write(outside.path(), "server-Sun.log", "line of yesterday\n");
        let current = |name: &str| {
            let line = format!("stderr {}/{name}\n", outside.path().display());
            write(data.path(), CURRENT_LOGFILES, &line);
        };
        current("server-Sun.log");
        let logs = Logs::now(&in_directory(data.path()));
        current("server-Mon.log");
        assert_eq!(logs.tail(), NOTHING);
        write(outside.path(), "server-Mon.log", "line of last Monday\nline of today\n");
        assert_eq!(logs.tail(), "line of today");
    }

    #[test]
    fn logs_are_found_where_the_configuration_puts_them() {
        let (data, outside) = logging_outside();
        let cluster = in_directory(data.path());
        write(outside.path(), "x.log", "FATAL:  from outside\n");
        write(data.path(), "server_log/x.log", "FATAL:  from inside\n");
        write(
            data.path(),
            CURRENT_LOGFILES,
            &format!("stderr {0}/x.log\ncsvlog {0}/x.csv\n", outside.path().display()),
        );
        assert_eq!(tail(&cluster), "FATAL:  from outside");
        write(data.path(), "postgresql.auto.conf", "log_directory = 'server_log'\n");
        assert_eq!(tail(&cluster), "FATAL:  from inside", "ALTER SYSTEM counts last");
    }

    #[test]
    fn of_a_log_directory_that_holds_data_only_the_servers_log_is_shown() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let data = parent.path().join("data");
        let cluster = in_directory(&data);
        write(&data, "pg_wal/000000010000000000000001", "the WAL");
        write(parent.path(), "beside.txt", "a file beside the data directory\n");
        for logs in [".", "./", "pg_wal", "pg_wal/..", "..", "../data", data.to_str().expect("text")] {
            write(&data, "postgresql.conf", &format!("log_directory = '{logs}'\n"));
            write(&data, "pg_hba.conf", "host all all 10.1.2.3/32 trust\n");
            assert_eq!(tail(&cluster), NOTHING, "{logs}");
            assert_eq!(Logs::now(&cluster).tail(), NOTHING, "{logs}");
            let own = format!("{logs}/server.log");
            write(&data, CURRENT_LOGFILES, &format!("stderr {own}\n"));
            fs::write(data.join(&own), "FATAL:  its own\n").expect("write");
            assert_eq!(tail(&cluster), "FATAL:  its own", "{logs}");
            fs::remove_file(data.join(&own)).expect("remove");
            fs::remove_file(data.join(CURRENT_LOGFILES)).expect("remove");
        }
    }

    #[test]
    fn what_others_write_outside_the_data_directory_is_not_shown() {
        let (data, outside) = logging_outside();
        let cluster = in_directory(data.path());
        write(outside.path(), "other.log", "another program's secret\n");
        assert_eq!(tail(&cluster), NOTHING, "this server has logged nothing");
        assert_eq!(Logs::now(&cluster).tail(), NOTHING);
        let elsewhere = tempfile::tempdir().expect("temporary directory");
        write(elsewhere.path(), "x.log", "not in the log directory\n");
        symlink(elsewhere.path().join("x.log"), outside.path().join("link.log")).expect("link");
        let places = [
            elsewhere.path().join("x.log"),
            outside.path().join("..").join(elsewhere.path().file_name().expect("a name")).join("x.log"),
            outside.path().join("link.log"),
        ];
        for place in places {
            write(data.path(), CURRENT_LOGFILES, &format!("stderr {}\n", place.display()));
            assert_eq!(tail(&cluster), NOTHING, "{}", place.display());
        }
        // by a link in the data directory, too
        let linked = tempfile::tempdir().expect("temporary directory");
        symlink(outside.path(), linked.path().join("log")).expect("link");
        let cluster = in_directory(linked.path());
        assert_eq!(tail(&cluster), NOTHING);
        write(linked.path(), CURRENT_LOGFILES, "stderr log/own.log\n");
        write(outside.path(), "own.log", "this server's\n");
        assert_eq!(tail(&cluster), "this server's");
    }
}

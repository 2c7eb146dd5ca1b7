//! What a standby must not get from its primary, and what of its own it must not lose.
//!
//! The first list follows pg_basebackup (src/backend/backup/basebackup.c, `excludeDirContents`,
//! `excludeFiles`), with what an online recovery adds; each entry says why.

use pgdata::control_file::PG_CONTROL;

use crate::manifest::path::RelPath;

/// The marker of a target that is not complete. While it exists the directory must not be started.
pub const MARKER: &str = "pgpool_recovery.incomplete";

/// The mark of a server that was stopped for good, see [`crate::wire::protocol::describe::FenceMark`].
pub const FENCED: &str = "pgpool_recovery.fenced";

/// The mark of a standby that was made to be promoted beside its primary, see
/// [`crate::wire::protocol::second_stage::SecondStageMark`].
pub const SECOND_STAGE: &str = "pgpool_recovery.second_stage";

/// The target's own pg_control while it is being replaced.
pub const CONTROL_ASIDE: &str = "global/pg_control.pgpool_recovery";

/// Written for the standby, see [`crate::replication::standby`].
pub const MYRECOVERY_CONF: &str = "myrecovery.conf";

/// The main configuration file, where it lies in the data directory.
pub const POSTGRESQL_CONF: &str = "postgresql.conf";

/// What ALTER SYSTEM sets; a server reads it after all other files.
pub const AUTO_CONF: &str = "postgresql.auto.conf";

/// Directories whose content belongs to one running server only; the directory itself is needed.
const EMPTIED: &[&str] = &[
    // replication slots of the primary would retain WAL on the standby for consumers it does not have
    "pg_replslot",
    // shared memory segments of the running server
    "pg_dynshmem",
    // LISTEN/NOTIFY queue, reset at start
    "pg_notify",
    // serializable transactions, meaningless after a restart
    "pg_serial",
    // exported snapshots of running transactions
    "pg_snapshots",
    // statistics of the running server
    "pg_stat_tmp",
    // subtransactions, reset at start
    "pg_subtrans",
];

/// Files in the top directory that belong to one server, or are written for the standby.
const OWN_FILES: &[&str] = &[
    // would make the standby look as if it ran, with the primary's process id
    "postmaster.pid",
    "postmaster.opts",
    // names the primary's log files
    "current_logfiles",
    "current_logfiles.tmp",
    // half-written by ALTER SYSTEM
    "postgresql.auto.conf.tmp",
    // of another backup: ours come from pg_backup_stop
    "backup_label",
    "backup_label.old",
    "tablespace_map",
    "tablespace_map.old",
    // describes another set of files
    "backup_manifest",
    // stop PostgreSQL 12 and later from starting
    "recovery.conf",
    "recovery.done",
    // would choose another kind of recovery
    "recovery.signal",
    "standby.signal",
    // connects to another standby's primary
    MYRECOVERY_CONF,
    // ours
    MARKER,
    FENCED,
    SECOND_STAGE,
];

/// Directories that only their own host touches: log files, and what a file system keeps at its root.
const HOST_DIRECTORIES: &[&str] = &["log", "pg_log", "lost+found"];

/// Whether a path is, or lies in, what must be the primary's copy, or what makes a standby of it: that is never kept.
pub fn is_of_the_copy(path: &str) -> bool {
    let top = path.split('/').next().unwrap_or(path);
    matches!(top, "base" | "global" | "PG_VERSION" | "backup_label" | "tablespace_map" | MYRECOVERY_CONF)
        || top.starts_with("postmaster.")
        || top.starts_with("pgpool_recovery.")
        || top.ends_with(".signal")
        || OWN_DIRECTORIES.contains(&top)
}

/// The directories that initdb makes besides base/ and global/ (src/bin/initdb/initdb.c, `subdirs`). Others whose names
/// begin with "pg_" are an operator's.
const OWN_DIRECTORIES: &[&str] = &[
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical",
    "pg_multixact",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_subtrans",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal",
    "pg_xact",
];

/// What to do with an entry of the primary's data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Goes to the standby.
    Send,
    /// The directory goes, its content does not.
    Empty,
    /// Does not go.
    Skip,
}

/// The rules for one run.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Further directories left alone on both sides: `log_directory` where it lies inside.
    pub host_directories: Vec<RelPath>,
    /// Further files that never travel: the secret, if it lies inside; what the standby keeps.
    pub private_files: Vec<RelPath>,
}

impl Rules {
    /// Judges a path of the primary's data directory.
    pub fn judge(&self, path: &RelPath) -> Verdict {
        let text = path.as_str();
        let name = path.file_name();
        if self.is_host_directory(path) || self.private_files.contains(path) {
            return Verdict::Skip;
        }
        if EMPTIED.contains(&text) {
            return Verdict::Empty;
        }
        // WAL travels on a link of its own; pg_control is read after all data
        if text == "pg_wal" {
            return Verdict::Empty;
        }
        let skip = text.starts_with("global/pg_control")
            || (path.parent().is_none() && OWN_FILES.contains(&name))
            // sorts and temporary tables of running backends, removed at start
            || name.starts_with("pgsql_tmp")
            // relation caches, rebuilt at first use; they may be stale
            || name.starts_with("pg_internal.init")
            // sockets, their lock files, and what stands beside them
            || name.starts_with(".s.PGSQL.")
            || is_temporary_relation(name);
        if skip { Verdict::Skip } else { Verdict::Send }
    }

    /// Whether the path lies in a directory that belongs to its host alone.
    pub fn is_host_directory(&self, path: &RelPath) -> bool {
        HOST_DIRECTORIES.iter().any(|directory| path.is_at_or_below(directory))
            || self.host_directories.iter().any(|directory| path.is_at_or_below(directory.as_str()))
    }
}

/// A file of a relation, as its name tells (src/common/relpath.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelationFile {
    /// The relation's file number.
    pub number: u32,
    /// Whether this is the init fork of an unlogged relation.
    pub is_init: bool,
    /// The segment: 0 for the first.
    pub segment: u32,
}

impl RelationFile {
    /// Parses `16384`, `16384_fsm`, `16384.1`, `16384_vm.2`, ...
    pub fn parse(name: &str) -> Option<Self> {
        let (stem, segment) = match name.split_once('.') {
            Some((stem, segment)) => (stem, number(segment)?),
            None => (name, 0),
        };
        let (digits, fork) = match stem.split_once('_') {
            Some((digits, fork)) => (digits, Some(fork)),
            None => (stem, None),
        };
        let known = matches!(fork, None | Some("fsm" | "vm" | "init"));
        known.then_some(())?;
        Some(Self { number: number(digits)?, is_init: fork == Some("init"), segment })
    }
}

/// A relation's file: the path of its fork's first segment, and the number of its segment.
pub fn relation_segment(path: &RelPath) -> Option<(&str, u32)> {
    let file =
        RelationFile::parse(path.file_name()).filter(|_| path.parent().is_some_and(holds_relations))?;
    let suffix = path.file_name().split_once('.').map_or(0, |(_, segment)| ".".len() + segment.len());
    Some((&path.as_str()[..path.as_str().len() - suffix], file.segment))
}

/// What decides whether and how a server starts in a directory, what is made for the standby, and what belongs to its
/// host: a recovery writes such a file in a step of its own or not at all, never as a part of the plan.
pub fn is_never_planned(path: &RelPath) -> bool {
    let first = path.components().next().unwrap_or_default();
    let made = ["postgresql.conf", "postgresql.auto.conf"];
    // what stands for pg_control while it is aside or being written has a longer name
    path.as_str().starts_with(PG_CONTROL)
        || OWN_FILES.iter().chain(&made).chain(HOST_DIRECTORIES).any(|name| *name == first)
}

/// Whether a directory (relative path) holds relation files: `global`, `base/N`, and the
/// databases of a tablespace.
pub fn holds_relations(directory: &str) -> bool {
    let parts: Vec<&str> = directory.split('/').collect();
    match parts.as_slice() {
        ["global"] => true,
        ["base", database] | ["pg_tblspc", _, _, database] => number(database).is_some(),
        _ => false,
    }
}

/// `tBACKEND_NUMBER`: relations of one session, gone when it ends.
fn is_temporary_relation(name: &str) -> bool {
    name.strip_prefix('t')
        .and_then(|rest| rest.split_once('_'))
        .is_some_and(|(backend, rest)| number(backend).is_some() && RelationFile::parse(rest).is_some())
}

fn number(text: &str) -> Option<u32> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(path: &str) -> Verdict {
        let rules = Rules {
            host_directories: vec![RelPath::parse("var/logs").expect("valid")],
            private_files: vec![RelPath::parse("postgresql.conf").expect("valid")],
        };
        rules.judge(&RelPath::parse(path).expect("valid"))
    }

    #[test]
    fn what_belongs_to_one_server_stays() {
        for path in [
            "postmaster.pid",
            "postmaster.opts",
            "standby.signal",
            "recovery.conf",
            "recovery.done",
            "myrecovery.conf",
            "backup_label",
            "backup_manifest",
            "pgpool_recovery.incomplete",
            "pgpool_recovery.fenced",
            "global/pg_control",
            "global/pg_control.pgpool_recovery",
            "base/pgsql_tmp/pgsql_tmp12.0",
            "base/16384/pg_internal.init",
            "base/16384/pg_internal.init.77",
            "base/16384/t3_16400",
            "base/16384/t3_16400_fsm.1",
            "log/postgresql.log",
            "var/logs/x",
            "postgresql.conf",
            ".s.PGSQL.5432.lock",
            "lost+found",
        ] {
            assert_eq!(judge(path), Verdict::Skip, "{path}");
        }
    }

    #[test]
    fn directories_of_the_running_server_travel_empty() {
        for path in ["pg_wal", "pg_replslot", "pg_notify", "pg_stat_tmp", "pg_subtrans"] {
            assert_eq!(judge(path), Verdict::Empty, "{path}");
        }
    }

    #[test]
    fn everything_else_travels() {
        for path in [
            "PG_VERSION",
            "pg_hba.conf",
            "base/16384/16385",
            "base/16384/16385_init",
            "pg_xact/0000",
            "logical",
            "sub/postmaster.pid",
            "recovery_1st_stage",
            "base/16384/txt_1",
            "pg_multixact/offsets/0000",
        ] {
            assert_eq!(judge(path), Verdict::Send, "{path}");
        }
    }

    #[test]
    fn relation_files_are_recognised() {
        let parse = RelationFile::parse;
        assert_eq!(parse("16384"), Some(RelationFile { number: 16384, is_init: false, segment: 0 }));
        assert_eq!(parse("16384_fsm.2").map(|file| file.segment), Some(2));
        assert_eq!(parse("16384_init").map(|file| file.is_init), Some(true));
        for other in ["PG_VERSION", "16384_x", "", "_vm", "1.x", "pg_filenode.map", "99999999999"] {
            assert_eq!(parse(other), None, "{other}");
        }
        let segment = |path: &str| {
            let path = RelPath::parse(path).expect("valid");
            relation_segment(&path).map(|(fork, segment)| (fork.to_owned(), segment))
        };
        assert_eq!(segment("base/5/16384"), Some(("base/5/16384".to_owned(), 0)));
        assert_eq!(segment("base/5/16384_fsm.12"), Some(("base/5/16384_fsm".to_owned(), 12)));
        assert_eq!(
            segment("pg_tblspc/1.2/PG_15_202209061/5/16384"),
            Some(("pg_tblspc/1.2/PG_15_202209061/5/16384".to_owned(), 0))
        );
        assert_eq!(segment("pg_xact/0000").or(segment("base/5/PG_VERSION")).or(segment("16384.1")), None);
        assert!(holds_relations("base/5") && holds_relations("pg_tblspc/16390/PG_15_202209061/5"));
        assert!(!holds_relations("base") && !holds_relations("pg_xact"));
    }
}

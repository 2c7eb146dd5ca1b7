//! What a sender may place in a target, and how. That a target cannot be started before it is complete, and that the
//! standby keeps its own files, is the receiver's own promise, whatever it is sent.

use pgdata::control_file::PG_CONTROL;
use pgdata::wal;

use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::{MYRECOVERY_CONF, SECOND_STAGE, is_never_planned};
use crate::manifest::path::RelPath;
use crate::wire::protocol::data::Put;

/// The bits of a mode that a copy takes over: nothing of PostgreSQL's is set-user-ID, set-group-ID or sticky, and the
/// agent's unit may not set such bits.
pub(super) const PERMISSIONS: u32 = 0o777;

/// Most bytes of small files in one run, kept in memory until it finishes.
const MAX_PUTS: usize = 32 << 20;

/// The files that are made for the standby, besides those in pg_wal.
const MADE: &[&str] = &[
    "backup_label",
    "tablespace_map",
    "postgresql.conf",
    "postgresql.auto.conf",
    "standby.signal",
    MYRECOVERY_CONF,
    SECOND_STAGE,
    PG_CONTROL,
];

/// Refuses a path of the plan that a recovery never writes in this way. `kept` are the standby's own files that are there.
pub(super) fn check_planned(path: &RelPath, is_directory: bool, kept: &[RelPath]) -> Result<()> {
    let is_kept = kept.iter().any(|kept| {
        // a directory may hold what is kept, a file in its place would destroy it
        path.is_at_or_below(kept.as_str()) || !is_directory && kept.is_at_or_below(path.as_str())
    });
    // a file in the place of global/ would destroy the pg_control that is aside
    let hides_control = !is_directory && path.as_str() == "global";
    // WAL comes on a link of its own
    let is_wal = path.as_str().starts_with("pg_wal/");
    if is_kept || hides_control || is_wal || is_never_planned(path) {
        return Err(Error::new(Kind::ProtocolViolation, format!("\"{path}\" cannot be a part of the plan"))
            .detail("pg_control, the marker and the standby's own files are never copied from the primary as data."));
    }
    Ok(())
}

/// Refuses a path in a tablespace that lies outside the directory of the cluster's version there: only that directory was
/// looked at for other servers. `oids`: the tablespaces outside the data directory.
pub(super) fn check_tablespace(path: &RelPath, oids: &[u32], version_directory: &str) -> Result<()> {
    let mut parts = path.components();
    if parts.next() != Some("pg_tblspc") {
        return Ok(());
    }
    let oid = parts.next().and_then(|name| name.parse().ok());
    match (oid.filter(|oid| oids.contains(oid)), parts.next()) {
        (Some(_), Some(within)) if within != version_directory => {
            Err(violation(format!("\"{path}\" lies outside of \"{version_directory}\"")))
        }
        _ => Ok(()),
    }
}

/// The small files that were sent to be installed when the run finishes.
#[derive(Default)]
pub(super) struct Puts {
    files: Vec<Put>,
    bytes: usize,
}

impl Puts {
    /// Takes the body of a frame.
    pub(super) fn add(&mut self, body: &[u8], kept: &[RelPath]) -> Result<()> {
        self.bytes += body.len();
        if self.bytes > MAX_PUTS {
            return Err(violation(format!("small files of more than {MAX_PUTS} bytes")));
        }
        let mut put = Put::decode(body)?;
        put.mode &= PERMISSIONS;
        let path = &put.path;
        if !MADE.contains(&path.as_str()) && !is_archive_status(path) && !is_history(path) {
            return Err(violation(format!("\"{path}\" is not one of the files that are made for a standby")));
        }
        if kept.iter().any(|kept| path.is_at_or_below(kept.as_str()) || kept.is_at_or_below(path.as_str())) {
            return Err(violation(format!("\"{path}\" is a file that the standby keeps")));
        }
        if self.files.iter().any(|other| other.path == *path) {
            return Err(violation(format!("\"{path}\" was sent twice")));
        }
        self.files.push(put);
        Ok(())
    }

    /// All that came.
    pub(super) fn take(&mut self) -> Vec<Put> {
        std::mem::take(&mut self.files)
    }
}

/// Whether it is the history of a timeline: `pg_wal/NAME.history`.
fn is_history(path: &RelPath) -> bool {
    path.parent() == Some("pg_wal") && wal::is_history(path.file_name())
}

/// Whether it tells that the history of a timeline need not be archived: `pg_wal/archive_status/NAME.history.done`. The
/// receiver of WAL says so of segments.
fn is_archive_status(path: &RelPath) -> bool {
    let name = path.file_name().strip_suffix(".done");
    path.parent() == Some("pg_wal/archive_status") && name.is_some_and(wal::is_history)
}

fn violation(message: String) -> Error {
    Error::new(Kind::ProtocolViolation, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).expect("valid")
    }

    fn put(name: &str) -> Vec<u8> {
        let length = u16::try_from(name.len()).expect("short").to_le_bytes();
        [&0o4600_u32.to_le_bytes()[..], &length, name.as_bytes(), b"content"].concat()
    }

    #[test]
    fn what_makes_a_server_start_is_never_planned() {
        let kept = [path("certs/server.key"), path("pg_hba.conf")];
        for name in [
            "global/pg_control",
            "global/pg_control.pgpool_recovery",
            "global/pg_control.pgpool_recovery.tmp",
            "global/pg_control/deep",
            "pgpool_recovery.incomplete",
            "standby.signal",
            "recovery.signal",
            "recovery.conf",
            "backup_label",
            "tablespace_map",
            "myrecovery.conf",
            "postgresql.conf",
            "postgresql.auto.conf",
            "postmaster.pid",
            "standby.signal/deep",
            "log/postgresql.log",
            "pg_hba.conf",
            "pg_hba.conf/deep",
            "certs/server.key",
        ] {
            for is_directory in [false, true] {
                let refused = check_planned(&path(name), is_directory, &kept);
                assert_eq!(refused.expect_err(name).kind, Kind::ProtocolViolation);
            }
        }
        for (name, may_be_a_file) in [
            ("global", false),
            ("certs", false),
            ("base/5/16384", true),
            ("sub/standby.signal", true),
            ("pg_hba", true),
        ] {
            check_planned(&path(name), true, &kept).expect(name);
            assert_eq!(check_planned(&path(name), false, &kept).is_ok(), may_be_a_file, "{name}");
        }
    }

    #[test]
    fn a_tablespace_is_written_in_the_directory_of_its_version_only() {
        let checked =
            |path: &str| check_tablespace(&RelPath::parse(path).expect("valid"), &[16400], "PG_15_1");
        for path in [
            "base/5/1259",
            "pg_tblspc",
            "pg_tblspc/16400",
            "pg_tblspc/16400/PG_15_1/5/1259",
            "pg_tblspc/9/PG_14_1/5",
        ] {
            assert_eq!(checked(path), Ok(()), "{path}");
        }
        for path in ["pg_tblspc/16400/PG_14_1", "pg_tblspc/16400/PG_15_2/5/1259", "pg_tblspc/16400/x"] {
            assert_eq!(checked(path).expect_err(path).kind, Kind::ProtocolViolation, "{path}");
        }
    }

    #[test]
    fn only_the_known_small_files_are_taken_and_each_once() {
        let mut puts = Puts::default();
        let kept = [path("postgresql.conf")];
        for name in [
            "backup_label",
            "tablespace_map",
            "postgresql.auto.conf",
            "standby.signal",
            "myrecovery.conf",
            "global/pg_control",
            "pg_wal/archive_status/00000002.history.done",
        ] {
            puts.add(&put(name), &kept).expect(name);
            assert_eq!(puts.add(&put(name), &kept).expect_err(name).kind, Kind::ProtocolViolation, "{name}");
        }
        for name in [
            "postgresql.conf",
            "pg_hba.conf",
            "recovery.signal",
            "pgpool_recovery.incomplete",
            "global/pg_control.pgpool_recovery",
            "postmaster.pid",
            "base/5/1",
            "pg_wal/000000010000000000000003",
            "pg_wal/archive_status/x.done",
            "pg_wal/archive_status/000000010000000000000003.ready",
            "pg_wal/archive_status/000000010000000000000003.done",
        ] {
            assert_eq!(puts.add(&put(name), &kept).expect_err(name).kind, Kind::ProtocolViolation, "{name}");
        }
        let taken = puts.take();
        assert_eq!(taken.len(), 7);
        assert!(taken.iter().all(|put| put.mode == 0o600), "no set-user-ID");
        assert!(puts.add(&vec![0; MAX_PUTS], &kept).is_err());
    }
}

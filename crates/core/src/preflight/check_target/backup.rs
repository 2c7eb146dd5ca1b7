//! Is the target a base backup that is kept for its own sake?

use super::BACKUP_LABEL;
use crate::wire::protocol::message::BackupTraces;

/// Why a directory is taken for a base backup that is kept for its own sake, if it is. To lose a backup is worse than to be
/// asked once more, so a directory made by pg_basebackup -R that has never been started counts as one: a backup
/// taken from a standby looks the same.
pub(super) fn unused(traces: &BackupTraces, has_myrecovery: bool) -> Option<&'static str> {
    if let Some(label) = &traces.label {
        let says = |line: &str| label.lines().any(|found| found == line);
        // pg_rewind makes a label as well; and a server that found no checkpoint leaves it, but has been there since
        if says("BACKUP METHOD: pg_rewind") || traces.started_since {
            return None;
        }
        // what a recovery of ours leaves until its standby starts; backups by others have a manifest, another label,
        // or were taken from a standby
        let is_rebuilt_standby = traces.has_standby_signal
            && has_myrecovery
            && !traces.has_manifest
            && says(&format!("LABEL: {BACKUP_LABEL}"))
            && says("BACKUP FROM: primary");
        return (!is_rebuilt_standby)
            .then_some("It has a backup_label, which a server renames when it starts from the backup.");
    }
    // a manifest stays for good in a cluster that began as a backup: only one where no server has run is a backup
    (traces.has_manifest && !traces.has_standby_signal && !traces.has_postmaster_opts)
        .then_some("It has a backup_manifest and no postmaster.opts, so no server has been started in it.")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{first_refusal, target};
    use super::*;
    use crate::error::Kind;
    use crate::replication::standby::Standby;
    use crate::wire::protocol::message::{Marker, TargetInfo};

    #[test]
    fn a_backup_that_no_server_has_used_is_kept() {
        let ours = format!("START WAL LOCATION: 0/2000028\nBACKUP FROM: primary\nLABEL: {BACKUP_LABEL}\n");
        let theirs = "BACKUP FROM: primary\nLABEL: pg_basebackup base backup\n".to_owned();
        let with = |backup: &BackupTraces, standby: bool| TargetInfo {
            backup: backup.clone(),
            standby: standby.then(Standby::default),
            ..target()
        };
        let label = |label: &str| BackupTraces { label: Some(label.to_owned()), ..BackupTraces::default() };
        let backups = [
            (label(&theirs), false),
            (label(""), false),
            // a copy made by a script, or by ours and then taken away from its standby
            (label(&ours), true),
            (BackupTraces { has_standby_signal: true, ..label(&ours) }, false),
            // pg_basebackup -R, or a backup of a rebuilt standby
            (BackupTraces { has_standby_signal: true, has_manifest: true, ..label(&theirs) }, true),
            (BackupTraces { has_standby_signal: true, has_manifest: true, ..label(&ours) }, true),
            (
                BackupTraces {
                    has_standby_signal: true,
                    ..label(&ours.replace("FROM: primary", "FROM: standby"))
                },
                true,
            ),
            // its label was taken away
            (BackupTraces { has_manifest: true, ..BackupTraces::default() }, false),
        ];
        for (backup, standby) in &backups {
            let target = with(backup, *standby);
            let (step, error) = first_refusal(&target, false).unwrap_or_else(|| panic!("{backup:?} is lost"));
            assert_eq!((step, error.kind), ("target_identity", Kind::TargetRefused), "{backup:?}");
            assert!(error.detail.is_some() && error.hint.is_some_and(|hint| hint.contains("any_cluster")));
            assert!(first_refusal(&target, true).is_none(), "{backup:?} may be replaced if that is said");
        }
    }

    #[test]
    fn a_backup_that_was_put_over_an_interrupted_recovery_is_kept() {
        let label = Some("BACKUP FROM: primary\nLABEL: pg_basebackup base backup\n".to_owned());
        let backup = BackupTraces { label, has_manifest: true, ..BackupTraces::default() };
        let resumed = |control_in_place: bool| TargetInfo {
            backup: backup.clone(),
            control_in_place,
            marker: Some(Marker { system_identifier: 7, timeline: 1, ..Marker::default() }),
            ..target()
        };
        let (step, _) = first_refusal(&resumed(true), false).expect("the backup would be lost");
        assert_eq!(step, "target_identity");
        assert!(first_refusal(&resumed(true), true).is_none(), "it may be lost if that is said");
        assert!(first_refusal(&resumed(false), false).is_none(), "a recovery has begun on it");
    }

    #[test]
    fn a_standby_and_an_old_primary_that_began_as_backups_are_accepted() {
        let ours = format!("BACKUP FROM: primary\nLABEL: {BACKUP_LABEL}\n");
        let started =
            BackupTraces { has_manifest: true, has_postmaster_opts: true, ..BackupTraces::default() };
        let label = |text: &str| Some(text.to_owned());
        for backup in [
            // rewound, not started yet
            BackupTraces {
                label: label("BACKUP METHOD: pg_rewind\nBACKUP FROM: standby\n"),
                ..BackupTraces::default()
            },
            // made by pg_basebackup -R, started, and stopped before it found its checkpoint
            BackupTraces {
                label: label("BACKUP METHOD: streamed\n"),
                has_standby_signal: true,
                started_since: true,
                ..started.clone()
            },
            // rebuilt by us, not started yet
            BackupTraces { label: Some(ours), has_standby_signal: true, ..BackupTraces::default() },
            // made by pg_basebackup, and started; promoted later
            BackupTraces { has_standby_signal: true, ..started.clone() },
            started,
        ] {
            let target = TargetInfo { backup: backup.clone(), standby: Some(Standby::default()), ..target() };
            assert!(first_refusal(&target, false).is_none(), "{backup:?}");
        }
    }
}

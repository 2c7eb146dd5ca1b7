//! Is the target a base backup that is kept for its own sake?

use pgdata::wal::Lsn;

use super::BACKUP_LABEL;
use crate::wire::protocol::message::TargetInfo;

/// How long before the start of a backup a directory must have been there to be surely none of its copies, seconds. The
/// label has the time of the primary's clock in a time zone that its abbreviation does not tell (UTC-12 to UTC+14).
const LONG_BEFORE: i64 = 24 * 3600;

/// Why a directory is taken for a base backup that is kept for its own sake, if it is. To lose a backup is worse than to be
/// asked once more, so a directory made by pg_basebackup -R that has never been started counts as one: a backup
/// taken from a standby looks the same.
pub(super) fn unused(target: &TargetInfo) -> Option<&'static str> {
    let traces = &target.backup;
    if let Some(label) = &traces.label {
        let says = |line: &str| label.lines().any(|found| found == line);
        // an exclusive backup puts its label into the directory of the server itself (PostgreSQL 13 and 14)
        if says("BACKUP METHOD: pg_start_backup") {
            return (!was_being_backed_up(target, label)).then_some(
                "It has the backup_label of an exclusive backup, and it cannot be told whether it is a copy or the \
                 directory of the server that was being backed up.",
            );
        }
        // pg_rewind makes a label as well; and a server that found no checkpoint leaves it, but has been there since
        if says("BACKUP METHOD: pg_rewind") || traces.started_since {
            return None;
        }
        // what a recovery of ours leaves until its standby starts; backups by others have a manifest, another label,
        // or were taken from a standby
        let is_rebuilt_standby = traces.has_standby_signal
            && target.standby.is_some()
            && !traces.has_manifest
            && says(&format!("LABEL: {BACKUP_LABEL}"))
            // in PostgreSQL 13's words the second
            && (says("BACKUP FROM: primary") || says("BACKUP FROM: master"));
        return (!is_rebuilt_standby)
            .then_some("It has a backup_label, which a server renames when it starts from the backup.");
    }
    // a manifest stays for good in a cluster that began as a backup: only one where no server has run is a backup
    (traces.has_manifest && !traces.has_standby_signal && !traces.has_postmaster_opts)
        .then_some("It has a backup_manifest and no postmaster.opts, so no server has been started in it.")
}

/// Whether the directory with the label of an exclusive backup is surely that of the server itself, which crashed before
/// the backup ended. A copy has the same files, `postmaster.opts` and a `pg_control` in production among them, in any order
/// and perhaps with new times. But nothing that was copied has been there since before the backup; and a snapshot of
/// the volume, which has, is taken when the backup has just started, before another checkpoint.
fn was_being_backed_up(target: &TargetInfo, label: &str) -> bool {
    let value = |name: &str| label.lines().find_map(|line| line.strip_prefix(name));
    let was_there = value("START TIME: ")
        .and_then(seconds)
        .zip(target.backup.version_changed)
        .is_some_and(|(started, changed)| changed.saturating_add(LONG_BEFORE) < started);
    let checkpoint = value("CHECKPOINT LOCATION: ").and_then(|at| at.trim().parse::<Lsn>().ok());
    let has_gone_on = checkpoint
        .zip(target.control.as_ref())
        .is_some_and(|(checkpoint, control)| checkpoint < control.recovery.checkpoint_at);
    was_there && has_gone_on
}

/// `2026-11-29 13:12:50 CET` as seconds since 1970, as if it were UTC.
fn seconds(time: &str) -> Option<i64> {
    let mut words = time.split_whitespace();
    let mut date = words.next()?.splitn(3, '-').map(|number| number.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut clock = words.next()?.splitn(3, ':').map(|number| number.parse::<i64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let is_time = (1970..10_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    // years that begin in March have the leap day at their end
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    is_time.then_some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{first_refusal, target};
    use super::*;
    use crate::error::Kind;
    use crate::replication::standby::Standby;
    use crate::wire::protocol::message::{BackupTraces, Marker};

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
        let ours = |by: &str| Some(format!("BACKUP FROM: {by}\nLABEL: {BACKUP_LABEL}\n"));
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
            BackupTraces { label: ours("primary"), has_standby_signal: true, ..BackupTraces::default() },
            BackupTraces { label: ours("master"), has_standby_signal: true, ..BackupTraces::default() },
            // made by pg_basebackup, and started; promoted later
            BackupTraces { has_standby_signal: true, ..started.clone() },
            started,
        ] {
            let target = TargetInfo { backup: backup.clone(), standby: Some(Standby::default()), ..target() };
            assert!(first_refusal(&target, false).is_none(), "{backup:?}");
        }
    }

    #[test]
    fn a_server_that_crashed_during_its_exclusive_backup_is_no_backup() {
        // 2026-11-29 13:12:50 UTC
        const STARTED: i64 = 1_795_957_970;
        let crashed = || {
            let label = "START WAL LOCATION: 0/4000028 (file 000000040000000000000004)\n\
                CHECKPOINT LOCATION: 0/4000060\nBACKUP METHOD: pg_start_backup\nBACKUP FROM: primary\n\
                START TIME: 2026-11-29 13:12:50 UTC\nLABEL: nightly\nSTART TIMELINE: 4\n";
            let backup = BackupTraces {
                label: Some(label.to_owned()),
                has_postmaster_opts: true,
                version_changed: Some(STARTED - 2 * LONG_BEFORE),
                ..BackupTraces::default()
            };
            TargetInfo { backup, ..target() }
        };
        assert!(first_refusal(&crashed(), false).is_none(), "its checkpoint is that at 0/5000060");
        type Change = fn(&mut TargetInfo);
        let copies: [(&str, Change); 6] = [
            ("it may have been made by a copy", |target| target.backup.version_changed = Some(STARTED + 60)),
            ("nothing tells since when it has been there", |target| target.backup.version_changed = None),
            ("a copy without its times", |target| {
                target.backup.version_changed = Some(STARTED + 60);
                target.backup.started_since = true;
            }),
            ("the zone of the label and the clocks are not known", |target| {
                target.backup.version_changed = Some(STARTED - LONG_BEFORE);
            }),
            ("a snapshot that was taken at once", |target| {
                let label = target.backup.label.take();
                target.backup.label = label.map(|label| label.replace("0/4000060", "0/5000060"));
            }),
            ("the label does not say when", |target| {
                let label = target.backup.label.take();
                target.backup.label =
                    label.map(|label| label.replace("START TIME: 2026", "START TIME: then"));
            }),
        ];
        for (why, change) in copies {
            let mut copy = crashed();
            change(&mut copy);
            assert_eq!(first_refusal(&copy, false).map(|(step, _)| step), Some("target_identity"), "{why}");
            assert!(first_refusal(&copy, true).is_none(), "{why}");
        }
        // the label of no other backup is ever in the directory of its server
        let mut other = crashed();
        let label = other.backup.label.take();
        other.backup.label = label.map(|label| label.replace("pg_start_backup", "streamed"));
        assert_eq!(first_refusal(&other, false).map(|(step, _)| step), Some("target_identity"));
    }

    #[test]
    fn the_time_of_a_label_is_read() {
        for (time, expected) in [
            ("2026-11-29 13:12:50 UTC", Some(1_795_957_970)),
            ("2024-02-29 00:00:00 CET", Some(1_709_164_800)),
            ("2000-03-01 00:00:01", Some(951_868_801)),
            ("1970-01-01 00:00:00 GMT", Some(0)),
            ("2026-13-01 00:00:00 UTC", None),
            ("2026-11-29", None),
            ("9999999999999999999-1-1 00:00:00", None),
            ("", None),
        ] {
            assert_eq!(seconds(time), expected, "{time}");
        }
    }
}

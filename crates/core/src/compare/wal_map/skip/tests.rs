use pgdata::control_file::sample;
use pgdata::history::Ancestor;

use super::super::facts::{Ends, Unknown};
use super::*;

/// Both sides of a run, good for a rule until something is changed.
struct Case {
    target: TargetFacts,
    source: SourceFacts,
    target_wal: Vec<ChainFacts>,
    is_all: bool,
    common: Vec<Option<Common>>,
    source_wal: Vec<ChainFacts>,
    covered: Vec<(u64, u64)>,
    start: Lsn,
}

fn chain(lineage: Lineage, from: u64, end: u64) -> ChainFacts {
    let mut facts = ChainFacts::new(lineage, Lsn(from));
    facts.from = Some(Lsn(from));
    facts.end = Lsn(end);
    facts.why = "there is no record".to_owned();
    facts
}

/// A standby that lags: its redo point is 1000, its checkpoint's record ends at 1100, its WAL at 2000; the backup starts
/// at 5000.
fn lagging() -> Case {
    let mut control = ControlFile::parse(&sample(42)).expect("a sample");
    control.state = State::InArchiveRecovery;
    (control.timeline, control.min_recovery_timeline) = (1, 1);
    control.recovery.checkpoint_at = Lsn(1050);
    control.recovery.checkpoint.redo = Lsn(1000);
    control.recovery.min_recovery_point = Lsn(1900);
    let lineage = Lineage::new(1, &[]);
    let mut own = chain(lineage.clone(), 990, 2000);
    own.control_record = ControlRecord::Found { end: Lsn(1100) };
    Case {
        target: TargetFacts {
            control: control.clone(),
            control_in_place: true,
            copies: Vec::new(),
            fsync_off: false,
            tablespaces: Vec::new(),
            is_encrypted: false,
        },
        source: SourceFacts {
            control,
            lineage: lineage.clone(),
            resource_managers: Vec::new(),
            is_encrypted: false,
        },
        target_wal: vec![own],
        is_all: false,
        common: vec![Some(Common { from: Lsn(1500), to: Lsn(2000), stamped: Some(Lsn(1600)) })],
        source_wal: vec![chain(lineage, 1500, 6000)],
        covered: vec![(1500, 6000)],
        start: Lsn(5000),
    }
}

/// An old primary that ran on for a while: it parted at 1800, where timeline 2 begins, and two transactions ended behind
/// that. It had made a checkpoint before, whose redo point is 900.
fn old_primary() -> Case {
    let mut case = lagging();
    case.target.control.state = State::InProduction;
    case.target.control.recovery.min_recovery_point = Lsn(0);
    case.target.control.recovery.wal_log_hints = true;
    case.source.lineage = Lineage::new(2, &[Ancestor { timeline: 1, end: Lsn(1800) }]);
    case.common = vec![Some(Common { from: Lsn(1500), to: Lsn(1800), stamped: Some(Lsn(1600)) })];
    let own = &mut case.target_wal[0];
    own.from = Some(Lsn(800));
    own.ends = Ends { count: 9, first: Lsn(1200), last: Lsn(1990) };
    let made = |start, end, redo, timeline| Completed {
        start: Lsn(start),
        end: Lsn(end),
        redo: Lsn(redo),
        timeline,
    };
    own.checkpoints = vec![made(850, 860, 820, 1), made(950, 960, 900, 1), made(1850, 1860, 1810, 1)];
    own.hint_image = Some(Lsn(1700));
    case
}

fn outcome(case: &Case) -> Outcome {
    with_evidence(case, decide)
}

fn with_evidence<T>(case: &Case, ask: impl Fn(&Evidence<'_>) -> T) -> T {
    let mut coverage = Coverage::default();
    for (from, end) in &case.covered {
        coverage.add_wal(&chain(Lineage::new(1, &[]), *from, *end));
    }
    ask(&Evidence {
        target: &case.target,
        source: &case.source,
        target_wal: &case.target_wal,
        is_all: case.is_all,
        common: &case.common,
        source_wal: &case.source_wal,
        coverage: &coverage,
        start: case.start,
    })
}

fn decision(case: &Case) -> Decision {
    match outcome(case) {
        Outcome::Skip(decision) => decision,
        other => panic!("{other:?}"),
    }
}

/// The only reason against a case after a change.
#[track_caller]
fn reason(mut case: Case, change: impl FnOnce(&mut Case)) -> Reason {
    change(&mut case);
    match outcome(&case) {
        Outcome::Reject(reasons) if reasons.len() == 1 => {
            let reason = reasons[0].clone();
            let text = reason.to_string();
            assert!(text.len() > 20 && !text.ends_with('.') && !text.contains("FFFFFFFF"), "{text}");
            reason
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_standby_that_lags_needs_no_rule_for_hints() {
    let expected = Decision {
        rule: Rule::H0,
        from: Lsn(1000),
        to: Lsn(5000),
        common_to: Lsn(2000),
        target_end: Lsn(2000),
        first_blocks: false,
    };
    let mut case = lagging();
    assert_eq!(decision(&case), expected);
    // whatever ends within the common history does not matter, and neither does how it was stopped
    case.target_wal[0].ends = Ends { count: 5, first: Lsn(1000), last: Lsn(1990) };
    case.target.control.state = State::ShutDownInRecovery;
    assert_eq!(decision(&case), expected);
    case.target.control.state = State::InProduction;
    assert_eq!(decision(&case), Decision { first_blocks: true, ..expected });
    // one that was stopped while it recovered from its crash
    case.target.control.state = State::ShutDownInRecovery;
    case.target.control.recovery.min_recovery_point = Lsn(0);
    assert_eq!(decision(&case), Decision { first_blocks: true, ..expected });
}

#[test]
fn an_old_primary_that_ended_no_transaction_needs_no_logged_hints() {
    let mut case = old_primary();
    case.target.control.recovery.wal_log_hints = false;
    (case.target.control.checksum_version, case.source.control.checksum_version) = (0, 0);
    case.target_wal[0].ends.last = Lsn(1790);
    let found = decision(&case);
    assert_eq!((found.rule, found.from, found.common_to), (Rule::H1, Lsn(1000), Lsn(1800)));
    assert_eq!((found.target_end, found.first_blocks), (Lsn(2000), true));
    // of a checkpoint that it made after it had parted the common point is where it parted
    case.target.control.recovery.checkpoint.redo = Lsn(1950);
    assert_eq!(decision(&case).from, Lsn(1800));
    // what ends right where they part is not common
    case.target_wal[0].ends.last = Lsn(1800);
    assert!(matches!(outcome(&case), Outcome::Reject(_)));
    case.target_wal[0].ends = Ends::default();
    assert_eq!(decision(&case).rule, Rule::H1);
}

#[test]
fn an_old_primary_that_logged_its_hints_goes_back_to_its_own_checkpoint() {
    let mut case = old_primary();
    let found = decision(&case);
    assert_eq!((found.rule, found.from, found.common_to), (Rule::H2, Lsn(900), Lsn(1800)));
    // checksums do as well, if the WAL shows that hints were logged
    case.target.control.recovery.wal_log_hints = false;
    case.target_wal[0].started = Some(Lsn(1700));
    assert_eq!(decision(&case).rule, Rule::H2);
    let hints = |case: Case, change: fn(&mut Case)| match reason(case, change) {
        Reason::Hints { common: Lsn(1800), count: 9, hints } => hints,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        hints(old_primary(), |case| {
            case.target.control.recovery.wal_log_hints = false;
            case.target_wal[0].started = Some(Lsn(1701));
        }),
        Unlogged::NotShown
    );
    assert_eq!(
        hints(old_primary(), |case| {
            case.target.control.recovery.wal_log_hints = false;
            (case.target.control.checksum_version, case.source.control.checksum_version) = (0, 0);
        }),
        Unlogged::Off
    );
    let without_checksums = |case: &mut Case| {
        (case.target.control.checksum_version, case.source.control.checksum_version) = (0, 0);
    };
    let mut changed = old_primary();
    without_checksums(&mut changed);
    assert_eq!(
        hints(changed, |case| case.target_wal[0].hints_off = Some(Lsn(1000))),
        Unlogged::Changed(Lsn(1000))
    );
    // switched on behind the place where they part: it was off until then
    let mut changed = old_primary();
    without_checksums(&mut changed);
    assert_eq!(
        hints(changed, |case| case.target_wal[0].parameters = Some(Lsn(1900))),
        Unlogged::Changed(Lsn(1900))
    );
    let mut changed = old_primary();
    without_checksums(&mut changed);
    changed.target_wal[0].parameters = Some(Lsn(1000));
    assert_eq!(decision(&changed).rule, Rule::H2);
    assert_eq!(
        hints(old_primary(), |case| case.target.control.state = State::InArchiveRecovery),
        Unlogged::Recovery
    );
    assert_eq!(
        hints(old_primary(), |case| {
            let other = Lineage::new(3, &[Ancestor { timeline: 1, end: Lsn(1850) }]);
            case.target_wal.push(chain(other, 990, 1950));
            case.common.push(case.common[0]);
        }),
        Unlogged::Timelines
    );
    assert_eq!(
        hints(old_primary(), |case| {
            case.is_all = true;
            case.target_wal[0].checkpoints.drain(..2);
        }),
        Unlogged::NoCheckpoint
    );
}

#[test]
fn a_checkpoint_that_was_replayed_is_not_its_own() {
    let mut case = old_primary();
    case.is_all = true;
    // the target was promoted to timeline 3 at 955, within the record of its last checkpoint on timeline 1
    case.target_wal[0].lineage = Lineage::new(3, &[Ancestor { timeline: 1, end: Lsn(955) }]);
    case.target.control.timeline = 3;
    assert!(matches!(
        outcome(&case),
        Outcome::Reject(reasons) if matches!(reasons[0], Reason::Hints { hints: Unlogged::NoCheckpoint, .. })
    ));
    case.target_wal[0].checkpoints.push(Completed {
        start: Lsn(1500),
        end: Lsn(1560),
        redo: Lsn(1400),
        timeline: 3,
    });
    let found = decision(&case);
    assert_eq!((found.rule, found.from), (Rule::H2, Lsn(1000)));
}

#[test]
fn older_wal_is_read_where_it_may_help() {
    let mut case = old_primary();
    case.target_wal[0].from = Some(Lsn(950));
    assert_eq!(outcome(&case), Outcome::Widen(Lsn(900)));
    case.target_wal[0].checkpoints.drain(..2);
    assert_eq!(outcome(&case), Outcome::Widen(Lsn(0)));
    let mut case = lagging();
    case.target_wal[0].from = Some(Lsn(1001));
    assert_eq!(outcome(&case), Outcome::Widen(Lsn(1000)));
    // the records that both have carry no time: older ones may, if the target and not the primary limits what was read
    let mut case = old_primary();
    case.common[0] = Some(Common { from: Lsn(800), to: Lsn(1800), stamped: None });
    assert_eq!(outcome(&case), Outcome::Widen(Lsn(0)));
    case.common[0] = None;
    assert_eq!(outcome(&case), Outcome::Widen(Lsn(0)));
    case.is_all = true;
    assert_eq!(outcome(&case), Outcome::Reject(vec![Reason::NothingInCommon(1)]));
    // no older WAL makes a target that is ahead another one
    let mut case = old_primary();
    case.common[0] = Some(Common { from: Lsn(800), to: Lsn(1800), stamped: Some(Lsn(900)) });
    (case.source.lineage, case.start) = (Lineage::new(1, &[]), Lsn(1990));
    assert!(matches!(outcome(&case), Outcome::Reject(_)));
    let mut case = old_primary();
    let own = &mut case.target_wal[0];
    (own.from, own.end, case.start) = (Some(Lsn(1 << 40)), Lsn((1 << 40) + (1 << 30)), Lsn(1 << 41));
    case.common[0] = None;
    assert_eq!(outcome(&case), Outcome::Widen(Lsn((1 << 40) - (2 << 30))));
    // from the beginning of a segment: within one there may be nothing
    case.target_wal[0].from = Some(Lsn((1 << 40) + 5000));
    case.target.control.wal_segment_size = 16 << 20;
    case.source.control.wal_segment_size = 16 << 20;
    assert_eq!(outcome(&case), Outcome::Widen(Lsn((1 << 40) - (2 << 30))));
    let mut case = lagging();
    case.target_wal[0].from = Some(Lsn(1001));
    let needed = Reason::TargetBegins { begin: Lsn(1001), needed: Lsn(1000) };
    assert_eq!(reason(case, |case| case.is_all = true), needed);
}

#[test]
fn a_redo_point_at_the_beginning_of_a_page_is_reached_by_the_first_record_on_it() {
    let mut case = lagging();
    case.target.control.recovery.checkpoint.redo = Lsn(8192);
    case.target.control.recovery.min_recovery_point = Lsn(8192);
    let own = &mut case.target_wal[0];
    (own.from, own.end) = (Some(Lsn(8192 + 24)), Lsn(9000));
    case.common[0] = Some(Common { from: Lsn(8216), to: Lsn(9000), stamped: Some(Lsn(8216)) });
    (case.start, case.covered) = (Lsn(10_000), vec![(8216, 11_000)]);
    assert_eq!(decision(&case).from, Lsn(8192));
    case.target_wal[0].from = Some(Lsn(8192 + 48));
    assert_eq!(outcome(&case), Outcome::Widen(Lsn(8192)));
}

#[test]
fn every_condition_has_a_reason() {
    let rejects = |change: fn(&mut Case)| reason(lagging(), change);
    for change in [
        (|case| case.source.control.system_identifier = 7) as fn(&mut Case),
        |case| case.source.control.pg_control_version = 1700,
        |case| case.source.control.catalog_version = 1,
        |case| case.source.control.relation_segment_blocks = 1,
        |case| case.source.control.wal_segment_size = 1,
        |case| case.source.control.recovery.max_alignment = 4,
    ] {
        assert!(matches!(rejects(change), Reason::Layout { .. }));
    }
    let pages = rejects(|case| {
        case.source.control.block_size = 4096;
        case.target.control.block_size = 4096;
    });
    assert_eq!(pages, Reason::PageSize(4096, 8192));
    assert_eq!(rejects(|case| case.target.control_in_place = false), Reason::ControlAside);
    let copy = rejects(|case| case.target.copies.push("backup_label".to_owned()));
    assert_eq!(copy, Reason::Copy("backup_label".to_owned()));
    for change in [
        (|case| case.target.control.recovery.backup_start_point = Lsn(1)) as fn(&mut Case),
        |case| case.target.control.recovery.backup_end_point = Lsn(1),
        |case| case.target.control.recovery.backup_end_required = true,
        |case| case.target.control.recovery.min_recovery_point = Lsn(999),
    ] {
        assert_eq!(rejects(change), Reason::Inconsistent);
    }
    assert_eq!(
        rejects(|case| case.target.control.checksum_version = 0),
        Reason::Checksums { target: 0, primary: 1 }
    );
    let unknown = rejects(|case| {
        (case.target.control.checksum_version, case.source.control.checksum_version) = (2, 2);
    });
    assert_eq!(unknown, Reason::Checksums { target: 2, primary: 2 });
    for side in [Side::Target, Side::Primary] {
        let of = |change: fn(&mut ChainFacts)| {
            reason(lagging(), |case| match side {
                Side::Target => change(&mut case.target_wal[0]),
                Side::Primary => change(&mut case.source_wal[0]),
            })
        };
        let malformed = of(|chain| chain.malformed = Some("at 0/1".to_owned()));
        assert_eq!(malformed, Reason::Malformed(side, "at 0/1".to_owned()));
        const RECORD: Unknown = Unknown { at: Lsn(5), resource_manager: 130, info: 0 };
        assert_eq!(of(|chain| chain.unknown = Some(RECORD)), Reason::UnknownRecord { side, record: RECORD });
        assert_eq!(of(|chain| chain.minimal = Some(Lsn(6))), Reason::MinimalLogging(side, Lsn(6)));
        let encrypted = reason(lagging(), |case| match side {
            Side::Target => case.target.is_encrypted = true,
            Side::Primary => case.source.is_encrypted = true,
        });
        assert_eq!(encrypted, Reason::Encrypted(side));
    }
    let managers = rejects(|case| case.source.resource_managers.push("test".to_owned()));
    assert_eq!(managers, Reason::ResourceManagers(vec!["test".to_owned()]));
    let ends = |case: &mut Case| case.target.control.recovery.min_recovery_point = Lsn(2001);
    assert!(matches!(reason(lagging(), ends), Reason::TargetEnds { end: Lsn(2000), needed: Lsn(2001), .. }));
    let ends = |case: &mut Case| {
        case.target_wal[0].control_record = ControlRecord::Found { end: Lsn(2100) };
    };
    assert!(matches!(reason(lagging(), ends), Reason::TargetEnds { needed: Lsn(2100), .. }));
    let hole = |case: &mut Case| case.target_wal[0].beyond = Some(Lsn(8192));
    assert!(matches!(reason(lagging(), hole), Reason::TargetHole { page: Lsn(8192), .. }));
    assert_eq!(
        rejects(|case| case.covered = vec![(1500, 3000), (3001, 6000)]),
        Reason::SourceHole { at: Lsn(3000), from: Lsn(2000), to: Lsn(5000) }
    );
    for found in [ControlRecord::Missing, ControlRecord::Other, ControlRecord::Reset] {
        let reason = reason(lagging(), |case| case.target_wal[0].control_record = found);
        assert_eq!(reason, Reason::Checkpoint { at: Lsn(1050), found });
    }
    let nothing_in_common = rejects(|case| (case.common, case.is_all) = (vec![None], true));
    assert_eq!(nothing_in_common, Reason::NothingInCommon(1));
    let nothing_in_common = rejects(|case| (case.common, case.is_all) = (vec![], true));
    assert_eq!(nothing_in_common, Reason::NothingInCommon(1));
    let no_time =
        |case: &mut Case| case.common[0] = case.common[0].map(|common| Common { stamped: None, ..common });
    assert_eq!(reason(lagging(), no_time), Reason::NoTime { timeline: 1, from: Lsn(1500), to: Lsn(2000) });
    assert_eq!(rejects(|case| case.target.fsync_off = true), Reason::FsyncOff);
    let moved = rejects(|case| case.target.tablespaces.push("16500".to_owned()));
    assert_eq!(moved, Reason::Tablespace("16500".to_owned()));
    assert_eq!(rejects(|case| case.start = Lsn(1999)), Reason::Ahead { end: Lsn(2000), start: Lsn(1999) });
    let nothing = |case: &mut Case| {
        case.target_wal.clear();
        case.common.clear();
    };
    let mut case = lagging();
    nothing(&mut case);
    assert!(matches!(outcome(&case), Outcome::Reject(_)));
}

#[test]
fn a_time_on_an_earlier_timeline_proves_nothing_about_a_later_one() {
    let mut case = lagging();
    case.source.lineage = Lineage::new(2, &[Ancestor { timeline: 1, end: Lsn(1700) }]);
    case.target_wal[0].lineage = case.source.lineage.clone();
    case.target.control.timeline = 2;
    let no_time = Reason::NoTime { timeline: 2, from: Lsn(1500), to: Lsn(2000) };
    assert_eq!(outcome(&case), Outcome::Reject(vec![no_time]));
    case.common[0] = Some(Common { from: Lsn(1500), to: Lsn(2000), stamped: Some(Lsn(1700)) });
    assert_eq!(decision(&case).rule, Rule::H0);
}

#[test]
fn wal_of_any_timeline_counts_as_the_targets() {
    let mut case = lagging();
    let other = Lineage::new(2, &[Ancestor { timeline: 1, end: Lsn(1900) }]);
    case.target_wal.push(chain(other, 990, 2500));
    case.common.push(Some(Common { from: Lsn(1500), to: Lsn(1900), stamped: None }));
    let found = decision(&case);
    assert_eq!((found.rule, found.common_to, found.target_end), (Rule::H1, Lsn(1900), Lsn(2500)));
    assert!(found.first_blocks, "it may have been promoted");
    case.target_wal[1].ends = Ends { count: 1, first: Lsn(1950), last: Lsn(1950) };
    assert!(matches!(
        outcome(&case),
        Outcome::Reject(reasons) if matches!(reasons[0], Reason::Hints { hints: Unlogged::Recovery, .. })
    ));
    (case.common[1], case.is_all) = (None, true);
    assert_eq!(outcome(&case), Outcome::Reject(vec![Reason::NothingInCommon(2)]));
}

#[test]
fn an_old_primary_that_is_ahead_on_the_same_timeline_is_no_copy_of_it() {
    // a clone of the storage that went on by itself
    let mut case = old_primary();
    case.source.lineage = Lineage::new(1, &[]);
    case.start = Lsn(1990);
    assert!(matches!(outcome(&case), Outcome::Reject(reasons) if matches!(reasons[0], Reason::Ahead { .. })));
}

#[test]
fn reading_begins_where_the_histories_part_or_at_the_redo_point() {
    let case = old_primary();
    let own = Lineage::new(1, &[]);
    let mut control = case.target.control.clone();
    assert_eq!(read_from(&control, &own, &case.source.lineage), Lsn(1000));
    control.recovery.checkpoint.redo = Lsn(1950);
    assert_eq!(read_from(&control, &own, &case.source.lineage), Lsn(1800));
    assert_eq!(read_from(&control, &own, &own), Lsn(1950));
}

#[test]
fn marks_of_vacuum_that_no_wal_tells_need_images_of_their_pages() {
    let fenced = || {
        let mut case = old_primary();
        case.target_wal[0].ends.last = Lsn(1700);
        for control in [&mut case.source.control, &mut case.target.control] {
            control.recovery.wal_log_hints = false;
            control.checksum_version = 0;
        }
        case
    };
    assert_eq!(decision(&fenced()).rule, Rule::H1);
    let off = |case: &mut Case| case.source.control.recovery.checkpoint.full_page_writes = false;
    assert_eq!(reason(fenced(), off), Reason::Marks(Lsn(1000)));
    assert_eq!(
        reason(fenced(), |case| case.source_wal[0].full_page_writes_off = Some(Lsn(900))),
        Reason::Marks(Lsn(900))
    );
    // that it logs them now says nothing of the primary's pages
    assert_eq!(
        reason(fenced(), |case| {
            off(case);
            case.target.control.recovery.wal_log_hints = true;
        }),
        Reason::Marks(Lsn(1000))
    );
    for logged in [
        |control: &mut ControlFile| control.recovery.wal_log_hints = true,
        |control: &mut ControlFile| control.checksum_version = 1,
    ] {
        let mut case = fenced();
        off(&mut case);
        logged(&mut case.source.control);
        logged(&mut case.target.control);
        assert_eq!(decision(&case).rule, Rule::H1);
    }
    let mut case = lagging();
    off(&mut case);
    assert_eq!(decision(&case).rule, Rule::H0, "a standby has its marks from WAL");
}

#[test]
fn a_standby_that_only_has_to_be_started_is_found() {
    let found = |case: &Case| with_evidence(case, rejoin);
    assert_eq!(found(&lagging()), Ok(Lsn(2000)));
    let mut case = lagging();
    case.source.resource_managers.push("test".to_owned());
    assert_eq!(found(&case), Ok(Lsn(2000)), "its records are replayed");
    let rejects = |change: fn(&mut Case)| {
        let mut case = lagging();
        change(&mut case);
        found(&case).expect_err("no").remove(0)
    };
    assert!(matches!(rejects(|case| case.target.copies.push("x".to_owned())), Reason::Copy(_)));
    assert!(matches!(rejects(|case| case.covered = vec![(2001, 6000)]), Reason::SourceHole { .. }));
    assert_eq!(
        rejects(|case| case.target_wal[0].full_page_writes_off = Some(Lsn(1300))),
        Reason::TornPages(Lsn(1300))
    );
    assert_eq!(
        rejects(|case| case.target.control.recovery.checkpoint.full_page_writes = false),
        Reason::TornPages(Lsn(1000))
    );
    let mut case = lagging();
    case.target.control.recovery.checkpoint.full_page_writes = false;
    case.target.control.state = State::ShutDownInRecovery;
    assert_eq!(found(&case), Ok(Lsn(2000)));
    assert_eq!(found(&old_primary()), Err(vec![Reason::Parted { common: Lsn(1800), end: Lsn(2000) }]));
    assert!(matches!(rejects(|case| case.common = vec![None]), Reason::NothingInCommon(1)));
}

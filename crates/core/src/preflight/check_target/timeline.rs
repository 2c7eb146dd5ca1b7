//! Is the target ahead of this primary?

use pgdata::wal::Lsn;

use super::{OwnWal, PrimaryIdentity, refused};
use crate::compare::wal_map::Agreement;
use crate::error::Error;
use crate::wire::protocol::message::TargetInfo;

/// The answer, if the target is on a timeline that is not in this primary's history, or further on this primary's timeline than the
/// primary itself. `resumes`: a recovery from this primary was interrupted there.
///
/// A server that was primary before this one is on an earlier timeline: what it has beyond this primary cannot be told from
/// that. Another timeline can, and so can a position that this primary has not reached: its storage was put back to an
/// older state, or it was not promoted. Either is what a wrong choice of the primary would destroy.
pub(super) fn ahead(
    primary: &PrimaryIdentity,
    wal: Option<OwnWal>,
    target: &TargetInfo,
    resumes: bool,
    any_cluster: bool,
) -> Option<Result<String, Error>> {
    let copied = match &target.marker {
        // what it was before is no more; what it was getting is a copy
        Some(_) if resumes && !target.control_in_place => return None,
        Some(marker) if resumes => marker.timeline,
        _ => 0,
    };
    let (timeline, shown) = (primary.timeline, target.directory.display());
    if let Some(found) = target.timeline.filter(|found| *found > copied)
        && let Some(Unseen { which, begun }) = unseen(primary, wal, found, target)
    {
        if primary.has_independent_nodes || any_cluster {
            return Some(Ok(format!("a cluster of this system on {which} ({found}); {}", may_be(primary))));
        }
        return Some(Err(refused(format!("directory \"{shown}\" is ahead of this primary: it is on {which}"))
            .detail(format!(
                "It is on timeline {found}{begun}, this primary on timeline {timeline}. It was promoted, or followed a server that \
                 was, and holds transactions that this primary has never seen. They would be lost."
            ))
            .hint(
                "Make sure which of the two is to be the primary. If the other's transactions may be lost, set \
                 pgpool_recovery.overwrite = any_cluster, or pass it as an option.",
            )));
    }
    let flushed = wal?.flushed;
    let reached = beyond(timeline, flushed, target)?;
    if primary.has_independent_nodes || any_cluster {
        return Some(Ok(format!(
            "a cluster of this system that is ahead, at {reached}; {}",
            may_be(primary)
        )));
    }
    Some(Err(refused(format!(
        "directory \"{shown}\" is ahead of this primary: it has WAL that is missing here"
    ))
    .detail(format!(
        "It is at {reached} of timeline {timeline}, this primary at {flushed}. It holds transactions that this primary does \
         not have, which happens where the primary's storage was put back to an older state. They would be lost."
    ))
    .hint(
        "Make sure which of the two is to be the primary. It may be the only one that has those transactions: if they may be lost, set \
         pgpool_recovery.overwrite = any_cluster, or pass it as an option.",
    )))
}

/// Why a target that is ahead may be replaced.
const fn may_be(primary: &PrimaryIdentity) -> &'static str {
    if primary.has_independent_nodes {
        "every node is a server of its own"
    } else {
        "overwrite is any_cluster"
    }
}

/// A timeline that is not in the primary's history.
struct Unseen {
    /// How it is called.
    which: &'static str,
    /// Where it was begun, if that is what tells.
    begun: String,
}

/// Whether the target's timeline is none of this primary's history.
fn unseen(primary: &PrimaryIdentity, wal: Option<OwnWal>, found: u32, target: &TargetInfo) -> Option<Unseen> {
    let unseen = |which, begun| Some(Unseen { which, begun });
    if found > primary.timeline {
        return unseen("a later timeline", String::new());
    }
    // without a history file nothing says that it is another one
    let Some(ours) = primary.history.as_ref()?.up_to(found) else {
        return unseen("a timeline of its own", String::new());
    };
    if let Some(theirs) = &target.history
        && theirs.ancestors() != ours.ancestors()
    {
        let begun = format!(", begun at {} and not at {}", theirs.begin(), ours.begin());
        return unseen("a timeline of its own", begun);
    }
    let mark = target.landmark.as_ref().filter(|_| wal.is_some_and(|wal| wal.agrees == Agreement::Other))?;
    unseen("a timeline of its own", format!(", where its WAL at {} is another one", mark.from))
}

/// A position on this timeline that the target has reached for sure and the primary has not.
fn beyond(timeline: u32, flushed: Lsn, target: &TargetInfo) -> Option<Lsn> {
    let control = target.control.as_ref()?;
    let recovery = &control.recovery;
    // its last checkpoint or restartpoint, and what it has replayed at least: 0 if it was no standby
    let reached = [
        (control.timeline, recovery.checkpoint_at),
        (control.min_recovery_timeline, recovery.min_recovery_point),
    ];
    let reached = reached.into_iter().filter(|(its, position)| *its == timeline && *position > flushed);
    reached.map(|(_, position)| position).max()
}

#[cfg(test)]
mod tests {
    use crate::compare::wal_map::{Agreement, Past};
    use crate::preflight::check_target::tests::{WAL, first_refusal, history, primary, refusal, target};
    use crate::preflight::check_target::{OwnWal, PrimaryIdentity, Strategy, check_target, strategy};
    use crate::wire::protocol::message::{Marker, TargetInfo};
    use pgdata::control_file::ControlFile;
    use pgdata::control_file::sample;
    use pgdata::wal::Lsn;

    fn marker(timeline: u32) -> Marker {
        Marker {
            note: String::new(),
            system_identifier: 7,
            timeline,
            started: 0,
            tablespaces: Default::default(),
        }
    }

    #[test]
    fn a_pg_control_in_place_outranks_a_marker() {
        let marker = Some(marker(4));
        let foreign = TargetInfo {
            marker,
            control: ControlFile::parse(&sample(8)).ok(),
            system_identifier: Some(8),
            ..target()
        };
        let (step, error) = first_refusal(&foreign, false).expect("refused");
        assert_eq!(step, "target_identity");
        assert!(error.detail.is_some_and(|detail| detail.contains("identifier 8")));
        assert!(first_refusal(&foreign, true).is_none());
        assert_eq!(strategy(&primary(), &foreign), Strategy::Delta);
        // a broken run of this primary has put the foreign one aside
        let aside = TargetInfo { control_in_place: false, ..foreign };
        assert!(first_refusal(&aside, false).is_none());
        assert_eq!(strategy(&primary(), &aside), Strategy::Resume);
    }

    #[test]
    fn a_target_that_is_further_on_the_same_timeline_is_not_lost_unasked() {
        let refused = |target: &TargetInfo, flushed: Option<Lsn>, any_cluster| {
            let wal = flushed.map(|flushed| OwnWal { flushed, ..WAL });
            let findings = check_target(&primary(), wal, target, true, any_cluster);
            let error = findings.into_iter().find_map(|finding| finding.answer.err())?;
            assert!(error.hint.is_some_and(|hint| hint.contains("any_cluster")));
            error.detail
        };
        // its checkpoint is on timeline 3 at 0/5000060, and it is consistent from 0/5000100 of timeline 4
        let standby = target();
        let (behind, at) = (Some(Lsn(0x500_00FF)), Some(Lsn(0x500_0100)));
        let detail = refused(&standby, behind, false).expect("refused");
        assert!(detail.contains("0/5000100") && detail.contains("0/50000FF"), "{detail}");
        assert_eq!(refused(&standby, behind, true), None);
        assert_eq!(refused(&standby, at, false), None);
        assert_eq!(refused(&standby, None, false), None, "a standby is refused for what it is");

        // a server that was stopped as a primary
        let mut stopped = standby.clone();
        let control = stopped.control.as_mut().expect("it has one");
        (control.timeline, control.min_recovery_timeline) = (4, 0);
        control.recovery.min_recovery_point = Lsn(0);
        assert!(refused(&stopped, Some(Lsn(0x500_0000)), false).is_some_and(|it| it.contains("0/5000060")));
        assert_eq!(refused(&stopped, behind, false), None);

        // a former primary is nearly always further on the timeline that this one has left
        let mut former = stopped.clone();
        former.control.as_mut().expect("it has one").timeline = 3;
        (former.timeline, former.history) = (Some(3), None);
        assert_eq!(refused(&former, Some(Lsn(0x500_0000)), false), None);
        // an interrupted recovery has destroyed what there was
        let begun = TargetInfo { marker: Some(marker(4)), control_in_place: false, ..standby };
        assert_eq!(refused(&begun, behind, false), None);
    }

    #[test]
    fn a_timeline_that_was_begun_elsewhere_is_not_lost_unasked() {
        // this primary came from timeline 1 to 3 and, at 0/5000080, to 4
        let on = |timeline, ancestors: &[(u32, u64)]| TargetInfo {
            timeline: Some(timeline),
            history: Some(history(ancestors, timeline)),
            ..target()
        };
        let refused = |target: &TargetInfo| first_refusal(target, false).map(|(_, error)| error.detail);
        let (first, second) = ((1, 0x100_0000), (3, 0x500_0080));
        for followed in [on(4, &[first, second]), on(3, &[first]), on(1, &[])] {
            assert_eq!(refused(&followed), None);
        }
        for (parallel, said) in [
            (on(4, &[first, (3, 0x400_0000)]), "timeline 4, begun at 0/4000000 and not at 0/5000080, this"),
            (on(3, &[(1, 0x200_0000)]), "timeline 3, begun at 0/2000000 and not at 0/1000000, this"),
            (on(2, &[(1, 0x100_0000)]), "timeline 2, this primary on timeline 4"),
        ] {
            let detail = refused(&parallel).flatten().expect("refused");
            assert!(detail.contains(said), "{detail}");
            assert!(first_refusal(&parallel, true).is_none());
            // a copy of such a one is nothing of its own
            let copied = Some(marker(4));
            assert_eq!(refused(&TargetInfo { marker: copied, ..parallel }), None);
        }
        // where every node is a server of its own, each has a timeline of its own
        let parallel = on(4, &[first, (3, 0x400_0000)]);
        let independent = PrimaryIdentity { has_independent_nodes: true, ..primary() };
        for (primary, refuses) in [(&independent, false), (&primary(), true)] {
            for (target, flushed) in [(&parallel, WAL.flushed), (&target(), Lsn(0x500_0000))] {
                let findings = check_target(primary, Some(OwnWal { flushed, ..WAL }), target, true, false);
                assert_eq!(findings.iter().any(|finding| finding.answer.is_err()), refuses);
            }
        }
        // without a history file nothing says that it is another one
        assert_eq!(refused(&TargetInfo { history: None, ..target() }), None);
        // of the same number and from the same position, but other WAL
        let landmark =
            Some(Past { timeline: 4, from: Lsn(0x500_0080), to: Lsn(0x500_00C0), digest: [0; 16] });
        for (agrees, is_refused) in
            [(Agreement::Same, false), (Agreement::Unknown, false), (Agreement::Other, true)]
        {
            let judge = |target: &TargetInfo, any_cluster| {
                let findings =
                    check_target(&primary(), Some(OwnWal { agrees, ..WAL }), target, true, any_cluster);
                findings.into_iter().find_map(|finding| finding.answer.err())
            };
            let twin = TargetInfo { landmark: landmark.clone(), ..target() };
            let error = judge(&twin, false);
            assert_eq!(error.is_some(), is_refused, "{error:?}");
            if let Some(error) = error {
                assert!(
                    error.message.contains("of its own")
                        && error.hint.is_some_and(|it| it.contains("any_cluster"))
                );
                assert!(error.detail.is_some_and(|it| it.contains("its WAL at 0/5000080 is another one")));
            }
            assert_eq!(judge(&twin, true), None);
        }
        let unknown = PrimaryIdentity { history: None, ..primary() };
        let findings = check_target(&unknown, Some(WAL), &on(2, &[]), true, false);
        assert!(findings.iter().all(|finding| finding.answer.is_ok()));
    }

    #[test]
    fn what_this_primary_never_saw_is_not_lost_unasked() {
        let step = Some("target_identity");
        for (timeline, refused) in [(None, None), (Some(3), None), (Some(4), None), (Some(5), step)] {
            let on = |target: &mut TargetInfo| (target.timeline, target.history) = (timeline, None);
            assert_eq!(refusal(on), refused, "{timeline:?}");
        }
        let ahead = TargetInfo { timeline: Some(5), ..target() };
        let (_, error) = first_refusal(&ahead, false).expect("refused");
        assert!(
            error.detail.is_some_and(|detail| detail.contains("timeline 5") && detail.contains("timeline 4"))
        );
        assert!(first_refusal(&ahead, true).is_none());
        assert_eq!(strategy(&primary(), &ahead), Strategy::Delta);
        // an interrupted recovery has destroyed it already
        let marker = |timeline| Some(marker(timeline));
        let begun = TargetInfo { marker: marker(4), control_in_place: false, ..ahead.clone() };
        assert!(first_refusal(&begun, false).is_none());
        // it was complete but for the marker, and has been promoted since
        let promoted = TargetInfo { marker: marker(4), ..ahead.clone() };
        assert_eq!(first_refusal(&promoted, false).map(|(step, _)| step), step);
        // it got a copy of a primary that is further
        let copied = TargetInfo { marker: marker(5), ..ahead };
        assert!(first_refusal(&copied, false).is_none());
        // of another system it is only another cluster
        let other = TargetInfo { system_identifier: Some(8), timeline: Some(9), ..target() };
        assert!(
            first_refusal(&other, false).is_some_and(|(_, error)| error.message.contains("another cluster"))
        );
    }
}

//! Is the target ahead of this primary?

use super::{PrimaryIdentity, refused};
use crate::error::Error;
use crate::wire::protocol::message::TargetInfo;

/// The answer, if the target is on a timeline that this primary never saw. `resumes`: a recovery from this primary was
/// interrupted there.
///
/// A server that was primary before this one is on an earlier timeline, or on the same one if this one was not promoted:
/// what it has beyond this primary cannot be told from that. The later timeline can, and it is what a wrong choice of the
/// primary would destroy.
pub(super) fn ahead(
    primary: &PrimaryIdentity,
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
    let later = target.timeline.filter(|timeline| *timeline > primary.timeline.max(copied))?;
    if any_cluster {
        let answer =
            format!("a cluster of this system on a later timeline ({later}); overwrite is any_cluster");
        return Some(Ok(answer));
    }
    let message = format!(
        "directory \"{}\" is ahead of this primary: it is on a later timeline",
        target.directory.display()
    );
    Some(Err(refused(message)
        .detail(format!(
            "It is on timeline {later}, this primary on timeline {}. It was promoted, or followed a server that was, and \
             holds transactions that this primary has never seen. They would be lost.",
            primary.timeline
        ))
        .hint(
            "Make sure which of the two is to be the primary. If the other's transactions may be lost, set \
             pgpool_recovery.overwrite = any_cluster, or pass it as an option.",
        )))
}

#[cfg(test)]
mod tests {
    use crate::preflight::check_target::tests::{first_refusal, primary, refusal, target};
    use crate::preflight::check_target::{Strategy, strategy};
    use crate::wire::protocol::message::{Marker, TargetInfo};
    use pgdata::control_file::ControlFile;
    use pgdata::control_file::sample;

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
    fn what_this_primary_never_saw_is_not_lost_unasked() {
        let step = Some("target_identity");
        for (timeline, refused) in [(None, None), (Some(3), None), (Some(4), None), (Some(5), step)] {
            assert_eq!(refusal(|target| target.timeline = timeline), refused, "{timeline:?}");
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

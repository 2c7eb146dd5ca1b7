//! Is a pg_wal that is a link the target's own?

use super::{PrimaryIdentity, refused, resumes};
use crate::error::Error;
use crate::wire::protocol::message::{LinkedWal, TargetInfo};

/// Is a pg_wal that is a link the target's own? The receiver has looked for other servers that use it.
pub(super) fn is_its_own(
    primary: &PrimaryIdentity,
    target: &TargetInfo,
    any_cluster: bool,
) -> Result<String, Error> {
    if let Some(doubt) = &target.doubts.wal {
        return Err(doubt.clone());
    }
    let Some(directory) = &target.wal_directory else {
        return Ok("pg_wal is no link".to_owned());
    };
    let own = target.control.as_ref().map(|control| control.system_identifier);
    let may_be_replaced = any_cluster || resumes(primary, target);
    let is_its_own = match target.linked_wal {
        None | Some(LinkedWal::Empty) => true,
        Some(LinkedWal::Of(found)) if found == primary.system_identifier => own.is_some() || may_be_replaced,
        Some(LinkedWal::Of(found)) => may_be_replaced && own == Some(found),
        Some(LinkedWal::Unknown) => own.is_some() || may_be_replaced,
    };
    let shown = directory.display();
    if is_its_own {
        return Ok(format!("pg_wal is \"{shown}\""));
    }
    let (detail, hint) = match target.linked_wal {
        Some(LinkedWal::Of(found)) if found != primary.system_identifier => (
            format!(
                "The WAL there is that of system {found}; this primary's is {}.",
                primary.system_identifier
            ),
            "Let pg_wal lead to a directory of the standby's own.",
        ),
        _ => (
            format!(
                "There is WAL, but \"{}\" has no valid pg_control that would make it its own.",
                target.directory.display()
            ),
            "Let pg_wal lead to a directory of the standby's own, or empty that directory. If it may be destroyed, set pgpool_recovery.overwrite = any_cluster, or pass it as an option.",
        ),
    };
    Err(refused(format!("cannot tell whether \"{shown}\" is the target's own pg_wal"))
        .detail(detail)
        .hint(hint))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{first_refusal, target};
    use super::*;
    use pgdata::control_file::ControlFile;
    use pgdata::control_file::sample;

    #[test]
    fn a_linked_pg_wal_holds_the_targets_own_wal() {
        let leads_to = |wal: LinkedWal, control: Option<u64>, any_cluster: bool| {
            let control = control.map(|identifier| ControlFile::parse(&sample(identifier)).expect("valid"));
            let wal_directory = Some("/elsewhere/wal".into());
            let target = TargetInfo { wal_directory, linked_wal: Some(wal), control, ..target() };
            let refusal = first_refusal(&target, any_cluster);
            assert!(refusal.as_ref().is_none_or(|(step, _)| *step == "target_wal"), "{refusal:?}");
            refusal.is_none()
        };
        assert!(leads_to(LinkedWal::Of(7), Some(7), false));
        assert!(!leads_to(LinkedWal::Of(8), Some(7), false), "another server's");
        assert!(!leads_to(LinkedWal::Of(8), Some(7), true), "nor may that be destroyed");
        assert!(leads_to(LinkedWal::Of(8), Some(8), true));
        assert!(!leads_to(LinkedWal::Of(7), None, false), "it may be another standby's");
        assert!(leads_to(LinkedWal::Of(7), None, true));
        assert!(leads_to(LinkedWal::Empty, None, false) && leads_to(LinkedWal::Unknown, Some(7), false));
        assert!(!leads_to(LinkedWal::Unknown, None, false));
    }
}

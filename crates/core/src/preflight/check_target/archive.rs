//! Is WAL lost that exists nowhere else?

use crate::error::{Error, Kind};
use crate::wire::protocol::message::TargetInfo;

/// Whether everything that the target was to archive has been archived. A recovery removes its WAL: what a primary that
/// failed had not archived yet would be a hole in its archive.
pub(super) fn complete(target: &TargetInfo) -> Result<String, Error> {
    match target.unarchived.clone()? {
        0 => Ok("none of the target's WAL waits to be archived".to_owned()),
        count => {
            let message = format!("WAL files of the target that were never archived: {count}");
            let status = target.directory.join("pg_wal/archive_status");
            Err(Error::new(Kind::WrongState, message)
                .detail(format!(
                    "\"{}\" has a file NAME.ready for each. The recovery removes them, and with them what was written \
                     on the target alone before it failed. A recovery of the archive to a point in that time needs them.",
                    status.display()
                ))
                .hint("If you keep an archive, copy these files from the target's pg_wal into it before the recovery."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::check_target;
    use crate::preflight::check_target::tests::{WAL, first_refusal, primary, target};

    #[test]
    fn wal_that_was_never_archived_is_told_and_refuses_nothing() {
        let answer = |unarchived| {
            let target = TargetInfo { unarchived, ..target() };
            let findings = check_target(&primary(), Some(WAL), &target, true, false);
            let finding =
                findings.into_iter().find(|finding| finding.step == "unarchived_wal").expect("asked");
            assert!(finding.is_advice);
            finding.answer
        };
        assert!(answer(Ok(0)).is_ok());
        let error = answer(Ok(5)).expect_err("five");
        assert!(
            error.message.ends_with(": 5") && error.detail.is_some() && error.hint.is_some(),
            "{error:?}"
        );
        let unknown = Error::new(Kind::Io, "could not list");
        assert_eq!(answer(Err(unknown.clone())), Err(unknown), "an error is no 0");
        assert!(first_refusal(&target(), false).is_none());
    }
}

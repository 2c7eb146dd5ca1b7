//! Does another file of the standby's configuration say what myrecovery.conf must say, or that it is no hot standby?

use crate::error::{Error, Kind};
use crate::manifest::exclude::MYRECOVERY_CONF;
use crate::preflight::Finding;
use crate::replication::hot_standby::Setting;
use crate::replication::recovery_settings::RecoverySettings;

/// The step of the check that this is.
const STEP: &str = "conflicting_settings";

/// What the files say beside myrecovery.conf. With a setting that it cannot override the standby would not follow; all others
/// are worth knowing. `off`: the setting by which the standby accepts no connections.
pub fn finding(said: &RecoverySettings, off: Option<&Setting>) -> Finding {
    if let Err(error) = said.demand_no_conflict("The configuration that the standby would have") {
        return Finding::new(STEP, Err(error));
    }
    let good = format!("no other file sets what {MYRECOVERY_CONF} sets");
    let problems = said.advice().err().into_iter().chain(off.map(no_hot_standby)).collect();
    Finding::advice_of(STEP, good, problems)
}

fn no_hot_standby(off: &Setting) -> Error {
    Error::new(Kind::WrongState, format!("hot_standby is off in {}", off.place.at()))
        .detail(
            "The standby will follow, but accept no connections: pgpool_remote_start waits for them in vain.",
        )
        .hint("Set hot_standby = on there.")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use pgdata::configuration::Reading;

    use super::*;
    use crate::preflight::standby_parameters::switched_off;
    use crate::replication::hot_standby::settings;
    use crate::replication::recovery_settings::judge;

    /// The row for a standby that keeps files with these lines.
    fn found(main: &str, auto: &str) -> Finding {
        let directory = tempfile::tempdir().expect("temporary directory");
        let read = |name: &str, text: &str| {
            fs::write(directory.path().join(name), text).expect("write");
            Reading::of(&directory.path().join(name), Some(&directory.path().join("myrecovery.conf")))
        };
        fs::write(directory.path().join("more.conf"), "\n\nRecovery_Min_Apply_Delay = 1h\n").expect("write");
        let (main, auto) = (read("postgresql.conf", main), read("postgresql.auto.conf", auto));
        finding(&judge(Some(&main), Some(&auto)), switched_off(&settings(&main), &settings(&auto)))
    }

    #[test]
    fn what_does_nothing_is_no_conflict() {
        let answer =
            found("hot_standby = on\nrecovery_target = ''\nprimary_conninfo = 'host=old'\n", "port = 1\n")
                .answer;
        assert_eq!(answer, Ok("no other file sets what myrecovery.conf sets".to_owned()));
    }

    #[test]
    fn what_keeps_it_from_following_is_refused_by_file_and_line() {
        for setting in
            ["primary_conninfo = 'host=x'", "restore_command = 'cp'", "recovery_target_time = '2026-01-01'"]
        {
            // whatever else is said
            let finding = found("hot_standby = off\nrestore_command = 'x'\n", &format!("\n{setting}\n"));
            let error = finding.answer.expect_err(setting);
            assert!(
                !finding.is_advice && error.kind == Kind::TargetRefused && error.hint.is_some(),
                "{error:?}"
            );
            assert!(error.message.contains("postgresql.auto.conf\" line 2 would keep"), "{error:?}");
        }
    }

    #[test]
    fn what_is_overridden_or_kept_is_told_by_file_and_line() {
        for (main, auto, words) in [
            ("restore_command = 'cp'\n", "", ["overrides restore_command (\"", "postgresql.conf\" line 1)"]),
            ("include 'more.conf'\n", "", ["overrides recovery_min_apply_delay (\"", "more.conf\" line 3)"]),
            (
                "",
                "recovery_min_apply_delay = 1h\n",
                ["keeps recovery_min_apply_delay (\"", "auto.conf\" line 1)"],
            ),
            ("\nhot_standby = off\n", "", ["hot_standby is off in \"", "postgresql.conf\" line 2"]),
            ("hot_standby = on\n", "hot_standby = no\n", ["hot_standby is off in \"", "auto.conf\" line 1"]),
            (
                "recovery_target = 'immediate'\nhot_standby = 0\n",
                "",
                ["recovery_target (\"", "; hot_standby is off in"],
            ),
        ] {
            let finding = found(main, auto);
            assert!(finding.is_advice, "{main}{auto}");
            let error = finding.answer.expect_err(main);
            for word in words {
                assert!(error.message.contains(word), "no {word}: {error:?}");
            }
        }
    }
}

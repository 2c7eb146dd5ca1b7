//! A standby of this host: whom it follows, and whether it hears anything from there.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{HEARD, PAUSE, Upstream, unknown};
use crate::error::{Error, Result};
use crate::host::policy::Cluster;
use crate::host::{configured, control, describe, running};
use crate::sys::cancel::Cancel;
use crate::wire::protocol::upstream::{Answer, Told};

/// What is left of the time for the standby's own word, once its server was asked.
const OWN_WORD: Duration = Duration::from_millis(700);

/// A server that rejects connections says so within this time.
const SOON: Duration = Duration::from_secs(1);

/// Asks the server that the standby in a directory follows; `None` if none follows there.
pub(crate) fn of(cluster: &Cluster, time: Duration, cancel: &Cancel) -> Result<Option<Told>> {
    let directory = &cluster.data_directory;
    let Some(postmaster) = running::server(directory)? else { return Ok(None) };
    let begin = Instant::now();
    let mut told =
        describe::followed(cluster, cancel).map_err(|why| (why, describe::rejects(cluster, cancel)));
    if matches!(told, Err((_, false))) && begin.elapsed() < SOON {
        // it may just have started
        told = describe::followed(cluster, cancel).map_err(|why| (why, false));
    }
    let followed = match told {
        Ok(Some(followed)) => Ok(followed),
        Ok(None) => return Ok(None),
        Err(_) if has_ended(directory) => return Ok(None),
        Err(mute) => {
            cancel.check()?;
            Err(mute)
        }
    };
    // one that starts, or does not let us in, follows what its files say
    let conninfo = match &followed {
        Ok(followed) => followed.conninfo.clone(),
        Err(_) => configured::value(cluster, "primary_conninfo", cancel)?,
    };
    let (control, _) = control::read(directory)?;
    // what the login here took is not missing to the one there: too little time would make its silence
    let end = Instant::now() + time;
    let told = match environment_of(postmaster) {
        Ok(environment) => Upstream {
            bin_directory: &cluster.bin_directory,
            data_directory: directory,
            conninfo: &conninfo,
            environment: &environment,
            system_identifier: control.system_identifier,
        }
        .ask(end.saturating_duration_since(Instant::now()).saturating_sub(OWN_WORD), cancel)?,
        Err(error) => Told::of(Ok(unknown(&error))),
    };
    if matches!(told.answer, Ok(Answer::Primary(_))) {
        return Ok(Some(told));
    }
    let last = match followed {
        Ok(followed) => followed.received,
        Err((error, is_passing)) => {
            return Ok(Some(Told { answer: of_mute(told.answer, &error, is_passing), ..told }));
        }
    };
    let look = || match describe::followed(cluster, cancel) {
        Err(_) if has_ended(directory) => Ok(None),
        followed => Ok(followed?
            .filter(|followed| !followed.sender.as_ref().is_some_and(|sender| told.is_standbys(sender)))
            .and_then(|followed| followed.received)),
    };
    let answer = await_message(told.answer.clone(), last, end, look, cancel)?;
    Ok(Some(Told { answer, ..told }))
}

/// Whether the server that was asked has ended in between: then it follows none.
fn has_ended(directory: &Path) -> bool {
    matches!(running::server(directory), Ok(None))
}

/// What counts of the server that a standby follows which for this reason did not say whether it hears it. One that is starting may have
/// been down together with it; of another one it is not known whether it streams.
fn of_mute(answer: Result<Answer>, why: &Error, is_passing: bool) -> Result<Answer> {
    match answer {
        Ok(answer @ (Answer::Lives(_) | Answer::Unknown(_))) => Ok(answer),
        answer if is_passing => answer,
        _ => Ok(unknown(why)),
    }
}

/// A message to a walreceiver proves that its server lives. While it streams, one after the `last` is waited for until the time is over.
/// `look`: when one came, by a clock that may be set; `None` if it does not stream.
fn await_message(
    answer: Result<Answer>,
    last: Option<i64>,
    end: Instant,
    look: impl Fn() -> Result<Option<i64>>,
    cancel: &Cancel,
) -> Result<Result<Answer>> {
    loop {
        match look() {
            Ok(None) => return Ok(answer),
            Ok(received) if received != last => return Ok(Ok(Answer::Lives(HEARD.to_owned()))),
            Ok(Some(_)) => {}
            Err(error) => {
                cancel.check()?;
                // that no message is known of makes no silence
                return Ok(Ok(match answer {
                    Ok(answer @ (Answer::Lives(_) | Answer::Unknown(_))) => answer,
                    _ => unknown(&error),
                }));
            }
        }
        if end.saturating_duration_since(Instant::now()) < OWN_WORD {
            return Ok(answer);
        }
        cancel.check()?;
        std::thread::sleep(PAUSE);
    }
}

/// The environment that a server was started with.
fn environment_of(postmaster: u32) -> Result<Vec<(OsString, OsString)>> {
    let file = format!("/proc/{postmaster}/environ");
    let text = fs::read(&file).map_err(Error::on_path("read file", &file))?;
    let pairs = text.split(|&byte| byte == 0).filter_map(|pair| {
        let at = pair.iter().position(|&byte| byte == b'=')?;
        Some((OsStr::from_bytes(&pair[..at]).to_owned(), OsStr::from_bytes(&pair[at + 1..]).to_owned()))
    });
    Ok(pairs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::host::upstream::silence;

    #[test]
    fn the_last_look_at_the_walreceiver_is_no_silence_if_it_fails() {
        let after = |answer, looked: Result<Option<i64>>| {
            let end = Instant::now() + OWN_WORD + PAUSE;
            await_message(answer, Some(100), end, || looked.clone(), &Cancel::new()).expect("not canceled")
        };
        let silent = || Err(silence("timeout expired"));
        for answer in [silent(), Ok(Answer::Standby)] {
            assert_eq!(after(answer.clone(), Ok(None)), answer);
            assert_eq!(after(answer.clone(), Ok(Some(100))), answer);
            for received in [101, 99] {
                assert_eq!(after(answer.clone(), Ok(Some(received))), Ok(Answer::Lives(HEARD.to_owned())));
            }
            let mute = Err(Error::new(Kind::StartFailed, "it does not tell"));
            assert_eq!(after(answer, mute), Ok(Answer::Unknown("it does not tell".to_owned())));
        }
        let lives = || Ok(Answer::Lives("FATAL: no".to_owned()));
        assert_eq!(after(lives(), Err(Error::new(Kind::StartFailed, "it does not tell"))), lives());
    }

    #[test]
    fn a_standby_that_does_not_say_whom_it_hears_makes_no_silence() {
        let mute = |said: &str| Error::new(Kind::StartFailed, "it does not tell").detail(said);
        let (barred, starting) =
            (mute("FATAL:  no pg_hba.conf entry"), mute("FATAL:  the database system is starting up"));
        let silent = || Err(silence("timeout expired"));
        assert!(
            matches!(of_mute(silent(), &barred, false), Ok(Answer::Unknown(why)) if why.contains("pg_hba.conf"))
        );
        assert!(matches!(of_mute(Ok(Answer::Standby), &barred, false), Ok(Answer::Unknown(_))));
        assert_eq!(of_mute(silent(), &starting, true), silent());
        for is_passing in [false, true] {
            let lives = || Ok(Answer::Lives("FATAL: no".to_owned()));
            assert_eq!(of_mute(lives(), &barred, is_passing), lives());
        }
    }

    #[test]
    fn the_environment_of_a_server_is_read() {
        let mut server = std::process::Command::new("sleep");
        let mut server = server.arg("60").env_clear().env("PGSSLROOTCERT", "a=b").spawn().expect("sleep");
        // until its exec it has that of this process
        let found = loop {
            match environment_of(server.id()) {
                Ok(found) if found.len() == 1 => break found,
                _ => std::thread::sleep(PAUSE),
            }
        };
        server.kill().and_then(|()| server.wait()).expect("ended");
        assert_eq!(found, [("PGSSLROOTCERT".into(), "a=b".into())]);
        assert!(environment_of(u32::MAX).is_err());
    }
}

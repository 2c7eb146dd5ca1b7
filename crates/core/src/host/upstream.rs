//! The server that a standby follows, asked over the standby's own connection string: does it live, and as what?
//!
//! It counts as gone only if no host that the string names can be connected to. Any other outcome means that a server lives
//! there, or that it is not known whether one does (S11).

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use super::identify::{self, Identity};
use crate::error::{Error, Kind, Result};
use crate::sys::cancel::Cancel;
use crate::sys::parallel::{self, Job};
use crate::sys::process;
use crate::wire::protocol::upstream::{Answer, Endpoint, Told};

mod listen;
pub mod ready;
mod said;
mod way;

pub(crate) use listen::of;

use ready::Ready;
use said::Said;
use way::{Host, Way};

/// How long one that starts or ends is left alone before it is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// How much longer than its connection psql or pg_isready may take.
const MARGIN: Duration = Duration::from_millis(800);

/// The server that a connection string leads to.
pub struct Upstream<'a> {
    /// Where psql is.
    pub bin_directory: &'a Path,
    /// The standby's: names of files in the string are meant from there.
    pub data_directory: &'a Path,
    /// Its primary_conninfo.
    pub conninfo: &'a str,
    /// The environment of its server.
    pub environment: &'a [(OsString, OsString)],
    /// Of the standby.
    pub system_identifier: u64,
}

/// What is told of a server that a walreceiver has received a message of.
pub const HEARD: &str = "the standby's walreceiver has received messages from it since this call began";

/// An answer that is none.
fn unknown(error: &Error) -> Answer {
    let texts = [Some(&error.message), error.detail.as_ref()];
    Answer::Unknown(
        texts.into_iter().flatten().map(|text| text.trim_end_matches('.')).collect::<Vec<_>>().join(": "),
    )
}

/// Whether an error says that nobody is there, in the time that was given. Any other tells nothing of the server.
pub fn is_silence(error: &Error) -> bool {
    error.kind == Kind::Unreachable
}

/// Whether nothing listens at any of the places where the server should be, which is more than that nothing answers.
pub fn is_refused(error: &Error) -> bool {
    is_silence(error) && error.detail.as_ref().is_some_and(|detail| said::judge(detail) == Said::Refused)
}

/// Whether psql had not said anything when the time was over.
fn is_wordless(error: &Error) -> bool {
    is_silence(error) && error.detail.as_ref().is_none_or(|detail| said::judge(detail) == Said::Unclear)
}

fn silence(said: impl Into<String>) -> Error {
    Error::new(Kind::Unreachable, "the server that this standby follows does not answer").detail(said)
}

impl Upstream<'_> {
    /// Asks it as a walreceiver would; no other gets to see the credentials in the string. All hosts that this names are asked at
    /// once.
    ///
    /// A server that is starting or shutting down is asked again until `time` is over.
    pub fn ask(&self, time: Duration, cancel: &Cancel) -> Result<Told> {
        let end = Instant::now() + time;
        let way = match Way::new(self) {
            Ok(way) => way,
            Err(error) => return Ok(Told::of(Ok(unknown(&error)))),
        };
        let left = || end.saturating_duration_since(Instant::now());
        let mut answers = Vec::new();
        let mut hosts = Vec::new();
        let names = way.hosts().into_iter().map(|host| Job {
            name: "the name service".to_owned(),
            time: left(),
            work: Box::new(move |cancel: &Cancel| Ok(host.at_its_addresses(time / 2, cancel))),
        });
        for found in parallel::ask(names.collect(), cancel) {
            match found {
                Ok(Ok(at)) => hosts.extend(at),
                // one whose address is not known was not asked
                Ok(Err(said)) => answers.push((None, Ok(Answer::Unknown(said)))),
                Err(error) => answers.push((None, Ok(unknown(&error)))),
            }
        }
        let way = &way;
        let places: Vec<_> = hosts.iter().map(Host::endpoint).collect();
        let ask = |host: Host| Job {
            name: "the server that this standby follows".to_owned(),
            time: left(),
            work: Box::new(move |cancel: &Cancel| match self.ask_until(way, &host, end, cancel) {
                // psql may still have waited for the name service
                Err(error) if host.is_name() && is_wordless(&error) => Ok(unknown(&error)),
                answer => answer,
            }),
        };
        let greet = |host: Host| Job {
            name: "the server that this standby follows".to_owned(),
            time: left(),
            work: Box::new(move |cancel: &Cancel| self.greet(&host, end, cancel)),
        };
        let jobs = hosts.iter().cloned().map(ask).chain(hosts.iter().cloned().map(greet));
        let mut asked = parallel::ask(jobs.collect(), cancel);
        let greetings = asked.split_off(hosts.len());
        let asked = asked.into_iter().zip(greetings).map(|(answer, greeting)| match (answer, greeting) {
            (Err(error), Ok(lives)) if is_silence(&error) && !is_refused(&error) => Ok(lives),
            (answer, _) => answer,
        });
        answers.extend(places.into_iter().zip(asked));
        cancel.check()?;
        Ok(sum_up(answers))
    }

    /// Asks one host until it says something that lasts.
    fn ask_until(&self, way: &Way, host: &Host, end: Instant, cancel: &Cancel) -> Result<Answer> {
        let mut passing = None;
        let mut lets_others_in = false;
        loop {
            match self.ask_host(way, host, end, cancel) {
                // One that starts or ends will soon say something else, or nothing; what it says is in a language of its own. One that
                // lets others in has either just started, or goes on to refuse.
                Ok((answer @ Answer::Lives(_), _)) => {
                    let is_ready = self.is_ready(host, end, cancel);
                    if is_ready && lets_others_in {
                        return Ok(answer);
                    }
                    lets_others_in = is_ready;
                    passing = Some(answer);
                }
                // a server that dies may close a connection, and be gone the next moment
                Ok((answer, true)) => passing = passing.or(Some(answer)),
                Err(error) if is_refused(&error) => return Err(error),
                // neither no answer in time nor a failure here takes back anything
                Err(error) => return passing.ok_or(error),
                Ok((answer @ Answer::Unknown(_), _)) => return Ok(passing.unwrap_or(answer)),
                Ok((answer, _)) => return Ok(answer),
            }
            if cancel.is_tripped() || Instant::now() + PAUSE >= end {
                return passing.ok_or_else(Error::canceled);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Whether one host speaks with a client at all: where a login takes too long, as with an LDAP server that is silent, psql says no
    /// more than of a host that is dead.
    fn greet(&self, host: &Host, end: Instant, cancel: &Cancel) -> Result<Answer> {
        if !host.is_chosen() {
            return Err(silence("pg_isready: not asked"));
        }
        match ready::ask(self.bin_directory, host.words().trim(), end, cancel)? {
            Ready::Accepts | Ready::Rejects => {
                Ok(Answer::Lives("it speaks with clients, but a login gets no answer in time".to_owned()))
            }
            Ready::Silent => Err(silence("pg_isready: no response")),
        }
    }

    /// Whether a server that has spoken lets clients in, or it cannot be told.
    fn is_ready(&self, host: &Host, end: Instant, cancel: &Cancel) -> bool {
        let ask = || ready::ask(self.bin_directory, host.words().trim(), end, cancel);
        !host.is_chosen() || ask().map_or(true, |ready| ready == Ready::Accepts)
    }

    /// Asks one host once. What it answers, and whether it closed the connection instead.
    fn ask_host(&self, way: &Way, host: &Host, end: Instant, cancel: &Cancel) -> Result<(Answer, bool)> {
        let time = end.saturating_duration_since(Instant::now());
        // so that libpq can say itself that it was too long, which takes no less than 2 s for that
        let seconds = time.saturating_sub(MARGIN).as_secs().max(2);
        let run = || process::run_for(way.command(self, host, seconds)?, time, cancel);
        let outcome = match run() {
            Ok(Some(outcome)) => outcome,
            Ok(None) => return Err(silence(format!("no answer within {:.1} s", time.as_secs_f32()))),
            Err(error) => {
                cancel.check()?;
                return Ok((unknown(&error), false));
            }
        };
        let text = outcome.said();
        if outcome.status.success() {
            let found = parse(&outcome.stdout, self.system_identifier);
            return Ok((found.unwrap_or(Answer::Unknown(text)), false));
        }
        let told = || if text.is_empty() { format!("psql {}", outcome.describe()) } else { text.clone() };
        match said::judge(&outcome.stderr) {
            Said::Refused | Said::Silent => Err(silence(outcome.stderr)),
            Said::Lives => Ok((Answer::Lives(text), false)),
            Said::Closed => Ok((Answer::Unknown(told()), true)),
            Said::Unclear => Ok((Answer::Unknown(told()), false)),
        }
    }
}

/// How bad an answer is for a promotion.
const fn rank(answer: &Result<Answer>) -> u8 {
    match answer {
        Err(_) => 0,
        Ok(Answer::Standby) => 2,
        Ok(Answer::Unknown(_)) => 3,
        Ok(Answer::Lives(_)) => 4,
        Ok(Answer::Primary(_)) => 5,
    }
}

/// What all hosts together say. The addresses of a name may be those of one server, which listens on some of them, or of several. A standby says
/// nothing of the primary also where target_session_attrs keeps it from being followed.
fn sum_up(answers: Vec<(Option<Endpoint>, Result<Answer>)>) -> Told {
    let mut servers: Vec<(Option<Endpoint>, Result<Answer>)> = Vec::new();
    let mut silences = Vec::new();
    for (at, answer) in answers {
        let answer = match answer {
            Err(error) if is_silence(&error) => {
                silences.push(error.detail.clone().unwrap_or_else(|| error.message.clone()));
                Err(error)
            }
            Err(error) => Ok(unknown(&error)),
            answer => answer,
        };
        match servers.iter_mut().find(|(server, _)| at.is_some() && *server == at) {
            Some((_, said)) if rank(&answer) > rank(said) => *said = answer,
            Some(_) => {}
            None => servers.push((at, answer)),
        }
    }
    let (standbys, others): (Vec<_>, Vec<_>) =
        servers.into_iter().partition(|(_, answer)| *answer == Ok(Answer::Standby));
    let named = |at: Option<Endpoint>| at.unwrap_or_else(|| Endpoint::new("", ""));
    let standbys: Vec<_> = standbys.into_iter().map(|(at, _)| named(at)).collect();
    let silent = others.iter().filter(|(_, answer)| answer.is_err()).map(|(at, _)| named(at.clone()));
    let silent: Vec<_> = silent.collect();
    let worst = others.into_iter().map(|(_, answer)| answer).max_by_key(rank);
    let answer = match worst {
        Some(Ok(answer)) => Ok(answer),
        None if !standbys.is_empty() => Ok(Answer::Standby),
        _ => Err(silence(silences.join("\n"))),
    };
    Told { answer, standbys, silent }
}

/// The answers: "7713200000000000001|1|0/3000148|" and "off".
fn parse(answer: &str, system_identifier: u64) -> Option<Answer> {
    let Identity { system_identifier: found, timeline, .. } = identify::parse(answer)?;
    let is_read_only = answer.lines().find_map(|line| match line.trim() {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    })?;
    Some(match found == system_identifier {
        true if is_read_only => Answer::Standby,
        true => Answer::Primary(timeline),
        // nor is that the end of the primary: something leads there that has led to it
        false => Answer::Unknown(format!(
            "a server of another system answers there: its system identifier is {found}"
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::tests::script;

    const CONNINFO: &str = "host=10.0.0.1 sslpassword='top secret' password='se cret' user=repl";

    fn ask(programs: &Path, conninfo: &str, environment: &[(OsString, OsString)]) -> Result<Answer> {
        told(programs, conninfo, environment).answer
    }

    fn told(programs: &Path, conninfo: &str, environment: &[(OsString, OsString)]) -> Told {
        let data_directory = programs;
        let upstream = Upstream {
            bin_directory: programs,
            data_directory,
            conninfo,
            environment,
            system_identifier: 42,
        };
        upstream.ask(Duration::from_secs(2), &Cancel::new()).expect("not canceled")
    }

    /// What is made of the answer of a script in psql's place, and how it was called.
    fn asked_for(conninfo: &str, answer: &str) -> (Result<Answer>, String) {
        let top = tempfile::tempdir().expect("temporary directory");
        let asked = top.path().join("asked");
        script(
            &top.path().join("psql"),
            &format!(
                "{{ echo \"$* in $PWD with $PGSSLROOTCERT\"; cat $PGSERVICEFILE; }} > {}; {answer}",
                asked.display()
            ),
        );
        let environment = [("PGSSLROOTCERT".into(), "/trusted".into())];
        let answer = ask(top.path(), conninfo, &environment);
        (answer, std::fs::read_to_string(asked).unwrap_or_default())
    }

    fn asked(answer: &str) -> (Result<Answer>, String) {
        asked_for(CONNINFO, answer)
    }

    #[test]
    fn a_primary_of_this_system_is_told_from_all_else() {
        let (answer, asked) = asked("echo '42|3|0/1|'; echo off");
        assert_eq!(answer, Ok(Answer::Primary(3)));
        let (arguments, file) = asked.split_once('\n').expect("both");
        assert!(arguments.contains("host=10.0.0.1") && arguments.contains("replication=true"), "{asked}");
        assert!(arguments.ends_with(" with /trusted") && !arguments.contains(" in / "), "{asked}");
        assert!(!arguments.contains("cret") && !arguments.contains("repl "), "{asked}");
        assert_eq!(file, "[pgpool_recovery]\nsslpassword=top secret\npassword=se cret\nuser=repl\n");
        assert_eq!(self::asked("echo '42|3|0/1|'; echo on").0, Ok(Answer::Standby));
        for read_only in ["on", "off"] {
            let other = self::asked(&format!("echo '43|3|0/1|'; echo {read_only}")).0;
            assert!(matches!(other, Ok(Answer::Unknown(why)) if why.contains("another system")));
        }
    }

    const AT: &str = "psql: error: connection to server at \"db1\" (10.0.0.1), port 5432 failed:";

    #[test]
    fn silence_is_an_error() {
        for said in ["Connection refused", "No route to host", "timeout expired"] {
            let error = asked(&format!("echo '{AT} {said}' >&2; exit 2")).0.expect_err("no answer");
            assert!(
                is_silence(&error) && error.detail.as_ref().is_some_and(|it| it.contains(said)),
                "{error:?}"
            );
            assert_eq!(is_refused(&error), said == "Connection refused");
        }
        assert!(asked("sleep 60").0.is_err_and(|error| is_silence(&error)), "nobody spoke in time");
    }

    #[test]
    fn who_speaks_with_clients_is_not_silent() {
        let ask = |psql: &str, pg_isready: &str| {
            let top = tempfile::tempdir().expect("temporary directory");
            script(&top.path().join("psql"), psql);
            script(&top.path().join("pg_isready"), pg_isready);
            ask(top.path(), CONNINFO, &[])
        };
        let (timeout, refused) = (
            format!("echo '{AT} timeout expired' >&2; exit 2"),
            format!("echo '{AT} Connection refused' >&2; exit 2"),
        );
        for psql in [timeout.as_str(), "sleep 60"] {
            for code in [0, 1] {
                let found = ask(psql, &format!("exit {code}"));
                assert!(matches!(&found, Ok(Answer::Lives(why)) if why.contains("login")), "{found:?}");
            }
            for none in ["exit 2", "exit 3", "exit 127", "sleep 60", "kill -9 $$"] {
                assert!(ask(psql, none).is_err_and(|error| is_silence(&error)), "{none}");
            }
        }
        assert!(ask(&refused, "exit 0").is_err_and(|error| is_refused(&error)), "it has just ended");
        assert_eq!(ask("echo '42|3|0/1|'; echo on", "exit 0"), Ok(Answer::Standby));
    }

    #[test]
    fn a_failure_here_is_no_silence() {
        for (answer, said) in [
            ("echo '42|3|0/1|'", "42"),
            ("echo off", "off"),
            ("exit 1", "exited with code 1"),
            ("kill -9 $$", "killed by signal 9"),
            ("echo 'psql: error: could not open certificate file' >&2; exit 2", "certificate"),
            ("echo 'psql: libpq.so.5: cannot open: No such file or directory' >&2; exit 127", "libpq"),
        ] {
            let found = asked(answer).0;
            assert!(matches!(&found, Ok(Answer::Unknown(why)) if why.contains(said)), "{answer}: {found:?}");
        }
        for conninfo in ["host", "host=db1 service=nowhere_to_be_found", CONNINFO] {
            let found = ask(Path::new("/nonexistent"), conninfo, &[]);
            assert!(matches!(found, Ok(Answer::Unknown(_))), "{conninfo}: {found:?}");
        }
    }

    #[test]
    fn a_refusal_comes_from_a_server_that_lives() {
        for why in ["FATAL:  sorry, too many clients already", "SSL error: certificate verify failed"] {
            let answer = asked(&format!("echo '{AT} {why}' >&2; exit 2")).0.expect("an answer");
            assert!(matches!(&answer, Answer::Lives(text) if text.contains(why)), "{answer:?}");
        }
    }

    #[test]
    fn all_hosts_are_asked_at_once_and_one_that_lives_counts() {
        let begin = Instant::now();
        let by_host = |first: &str, second: &str| {
            let script = format!("case \"$*\" in *host=/one*) {first};; *) {second};; esac");
            asked_for("host=/one,/two", &script).0
        };
        let refused = format!("echo '{AT} Connection refused' >&2; exit 2");
        let lives = "echo '42|3|0/1|'; echo off";
        assert_eq!(by_host("sleep 60", lives), Ok(Answer::Primary(3)));
        assert_eq!(by_host(lives, &refused), Ok(Answer::Primary(3)));
        assert_eq!(by_host("echo '42|3|0/1|'; echo on", lives), Ok(Answer::Primary(3)));
        assert!(matches!(by_host("exit 1", &refused), Ok(Answer::Unknown(_))));
        assert!(by_host(&refused, &refused).is_err_and(|error| is_refused(&error)));
        let silent = by_host(&refused, "sleep 60").expect_err("nobody is there");
        assert!(is_silence(&silent) && !is_refused(&silent), "{silent:?}");
        assert!(begin.elapsed() < Duration::from_secs(12), "{:?}", begin.elapsed());
        let standby = "echo '42|3|0/1|'; echo on";
        assert_eq!(by_host(standby, standby), Ok(Answer::Standby));
        assert!(
            by_host(&refused, standby).is_err_and(|error| is_refused(&error)),
            "it may have been the primary"
        );
        assert!(by_host("sleep 60", standby).is_err_and(|error| is_silence(&error)));
        let other = asked_for("host=/one target_session_attrs=read-write", standby).0;
        assert_eq!(other, Ok(Answer::Standby), "that it is not followed makes it no silence");
    }

    #[test]
    fn a_host_whose_name_is_not_resolved_was_not_asked() {
        let unresolved = "psql: error: could not translate host name \"db1.invalid\" to address: Temporary failure in name resolution";
        for answer in [format!("echo '{unresolved}' >&2; exit 2"), "sleep 60".to_owned()] {
            let answer = asked_for("host=db1.invalid", &answer).0;
            assert!(matches!(answer, Ok(Answer::Unknown(_))), "{answer:?}");
        }
    }

    #[test]
    fn each_address_of_a_host_may_be_a_server_of_its_own() {
        let at = |host: &str, address: &str| {
            Some(Endpoint { address: address.to_owned(), ..Endpoint::new(host, "5432") })
        };
        let refused = || Err(silence(format!("{AT} Connection refused")));
        let standby = || Ok(Answer::Standby);
        let summed = |answers: &[(Option<Endpoint>, Result<Answer>)]| sum_up(answers.to_vec());
        let sender = Endpoint::new("a", "5432");
        let one = summed(&[(at("a", "1"), refused()), (at("a", "2"), standby())]);
        assert!(one.answer.as_ref().is_err_and(is_refused), "it may have been the primary");
        assert_eq!(one.standbys, [at("a", "2").expect("named")]);
        assert_eq!(one.silent[0].address, "1");
        assert!(!one.is_standbys(&sender), "it may go on with the connections that it has");
        let silent = || Err(silence("timeout expired"));
        let one = summed(&[(at("a", "1"), silent()), (at("a", "2"), standby())]);
        assert!(!one.is_standbys(&sender), "it may send what was heard");
        let one = summed(&[(at("a", "1"), standby()), (at("a", "2"), Ok(Answer::Primary(1)))]);
        assert_eq!((one.answer, one.standbys.len()), (Ok(Answer::Primary(1)), 1));
        let two = summed(&[(at("a", ""), refused()), (at("b", ""), standby())]);
        assert!(two.answer.is_err_and(|error| is_refused(&error)), "it may have been the primary");
        assert_eq!(two.standbys, [at("b", "").expect("named")], "and beyond that one there may be another");
        let unnamed = summed(&[(None, standby())]);
        assert!(unnamed.answer == standby() && unnamed.standbys[0].host.is_empty());
        let top = tempfile::tempdir().expect("temporary directory");
        script(&top.path().join("psql"), "echo '42|3|0/1|'; echo on");
        let at = |conninfo: &str| told(top.path(), conninfo, &[]).standbys;
        assert_eq!(at("hostaddr=10.0.0.1"), [Endpoint::new("10.0.0.1", "5432")]);
        assert_eq!(at("host=/run port=7"), [Endpoint::new("/run", "7")]);
        assert_eq!(at("host=/run target_session_attrs=primary"), [Endpoint::new("/run", "5432")]);
    }

    #[test]
    fn one_that_ends_or_starts_is_asked_again() {
        let first_then = |first: &str, then: &str| {
            let begun = "$(dirname $0)/begun";
            asked(&format!("[ -e {begun} ] || {{ touch {begun}; echo '{AT} {first}' >&2; exit 2; }}; {then}"))
                .0
        };
        let (ends, closes) =
            ("FATAL:  the database system is shutting down", "server closed the connection unexpectedly");
        for first in [ends, closes] {
            let gone = first_then(first, &format!("echo '{AT} Connection refused' >&2; exit 2"));
            assert!(gone.is_err_and(|error| is_refused(&error)));
            assert_eq!(first_then(first, "echo '42|3|0/1|'; echo off"), Ok(Answer::Primary(3)));
        }
        for then in ["sleep 60", &format!("echo '{AT} timeout expired' >&2; exit 2"), "exit 1"] {
            let answer = first_then(ends, then).expect("still an answer");
            assert!(matches!(&answer, Answer::Lives(text) if text.contains("shutting down")), "{answer:?}");
        }
        let answer = first_then(closes, &format!("echo '{AT} {closes}' >&2; exit 2"));
        assert!(matches!(&answer, Ok(Answer::Unknown(text)) if text.contains("closed")), "{answer:?}");
    }
}

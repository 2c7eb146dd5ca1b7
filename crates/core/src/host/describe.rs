//! What the server in a directory is by its own word: what it says to a login from its own host, besides what its files
//! tell. pg_control of a running server lags behind, so it never decides alone.

use std::path::Path;
use std::time::{Duration, Instant};

use pgdata::wal::Lsn;

use super::identify::{self, Identity};
use super::launch::STANDBY_SIGNAL;
use super::policy::Cluster;
use super::procfs::PidFile;
use super::upstream::ready::{self, Ready};
use super::{control, fence, inspect, running, second_stage, turn, walreceiver};
use crate::compare::wal_map::Wal;
use crate::error::{Error, Kind, Result};
use crate::replication::conninfo::escaped;
use crate::sys::cancel::Cancel;
use crate::sys::{process, small_file};
use crate::wire::protocol::describe::{Description, Said};
use crate::wire::protocol::upstream::Endpoint;

/// How long a local login may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// The same for a description: who asks for it waits for 5 s, and a server that does not say in time what it is is judged by its files.
const SAID: Duration = Duration::from_millis(3500);

/// How long pg_isready may take here.
const READY: Duration = Duration::from_secs(3);

/// What a server is asked besides IDENTIFY_SYSTEM.
const QUESTION: &str = "SELECT 'said', pg_catalog.pg_is_in_recovery(), pg_catalog.pg_last_wal_receive_lsn(), \
     pg_catalog.pg_last_wal_replay_lsn(), \
     CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() ELSE false END, \
     (SELECT s.setting FROM pg_catalog.pg_settings AS s WHERE s.name = 'recovery_min_apply_delay')";

/// Describes a directory and the server that runs there, if one does.
pub fn describe(cluster: &Cluster, cancel: &Cancel) -> Result<Description> {
    let directory = &cluster.data_directory;
    let running = running::server(directory)?;
    let signal = directory.join(STANDBY_SIGNAL);
    let has_standby_signal = signal.try_exists().map_err(Error::on_path("stat file", &signal))?;
    // asked before the files are read: what it says is then in them, or they are newer
    let said = running.map(|_| said(cluster, cancel));
    let (control, _) = control::read(directory)?;
    let version = directory.join("PG_VERSION");
    let major_version = small_file::read(&version, 64).map_err(Error::on_path("read file", &version))?;
    let major_version = major_version.map(|text| String::from_utf8_lossy(&text).trim().to_owned());
    let timeline = inspect::latest_timeline(directory, &control)?;
    let said = said.map(|said| {
        said.and_then(|(identifier, said)| {
            demand_own(identifier, control.system_identifier, directory).map(|()| said)
        })
    });
    cancel.check()?;
    let pg_wal = directory.join("pg_wal");
    let wal = Wal::new(&pg_wal, &control);
    let history = wal.lineage(timeline)?;
    Ok(Description {
        running,
        has_standby_signal,
        landmark: wal.landmark(&control, &history, cancel)?,
        history,
        control,
        major_version,
        said,
        is_busy: turn::is_taken(directory)?,
        fence: fence::read(directory)?,
        second_stage: second_stage::read(directory)?,
        stopped_startup: walreceiver::stopped_startup(directory),
    })
}

/// The server that a standby follows, by the standby's own word.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Followed {
    /// How it connects there.
    pub(super) conninfo: String,
    /// When its walreceiver got the last message from there, if it streams: microseconds since 1970 by that server's clock.
    pub(super) received: Option<i64>,
    /// Where it gets them from.
    pub(super) sender: Option<Endpoint>,
}

/// What the standby that runs in a directory follows; `None` if it is no standby, or follows none.
pub(super) fn followed(cluster: &Cluster, cancel: &Cancel) -> Result<Option<Followed>> {
    let question = "SELECT 'follows', \
         (SELECT CASE WHEN r.status IS NULL THEN 'hidden' WHEN r.status OPERATOR(pg_catalog.=) 'streaming' \
         THEN (EXTRACT(EPOCH FROM r.last_msg_receipt_time) * 1000000)::int8::text END \
         FROM pg_catalog.pg_stat_wal_receiver AS r), \
         (SELECT pg_catalog.replace(r.sender_host, '|', '') FROM pg_catalog.pg_stat_wal_receiver AS r), \
         (SELECT r.sender_port FROM pg_catalog.pg_stat_wal_receiver AS r), \
         pg_catalog.current_setting('primary_conninfo') WHERE pg_catalog.pg_is_in_recovery()";
    let answer = ask(cluster, question, DEADLINE, cancel)?;
    let Some(line) = answer.lines().find_map(|line| line.trim().strip_prefix("follows|")) else {
        return Ok(None);
    };
    let unclear = || mute(cluster).detail(format!("psql said:\n{answer}"));
    let [received, host, port, conninfo] = line.splitn(4, '|').collect::<Vec<_>>()[..] else {
        return Err(unclear());
    };
    let received = match received {
        "" => None,
        // a role without the right to read it sees that there is a walreceiver, and no more
        time => Some(time.parse().map_err(|_| unclear())?),
    };
    let sender = (!host.is_empty()).then(|| Endpoint::new(host, port));
    Ok((!conninfo.is_empty()).then(|| Followed { conninfo: conninfo.to_owned(), received, sender }))
}

/// What the server that runs in the directory says of itself, and its system identifier.
fn said(cluster: &Cluster, cancel: &Cancel) -> Result<(u64, Said)> {
    let answer = ask(cluster, QUESTION, SAID, cancel)?;
    parse(&answer).ok_or_else(|| mute(cluster).detail(format!("psql said:\n{answer}")))
}

fn mute(cluster: &Cluster) -> Error {
    let directory = cluster.data_directory.display();
    Error::new(Kind::StartFailed, format!("the server in \"{directory}\" does not tell its position"))
        .hint("Its own OS user must be able to log in to database postgres on its host (pg_hba.conf: local all all peer), as a superuser or with the REPLICATION right and pg_monitor.")
}

/// Whether the server in the directory is starting up or shutting down, and so rejects connections.
pub(super) fn rejects(cluster: &Cluster, cancel: &Cancel) -> bool {
    let Ok(Some((host, port))) = address(&cluster.data_directory) else { return false };
    let end = Instant::now() + READY;
    ready::ask_at(&cluster.bin_directory, &host, port, end, cancel).is_ok_and(|ready| ready == Ready::Rejects)
}

/// Asks the server that runs in the directory, as the OS user that it runs as.
fn ask(cluster: &Cluster, question: &str, time: Duration, cancel: &Cancel) -> Result<String> {
    let Some((host, port)) = address(&cluster.data_directory)? else {
        let detail = "Its postmaster.pid names no address: it is starting, or listens nowhere.";
        return Err(mute(cluster).detail(detail));
    };
    // A walsender that is connected to a database takes SQL, too, and pg_hba.conf treats it as any session.
    let host = escaped(&host);
    let conninfo =
        format!("host='{host}' port={port} dbname=postgres replication=database connect_timeout=5");
    let command = identify::command(&cluster.bin_directory, &conninfo, Some(question));
    let outcome = process::run(command, time, cancel)?;
    if outcome.status.success() { Ok(outcome.stdout) } else { Err(mute(cluster).detail(outcome.said())) }
}

/// The answers: "7713200000000000001|1|0/3000148|" and "said|t|0/3000148|0/3000148|f|0".
fn parse(answer: &str) -> Option<(u64, Said)> {
    let Identity { system_identifier, timeline, position } = identify::parse(answer)?;
    let said = answer.lines().find_map(|line| line.trim().strip_prefix("said|"))?;
    let [in_recovery, received, replayed, is_paused, apply_delay] = said.split('|').collect::<Vec<_>>()[..]
    else {
        return None;
    };
    let lsn = |text: &str| if text.is_empty() { Some(None) } else { text.parse::<Lsn>().ok().map(Some) };
    let flag = |text: &str| match text {
        "t" => Some(true),
        "f" => Some(false),
        _ => None,
    };
    let said = Said {
        in_recovery: flag(in_recovery)?,
        timeline,
        position: position.parse().ok()?,
        received: lsn(received)?,
        replayed: lsn(replayed)?,
        is_paused: flag(is_paused)?,
        apply_delay: apply_delay.parse().ok()?,
    };
    Some((system_identifier, said))
}

/// Where the server listens: its socket directory if it has one, else its first address, and its port.
fn address(directory: &Path) -> Result<Option<(String, u16)>> {
    let file = directory.join("postmaster.pid");
    let file = PidFile::read(directory).map_err(Error::on_path("read file", &file))?;
    Ok(file.and_then(|PidFile { port, socket_directory, listen_address, .. }| {
        let host = socket_directory.or_else(|| {
            listen_address.map(|address| match address.as_str() {
                "*" | "0.0.0.0" | "::" => "localhost".to_owned(),
                _ => address,
            })
        });
        Some((host?, port?))
    }))
}

/// Refuses the answer of another server.
fn demand_own(identifier: u64, own: u64, directory: &Path) -> Result<()> {
    if identifier == own {
        return Ok(());
    }
    let message = format!("the server in \"{}\" does not answer where it listens", directory.display());
    Err(Error::new(Kind::StartFailed, message).detail(format!(
        "The server there has system identifier {identifier}, the directory's pg_control has {own}."
    )))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::manifest::exclude::FENCED;
    use crate::sys::process::tests::script;

    /// A data directory of a standby on timeline 3, with a psql beside it.
    fn standby(psql: &str) -> (tempfile::TempDir, Cluster) {
        let data = tempfile::tempdir().expect("temporary directory");
        let place = data.path().canonicalize().expect("real path");
        for directory in ["global", "pg_wal"] {
            fs::create_dir_all(place.join(directory)).expect("make");
        }
        const DB_IN_ARCHIVE_RECOVERY: u32 = 5;
        let control = pgdata::control_file::sample_in_state(42, DB_IN_ARCHIVE_RECOVERY);
        fs::write(place.join("global/pg_control"), control).expect("write");
        fs::write(place.join("standby.signal"), "").expect("write");
        fs::write(place.join("PG_VERSION"), "15\n").expect("write");
        fs::write(place.join("pg_wal/000000070000000000000001"), "").expect("write");
        fs::write(place.join("pg_wal/00000007.history"), "1\t0/2000000\tno recovery target specified\n")
            .expect("write");
        script(&place.join("psql"), psql);
        (data, Cluster::new(place.clone(), place))
    }

    /// Describes it while a server, as far as can be told, runs there and listens as these lines of postmaster.pid say.
    fn running(psql: &str, listens: &str) -> (Description, String) {
        let (_data, cluster) = standby(psql);
        let place = cluster.data_directory.clone();
        let mut server = running::tests::serve(&place);
        fs::write(place.join("postmaster.pid"), format!("{}\n/x\n77\n{listens}", server.id()))
            .expect("write");
        let described = describe(&cluster, &Cancel::new());
        server.kill().and_then(|()| server.wait()).expect("ended");
        let asked = fs::read_to_string(place.join("asked")).unwrap_or_default();
        (described.expect("described"), asked)
    }

    const SPEAKS: &str =
        "echo \"$*\" > $(dirname $0)/asked; echo '42|7|0/3000148|'; echo 'said|t|0/3000148|0/3000100|f|0'";

    #[test]
    fn a_running_standby_speaks_for_itself() {
        let (found, asked) = running(SPEAKS, "5433\n/tmp/it's\n*\n");
        let said = found.said.expect("it runs").expect("it speaks");
        assert!(said.in_recovery && !said.is_paused && found.has_standby_signal);
        assert_eq!((said.timeline, said.reached()), (7, Lsn(0x0300_0148)));
        assert_eq!((said.received, said.replayed), (Some(Lsn(0x0300_0148)), Some(Lsn(0x0300_0100))));
        assert!(asked.contains(r"host='/tmp/it\'s' port=5433"), "{asked}");
        assert_eq!((found.history.timeline(), found.history.begin()), (7, Lsn(0x0200_0000)));
        assert_eq!(found.major_version.as_deref(), Some("15"));
        let (_, asked) = running(SPEAKS, "5433\n\n*\n");
        assert!(asked.contains("host='localhost' port=5433"), "{asked}");
    }

    #[test]
    fn a_server_that_says_nothing_has_not_said_no() {
        let why = |psql: &str, listens: &str| {
            let (found, _) = running(psql, listens);
            assert_eq!(found.history.timeline(), 7, "the files speak");
            found.said.expect("it runs").expect_err("no answer").detail.unwrap_or_default()
        };
        let refused = "echo 'FATAL: no pg_hba.conf entry' >&2; exit 2";
        assert!(why(refused, "5433\n/tmp\n\n").contains("no pg_hba.conf entry"));
        assert!(why("echo '43|7|0/1|'; echo 'said|t|||f|0'", "5433\n/tmp\n\n").contains("identifier 43"));
        for silent in [
            "true",
            "echo '42|7|0/1|'",
            "echo '42|x|0/1|'; echo 'said|t|||f|0'",
            "echo '42|7|0/1|'; echo 'said|?|||f'",
        ] {
            assert!(why(silent, "5433\n/tmp\n\n").contains("psql said"), "{silent}");
        }
        assert!(why(SPEAKS, "").contains("names no address"));
        assert!(why(SPEAKS, "5433\n\n\n").contains("names no address"));
    }

    #[test]
    fn a_stopped_server_is_what_its_files_say() {
        let (data, cluster) = standby(SPEAKS);
        let found = describe(&cluster, &Cancel::new()).expect("described");
        assert_eq!((found.running, found.said, found.fence), (None, None, None));
        assert_eq!(found.control.system_identifier, 42);
        let mark = r#"{"fenced": 7, "by": "node 1", "why": "promoted", "lsn": 117440512}"#;
        fs::write(data.path().join(FENCED), mark).expect("write");
        let mark = describe(&cluster, &Cancel::new()).expect("described").fence.expect("a mark");
        assert_eq!((mark.by.as_str(), mark.lsn), ("node 1", Some(Lsn(0x0700_0000))));
        fs::write(data.path().join(FENCED), "nonsense").expect("write");
        assert!(describe(&cluster, &Cancel::new()).is_err(), "a mark that cannot be read is no missing one");
        fs::remove_file(data.path().join("global/pg_control")).expect("remove");
        assert_eq!(describe(&cluster, &Cancel::new()).expect_err("none").kind, Kind::MissingFile);
    }
}

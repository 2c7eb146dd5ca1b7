//! The walreceiver of a standby and its startup process, as the kernel shows them: no login to the standby is needed.

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use rustix::time::{ClockId, clock_gettime};

use super::running;
use crate::replication::streaming::{Connections, Walreceiver};
use crate::sys::sockets::address;

/// Ticks a second in /proc/PID/stat: USER_HZ, the same for all processors that PostgreSQL is packaged for.
const TICKS: u64 = 100;

/// A connection that is established: TCP_ESTABLISHED in /proc/net/tcp, SS_CONNECTED in /proc/net/unix.
const TCP_ESTABLISHED: &str = "01";
const UNIX_CONNECTED: &str = "03";

/// The process that receives WAL for the server in `directory`.
pub(crate) fn find(directory: &Path) -> Option<Walreceiver> {
    children(directory)?.find(|(_, _, title)| is_walreceiver(title)).map(|(pid, stat, _)| Walreceiver {
        pid,
        age: stat.age(),
        connections: connections(pid).ok(),
    })
}

/// What the process that replays WAL says of itself: "startup recovering 000000010000000000000003".
pub(crate) fn startup(directory: &Path) -> Option<String> {
    children(directory)?.find_map(|(_, _, title)| startup_words(&title))
}

/// The process that replays WAL, and the files that it has open now, those of tablespaces included.
///
/// Before it replays anything it syncs every file, which its title does not tell.
pub(super) fn startup_files(directory: &Path) -> Option<(u32, Vec<PathBuf>)> {
    let (process, ..) = children(directory)?.find(|(_, _, title)| startup_words(title).is_some())?;
    let open = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let open = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    // sockets and the like have numbers in the place of names
    Some((process, open.filter(|file| file.is_absolute()).collect()))
}

/// The process that replays WAL, if a signal has stopped it.
pub fn stopped_startup(directory: &Path) -> Option<u32> {
    let (process, stat, _) = children(directory)?.find(|(_, _, title)| startup_words(title).is_some())?;
    stat.is_stopped.then_some(process)
}

/// The processes of the server in `directory`, with their titles.
fn children(directory: &Path) -> Option<impl Iterator<Item = (u32, Stat, String)>> {
    // a server that hides cannot be looked at, so nothing is proved by it
    let postmaster = running::find(directory).ok().flatten()?;
    if running::postmaster_pid(directory) != Some(postmaster) {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?;
    let children = processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|process: u32| Some((process, Stat::of(process)?)))
        .filter(move |(_, stat)| stat.parent == postmaster);
    Some(children.filter_map(|(process, stat)| Some((process, stat, title(process)?))))
}

/// What is needed of /proc/PID/stat (proc_pid_stat(5)).
struct Stat {
    /// By a signal, or by a debugger.
    is_stopped: bool,
    parent: u32,
    /// Ticks since the boot.
    started: u64,
}

impl Stat {
    fn of(process: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
    }

    /// The second field, the program's name in parentheses, may hold anything.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            is_stopped: matches!(*fields.first()?, "T" | "t"),
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }

    /// Milliseconds since the start.
    fn age(&self) -> u64 {
        let now = clock_gettime(ClockId::Boottime);
        let now = u64::try_from(now.tv_sec).unwrap_or(0) * 1000
            + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000;
        now.saturating_sub(self.started * (1000 / TICKS))
    }
}

/// The title that a process of PostgreSQL gives itself.
fn title(process: u32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{process}/cmdline")).ok()?;
    let words = bytes.split(|&byte| byte == 0).next()?;
    Some(String::from_utf8_lossy(words).into_owned())
}

/// Titles are "postgres: walreceiver streaming 0/3000148", with cluster_name before the kind of process if there is
/// one. The walreceiver's own words may be missing (update_process_title); a session's title has its user and
/// database there.
fn is_walreceiver(title: &str) -> bool {
    let Some(words) = title.strip_prefix("postgres: ") else {
        return false;
    };
    let mut words = words.split_whitespace().skip_while(|word| *word != "walreceiver");
    words.next().is_some() && matches!(words.next(), None | Some("streaming" | "idle" | "restarting"))
}

/// "postgres: startup recovering 000000010000000000000003", cluster_name and all.
fn startup_words(title: &str) -> Option<String> {
    let words = title.strip_prefix("postgres: ")?.split_whitespace().skip_while(|word| *word != "startup");
    let words: Vec<&str> = words.collect();
    let is_own = matches!(words.as_slice(), ["startup"] | ["startup", "recovering" | "waiting", ..]);
    is_own.then(|| words.join(" "))
}

/// The established connections of a process, in its own network namespace.
fn connections(process: u32) -> io::Result<Connections> {
    let mut sockets = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        // a file that was closed meanwhile
        let Ok(link) = fs::read_link(entry?.path()) else { continue };
        if let Some(inode) = link.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')) {
            sockets.insert(inode.to_owned());
        }
    }
    let mut found = Connections::default();
    let read = |table: &str, line: &mut dyn FnMut(&[&str])| -> io::Result<()> {
        let file = match fs::File::open(format!("/proc/{process}/net/{table}")) {
            // a kernel without IPv6
            Err(error) if error.kind() == io::ErrorKind::NotFound && table == "tcp6" => return Ok(()),
            file => file?,
        };
        for text in BufReader::new(file).lines() {
            line(&text?.split_whitespace().collect::<Vec<_>>());
        }
        Ok(())
    };
    for table in ["tcp", "tcp6"] {
        read(table, &mut |fields| {
            if let [_, local, peer, TCP_ESTABLISHED, _, _, _, _, _, inode, ..] = fields
                && sockets.contains(*inode)
            {
                found.tcp.extend(address(local));
                found.peers.extend(address(peer));
            }
        })?;
    }
    read("unix", &mut |fields| {
        if let [_, _, _, _, _, UNIX_CONNECTED, inode, ..] = fields {
            found.unix |= sockets.contains(*inode);
        }
    })?;
    Ok(found)
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_walreceiver_is_known_by_its_title() {
        for own in [
            "postgres: walreceiver ",
            "postgres: walreceiver streaming 0/3000148",
            "postgres: 15/main: walreceiver streaming 0/3000148",
            "postgres: walreceiver idle",
        ] {
            assert!(is_walreceiver(own), "{own}");
        }
        for other in ["postgres: walreceiver postgres [local] idle", "postgres: startup ", "psql walreceiver"]
        {
            assert!(!is_walreceiver(other), "{other}");
        }
    }

    #[test]
    fn a_startup_process_says_where_it_is() {
        let said = |title| startup_words(title);
        assert_eq!(
            said("postgres: 15/main: startup recovering 0A ").as_deref(),
            Some("startup recovering 0A")
        );
        assert_eq!(said("postgres: startup waiting for 0A").as_deref(), Some("startup waiting for 0A"));
        assert_eq!(said("postgres: startup ").as_deref(), Some("startup"));
        assert_eq!(said("postgres: startup postgres [local] idle"), None);
        assert_eq!(said("postgres: walwriter"), None);
    }

    #[test]
    fn stat_survives_any_name_of_a_program() {
        let text = "12 (a) S (b) S 7 1 1 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        let stat = Stat::parse(text).expect("fields");
        assert_eq!((stat.parent, stat.started), (7, 4242));
        let own = Stat::of(std::process::id()).expect("this process");
        assert!(own.age() < 3_600_000, "{}", own.age());
        assert!(Stat::parse("1 (x").is_none());
    }

    #[test]
    fn established_connections_of_a_process_are_found() {
        let own = |address| connections(std::process::id()).expect("readable").tcp.contains(&address);
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(host) else { continue };
            let stream = TcpStream::connect(listener.local_addr().expect("address")).expect("connected");
            let address = stream.local_addr().expect("address");
            assert!(own(address), "{address}");
            assert!(!own(listener.local_addr().expect("address")), "a listener is no connection");
        }
        let _pair = UnixStream::pair().expect("a pair");
        assert!(connections(std::process::id()).expect("readable").unix);
    }

    #[test]
    fn addresses_are_in_the_kernels_notation() {
        if cfg!(target_endian = "little") {
            assert_eq!(address("0100007F:1538"), Some("127.0.0.1:5432".parse().expect("an address")));
            let mapped = "0000000000000000FFFF00000100007F:1538";
            assert_eq!(address(mapped), Some("127.0.0.1:5432".parse().expect("an address")));
        }
        for bad in ["", "0100007F", "0100007F:x", "01:1", "\u{e9}100007:1538"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    /// A server, as far as can be told, whose startup process works on the file "one", and on "two" once "next" is there.
    pub(crate) struct Starting {
        server: std::process::Child,
    }

    impl Starting {
        pub(crate) fn new(place: &Path) -> Self {
            use std::os::unix::process::CommandExt;
            let script = "exec 3<one; while [ ! -e next ]; do sleep 0.02; done; exec 3<two; sleep 60; true";
            let titled = format!("(exec -a 'postgres: startup' bash -c '{script}') & wait");
            for name in ["one", "two"] {
                fs::write(place.join(name), "").expect("write");
            }
            let mut server = std::process::Command::new("bash");
            server.args(["-c", &titled]).current_dir(place).process_group(0);
            let server = server.spawn().expect("bash");
            fs::write(place.join("postmaster.pid"), format!("{}\n", server.id())).expect("write");
            Self { server }
        }
    }

    impl Drop for Starting {
        fn drop(&mut self) {
            let group = rustix::process::Pid::from_child(&self.server);
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            let _ = self.server.wait();
        }
    }

    pub(crate) fn await_file(place: &Path, name: &str) {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while startup_files(place).is_none_or(|(_, files)| !files.contains(&place.join(name))) {
            assert!(std::time::Instant::now() < deadline, "no {name}: {:?}", startup_files(place));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    #[test]
    fn the_file_that_a_startup_process_works_on_is_found() {
        let data = tempfile::tempdir().expect("temporary directory");
        let place = data.path().canonicalize().expect("real path");
        let _server = Starting::new(&place);
        await_file(&place, "one");
        fs::write(place.join("next"), "").expect("write");
        await_file(&place, "two");
        assert!(startup_files(&place).is_some_and(|(_, files)| !files.contains(&place.join("one"))));
    }

    #[test]
    fn a_directory_without_a_server_has_none() {
        let data = tempfile::tempdir().expect("temporary directory");
        assert_eq!(find(data.path()), None);
        let mut server = running::tests::serve(data.path());
        assert_eq!(find(data.path()), None, "it has no children");
        server.kill().and_then(|()| server.wait()).expect("ended");
    }
}

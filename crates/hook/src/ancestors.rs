//! The processes that this one comes from: Pgpool-II runs its commands by a shell, in its main process (a failover) or in one
//! that it has forked for it (the follow command).

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// Where packages and `make install` put the file.
const USUAL: &[&str] =
    &["/etc/pgpool2/pgpool.conf", "/etc/pgpool-II/pgpool.conf", "/usr/local/etc/pgpool.conf"];

/// A process, told from a later one of the same number by when it started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) number: u32,
    /// Clock ticks since the boot.
    pub(crate) started: u64,
}

impl Process {
    /// `number:started`, as [`Self::parse`] takes it.
    pub(crate) fn to_text(&self) -> String {
        format!("{}:{}", self.number, self.started)
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (number, started) = text.split_once(':')?;
        Some(Self { number: number.parse().ok()?, started: started.parse().ok()? })
    }

    /// Whether it has not ended.
    pub(crate) fn lives(&self) -> bool {
        Stat::of(self.number).is_some_and(|stat| stat.started == self.started && stat.state != "Z")
    }
}

struct Stat {
    name: String,
    state: String,
    parent: u32,
    started: u64,
}

impl Stat {
    fn of(number: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{number}/stat")).ok()?)
    }

    /// `12 (a name) S 1 ...`: proc(5).
    fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let mut fields = tail.split_whitespace();
        Some(Self {
            name: head.split_once('(')?.1.to_owned(),
            state: fields.next()?.to_owned(),
            parent: fields.next()?.parse().ok()?,
            // field 22; the two before are 3 and 4
            started: fields.nth(17)?.parse().ok()?,
        })
    }
}

/// Pgpool-II's processes above this one, the nearest first.
fn pools() -> Vec<Process> {
    let mut found = Vec::new();
    let mut number = std::os::unix::process::parent_id();
    while number > 1 {
        let Some(stat) = Stat::of(number) else { break };
        if stat.name == "pgpool" {
            found.push(Process { number, started: stat.started });
        }
        number = stat.parent;
    }
    found
}

/// The process that Pgpool-II has forked for its follow command, whose end lets other failovers in.
pub(crate) fn follow_process() -> Option<Process> {
    let pools = pools();
    // of one alone it is the main process
    (pools.len() > 1).then(|| pools[0].clone())
}

/// The pgpool.conf of the Pgpool-II that runs this, else one at a usual place.
pub(crate) fn pgpool_conf() -> Result<PathBuf> {
    for Process { number, .. } in pools().iter().rev() {
        let line = fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        if let Some(path) = option_f(&words) {
            let below = fs::read_link(format!("/proc/{number}/cwd")).unwrap_or_default();
            let variables = fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
            match resolve(Path::new(&path), &below, &variables) {
                Some(path) => return Ok(path),
                None => eprintln!(
                    "pgpool-recovery-hook: Pgpool-II was started with -f {path}, and in which directory is not known: \
                     name its file with --config"
                ),
            }
        }
    }
    let usual = USUAL.iter().map(Path::new).find(|path| path.exists());
    usual.map(Path::to_owned).ok_or_else(|| {
        Failure::new("no pgpool.conf was found")
            .hint(format!("Name it with --config. Looked at: {}.", USUAL.join(", ")))
    })
}

/// Where the file is. A daemon has left the directory that a relative path belongs to; its shell has said which it was.
fn resolve(path: &Path, now: &Path, variables: &[u8]) -> Option<PathBuf> {
    if path.is_absolute() {
        return Some(path.to_owned());
    }
    let variables = variables.split(|byte| *byte == 0);
    let start = variables.filter_map(|variable| variable.strip_prefix(b"PWD=")).next();
    let start = start.map(|start| Path::new(OsStr::from_bytes(start)));
    [Some(now), start].into_iter().flatten().map(|below| below.join(path)).find(|path| path.is_file())
}

/// The value of `-f` or `--config-file`.
fn option_f<T: AsRef<str>>(words: &[T]) -> Option<String> {
    let mut words = words.iter().map(AsRef::as_ref).skip(1);
    while let Some(word) = words.next() {
        if word == "-f" || word == "--config-file" {
            return words.next().map(str::to_owned);
        }
        let attached = word.strip_prefix("--config-file=").or_else(|| {
            // others of one letter may stand before it: -nf FILE, -nfFILE
            word.strip_prefix("-f").filter(|rest| !rest.is_empty())
        });
        if let Some(path) = attached {
            return Some(path.to_owned());
        }
        if word.len() > 2 && word.starts_with('-') && !word.starts_with("--") && word.ends_with('f') {
            return words.next().map(str::to_owned);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_that_of_the_command_line() {
        for (line, path) in [
            ("pgpool -n -f /a/pgpool.conf -F /a/pcp.conf", Some("/a/pgpool.conf")),
            ("pgpool --config-file=b.conf", Some("b.conf")),
            ("pgpool --config-file b.conf", Some("b.conf")),
            ("pgpool -fc.conf -n", Some("c.conf")),
            ("pgpool -nf c.conf", Some("c.conf")),
            ("pgpool -n -D", None),
            ("-f x", None),
            ("pgpool -f", None),
        ] {
            let words: Vec<_> = line.split(' ').collect();
            assert_eq!(option_f(&words).as_deref(), path, "{line}");
        }
    }

    #[test]
    fn a_daemons_relative_path_belongs_to_where_it_was_started() {
        let start = tempfile::tempdir().expect("temporary directory");
        fs::write(start.path().join("p.conf"), "").expect("write");
        let variables = format!("A=1\0PWD={}\0OLDPWD=/tmp\0", start.path().display());
        let path = Path::new("p.conf");
        let found = Some(start.path().join("p.conf"));
        assert_eq!(resolve(path, Path::new("/"), variables.as_bytes()), found);
        assert_eq!(resolve(path, start.path(), b""), found, "it has stayed there");
        assert_eq!(resolve(path, Path::new("/"), b"A=1\0"), None);
        assert_eq!(resolve(Path::new("/a/p.conf"), Path::new("/"), b""), Some("/a/p.conf".into()));
    }

    #[test]
    fn a_process_is_told_from_a_later_one() {
        let number = std::process::id();
        let own = Stat::of(number).expect("it runs");
        let process = Process { number, started: own.started };
        assert!(process.lives());
        assert_eq!(Process::parse(&process.to_text()), Some(process.clone()));
        assert!(!Process { started: own.started + 1, ..process }.lives());
        assert_eq!(Process::parse("x:1"), None);
        let stat = Stat::parse("7 (a ) b) S 3 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 99 0").expect("a line");
        assert_eq!((stat.name.as_str(), stat.parent, stat.started), ("a ) b", 3, 99));
    }
}

//! A host that is reached by ssh, and the one directory there that is ours.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::interrupt::{Outcome, failed};
use crate::tool::{self, Said};

/// The file that marks a directory as one that the bench made.
const MARK: &str = ".pgpool-recovery-bench";

/// What ssh itself exits with when there is no connection.
const NO_CONNECTION: i32 = 255;

#[derive(Debug)]
pub(super) struct Remote {
    /// `primary` or `standby`.
    role: &'static str,
    /// As given to ssh: `user@host`.
    destination: String,
    ssh: Vec<String>,
    /// Made by [`Remote::make_directory`], empty before.
    directory: String,
}

impl Remote {
    /// Nothing is connected yet. One connection serves all calls; its socket is in `sockets`.
    pub(super) fn new(role: &'static str, destination: &str, ssh: &str, sockets: &Path) -> Self {
        let mut ssh: Vec<String> = ssh.split_whitespace().map(str::to_owned).collect();
        let path = format!("ControlPath={}/{role}", sockets.display());
        for option in
            ["BatchMode=yes", "ConnectTimeout=10", "ControlMaster=auto", "ControlPersist=600", path.as_str()]
        {
            ssh.extend(["-o".to_owned(), option.to_owned()]);
        }
        Self { role, destination: destination.to_owned(), ssh, directory: String::new() }
    }

    pub(super) fn destination(&self) -> &str {
        &self.destination
    }

    /// A path in our directory.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    /// Makes a directory that was not there before, below `parent`.
    pub(super) fn make_directory(&mut self, parent: &str) -> Outcome<()> {
        let made = self.run(&format!(
            "umask 077; d=$(mktemp -d {}/pgpool-recovery-bench.XXXXXX); touch \"$d/{MARK}\"; echo \"$d\"",
            quoted(parent)
        ))?;
        made.trim().clone_into(&mut self.directory);
        Ok(())
    }

    /// Runs a script of sh; its standard output.
    pub(super) fn run(&self, script: &str) -> Outcome<String> {
        self.run_with(script, "")
    }

    /// The same with this as its standard input: what nobody is to see among the processes there.
    pub(super) fn run_with(&self, script: &str, input: &str) -> Outcome<String> {
        // who runs is written down, so that an interrupt ends it there as well
        let noted = if self.directory.is_empty() {
            script.to_owned()
        } else {
            format!(
                "cd {}; read -r _ _ _ _ group _ </proc/$$/stat; echo $$ $group >run\n{script}\nrm -f {}",
                quoted(&self.directory),
                quoted(&self.path("run"))
            )
        };
        let said = tool::outcome(self.command(&noted, input), None)?;
        self.judge(said)
    }

    fn judge(&self, said: Said) -> Outcome<String> {
        let text = said.errors.trim();
        match said.status.code() {
            Some(0) => Ok(said.output),
            Some(NO_CONNECTION) => failed(format!(
                "no ssh to the {} {}: {text}\nIt has to log in without a question: ssh -o BatchMode=yes {} true",
                self.role, self.destination, self.destination
            )),
            _ => failed(format!("on the {} {}: {text}{}", self.role, self.destination, said.output)),
        }
    }

    fn command(&self, script: &str, input: &str) -> Command {
        let mut command = Command::new(&self.ssh[0]);
        command.args(&self.ssh[1..]).args(["--", &self.destination]);
        command.arg(format!("LC_ALL=C exec sh -euc {}", quoted(script)));
        command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::from(file_with(input)) });
        command
    }

    /// Ends what still runs in our directory and removes it, whatever has happened. `bin`: of PostgreSQL's programs.
    pub(super) fn clean_up(&mut self, bin: &str) {
        if !self.directory.is_empty() {
            let script = clean_up(&self.directory, bin);
            let problem = match tool::outcome_in_any_case(self.command(&script, "")) {
                Ok(said) if said.status.success() => None,
                Ok(said) => Some(said.errors),
                Err(_) => Some("ssh does not start".to_owned()),
            };
            if let Some(problem) = problem {
                let (place, directory) = (&self.destination, &self.directory);
                eprintln!("bench: {directory} on {place} could not be removed: {}", problem.trim());
            }
            self.directory.clear();
        }
        let mut command = Command::new(&self.ssh[0]);
        command.args(&self.ssh[1..]).args(["-O", "exit", "--", &self.destination]).stdin(Stdio::null());
        let _ = tool::outcome_in_any_case(command);
    }
}

fn clean_up(directory: &str, bin: &str) -> String {
    format!(
        "d={}
[ -e \"$d\" ] || exit 0
[ -f \"$d/{MARK}\" ] && [ -O \"$d\" ] || {{ echo \"it is not the bench's own\" >&2; exit 1; }}
cd \"$d\"
# only what still has our directory as its own: the number may be somebody else's by now
ours() {{ [ \"$(readlink /proc/$1/cwd)\" = \"$d\" ]; }}
if [ -s run ] && read -r leader group <run && ours \"$leader\"; then kill -TERM -- \"-$group\" || true; fi
if [ -s agent.pid ] && ours \"$(cat agent.pid)\"; then kill -TERM \"$(cat agent.pid)\" || true; fi
for data in primary target; do
    [ ! -e $data/postmaster.pid ] || {}/pg_ctl -s -D \"$d/$data\" -m immediate stop >/dev/null || true
done
cd /
# what is ending may still write
rm -rf \"$d\" 2>/dev/null || {{ sleep 2; rm -rf \"$d\"; }}",
        quoted(directory),
        quoted(bin)
    )
}

fn file_with(text: &str) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("a temporary file");
    file.rewind().expect("a file");
    file
}

/// One word for sh.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> std::process::Output {
        Command::new("sh").args(["-euc", script]).output().expect("sh")
    }

    #[test]
    fn a_word_stays_one_word() {
        for word in ["a b", "it's", "$(id)", "", "\\n;"] {
            let said = sh(&format!("printf '%s|' {}", quoted(word)));
            assert_eq!(String::from_utf8_lossy(&said.stdout), format!("{word}|"));
        }
    }

    #[test]
    fn only_a_directory_with_the_mark_is_removed() {
        let root = tempfile::tempdir().expect("a directory");
        let (ours, other) = (root.path().join("ours"), root.path().join("other"));
        for directory in [&ours, &other] {
            std::fs::create_dir(directory).expect("a directory");
        }
        std::fs::write(ours.join(MARK), "").expect("a file");
        assert!(sh(&clean_up(&ours.display().to_string(), "/none")).status.success());
        assert!(!ours.exists());
        assert!(!sh(&clean_up(&other.display().to_string(), "/none")).status.success());
        assert!(other.exists());
    }
}

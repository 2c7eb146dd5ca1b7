//! Pgpool-II's pcp programs. Their exit status is 0 on failure, too, so what counts is what they print, and what
//! pcp_node_info says afterwards.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::conf::Conf;
use crate::failure::{Failure, Result, one_line};
use crate::program::{self, Finished};
use crate::sql::within;

/// How long one program may take, save for a recovery.
const LIMIT: Duration = Duration::from_secs(10);

/// How long an attachment may take to show before it is asked for again.
const SHOWN: Duration = Duration::from_secs(3);

const TURN: Duration = Duration::from_millis(200);

/// Where Pgpool-II answers, and as whom it is asked.
#[derive(Debug, Clone)]
pub(crate) struct Pcp {
    pub(crate) host: String,
    pub(crate) port: String,
    /// pcp's default, the user of the operating system, without it.
    pub(crate) user: Option<String>,
}

/// Whether Pgpool-II uses a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Up,
    Down,
    /// Never used since it was listed.
    Unused,
    /// It answers no health check, and waits for its quorum.
    Quarantined,
}

impl Pcp {
    /// As pgpool.conf has it.
    pub(crate) fn new(conf: &Conf, host: Option<String>, user: Option<String>) -> Self {
        let port = conf.get("pcp_port");
        let port = if port.is_empty() { "9898" } else { port }.to_owned();
        let listens = conf.get("pcp_listen_addresses");
        let first = listens.split(',').next().unwrap_or_default().trim();
        let own = if first.is_empty() || first == "*" || first == "0.0.0.0" || first == "::" {
            "localhost"
        } else {
            first
        };
        let host = host.unwrap_or_else(|| own.to_owned());
        let user = user.or_else(|| {
            let file = std::env::var_os("PCPPASSFILE").map_or_else(
                || std::env::home_dir().unwrap_or_default().join(".pcppass"),
                std::path::PathBuf::from,
            );
            user_of(&std::fs::read_to_string(file).unwrap_or_default(), &host, &port)
        });
        Self { host, port, user }
    }

    fn run(&self, program: &str, arguments: &[&str], end: Instant) -> Result<Finished> {
        // Debian has them in /usr/sbin, which not every PATH has
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{path}:/usr/sbin:/usr/local/bin:/usr/bin");
        let mut command = Command::new(program);
        command.env("PATH", path).args(["-w", "-h", &self.host, "-p", &self.port]);
        if let Some(user) = &self.user {
            command.args(["-U", user]);
        }
        command.args(arguments);
        let finished = program::run(command, "", end)?.ok_or_else(|| {
            Failure::new(format!("{program} gave no answer in time"))
                .hint("Does Pgpool-II's PCP answer at all?")
        })?;
        let said = format!("{}\n{}", finished.stderr, finished.stdout);
        if !finished.status.success() || said.contains("ERROR:") || said.contains("FATAL:") {
            return Err(Failure::new(format!("{program}: {}", one_line(said.trim()))).hint(
                "The hook logs in to PCP with the password in .pcppass of Pgpool-II's user, or in PCPPASSFILE.",
            ));
        }
        Ok(finished)
    }

    /// How many nodes Pgpool-II has.
    pub(crate) fn count(&self, end: Instant) -> Result<usize> {
        let finished = self.run("pcp_node_count", &[], within(LIMIT, end))?;
        let number = finished.stdout.trim().parse();
        number.map_err(|_| Failure::new(format!("pcp_node_count said \"{}\"", one_line(&finished.stdout))))
    }

    /// How Pgpool-II uses the node.
    pub(crate) fn status(&self, id: u32, end: Instant) -> Result<Status> {
        let finished = self.run("pcp_node_info", &["-n", &id.to_string()], within(LIMIT, end))?;
        status(&finished.stdout)
            .ok_or_else(|| Failure::new(format!("pcp_node_info said \"{}\"", one_line(&finished.stdout))))
    }

    /// Attaches the node and checks that it is up. Retries until `end`, because Pgpool-II restarts its PCP process after each
    /// failover.
    pub(crate) fn attach(&self, id: u32, end: Instant) -> Result<()> {
        self.until(id, "pcp_attach_node", |status| status == Status::Up, end)
    }

    /// The other way.
    pub(crate) fn detach(&self, id: u32, end: Instant) -> Result<()> {
        self.until(id, "pcp_detach_node", |status| status != Status::Up, end)
    }

    fn until(&self, id: u32, program: &str, is_done: impl Fn(Status) -> bool, end: Instant) -> Result<()> {
        let number = id.to_string();
        loop {
            let asked = match self.status(id, end) {
                Ok(found) if is_done(found) => return Ok(()),
                Ok(_) => self.run(program, &["-n", &number], within(LIMIT, end)).map(drop),
                Err(failure) => Err(failure),
            };
            let shown = within(SHOWN, end);
            while asked.is_ok() && Instant::now() < shown {
                if self.status(id, end).is_ok_and(&is_done) {
                    return Ok(());
                }
                sleep(TURN);
            }
            if Instant::now() + TURN >= end {
                return Err(match asked {
                    Ok(()) => Failure::new(format!("{program} had no effect on node {id}"))
                        .hint("Pgpool-II's log says why, perhaps a failover that is still going on."),
                    Err(failure) => failure,
                });
            }
            sleep(TURN);
        }
    }

    /// Has Pgpool-II recover the node. While a failover is queued it is told to come again.
    pub(crate) fn recover(&self, id: u32, busy_until: Instant, end: Instant) -> Result<()> {
        let number = id.to_string();
        loop {
            let failure = match self.run("pcp_recovery_node", &["-n", &number], end) {
                Ok(finished) if finished.stdout.contains("Command Successful") => return Ok(()),
                Ok(finished) => Failure::new(format!(
                    "pcp_recovery_node: {}",
                    one_line(&format!("{}\n{}", finished.stdout, finished.stderr))
                )),
                Err(failure) => failure,
            };
            if !is_busy(&failure.message) || Instant::now() >= busy_until {
                return Err(failure);
            }
            sleep(Duration::from_secs(1));
        }
    }
}

/// Whether Pgpool-II is at a failover, or its PCP process starts anew after one, or it recovers another node.
fn is_busy(message: &str) -> bool {
    ["at the moment", "connection to ", "unable to read data from socket", "processing another recovery"]
        .iter()
        .any(|words| message.contains(words))
}

/// The third word of pcp_node_info (4.1 to 4.7): 0 unused, 1 up without connections, 2 up, 3 down. A host has no blanks.
fn status(said: &str) -> Option<Status> {
    let mut words = said.split_whitespace().skip(2);
    let number = words.next()?;
    let is_quarantined = words.any(|word| word == "quarantine");
    match number {
        "0" => Some(Status::Unused),
        "1" | "2" => Some(Status::Up),
        "3" if is_quarantined => Some(Status::Quarantined),
        "3" => Some(Status::Down),
        _ => None,
    }
}

/// The first user in a .pcppass, `hostname:port:username:password`, for this host and port.
fn user_of(passfile: &str, host: &str, port: &str) -> Option<String> {
    passfile.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = line.splitn(4, ':');
        let mut is = |wanted: &str| fields.next().is_some_and(|field| field == wanted || field == "*");
        let is_ours = is(host) && is(port);
        let user = fields.next()?;
        (is_ours && user != "*" && !user.is_empty()).then(|| user.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_the_third_word() {
        for (said, found) in [
            (
                "127.0.0.1 5432 2 0.500000 up up standby standby 0 streaming async 2026-11-29 21:00:00\n",
                Some(Status::Up),
            ),
            (
                "/tmp 5432 1 0.5 waiting up primary primary 0 none none 2026-11-29 21:00:00\n",
                Some(Status::Up),
            ),
            (
                "host 5432 3 nan down down standby unknown 0 none none 2026-11-29 21:00:00\n",
                Some(Status::Down),
            ),
            ("host 5432 3 nan quarantine down standby unknown 0 none none x\n", Some(Status::Quarantined)),
            // 4.1
            ("host 5432 0 0.333333 unused standby 0 2026-11-29 21:00:00\n", Some(Status::Unused)),
            ("", None),
            ("host 5432 x\n", None),
        ] {
            assert_eq!(status(said), found, "{said}");
        }
    }

    #[test]
    fn a_busy_pgpool_is_asked_again() {
        assert!(is_busy("pcp_recovery_node: ERROR: failed to process PCP request at the moment"));
        assert!(is_busy("pcp_recovery_node: ERROR: unable to read data from socket."));
        assert!(!is_busy("pcp_recovery_node: ERROR: recovering node 2 failed"));
    }

    #[test]
    fn the_user_is_the_first_of_the_password_file() {
        let file =
            "# comment\nelsewhere:9898:a:x\nlocalhost:1:b:x\n*:9898:operator:pass:word\nlocalhost:9898:c:x\n";
        assert_eq!(user_of(file, "localhost", "9898").as_deref(), Some("operator"));
        assert_eq!(user_of("*:*:*:x\n", "localhost", "9898"), None);
        assert_eq!(user_of("", "localhost", "9898"), None);
    }
}

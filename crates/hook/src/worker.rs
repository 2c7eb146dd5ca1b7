//! What takes longer than Pgpool-II may be held up: a process of its own, in a session of its own, goes on after the hook has
//! ended. One at a time, because Pgpool-II handles a recovery badly while another one runs.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use rustix::fs::{FlockOperation, flock};

use crate::ancestors::Process;
use crate::conf::Node;
use crate::failover::is_diverged;
use crate::failure::{Failure, Result};
use crate::follow::{let_follow, node};
use crate::pcp::Status;
use crate::role::{LIMIT, is_standby};
use crate::{Common, Context};

/// How long it waits for its turn, for the end of the follow commands, and for an end of failovers.
const PATIENCE: Duration = Duration::from_secs(3600);

/// How long Pgpool-II may be busy with something else.
const BUSY: Duration = Duration::from_secs(300);

/// How long a rebuild may take.
const REBUILD: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a detachment, and the look afterwards, may take.
const SOON: Duration = Duration::from_secs(60);

/// How long a node may take that is used all the while.
const LED: Duration = Duration::from_secs(20);

const STOP: &str = "SELECT :\"extension\".pgpool_recovery_stop(:'host'::text, :'dir'::text, '{}'::jsonb)";

/// What is to be done with a node.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub(crate) struct Work {
    /// What.
    #[arg(long)]
    pub(crate) job: Job,
    /// Its number.
    #[arg(long)]
    pub(crate) node: u32,
    /// The number of the primary.
    #[arg(long)]
    pub(crate) primary: u32,
    /// Whether it may be rebuilt if nothing else helps.
    #[arg(long)]
    pub(crate) rebuild: bool,
    /// Not before this process has ended.
    #[arg(long, value_parser = |text: &str| Process::parse(text).ok_or("no process"))]
    pub(crate) after: Option<Process>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Job {
    /// It is used and does not follow the primary: take it out of use, or it answers with old data.
    Stray,
    /// It may not follow the primary: let it, or else it is a stray.
    Survivor,
    /// It was the primary: let it follow the new one, and attach it.
    Rejoin,
    /// It cannot follow: rebuild it, which attaches it.
    Rebuild,
}

impl Job {
    const fn name(self) -> &'static str {
        match self {
            Self::Stray => "stray",
            Self::Survivor => "survivor",
            Self::Rejoin => "rejoin",
            Self::Rebuild => "rebuild",
        }
    }
}

/// Starts the process, and returns when it is on its own.
pub(crate) fn spawn(common: &Common, conf: &Path, work: &Work) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(format!("could not start the worker: {error}"));
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let mut command = Command::new(program);
    command.arg("worker").arg("--config").arg(conf);
    for (name, value) in [
        ("--user", &common.user),
        ("--database", &common.database),
        ("--pcp-host", &common.pcp_host),
        ("--pcp-user", &common.pcp_user),
    ] {
        if let Some(value) = value {
            command.arg(format!("{name}={value}"));
        }
    }
    command.args(["--job", work.job.name()]);
    command.args(["--node", &work.node.to_string(), "--primary", &work.primary.to_string()]);
    command.args(work.rebuild.then_some("--rebuild"));
    if let Some(after) = &work.after {
        command.args(["--after", &after.to_text()]);
    }
    // its words go where the hook's go: to Pgpool-II's log
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(&error))?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut said).map_err(|error| failed(&error))?;
    }
    if said.trim() == "ready" { Ok(()) } else { Err(failed(&"it ended at once")) }
}

/// The worker's own part. Returns what was done.
pub(crate) fn work(context: &Context, work: &Work) -> Result<String> {
    // Pgpool-II's shutdown kills the sessions that it has made
    rustix::process::setsid().map_err(|error| Failure::new(format!("could not make a session: {error}")))?;
    println!("ready");
    let (wanted, primary) = (node(context, work.node)?, node(context, work.primary)?);
    match work.job {
        Job::Stray => stray(context, work, wanted, primary),
        Job::Survivor => survivor(context, work, wanted, primary),
        Job::Rejoin => rejoin(context, work, wanted, primary),
        Job::Rebuild => rebuild(context, work, wanted, primary),
    }
}

/// Takes a node out of use that does not follow, if it is in use.
fn stray(context: &Context, work: &Work, wanted: &Node, primary: &Node) -> Result<String> {
    if status(context, wanted, Instant::now() + SOON)? != Status::Up {
        // it has a reason, which a rebuild would not respect
        return Ok(format!("{} was out of use before", wanted.name()));
    }
    // what it was to follow may have failed since, and it may have been promoted
    let is_primary = |node: &Node| {
        is_standby(context, &node.place(), Instant::now() + LIMIT).is_ok_and(|is_standby| !is_standby)
    };
    if is_primary(wanted) && !is_primary(primary) {
        return Ok(format!("{} is the primary by now: it stays in use", wanted.name()));
    }
    context.pcp.detach(wanted.id, Instant::now() + SOON).map_err(|failure| failure.at(wanted.name()))?;
    if work.rebuild {
        crate::say("worker", &format!("{} is detached: it does not follow the primary", wanted.name()));
        return rebuild(context, work, wanted, primary);
    }
    Ok(format!(
        "{} is detached: it does not follow the primary. See why, and pcp_recovery_node",
        wanted.name()
    ))
}

/// Lets a node follow that nobody has told to, and takes it out of use if it does not.
fn survivor(context: &Context, work: &Work, wanted: &Node, primary: &Node) -> Result<String> {
    if status(context, wanted, Instant::now() + SOON)? != Status::Up {
        // one that was stopped would be started
        return Ok(format!("{} was out of use before", wanted.name()));
    }
    match let_follow(context, wanted, &primary.place(), Instant::now() + LED) {
        Ok(report) => Ok(format!("{} follows {}: {report}", wanted.name(), primary.name())),
        Err(failure) => {
            let rebuild = work.rebuild && is_diverged(&failure);
            crate::say("worker", &failure.at(wanted.name()).to_string());
            stray(context, &Work { rebuild, ..work.clone() }, wanted, primary)
        }
    }
}

/// What Pgpool-II says of the node. Its PCP starts anew after a failover.
fn status(context: &Context, wanted: &Node, end: Instant) -> Result<Status> {
    loop {
        match context.pcp.status(wanted.id, end) {
            Err(_) if Instant::now() < end => sleep(Duration::from_millis(500)),
            found => return found.map_err(|failure| failure.at(wanted.name())),
        }
    }
}

/// Lets the old primary follow the new one.
fn rejoin(context: &Context, work: &Work, wanted: &Node, primary: &Node) -> Result<String> {
    let end = Instant::now() + SOON;
    match let_follow(context, wanted, &primary.place(), end) {
        Ok(report) => {
            context.pcp.attach(wanted.id, end + SOON).map_err(|failure| failure.at(wanted.name()))?;
            // in use from now on, it must not have parted meanwhile: another node may have been promoted
            if let Err(failure) = let_follow(context, wanted, &primary.place(), Instant::now() + LED) {
                crate::say("worker", &failure.at(wanted.name()).to_string());
                return stray(context, work, wanted, primary);
            }
            Ok(format!(
                "{}, the old primary, follows {} and is attached: {report}",
                wanted.name(),
                primary.name()
            ))
        }
        Err(failure) if work.rebuild && is_diverged(&failure) => {
            crate::say("worker", &failure.at(wanted.name()).to_string());
            rebuild(context, work, wanted, primary)
        }
        Err(failure) => Err(failure.at(format!("{}, the old primary, stays down", wanted.name()))),
    }
}

fn rebuild(context: &Context, work: &Work, wanted: &Node, primary: &Node) -> Result<String> {
    let until = Instant::now() + PATIENCE;
    let _turn = turn(&context.conf.path, until)?;
    if let Some(process) = &work.after {
        while process.lives() {
            if Instant::now() >= until {
                return Err(Failure::new(format!(
                    "{} is not rebuilt: the follow commands do not end",
                    wanted.name()
                )));
            }
            sleep(Duration::from_millis(200));
        }
    }
    // somebody may have rebuilt it meanwhile
    if status(context, wanted, Instant::now() + SOON)? == Status::Up {
        return Ok(format!("{} is up again: it is not rebuilt", wanted.name()));
    }
    // where its agent allows it: a recovery refuses a running target, unless stop_target is set
    let values = [("host", wanted.host.as_str()), ("dir", wanted.data_directory.as_str())];
    if let Err(failure) = context.login.json(&primary.place(), STOP, &values, Instant::now() + SOON) {
        crate::say("worker", &format!("{} was not stopped: {failure}", wanted.name()));
    }
    crate::say("worker", &format!("{} is being rebuilt", wanted.name()));
    let started = Instant::now();
    context
        .pcp
        .recover(wanted.id, started + BUSY, started + REBUILD)
        .map_err(|failure| failure.at(wanted.name()))?;
    let end = Instant::now() + SOON;
    while status(context, wanted, end)? != Status::Up {
        if Instant::now() >= end {
            return Err(Failure::new(format!("{} was rebuilt, and is not up", wanted.name())));
        }
        sleep(Duration::from_millis(500));
    }
    Ok(format!("{} is rebuilt and up, after {:.0} s", wanted.name(), started.elapsed().as_secs_f32()))
}

/// The turn of this worker among those of one Pgpool-II: pgpool.conf is the file that they all have.
fn turn(conf: &Path, until: Instant) -> Result<File> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(format!("could not lock \"{}\": {error}", conf.display()))
    };
    let file = File::open(conf).map_err(|error| failed(&error))?;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => sleep(Duration::from_millis(500)),
            Err(error) => return Err(failed(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_take_turns() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let first = turn(file.path(), Instant::now()).expect("free");
        assert!(turn(file.path(), Instant::now()).is_err(), "not two at once");
        drop(first);
        turn(file.path(), Instant::now()).expect("free again");
    }
}

//! Process 1 of a container: the process with that number inherits all orphans and has to reap them.
//!
//! A server that the agent starts outlives pg_ctl and becomes such an orphan. Were it not reaped after its end, its
//! process id would stay in use, PostgreSQL would take the lock files it left for those of a running server, and the standby
//! could never be started again. The agent's own children are awaited by those who started them, so a second process
//! does the reaping: this one, which does nothing else.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use pgpool_recovery_core::error::{Error, Result};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::info;

/// Whether this process has that number.
pub(crate) fn is_process_1() -> bool {
    std::process::id() == 1
}

/// Runs this program once more as a child, passes signals on to it, reaps everything, and ends as the child does.
pub(crate) fn run() -> Result<()> {
    let signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP]);
    let mut signals = signals.map_err(Error::on("install signal handlers"))?;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("pgpool-recovery-agent"));
    let started = Command::new("/proc/self/exe").arg0(name).args(arguments).spawn();
    let agent = Pid::from_child(&started.map_err(Error::on("run the agent as a child of process 1"))?);
    info!("process 1 reaps orphans; the agent is process {}", agent.as_raw_nonzero());
    std::thread::spawn(move || {
        for signal in signals.forever() {
            let signal = match signal {
                SIGTERM => Signal::TERM,
                SIGINT => Signal::INT,
                SIGQUIT => Signal::QUIT,
                _ => Signal::HUP,
            };
            // it may have ended: then this process is about to
            let _ = kill_process(agent, signal);
        }
    });
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((process, status))) if process == agent => {
                let code = status.exit_status().or_else(|| Some(128 + status.terminating_signal()?));
                std::process::exit(code.unwrap_or(1));
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io("wait for the agent", &error.into())),
        }
    }
}

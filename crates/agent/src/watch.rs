//! Watching an agent until a signal comes: progress bars on a terminal, elsewhere a line for each change.

mod bars;
mod sight;

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use humantime::format_rfc3339_seconds;
use pgpool_recovery_core::error::{Error, Result};
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::lock::lock;
use pgpool_recovery_core::wire::inquiry;
use pgpool_recovery_core::wire::link::Connector;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use self::bars::Bars;
use self::sight::{Sight, Sights};
use crate::config::Config;
use crate::status;

/// Shows the agent that runs with this configuration, or that of another host, until a signal ends it.
pub(crate) fn watch(config: &Config, host: Option<String>, interval: Duration) -> Result<()> {
    let signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT]).map_err(Error::on("install signal handlers"))?;
    let connector = status::connector(config, host)?;
    let place = connector.place();
    let inquiries = Arc::new(Inquiries::default());
    let (end, ended) = channel();
    let stopped = Arc::clone(&inquiries);
    let await_signal = move |mut signals: Signals| {
        signals.forever().next();
        stopped.stop();
        // without a receiver where the watch has ended by itself
        let _ = end.send(());
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || await_signal(signals))
        .map_err(|error| Error::no_thread(&error))?;

    let mut screen: Box<dyn Screen> = if draws() { Box::new(Bars::new()) } else { Box::new(Lines::new()) };
    let mut sights = Sights::default();
    let mut has_answered = false;
    while let Some(cancel) = inquiries.next() {
        let heading = match inquiry::status(&connector, &cancel) {
            // how it ended is of no interest
            _ if inquiries.have_ended() => break,
            Ok(told) => {
                has_answered = true;
                sights.take(&told);
                status::heading(&told, &place)
            }
            Err(error) if !has_answered && !error.kind.may_pass() => return Err(error),
            Err(error) => {
                sights.lose();
                format!("no answer: {}", error.message)
            }
        };
        let shown = screen.show(&heading, sights.all());
        if let Err(error) = shown {
            // who read it has seen enough
            if error.kind() == std::io::ErrorKind::BrokenPipe {
                break;
            }
            return Err(Error::io("write to standard output", &error));
        }
        if ended.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
    screen.leave();
    Ok(())
}

/// Whether standard output understands what moves a cursor.
fn draws() -> bool {
    let is_dumb = |term: std::ffi::OsString| term.is_empty() || term == "dumb";
    std::io::stdout().is_terminal() && !std::env::var_os("TERM").is_none_or(is_dumb)
}

/// The inquiry in progress, and whether there will be another one. Each has a switch of its own: one that lasted would keep what
/// every connection of a long watch registers.
#[derive(Default)]
struct Inquiries {
    current: Mutex<Cancel>,
    has_ended: AtomicBool,
}

impl Inquiries {
    fn next(&self) -> Option<Cancel> {
        let cancel = Cancel::new();
        lock(&self.current).clone_from(&cancel);
        // what ends from now on trips this one
        (!self.have_ended()).then_some(cancel)
    }

    fn have_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    fn stop(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
        lock(&self.current).trip();
    }
}

/// What is watched on.
trait Screen {
    fn show(&mut self, heading: &str, sights: &[Sight]) -> std::io::Result<()>;

    /// The watch ends.
    fn leave(&mut self);
}

/// One line for each change, with the time.
struct Lines<W> {
    output: W,
    /// What was last said of the agent and of each directory.
    said: HashMap<String, String>,
}

impl Lines<std::io::Stdout> {
    fn new() -> Self {
        Self { output: std::io::stdout(), said: HashMap::new() }
    }
}

impl<W: Write> Lines<W> {
    fn say(&mut self, subject: &str, key: &str, line: &str) -> std::io::Result<()> {
        if self.said.get(subject).is_some_and(|said| said == key) {
            return Ok(());
        }
        self.said.insert(subject.to_owned(), key.to_owned());
        writeln!(self.output, "{} {line}", format_rfc3339_seconds(SystemTime::now()))
    }
}

impl<W: Write> Screen for Lines<W> {
    fn show(&mut self, heading: &str, sights: &[Sight]) -> std::io::Result<()> {
        // how long it has been up is no change
        let key = heading.split(", up ").next().unwrap_or_default();
        self.say("", key, heading)?;
        for sight in sights {
            let text = sight.line();
            self.say(&sight.name, &text, &format!("{}: {text}", sight.name))?;
        }
        self.output.flush()
    }

    fn leave(&mut self) {}
}

#[cfg(test)]
mod tests {
    use pgpool_recovery_core::wire::protocol::status::State;

    use super::*;
    use crate::status::tests::{run, running};

    #[test]
    fn a_line_is_written_when_something_changed() {
        let mut lines = Lines { output: Vec::new(), said: HashMap::new() };
        let mut sights = Sights::default();
        let mut status = running();
        for compared in [1 << 20, 1 << 20, 2 << 20] {
            let mut moved = run(State::Data);
            moved.moved.compared = compared;
            status.directories[0].account.running = Some(moved);
            sights.take(&status);
            lines.show("the agent: version 2, up 1s", sights.all()).expect("a Vec takes it");
        }
        lines.show("the agent: version 2, up 9s", sights.all()).expect("a Vec takes it");
        let text = String::from_utf8(lines.output).expect("text");
        let told: Vec<_> =
            text.lines().filter_map(|line| line.split_once("Z ")).map(|(_, said)| said).collect();
        assert_eq!(told.len(), 3, "{text}");
        assert!(told[0].starts_with("the agent: ") && told[1].starts_with("/srv/b: data, 25 %, "), "{text}");
        assert!(told[2].starts_with("/srv/b: data, 50 %, ") && !text.contains('\x1b'), "{text}");
    }

    #[test]
    fn a_watch_that_ended_asks_nothing_more() {
        let inquiries = Inquiries::default();
        let first = inquiries.next().expect("it goes on");
        let second = inquiries.next().expect("it goes on");
        inquiries.stop();
        assert!(second.is_tripped() && !first.is_tripped() && inquiries.next().is_none());
    }
}

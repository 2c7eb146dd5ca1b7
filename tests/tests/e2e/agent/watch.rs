//! `pgpool-recovery-agent status --watch`: bars on a terminal, lines elsewhere, and an end by a signal.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Stdio};

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::process::{self, Daemon};
use pgpool_recovery_e2e::{Host, Scratch, Stage, Transport, wait};
use rustix::process::Signal;

const CTRL_C: &[u8] = b"\x03";

/// A terminal in which a shell runs one command. It is closed when the test ends.
struct Terminal {
    script: Child,
    keyboard: ChildStdin,
    screen: PathBuf,
}

impl Terminal {
    fn run(scratch: &Scratch, command: &str) -> Self {
        let screen = scratch.join("screen");
        let mut script = Host::here().command("script");
        // the shell outlives the Ctrl-C that ends what it runs
        let commands =
            format!("trap : INT; stty cols 100 rows 30; stty -g; {command}; echo status=$?; stty -g");
        script.args(["-qfec", &commands, "/dev/null"]).envs([("TERM", "xterm"), ("SHELL", "/bin/sh")]);
        script.stdin(Stdio::piped()).stdout(File::create(&screen).expect("a file"));
        let mut script = script.spawn().expect("script, of util-linux");
        let keyboard = script.stdin.take().expect("piped");
        Self { script, keyboard, screen }
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.screen).expect("the screen")).into_owned()
    }

    #[track_caller]
    fn await_words(&self, words: &[&str]) {
        wait::until_true(&format!("{words:?} on the screen"), wait::PATIENCE, || {
            let seen = self.seen();
            words.iter().all(|word| seen.contains(word))
        });
    }

    /// Presses Ctrl-C, and returns all that was seen.
    fn interrupt(&mut self) -> String {
        self.keyboard.write_all(CTRL_C).expect("the keyboard");
        wait::until("the end of the terminal", wait::PATIENCE, || self.script.try_wait().expect("our child"));
        self.seen()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.script.kill();
        let _ = self.script.wait();
    }
}

fn stage() -> Stage {
    Stage::builder().filled(20).through(Transport::Agent).build()
}

#[test]
fn a_terminal_shows_bars_until_ctrl_c_and_is_as_before() {
    let stage = stage();
    let agent = Host::here().agent().get_program().to_string_lossy().into_owned();
    let command = format!("{agent} status --watch --config {}", stage.agent().config().display());
    let mut terminal = Terminal::run(&stage.scratch, &command);
    terminal.await_words(&["no recovery in progress; no server runs", stage.target.dir()]);
    let running = Running::start(&stage.primary, &stage.recovery().option("max_rate", 4000), "");
    terminal.await_words(&[
        "  [#",
        ">-",
        " %",
        "data, ",
        "/s, ",
        " left, ",
        " of WAL received, ",
        " streams",
    ]);
    running.finish_within(wait::PATIENCE).expect("the recovery");
    terminal.await_words(&["succeeded 2"]);
    let seen = terminal.interrupt();
    assert!(seen.contains("\x1b[") && seen.contains("status=0\r\n"), "{seen:?}");
    // its settings, before and after
    let is_setting = |line: &&str| line.len() > 40 && line.chars().all(|c| c == ':' || c.is_ascii_hexdigit());
    let settings: Vec<_> = seen.lines().filter(is_setting).collect();
    assert!(settings.len() == 2 && settings[0] == settings[1], "{settings:?}");
    assert_eq!(seen.matches("\x1b[?25l").count(), seen.matches("\x1b[?25h").count(), "the cursor");
}

#[test]
fn elsewhere_lines_tell_of_runs_and_of_an_agent_that_stops() {
    let mut stage = stage();
    let log = stage.scratch.join("watch.log");
    let mut command = Host::here().agent();
    command.args(["status", "--watch", "--config"]).arg(stage.agent().config()).env("TERM", "xterm");
    let mut watch = Daemon::spawn(command, &log, Signal::TERM);
    let says = |watch: &Daemon, words: &str| {
        wait::until_true(words, wait::PATIENCE, || watch.log().contains(words));
    };
    let directory = stage.target.dir().to_owned();
    says(&watch, &format!("Z {directory}: no recovery in progress; no server runs\n"));
    let running = Running::start(&stage.primary, &stage.recovery().option("max_rate", 4000), "");
    says(&watch, &format!("Z {directory}: data, "));
    running.cancel();
    running.finish_within(wait::PATIENCE).expect_err("canceled");
    says(&watch, &format!("Z {directory}: given up by the primary 2"));
    stage.agent_mut().stop();
    says(&watch, "Z no answer: could not connect to the agent at ");
    says(&watch, &format!("Z {directory}: unknown, while the agent does not answer\n"));
    stage.agent_mut().restart();
    says(&watch, &format!("Z {directory}: no recovery in progress; the directory cannot be started\n"));
    let told = watch.log();
    assert!(told.lines().any(|line| line.contains(" of WAL received, ") && line.contains(" %, ")), "{told}");
    assert!(!told.contains('\x1b') && !told.contains('\r') && !told.contains("ERROR"), "{told:?}");
    assert_eq!(told.matches("Z the agent at ").count(), 2, "it comes back once: {told}");
    assert!(watch.stop().success(), "{}", watch.log());
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let stage = stage();
    let run = |arguments: &[&str]| {
        let mut command = Host::here().agent();
        command.args(["status", "--config"]).arg(stage.agent().config()).args(arguments);
        process::run(command)
    };
    for arguments in [&["--watch", "--json"][..], &["--interval", "2"], &["--watch", "--interval", "0"]] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    let other = pgpool_recovery_e2e::agent::secret(&stage.scratch, "other");
    let config = fs::read_to_string(stage.agent().config()).expect("the configuration");
    let wrong = stage.scratch.write("wrong.toml", &config.replace("secret\"", "other\""), 0o644);
    assert!(other.exists() && wrong.exists());
    let mut command = Host::here().agent();
    command.args(["status", "--watch", "--config"]).arg(&wrong);
    let refused = process::run(command);
    assert_eq!((refused.status.code(), refused.stdout.as_str()), (Some(1), ""), "{}", refused.stderr);
}

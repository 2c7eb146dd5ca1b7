//! The same call goes on after a fault in runs of every kind: with several streams, compressed, with a tablespace, and where WAL proves
//! blocks equal. Each kind has its fault at every moment; which fault that is, is dealt so that together they have all of them. With
//! `PGPOOL_RECOVERY_EVERY_FAULT` each has all of them.

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::proxy::Weather;
use pgpool_recovery_e2e::{Recovery, Scratch, Stage, Transport, probe, wait, workload};

use super::retried::{ON_THE_WAY, RETRY_FOR, SWALLOWED, assert_went_on, wait_until_lost};
use super::trial::{MOMENTS, Moment, Trial};

/// How long a run takes that sends what differs, seconds.
const PACE: u64 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Killed,
    Restarted,
    Cut,
    Swallowed,
}

const FAULTS: [Fault; 4] = [Fault::Killed, Fault::Restarted, Fault::Cut, Fault::Swallowed];

impl Fault {
    fn begin(self, trial: &mut Trial) {
        match self {
            Self::Killed => {
                trial.agent_mut().kill();
            }
            Self::Restarted => assert!(trial.agent_mut().stop().success()),
            Self::Cut => trial.weather(Weather::Cut),
            Self::Swallowed => trial.weather(Weather::Hole),
        }
    }

    fn end(self, trial: &mut Trial) {
        match self {
            Self::Killed | Self::Restarted => trial.agent_mut().restart(),
            Self::Cut | Self::Swallowed => trial.weather(Weather::Fair),
        }
    }

    fn on_the_way(self) -> u64 {
        if self == Self::Swallowed { ON_THE_WAY + SWALLOWED } else { ON_THE_WAY }
    }
}

/// What makes the target differ from the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    /// Bytes of every page of a table, which no WAL tells.
    Damage,
    /// What the primary has written since.
    Lag,
}

/// A kind of run: `number` deals its faults.
struct Kind {
    number: usize,
    trial: Trial,
    option: (&'static str, serde_json::Value),
    difference: Difference,
}

impl Kind {
    fn new(number: usize, option: (&'static str, serde_json::Value), difference: Difference) -> Self {
        let builder = Stage::builder().with("fsync", "on").with("wal_keep_size", "512MB");
        Self::of(number, Trial::with(builder, Transport::Agent, None), option, difference)
    }

    fn of(
        number: usize,
        trial: Trial,
        option: (&'static str, serde_json::Value),
        difference: Difference,
    ) -> Self {
        let kind = Self { number, trial, option, difference };
        kind.recovery().option("keep_files", "").run(&kind.trial.primary);
        kind.trial.start_and_compare();
        kind
    }

    fn recovery(&self) -> Recovery {
        let (name, value) = &self.option;
        self.trial.recovery().option(name, value.clone())
    }

    fn differ(&mut self) {
        match self.difference {
            Difference::Damage => self.trial.damage(),
            Difference::Lag => {
                self.trial.own_file();
                workload::change_every(&mut self.trial.primary.connect(), 20);
                // a dry run looks at what is written
                self.trial.primary.execute("CHECKPOINT");
                let report = self.recovery().option("dry_run", true).run(&self.trial.primary);
                self.trial.damaged = report.number("/bytes/sent");
                assert!(self.trial.damaged > 1 << 20, "{}", report.0);
            }
        }
    }

    /// Waits until half of what differs has been sent, or as a [`Trial`] does.
    #[track_caller]
    fn wait_for(&self, moment: Moment, running: &Running) -> Option<pgpool_recovery_e2e::trace::Hold> {
        let Moment::Middle = moment else {
            return self.trial.wait_for(moment, running.backend(), || running.has_ended());
        };
        let sql =
            "SELECT coalesce(sum(sent_bytes), 0)::bigint FROM pgpool_recovery_status WHERE state = 'running'";
        wait::until_true("half of it to be sent", wait::PATIENCE, || {
            assert!(!running.has_ended(), "it ended before: {}", self.trial.primary.log());
            self.trial.primary.get::<i64>(sql, &[]).unsigned_abs() >= self.trial.damaged / 2
        });
        None
    }

    #[track_caller]
    fn goes_on(&mut self, fault: Fault, moment: Moment) {
        eprintln!("{fault:?}, {moment:?}");
        self.differ();
        let rate = self.trial.damaged / PACE / 1024;
        let recovery = self.recovery().option("retry_for", RETRY_FOR).option("max_rate", rate);
        let running = Running::start(&self.trial.primary, &recovery, "");
        let hold = self.wait_for(moment, &running);
        fault.begin(&mut self.trial);
        drop(hold);
        wait_until_lost(&self.trial);
        fault.end(&mut self.trial);
        wait::until_true("the end", wait::PATIENCE, || running.has_ended());
        assert_went_on(&self.trial, running, 1, fault.on_the_way());
        assert_eq!(probe::slots(&self.trial.primary), [""; 0], "compared, and dropped");
    }

    fn play(mut self) {
        if std::env::var_os("PGPOOL_RECOVERY_EVERY_FAULT").is_some() {
            for (fault, moment) in FAULTS.into_iter().flat_map(|fault| MOMENTS.map(|moment| (fault, moment)))
            {
                self.goes_on(fault, moment);
            }
            return;
        }
        for (turn, moment) in MOMENTS.into_iter().enumerate() {
            self.goes_on(FAULTS[(self.number + turn) % FAULTS.len()], moment);
        }
    }
}

#[test]
fn several_streams() {
    Kind::new(0, ("jobs", 4.into()), Difference::Damage).play();
}

#[test]
fn compressed() {
    Kind::new(1, ("compression", "zstd".into()), Difference::Damage).play();
}

#[test]
fn with_a_tablespace() {
    let scratch = Scratch::new();
    let roots = format!("tablespace_roots = [\"{}\"]\n", scratch.path().display());
    let trial = Trial::with(Stage::on(&scratch).agent_with(&roots), Transport::Agent, None);
    let [old, new] = ["old", "new"].map(|name| trial.scratch.mkdir(name).display().to_string());
    trial.primary.execute(&format!("CREATE TABLESPACE far LOCATION '{old}'"));
    trial.primary.execute("ALTER TABLE bulk SET TABLESPACE far");
    trial.primary.execute("CHECKPOINT");
    let mapping = ("tablespace_mapping", format!("{old}={new}").into());
    Kind::of(2, trial, mapping, Difference::Damage).play();
}

#[test]
fn where_blocks_are_left_out() {
    Kind::new(3, ("skip_unchanged", "on".into()), Difference::Lag).play();
}

#[test]
fn where_the_proof_is_tried() {
    Kind::new(2, ("skip_unchanged", "shadow".into()), Difference::Lag).play();
}

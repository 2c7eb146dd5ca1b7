//! A target that differs from its primary, a run that something happens to at a moment of its own, and what must be so afterwards.

use std::fs::{self, OpenOptions};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::probe::{self, Witness};
use pgpool_recovery_e2e::proxy::{Proxy, Weather};
use pgpool_recovery_e2e::recovery::try_remote_start;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::stage::Builder;
use pgpool_recovery_e2e::trace::Hold;
use pgpool_recovery_e2e::xfs::Xfs;
use pgpool_recovery_e2e::{Recovery, Scratch, Stage, Transport, compare, wait};
pub(super) const MEGABYTES: u32 = 16;
/// Slow enough to be caught at any moment.
const KILOBYTES_PER_SECOND: u32 = 8000;

/// When the fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// The target has just been put out of use.
    Start,
    /// Half of what differs has been sent.
    Middle,
    /// All data is there, and the end of the WAL is awaited.
    End,
}

pub(super) const MOMENTS: [Moment; 3] = [Moment::Start, Moment::Middle, Moment::End];

/// A stage, and what is watched while a fault happens on it.
pub(super) struct Trial {
    pub(super) stage: Stage,
    pub(super) witness: Witness,
    /// What the standby's own configuration says.
    pub(super) configuration: String,
    /// Bytes of the target that differ from the primary.
    pub(super) damaged: u64,
    /// The link to the agent.
    pub(super) proxy: Option<Proxy>,
    pub(super) xfs: Option<Xfs>,
}

impl Deref for Trial {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

impl DerefMut for Trial {
    fn deref_mut(&mut self) -> &mut Stage {
        &mut self.stage
    }
}

impl Trial {
    /// With a standby.
    pub(super) fn new(transport: Transport) -> Self {
        let trial = Self::with(Stage::builder(), transport, None);
        trial.make_standby();
        trial
    }

    /// With a standby on a disk of its own.
    pub(super) fn on_a_disk(transport: Transport) -> Self {
        let scratch = Scratch::new();
        let xfs = Xfs::new(&scratch, 600).unwrap_or_else(|reason| panic!("no XFS: {reason}"));
        let directory = xfs.path().join("target");
        let builder = Stage::on(&scratch).target(move |target| target.at(directory));
        let trial = Self::with(builder, transport, Some(xfs));
        trial.make_standby();
        trial
    }

    pub(super) fn with(builder: Builder, transport: Transport, xfs: Option<Xfs>) -> Self {
        let stage = builder.quiet().filled(MEGABYTES).settled().through(transport).build();
        let proxy = (transport == Transport::Agent).then(|| {
            let proxy = Proxy::to(stage.agent().port());
            stage.primary.use_agent(proxy.port());
            proxy
        });
        let witness = Witness::on(&stage.primary);
        Self { stage, witness, configuration: String::new(), damaged: 0, proxy, xfs }
    }

    pub(super) fn make_standby(&self) {
        self.recovery().option("keep_files", "").run(&self.primary);
        self.start_and_compare();
    }

    pub(super) fn recovery(&self) -> Recovery {
        self.stage.recovery().option("keep_files", "postgresql.conf, own.txt")
    }

    pub(super) fn slow(&self) -> Recovery {
        self.recovery().option("max_rate", KILOBYTES_PER_SECOND)
    }

    /// The standby, which is stopped, has a file of its own.
    pub(super) fn own_file(&mut self) {
        let own = self.target.directory().join("own.txt");
        write_as_postgres(&own, "mine", 0o600);
        fs::File::open(&own).and_then(|own| own.sync_all()).expect("synced");
        self.configuration = self.target.read("postgresql.conf");
    }

    /// The standby is stopped, has a file of its own, and every page of a table is damaged.
    pub(super) fn damage(&mut self) {
        self.own_file();
        let path: String = self.primary.get("SELECT pg_relation_filepath('bulk')", &[]);
        let file = OpenOptions::new().write(true).open(self.target.directory().join(path)).expect("bulk");
        let length = file.metadata().expect("bulk").len();
        for page in 0..length / 8192 {
            file.write_all_at(b"damage", page * 8192 + 4000).expect("written");
        }
        file.sync_all().expect("synced");
        self.damaged = length;
    }

    /// What the link to the agent does from now on.
    pub(super) fn weather(&self, weather: Weather) {
        self.proxy.as_ref().expect("a link").set(weather);
    }

    /// Waits for a moment of the run of this backend. At its end it is held up there, as long as what is returned lasts.
    #[track_caller]
    pub(super) fn wait_for(
        &self,
        moment: Moment,
        backend: i32,
        has_ended: impl Fn() -> bool,
    ) -> Option<Hold> {
        let mut client = self.primary.connect();
        let mut hold = None;
        wait::until_true(&format!("{moment:?} of the run"), wait::PATIENCE, || {
            assert!(!has_ended(), "it ended before its {moment:?}: {}", self.primary.log());
            let sql = "SELECT phase, coalesce(backup_total - backup_streamed, 1 << 40) \
                       FROM pg_stat_progress_basebackup WHERE pid = $1";
            let Some(row) = client.query_opt(sql, &[&backend]).expect(sql) else { return false };
            let (phase, left): (String, i64) = (row.get(0), row.get(1));
            let is_streaming = phase == "streaming database files";
            match moment {
                // first the marker, then pg_control, then all else
                Moment::Start => {
                    self.target.has("pgpool_recovery.incomplete") && !self.target.has("global/pg_control")
                }
                Moment::Middle => is_streaming && left.unsigned_abs() <= self.damaged / 2,
                Moment::End => {
                    if is_streaming && hold.is_none() {
                        hold = Some(self.hold_up(backend));
                    }
                    hold.is_some() && phase == "transferring wal files"
                }
            }
        });
        hold
    }

    /// Holds up the receiver, in this backend or in the agent, when it has the WAL up to the backup's end: that of a quiet
    /// primary is one segment. Nothing is finished before.
    pub(super) fn hold_up(&self, backend: i32) -> Hold {
        let receiver = match self.proxy {
            Some(_) => self.agent().pid(),
            None => backend.unsigned_abs(),
        };
        let segment: String = self.primary.get("SELECT pg_walfile_name(pg_current_wal_insert_lsn())", &[]);
        let path = self.target.directory().join("pg_wal").join(segment);
        Hold::at_fsync(&path, &self.scratch, receiver)
    }

    /// A run that this happens to at this moment. It must fail, with this SQLSTATE if its session is there to tell.
    #[track_caller]
    pub(super) fn break_off(
        &mut self,
        moment: Moment,
        sqlstate: Option<&str>,
        fault: impl FnOnce(&mut Self, &Running),
    ) {
        self.damage();
        let running = Running::start(&self.primary, &self.slow(), "");
        // until the end: what is asked of a backend, it does a little later
        let _hold = self.wait_for(moment, running.backend(), || running.has_ended());
        fault(self, &running);
        // SILENCE, and a little
        let error = running.finish_within(Duration::from_secs(45)).expect_err("it was interrupted");
        if let Some(error) = error.as_db_error() {
            assert_ne!(error.code().code(), "XX000", "{error:?}");
            assert!(sqlstate.is_none_or(|sqlstate| error.code().code() == sqlstate), "{error:?}");
        }
    }

    #[track_caller]
    pub(super) fn assert_broken_off(&mut self) {
        self.witness.assert_served();
        probe::assert_nothing_left(&self.primary);
        assert!(self.target.has("pgpool_recovery.incomplete"), "no marker");
        assert!(!self.target.try_start().status.success(), "an incomplete target started");
        let _ = try_remote_start(&self.primary, "localhost", self.target.dir())
            .expect_err("an incomplete target was started");
        assert!(self.target.postmaster().is_none());
        self.assert_own_files();
    }

    #[track_caller]
    pub(super) fn assert_own_files(&self) {
        assert_eq!(self.target.read("own.txt"), "mine");
        assert!(self.target.read("postgresql.conf").starts_with(&self.configuration), "its configuration");
    }

    /// The next run completes and sends at most so many bytes.
    #[track_caller]
    pub(super) fn assert_next_run_completes(&self, most: u64) {
        let report = self.recovery().run_when_let_in(&self.primary);
        let sent = report.number("/bytes/sent");
        assert!(sent <= most, "{sent} bytes sent, {most} were to be enough: {}", report.0);
        assert!(sent < report.number("/bytes/total"), "{}", report.0);
        self.start_and_compare();
        self.assert_own_files();
    }

    /// The standby is exact; it is stopped then.
    #[track_caller]
    pub(super) fn start_and_compare(&self) {
        self.remote_start();
        assert!(!self.target.has("pgpool_recovery.incomplete"));
        let mut difference = compare::running(&self.primary, &self.target);
        difference.faults.retain(|fault| !fault.starts_with("own.txt: extra"));
        difference.assert_none();
        self.target.stop(Stop::Fast);
        self.primary.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
    }

    /// What may still have to be sent after a fault at this moment that left the page cache alone.
    pub(super) fn left_at(&self, moment: Moment) -> u64 {
        let left = match moment {
            Moment::Start => self.damaged,
            Moment::Middle => self.damaged / 2,
            Moment::End => 0,
        };
        // what was on the way, and what the server changed in its catalogs meanwhile
        left + (4 << 20)
    }
}

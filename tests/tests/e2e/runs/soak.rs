//! Recoveries under full write load and a storm of DDL, round after round, with targets in every condition and the
//! standby promoted right after: what PostgreSQL promises about its data holds, whatever the moment. A third of the rounds leaves
//! out what WAL proves equal, and a third tries that proof. The link to the agent is cut now and then, and the same call goes on.
//!
//! PGPOOL_RECOVERY_SOAK_ROUNDS (default 10) and PGPOOL_RECOVERY_SOAK_SEED (default 1) repeat or lengthen it:
//! `make soak ROUNDS=300 SEED=7`.

use std::cell::Cell;
use std::fs;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::proxy::{Proxy, Weather};
use pgpool_recovery_e2e::recovery::Report;
use pgpool_recovery_e2e::rng::Rng;
use pgpool_recovery_e2e::storm::{self, Storm};
use pgpool_recovery_e2e::{Cluster, Recovery, SqlError, Stage, compare, dump, wait};

fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(format!("PGPOOL_RECOVERY_SOAK_{name}"));
    value.map_or(default, |value| value.parse().expect("a number"))
}

struct Soak {
    stage: Stage,
    /// The way to the agent.
    proxy: Proxy,
    /// How often the link was lost, and the call went on.
    tried_again: Cell<u64>,
    /// Whether the target has been promoted since it was rebuilt.
    is_promoted: Cell<bool>,
    /// Whether this round's recoveries leave out what WAL proves equal.
    skip_unchanged: Cell<&'static str>,
    /// How many rounds did.
    left_out: Cell<u64>,
}

impl Deref for Soak {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

impl Soak {
    fn new() -> Self {
        let stage = Stage::builder()
            .primary(storm::fit)
            .with("max_wal_size", "200MB")
            // what WAL must be for blocks to be left out
            .with("fsync", "on")
            .with("wal_keep_size", "500MB")
            .with("wal_log_hints", "on")
            .primary(|primary| primary.initdb_argument("--data-checksums"))
            .filled(10)
            .agent()
            .build();
        storm::prepare(&stage.primary);
        let proxy = Proxy::to(stage.agent().port());
        stage.primary.use_agent(proxy.port());
        Self {
            stage,
            proxy,
            tried_again: Cell::new(0),
            is_promoted: Cell::new(false),
            skip_unchanged: Cell::new("off"),
            left_out: Cell::new(0),
        }
    }

    fn recovery(&self, rng: &mut Rng) -> Recovery {
        self.stage
            .recovery()
            .option("transport", *rng.pick(&["local", "agent"]))
            .option("compression", *rng.pick(&["off", "lz4", "zstd", "auto"]))
            .option("jobs", rng.below(5))
            .option("max_rate", if rng.percent(50) { 40_000 } else { 0 })
            .option("skip_unchanged", self.skip_unchanged.get())
            // what was promoted has a history of its own, which nothing else may replace
            .option("overwrite", if self.is_promoted.get() { "any_cluster" } else { "same" })
    }

    /// A recovery that is canceled some time, or terminated.
    fn break_one_off(&self, rng: &mut Rng) {
        let running = Running::start(&self.primary, &self.recovery(rng), "");
        let until = Instant::now() + Duration::from_millis(rng.below(900) as u64);
        while Instant::now() < until && !running.has_ended() {
            std::thread::sleep(Duration::from_millis(5));
        }
        if rng.percent(50) {
            running.cancel();
        } else {
            self.primary.execute(&format!("SELECT pg_terminate_backend({})", running.backend()));
        }
        // it may have been faster
        let _ = running.finish_within(Duration::from_secs(30));
    }

    /// The target gets into some state, after which a recovery has to succeed. Returns whether files were damaged.
    fn maltreat(&self, rng: &mut Rng) -> bool {
        if self.target.postmaster().is_some() {
            if rng.percent(50) {
                self.target.kill();
            } else {
                self.target.stop(Stop::Immediate);
            }
        }
        self.skip_unchanged.set(*rng.pick(&["off", "shadow", "on"]));
        let is_damaged = match rng.below(4) {
            0 if self.target.directory().exists() => {
                fs::remove_dir_all(self.target.directory()).expect("removed");
                false
            }
            1 => {
                self.damage(rng);
                // what came without WAL is only found where it is looked for
                if self.skip_unchanged.get() == "on" {
                    self.skip_unchanged.set("shadow");
                }
                true
            }
            _ => false,
        };
        for _ in 0..rng.below(3) {
            self.break_one_off(rng);
        }
        is_damaged
    }

    /// A recovery whose link may be cut once.
    fn recover(&self, recovery: &Recovery, rng: &mut Rng) -> Report {
        let is_cut = rng.percent(40);
        let proxy = &self.proxy;
        let (after, length) = (rng.below(600) as u64, 100 + rng.below(1000) as u64);
        std::thread::scope(|scope| {
            if is_cut {
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(after));
                    proxy.set(Weather::Cut);
                    std::thread::sleep(Duration::from_millis(length));
                    proxy.set(Weather::Fair);
                });
            }
            // a link that is cut before anything was reached is told at once
            wait::until("the recovery", wait::PATIENCE, || {
                let recovery = recovery.clone().option("retry_for", 60);
                let error = match recovery.call(&mut self.primary.connect()) {
                    Ok(report) => return Some(report),
                    Err(error) => SqlError::from(&error),
                };
                let passes = ["55006", "08001", "08006"].contains(&error.sqlstate.as_str());
                assert!(passes && !error.text().contains("ried again"), "{error:?}");
                None
            })
        })
    }

    /// No page contradicts the proof, unless it was damaged.
    fn look_at(&self, report: &Report, is_damaged: bool) {
        let skip = report.0.pointer("/skip").filter(|skip| !skip.is_null());
        let Some(skip) = skip else { return };
        eprintln!("{skip}");
        assert!(is_damaged || skip["refuted"].as_u64().unwrap_or_default() == 0, "{}", report.0);
        if skip["rule"] == "wal_map" && skip["mode"] == "on" {
            self.left_out.set(self.left_out.get() + 1);
        }
    }

    /// Bits flip, files are cut, grow or vanish.
    fn damage(&self, rng: &mut Rng) {
        for database in fs::read_dir(self.target.directory().join("base")).into_iter().flatten().flatten() {
            for entry in fs::read_dir(database.path()).into_iter().flatten().flatten() {
                let path = entry.path();
                if !rng.percent(5) || !path.is_file() {
                    continue;
                }
                let file = fs::OpenOptions::new().write(true).open(&path).expect("a file");
                let length = usize::try_from(file.metadata().expect("a file").len()).expect("small");
                match rng.below(4) {
                    0 if length > 0 => {
                        file.write_all_at(&[rng.below(256) as u8], rng.below(length) as u64)
                            .expect("written");
                    }
                    1 => file.set_len(rng.below(length + 1) as u64).expect("cut"),
                    2 => file.set_len((length + rng.below(100_000)) as u64).expect("extended"),
                    _ => fs::remove_file(&path).expect("removed"),
                }
            }
        }
    }

    /// What is prepared keeps its locks.
    fn end_prepared(cluster: &Cluster) {
        let sql = "SELECT gid FROM pg_prepared_xacts";
        for row in cluster.connect().query(sql, &[]).expect(sql) {
            cluster.execute(&format!("ROLLBACK PREPARED '{}'", row.get::<_, String>(0)));
        }
    }

    fn round(&self, rng: &mut Rng) {
        let is_damaged = self.maltreat(rng);
        let storm = Storm::on(&self.primary, rng);
        let before = storm.done();
        let recovery = self.recovery(rng);
        eprintln!("{recovery:?}");
        let report = self.recover(&recovery, rng);
        self.tried_again.set(self.tried_again.get() + report.number("/retries"));
        self.look_at(&report, is_damaged);
        self.is_promoted.set(false);
        self.remote_start();
        assert!(storm.done() > before, "there was no storm");
        if rng.percent(50) {
            // promoted in the middle of it
            self.target.promote();
            self.is_promoted.set(true);
            storm::assert_sound(&self.target);
            dump::assert_amcheck_clean(&self.target);
            self.target.execute("VACUUM FREEZE");
            self.target.execute("CHECKPOINT");
            Self::end_prepared(&self.target);
            self.target.execute("UPDATE bank SET filler = 'another history' WHERE id < 100");
            drop(storm);
            Self::end_prepared(&self.primary);
            storm::assert_sound(&self.primary);
        } else {
            drop(storm);
            Self::end_prepared(&self.primary);
            self.target.wait_for_replay(&self.primary);
            storm::assert_sound(&self.target);
            dump::assert_amcheck_clean(&self.target);
            compare::stop_and_compare(&self.primary, &self.target).assert_none();
            self.primary.start();
        }
        self.primary
            .execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active");
    }
}

#[test]
fn rounds() {
    let soak = Soak::new();
    let (rounds, seed) = (setting("ROUNDS", 10), setting("SEED", 1));
    let mut memory = Vec::new();
    for round in 0..rounds {
        eprintln!("round {round} of {rounds}, seed {seed}");
        soak.round(&mut Rng::new(seed << 32 | round));
        memory.push(soak.agent().memory());
        eprintln!("the agent has {} kB", memory.last().expect("this round's"));
    }
    eprintln!("blocks were left out in {} rounds", soak.left_out.get());
    eprintln!("a link was lost, and the call went on, {} times", soak.tried_again.get());
    assert!(rounds < 100 || soak.tried_again.get() > 0, "no link was lost");
    assert!(rounds < 100 || soak.left_out.get() > 0, "everything was compared");
    let sql =
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND state <> 'idle'";
    assert_eq!(soak.primary.get::<i64>(sql, &[]), 1, "a backend is left");
    assert_memory_is_kept_within_bounds(&memory);
}

/// An agent keeps what glibc does not give back: some 5 MB for each thread that ran at the same time as others, of which there are 16
/// (docs/decisions/2026-11-30-memory-between-runs.md). Once all have been used, it does not grow.
fn assert_memory_is_kept_within_bounds(kilobytes: &[u64]) {
    let Some(last) = kilobytes.last() else { return };
    assert!(*last < 112 << 10, "the agent has grown to {last} kB");
    let before = kilobytes[kilobytes.len() / 2];
    let is_long = kilobytes.len() >= 100;
    assert!(!is_long || *last < before + (16 << 10), "the agent has grown from {before} kB to {last} kB");
}

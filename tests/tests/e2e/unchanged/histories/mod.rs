//! Random histories of three servers, and recoveries of one of them that leave out what WAL proves equal: every page that the
//! proof leaves out is looked at first, and what comes of it is compared with the primary afterwards.
//!
//! PGPOOL_RECOVERY_HISTORIES_ROUNDS (default 3) histories, the first of seed PGPOOL_RECOVERY_HISTORIES_SEED (default 1):
//! `make histories ROUNDS=300 SEED=7`. A history that fails tells its seed and what happened; what servers and sessions make of
//! it takes another time each time.

mod nodes;
mod work;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nodes::{Nodes, Role};
use pgpool_recovery_e2e::recovery::Report;
use pgpool_recovery_e2e::rng::Rng;
use pgpool_recovery_e2e::{Cluster, Recovery, compare, dump};

fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(format!("PGPOOL_RECOVERY_HISTORIES_{name}"));
    value.map_or(default, |value| value.parse().expect("a number"))
}

/// How the target of a recovery comes to be what it is.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// A standby that was away for a while.
    Lags,
    /// A primary of which another one takes the place, and which changes nothing more than a server does by itself.
    Fenced,
    /// A primary that went on by itself.
    WentOn,
    /// A standby that had received more than the one that was promoted.
    Ahead,
    /// A standby that was promoted, too, and is not to lead.
    Mistaken,
    /// What a recovery before this one has left behind.
    Left,
}

/// How often each of them happens.
const FATES: [Fate; 12] = [
    Fate::Lags,
    Fate::Lags,
    Fate::Fenced,
    Fate::Lags,
    Fate::Fenced,
    Fate::Fenced,
    Fate::WentOn,
    Fate::WentOn,
    Fate::WentOn,
    Fate::Ahead,
    Fate::Mistaken,
    Fate::Left,
];

/// Lets it happen. Returns the target, which is down; `None` if it cannot happen now.
fn befall(nodes: &mut Nodes, fate: Fate, rng: &mut Rng) -> Option<usize> {
    nodes.tale.push(format!("-- {fate:?}"));
    let leader = nodes.leader();
    let target = match fate {
        Fate::Lags => {
            let target = nodes.standby(rng)?;
            if rng.percent(85) {
                nodes.let_catch_up(target);
            }
            nodes.end(target, rng);
            nodes.busy(leader, rng, 6);
            target
        }
        Fate::Fenced | Fate::WentOn => {
            let heir = nodes.standby(rng)?;
            if rng.percent(70) {
                if nodes.nodes[heir].role == Role::Cut {
                    nodes.follow(heir);
                }
                nodes.let_catch_up(heir);
            }
            nodes.cut(heir);
            if matches!(fate, Fate::WentOn) {
                nodes.busy(leader, rng, 8);
            }
            nodes.work(leader, &work::read(rng), false);
            if rng.percent(50) {
                nodes.cluster(leader).execute("CHECKPOINT");
                nodes.work(leader, &work::read(rng), false);
            }
            let lives_on = matches!(fate, Fate::WentOn) && rng.percent(50);
            if !lives_on {
                nodes.end(leader, rng);
            }
            if !nodes.fail_over(leader, heir, rng) {
                return None;
            }
            nodes.busy(heir, rng, 5);
            if lives_on {
                nodes.busy(leader, rng, 4);
                nodes.end(leader, rng);
            }
            leader
        }
        Fate::Ahead => {
            let heir = nodes.standby(rng)?;
            let target = nodes
                .one(rng, |role| matches!(role, Role::Follows | Role::Cut))
                .filter(|one| *one != heir)?;
            nodes.follow(target);
            nodes.cut(heir);
            nodes.busy(leader, rng, 5);
            nodes.let_catch_up(target);
            nodes.work(target, &work::read(rng), false);
            nodes.end(leader, rng);
            if !nodes.fail_over(leader, heir, rng) {
                return None;
            }
            nodes.busy(heir, rng, 5);
            nodes.work(target, &work::read(rng), false);
            nodes.end(target, rng);
            target
        }
        Fate::Mistaken => {
            let target = nodes.standby(rng)?;
            nodes.told(target, "is promoted by mistake");
            nodes.cluster(target).promote();
            nodes.nodes[target].role = Role::Alone;
            if rng.percent(30) {
                nodes.busy(target, rng, 4);
            }
            nodes.work(target, &work::read(rng), false);
            nodes.busy(leader, rng, 4);
            nodes.end(target, rng);
            target
        }
        Fate::Left => {
            let target =
                nodes.one(rng, |role| matches!(role, Role::Alone | Role::Down { was_standby: false }))?;
            if nodes.nodes[target].role == Role::Alone {
                nodes.end(target, rng);
            } else if rng.percent(40) {
                nodes.start(target, Role::Alone);
                nodes.busy(target, rng, 3);
                nodes.end(target, rng);
            }
            target
        }
    };
    Some(target)
}

/// Which rule decided, or why none did.
fn rule_of(report: &Report) -> String {
    match report.text("/skip/rule") {
        "wal_map" => report.text("/skip/hint_rule").to_owned(),
        _ => {
            let reason = report.text("/skip/rejected/0");
            // without the numbers
            let words: Vec<&str> = reason
                .split_whitespace()
                .filter(|word| !word.contains(|c: char| c.is_ascii_digit()))
                .collect();
            format!("hash: {}", words.join(" "))
        }
    }
}

/// Sessions that change the primary while a recovery goes on.
fn while_busy<T>(leader: &Cluster, rng: Option<Rng>, run: impl FnOnce() -> T) -> T {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if let Some(mut rng) = rng {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let work = if rng.percent(70) { work::change(&mut rng) } else { work::upkeep(&mut rng) };
                    work.run(leader, false);
                }
            });
        }
        let result = catch_unwind(AssertUnwindSafe(run));
        is_over.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Tries the proof on everything; rebuilds the target with it; compares what came of it. Returns the rule.
fn rebuild(nodes: &mut Nodes, target: usize, rng: &mut Rng) -> String {
    nodes.forget_source(target);
    let leader = nodes.leader();
    let storm = rng.percent(30).then(|| rng.fork());
    let is_quiet = storm.is_none();
    nodes.told(target, if storm.is_some() { "is rebuilt under load" } else { "is rebuilt" });
    let (ours, theirs) = (nodes.cluster(leader), nodes.cluster(target));
    let recovery = Recovery::of(theirs, ours)
        .option("dest_port", theirs.port())
        .option("application_name", theirs.name())
        .option("slot_name", if rng.percent(50) { theirs.name() } else { "" })
        .option("overwrite", "any_cluster");
    let is_tried = rng.percent(80);
    if is_tried {
        // else its files are not what its pages are
        ours.execute("CHECKPOINT");
    }
    let (watched, report) = while_busy(ours, storm, || {
        let watched = recovery.clone().option("skip_unchanged", "shadow").option("dry_run", true).run(ours);
        (watched, recovery.option("skip_unchanged", "on").option("start", true).run(ours))
    });
    for report in
        [&watched, &report].into_iter().filter(|report| report.0.pointer("/skip/hint_rule").is_some())
    {
        assert_eq!(report.number("/skip/refuted"), 0, "{}", report.0);
    }
    // what is removed meanwhile cannot be looked at
    if is_tried && is_quiet && watched.0.pointer("/skip/hint_rule").is_some() {
        let known = watched.number("/skip/bytes/known");
        assert!(known / 8192 <= watched.number("/skip/looked_at"), "{}", watched.0);
    }
    let rule = rule_of(&report);
    nodes.told(target, format!("{rule}; before that: {}", watched.at("/skip")));
    nodes.nodes[target].role = Role::Follows;
    verify(nodes, target, rng);
    rule
}

fn verify(nodes: &mut Nodes, target: usize, rng: &mut Rng) {
    nodes.close();
    let leader = nodes.leader();
    let (ours, theirs) = (nodes.cluster(leader), nodes.cluster(target));
    work::end_all_prepared(ours);
    theirs.wait_for_replay(ours);
    work::assert_sound(theirs);
    if rng.percent(50) {
        dump::assert_equal(ours, theirs);
        dump::assert_amcheck_clean(theirs);
    }
    compare::stop_and_compare(ours, theirs).assert_none();
    if rng.percent(20) {
        nodes.start(target, Role::Alone);
        let theirs = nodes.cluster(target);
        theirs.promote();
        work::assert_can_be_written(theirs);
        if rng.percent(50) {
            nodes.end(target, rng);
        }
    } else {
        nodes.start(target, Role::Follows);
    }
    nodes.start(leader, Role::Leads);
}

/// One history. Returns what decided each of its recoveries.
fn history(seed: u64) -> Vec<String> {
    let mut rng = Rng::new(seed);
    let mut nodes = Nodes::new(&mut rng);
    let mut rules = Vec::new();
    for _ in 0..3 {
        for _ in 0..1 + rng.below(6) {
            nodes.step(&mut rng);
        }
        // most need a standby
        let target = (0..5)
            .find_map(|_| befall(&mut nodes, *rng.pick(&FATES), &mut rng))
            .or_else(|| befall(&mut nodes, Fate::Left, &mut rng));
        let target = target.expect("something befalls one of them");
        for _ in 0..rng.below(4) {
            let leader = nodes.leader();
            nodes.busy(leader, &mut rng, 3);
        }
        rules.push(rebuild(&mut nodes, target, &mut rng));
    }
    if std::env::var_os("PGPOOL_RECOVERY_HISTORIES_TOLD").is_some() {
        eprintln!("{}", nodes.tale.join("\n"));
    }
    rules
}

#[test]
fn no_history_has_a_page_that_wal_does_not_tell() {
    let (rounds, first) = (setting("ROUNDS", 3), setting("SEED", 1));
    let next = AtomicU64::new(first);
    let counts: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());
    let failed: Mutex<Vec<u64>> = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(2, |number| number.get().min(8)) + 1;
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + rounds {
                        break;
                    }
                    match catch_unwind(|| history(seed)) {
                        Ok(rules) => {
                            eprintln!("history {seed}: {rules:?}");
                            let mut counts = counts.lock().expect("no panic");
                            for rule in rules {
                                *counts.entry(rule).or_default() += 1;
                            }
                        }
                        Err(_) => {
                            eprintln!("history {seed} FAILED: make histories ROUNDS=1 SEED={seed}");
                            failed.lock().expect("no panic").push(seed);
                        }
                    }
                }
            });
        }
    });
    let counts = counts.into_inner().expect("no panic");
    let text: Vec<String> = counts.iter().map(|(rule, count)| format!("{count:6} {rule}")).collect();
    eprintln!("{}", text.join("\n"));
    assert_eq!(failed.into_inner().expect("no panic"), Vec::<u64>::new(), "histories failed");
    let count = |word: &str| -> usize {
        counts.iter().filter(|(rule, _)| rule.starts_with(word)).map(|(_, count)| count).sum()
    };
    // what is compared proves nothing
    assert!(count("H") > 0, "all were compared");
    if rounds >= 20 {
        assert!(count("H") > count("hash"), "too many were compared");
        for rule in ["H0", "H1", "H2", "hash"] {
            assert!(count(rule) > 0, "none by {rule}");
        }
    }
}

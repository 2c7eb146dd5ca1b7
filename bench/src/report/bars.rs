//! What is to be reached, beside what was measured. Nothing is asserted: a benchmark is no test.

use serde::Serialize;

use super::{REFERENCE, Table};
use crate::rounds::CAUGHT_UP;

/// The contender that leaves out what WAL proves equal, through an agent.
const SKIPPING: &str = "ours-agent-skip";

#[derive(Debug, Serialize)]
pub(crate) struct Bar {
    pub(crate) what: String,
    pub(crate) bar: String,
    /// None: not measured in this run.
    pub(crate) measured: Option<String>,
    pub(crate) met: Option<bool>,
}

impl Bar {
    pub(crate) fn verdict(&self) -> &'static str {
        match self.met {
            Some(true) => "met",
            Some(false) => "not met",
            None => "not run",
        }
    }
}

/// Lines of the list of bars, as they are built up.
struct Bars<'a> {
    tables: &'a [Table],
    bars: Vec<Bar>,
}

/// Every bar, in the order of the design.
pub(crate) fn all(tables: &[Table]) -> Vec<Bar> {
    let mut bars = Bars { tables, bars: Vec::new() };
    bars.faster("refresh-10", REFERENCE, "rsync", 5.0);
    bars.faster("refresh-10", REFERENCE, "pgbackrest", 2.0);
    bars.faster("refresh-0", REFERENCE, "rsync", 7.0);
    bars.faster("full", REFERENCE, "pg_basebackup", 2.0);
    bars.faster("full", "ours-local", "pg_basebackup", 3.0);
    bars.faster("full-clone", "ours-local", "pg_basebackup", 15.0);
    bars.faster("map-0", SKIPPING, "rsync", 15.0);
    bars.faster("map-0", SKIPPING, REFERENCE, 5.0);
    bars.faster("map-1", SKIPPING, "rsync", 8.0);
    bars.caught_up();
    bars.map_curve();
    bars.wire();
    bars.link();
    bars.memory();
    bars.faster("many-files", REFERENCE, "rsync", 5.0);
    bars.load();
    bars.start_up();
    bars.bars
}

impl Bars<'_> {
    fn table(&self, work: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.work == work)
    }

    fn seconds(&self, work: &str, contender: &str) -> Option<f64> {
        self.table(work)?.row(contender)?.seconds()
    }

    fn add(&mut self, what: String, bar: String, measured: Option<(String, bool)>) {
        let met = measured.as_ref().map(|measured| measured.1);
        self.bars.push(Bar { what, bar, measured: measured.map(|measured| measured.0), met });
    }

    fn faster(&mut self, work: &str, ours: &str, peer: &str, times: f64) {
        let ratio = |ours: &str| Some(self.seconds(work, peer)? / self.seconds(work, ours)?);
        let measured = ratio(ours).map(|found| {
            let by_default = if ours == REFERENCE { ratio("ours-agent-auto") } else { None };
            let by_default =
                by_default.map_or_else(String::new, |ratio| format!(" (compression auto {ratio:.2})"));
            (format!("{found:.2} times{by_default}"), found >= times)
        });
        let what = format!("{work}: {ours} against {peer}");
        self.add(what, format!("at least {times} times faster"), measured);
    }

    fn caught_up(&mut self) {
        let seconds = |contender| self.table("failover")?.row(contender)?.figure(CAUGHT_UP);
        let measured = seconds(SKIPPING)
            .zip(seconds("pg_rewind"))
            .map(|(ours, theirs)| (format!("{ours:.2} s against {theirs:.2} s"), ours < theirs));
        let what = format!("failover: {SKIPPING} against pg_rewind, until caught up");
        self.add(what, "faster".to_owned(), measured);
    }

    fn map_curve(&mut self) {
        let seconds = |megabytes| self.seconds("map-curve", &format!("{SKIPPING} {megabytes} MB"));
        let measured = seconds(3000)
            .zip(seconds(30_000))
            .map(|(small, large)| (format!("{large:.2} s against {small:.2} s"), large <= 1.5 * small));
        let what = "map-curve: 30 GB against 3 GB with the same change";
        self.add(what.to_owned(), "at most 1.5 times".to_owned(), measured);
    }

    fn wire(&mut self) {
        let measured = self.table("refresh-10").and_then(|table| {
            let changed = table.facts.get("changed pages")?.as_f64()? * 8192.0;
            let data = table.facts.get("bytes")?.as_f64()?;
            let (wire, most) = (table.row(REFERENCE)?.wire()?, 1.03 * changed + 0.003 * data);
            Some((format!("{:.1} MB of at most {:.1} MB", wire / 1e6, most / 1e6), wire <= most))
        });
        let bar = "at most 1.03 x changed pages + 0.3 % of the data";
        self.add("refresh-10: bytes on the wire".to_owned(), bar.to_owned(), measured);
    }

    fn link(&mut self) {
        let measured = self.table("link-full").and_then(|table| {
            let percent = table.row(REFERENCE)?.figure("% of link")?;
            Some((format!("{percent:.1} %"), percent >= 90.0))
        });
        self.add("link-full: use of the link".to_owned(), "at least 90 %".to_owned(), measured);
        let best = |names: [&str; 2]| {
            let seconds = names.iter().filter_map(|name| self.seconds("link-full", name));
            seconds.reduce(f64::min)
        };
        let theirs = best(["pg_basebackup-lz4", "pg_basebackup-zstd"]);
        let measured = theirs
            .zip(self.seconds("link-full", "ours-agent-auto"))
            .map(|(theirs, ours)| (format!("{ours:.2} s against {theirs:.2} s"), ours <= theirs));
        let what = "link-full: compression auto against pg_basebackup's better one";
        self.add(what.to_owned(), "at least as fast".to_owned(), measured);
    }

    fn memory(&mut self) {
        let ours = self.tables.iter().flat_map(|table| table.rows.iter().map(move |row| (table, row)));
        let ours = ours.filter(|(_, row)| row.contender.starts_with("ours"));
        let peaks = ours.filter_map(|(table, row)| {
            let (primary, standby) = row.memory()?;
            Some((primary.max(standby), format!("{} in {}", row.contender, table.work)))
        });
        let measured = peaks
            .max()
            .map(|(kib, where_)| (format!("{:.0} MiB ({where_})", kib as f64 / 1024.0), kib <= 64 * 1024));
        self.add("memory: each side, every work".to_owned(), "at most 64 MiB".to_owned(), measured);
    }

    fn load(&mut self) {
        let tps = |contender| self.table("load")?.row(contender)?.figure("tps");
        let measured = tps(REFERENCE)
            .zip(tps("pg_basebackup"))
            .map(|(ours, theirs)| (format!("{ours:.0} against {theirs:.0} tps"), ours >= theirs));
        let what = "load: pgbench during the copy, against pg_basebackup";
        self.add(what.to_owned(), "no lower".to_owned(), measured);
    }

    fn start_up(&mut self) {
        let own = self.table("small").and_then(|table| table.row(REFERENCE)?.seconds());
        let measured = own.map(|seconds| (format!("{seconds:.2} s"), seconds < 3.0));
        self.add("small: first stage and start".to_owned(), "under 3 s of our own time".to_owned(), measured);
    }
}

/// The list for people.
pub(crate) fn text(bars: &[Bar], markdown: bool) -> String {
    let mut lines = vec![["bar", "to reach", "measured", ""].map(str::to_owned).to_vec()];
    lines.extend(bars.iter().map(|bar| {
        let measured = bar.measured.clone().unwrap_or_else(|| "-".to_owned());
        vec![bar.what.clone(), bar.bar.clone(), measured, bar.verdict().to_owned()]
    }));
    let title = if markdown { "### bars\n\n" } else { "\nbars\n" };
    title.to_owned() + &super::text::grid(&lines, 4, markdown)
}

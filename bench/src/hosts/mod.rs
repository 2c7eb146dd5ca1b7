//! The same kinds of work between two hosts that are reached by ssh, over whatever lies between them.
//!
//! ssh serves the bench only: what is measured uses PostgreSQL's own protocol and the agent's, and rsync its own ssh.

mod contenders;
mod pair;
mod remote;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use std::path::PathBuf;

use self::contenders::Contender;
use self::pair::Pair;
use crate::interrupt::{Outcome, check, failed};
use crate::measure::Sample;
use crate::plan::wants;
use crate::progress::say;
use crate::report::{Row, Table, json as documents, text};

/// Rebuilds a standby on one host from a primary on another, and needs nothing of both but these: a login by ssh that asks no
/// question, as an ordinary user (postgres, for instance); PostgreSQL with pgbench; the extension on the primary's
/// host, and pgpool-recovery-agent on the standby's; two ports each of which the other reaches; disk for the data, on the
/// standby's host twice. For rsync also that program on both, and a login from the primary's host to the standby's.
///
/// Servers, data and agent are its own, in a directory that it makes on each host, and removes. Nothing else is touched.
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Plan {
    /// Login on the primary's host, as ssh takes it: user@host.
    #[arg(long)]
    pub(crate) primary: String,

    /// Login on the standby's host.
    #[arg(long)]
    pub(crate) standby: String,

    /// How the standby reaches the primary, if not by the host of its login.
    #[arg(long)]
    primary_address: Option<String>,

    /// How the primary reaches the standby, if not by the host of its login.
    #[arg(long)]
    standby_address: Option<String>,

    /// Only these works, separated by commas.
    #[arg(long, value_delimiter = ',')]
    works: Vec<Work>,

    /// Only these contenders, separated by commas; `ours*` is all whose names begin so.
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<String>,

    /// Megabytes of pgbench data.
    #[arg(long, default_value_t = 3000)]
    size: u32,

    /// Timed runs of each contender, after one that is not counted.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Speed of the link in Mbit/s, if known: which share of it is used is then in the tables.
    #[arg(long)]
    rate: Option<u32>,

    /// Where to make a directory on both hosts.
    #[arg(long, default_value = "/var/tmp")]
    directory: String,

    /// Directory of PostgreSQL's programs on both hosts, if not that of the newest.
    #[arg(long)]
    bin_directory: Option<String>,

    /// The agent on the standby's host, if it is not in its path.
    #[arg(long)]
    agent: Option<String>,

    /// Port of both servers; the agent has the next one. Default: two that are free.
    #[arg(long)]
    port: Option<u16>,

    /// The ssh of the bench with its options, for instance `ssh -F FILE`.
    #[arg(long, default_value = "ssh")]
    ssh: String,

    /// The ssh from the primary's host to the standby's, which rsync uses.
    #[arg(long, default_value = "ssh")]
    ssh_between: String,

    /// Where everything is written as JSON.
    #[arg(long)]
    json: Option<PathBuf>,

    /// Print the tables as Markdown.
    #[arg(long)]
    markdown: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Work {
    /// An empty directory.
    Full,
    /// A stopped standby; since then about 1 % of the pages have changed on the primary.
    #[value(name = "refresh-1")]
    Refresh1,
    #[value(name = "refresh-10")]
    Refresh10,
    /// As refresh-1, with `skip_unchanged`.
    #[value(name = "map-1")]
    Map1,
}

impl Work {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    const fn percent(self) -> Option<u32> {
        match self {
            Self::Full => None,
            Self::Refresh1 | Self::Map1 => Some(1),
            Self::Refresh10 => Some(10),
        }
    }

    fn contenders(self) -> Vec<Contender> {
        let (off, auto) = (Contender::Ours("off", false), Contender::Ours("auto", false));
        match self {
            Self::Full => vec![off, auto, Contender::BaseBackup, Contender::Rsync],
            Self::Refresh1 | Self::Refresh10 => vec![off, auto, Contender::Rsync],
            Self::Map1 => vec![Contender::Ours("off", true), off, Contender::Rsync],
        }
    }
}

/// All works that were asked for. Whatever happens, both hosts are left as they were.
pub(crate) fn run(plan: &Plan) -> Outcome<()> {
    let sockets = tempfile::tempdir().expect("a temporary directory");
    let mut pair = Pair::meet(plan, sockets.path())?;
    let mut tables = Vec::new();
    let done = pair.set_up(plan).and_then(|()| works(plan, &pair, &mut tables));
    say("cleaning up");
    pair.clean_up();
    for table in &tables {
        println!("{}", text::table(table, plan.markdown));
    }
    if let Some(path) = &plan.json {
        documents::write(path, &document(plan, &pair, &tables));
    }
    done
}

fn document(plan: &Plan, pair: &Pair, tables: &[Table]) -> Value {
    json!({
        "hosts": pair.facts(),
        "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
        "plan": { "size_mb": plan.size, "rounds": plan.rounds, "rate_mbit": plan.rate },
        "works": tables.iter().map(documents::work).collect::<Vec<_>>(),
    })
}

fn works(plan: &Plan, pair: &Pair, tables: &mut Vec<Table>) -> Outcome<()> {
    let all = Work::value_variants().iter().copied();
    for work in all.filter(|work| plan.works.is_empty() || plan.works.contains(work)) {
        if let Some(percent) = work.percent() {
            say(&format!("{}: making a standby, and changing {percent} % of the primary", work.name()));
            begin_from_a_standby(plan, pair)?;
            pair.change(percent)?;
        }
        let mut table = Table::new(&work.name());
        let done = measure(plan, pair, work, &mut table);
        // what was measured before a failure is worth showing
        tables.push(table);
        done?;
    }
    Ok(())
}

/// Leaves a stopped standby in `saved`, equal to the primary.
fn begin_from_a_standby(plan: &Plan, pair: &Pair) -> Outcome<()> {
    pair.standby.run("[ ! -e saved ] || { rm -rf target; mv saved target; }")?;
    Contender::Ours("off", false).run(pair, plan)?;
    pair.start_standby()?;
    pair.catch_up()?;
    // whose WAL it has is told by the times of transactions
    pair.sql("UPDATE pgbench_branches SET bbalance = bbalance + 1 WHERE bid = 1")?;
    pair.catch_up()?;
    pair.stop_standby()?;
    pair.standby.run("cp -a --reflink=auto target saved").map(drop)
}

fn measure(plan: &Plan, pair: &Pair, work: Work, table: &mut Table) -> Outcome<()> {
    table.fact("bytes", pair.sql("SELECT sum(pg_database_size(oid)) FROM pg_database")?);
    if let Some(rate) = plan.rate {
        table.fact("link Mbit/s", rate);
    }
    let mut present = Vec::new();
    for contender in work.contenders() {
        if !wants(&plan.contenders, contender.name()) {
            continue;
        }
        let mut row = Row::new(contender.name());
        row.skipped = contender.missing(pair, plan)?;
        if row.skipped.is_none() {
            present.push((table.rows.len(), contender));
        }
        table.rows.push(row);
    }
    let expected = pair.fingerprint()?;
    for round in 0..=plan.rounds {
        // as in `make bench`: each follows each other's leftovers once
        if round > 0 && !present.is_empty() {
            present.rotate_left(1);
        }
        for (row, contender) in &present {
            check()?;
            let name = contender.name();
            let sample = once(plan, pair, work, *contender)?;
            pair.start_standby()?;
            let found = pair.catch_up()?;
            pair.stop_standby()?;
            pair.sql(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active",
            )?;
            if found != expected {
                return failed(format!(
                    "{name} in {}: rows of the standby are {found}, of the primary {expected}",
                    table.work
                ));
            }
            let warm_up = if round == 0 { " (warm-up)" } else { "" };
            say(&format!("{}: {name} {:.2} s{warm_up}", table.work, sample.seconds));
            if round > 0 {
                table.rows[*row].samples.push(sample);
            }
        }
    }
    Ok(())
}

fn once(plan: &Plan, pair: &Pair, work: Work, contender: Contender) -> Outcome<Sample> {
    let target = if work == Work::Full { "mkdir -m 700 target" } else { "cp -a --reflink=auto saved target" };
    // one contender's dirty pages are not the next one's burden, and all find the same in memory
    let warm = |data: &str| format!("sync; find {data} -type f -exec cat {{}} + >/dev/null");
    pair.standby.run(&format!("rm -rf target; {target}; {}", warm("target")))?;
    pair.primary.run(&warm("primary"))?;
    let before = pair.carried()?;
    let (seconds, told) = contender.run(pair, plan)?;
    let after = pair.carried()?;
    let wire = before.zip(after).map(|(before, after)| after.saturating_sub(before));
    let mut figures = Vec::new();
    if let Some(wire) = wire {
        let sent = wire as f64 / seconds;
        figures.push(("wire MB/s".to_owned(), sent / 1e6));
        if let Some(rate) = plan.rate {
            figures.push(("% of link".to_owned(), sent * 8.0 / f64::from(rate) / 1e4));
        }
    }
    Ok(Sample { seconds, wire, primary_kib: 0, standby_kib: 0, figures, told })
}

//! What is to be measured: the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::hosts;

/// Measures pgpool_recovery side by side with its peers on one set of data.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) mode: Option<Mode>,

    #[command(flatten)]
    pub(crate) plan: Plan,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Mode {
    /// The same between two real hosts, over their own network (scripts/bench-hosts.sh)
    Hosts(hosts::Plan),
}

/// On this machine.
#[derive(Debug, Clone, Args)]
pub(crate) struct Plan {
    /// Megabytes of pgbench data.
    #[arg(long, default_value_t = 3000)]
    pub(crate) size: u32,

    /// Percentage of pgbench's pages that is filled: with 10, large data are made in little time.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(10..=100))]
    pub(crate) fill_factor: u32,

    /// Timed runs of each contender, after one that is not counted.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repetitions: u32,

    /// Drop the page cache before each timed run.
    #[arg(long)]
    pub(crate) cold: bool,

    /// Speed of the link in Mbit/s (work `link`).
    #[arg(long, default_value_t = 1000)]
    pub(crate) rate: u32,

    /// Megabytes of data for the work `link`; default: at most 1000 of --size.
    #[arg(long)]
    pub(crate) link_size: Option<u32>,

    /// One-page tables of the work `many-files`.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) files: u32,

    /// Largest number of megabytes in the work `curve`.
    #[arg(long, default_value_t = 3000)]
    pub(crate) curve_max: u32,

    /// Largest number of megabytes in the work `map-curve`.
    #[arg(long, default_value_t = 3000)]
    pub(crate) map_curve_max: u32,

    /// Only these works, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub(crate) works: Vec<Work>,

    /// Only these contenders, separated by commas; `ours*` is all whose names begin so.
    #[arg(long, value_delimiter = ',')]
    pub(crate) contenders: Vec<String>,

    /// Where everything is written as JSON.
    #[arg(long)]
    pub(crate) json: Option<PathBuf>,

    /// Directory for the clusters.
    #[arg(long, default_value = "/tmp")]
    pub(crate) directory: PathBuf,

    /// Print the tables as Markdown.
    #[arg(long)]
    pub(crate) markdown: bool,
}

/// The works, in the order they are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Work {
    Machine,
    #[value(name = "refresh-10")]
    Refresh10,
    #[value(name = "refresh-0")]
    Refresh0,
    Full,
    FullClone,
    Failover,
    #[value(name = "map-0")]
    Map0,
    #[value(name = "map-1")]
    Map1,
    MapCurve,
    Link,
    ManyFiles,
    Load,
    Small,
    Curve,
}

impl Plan {
    pub(crate) fn works(&self) -> Vec<Work> {
        let all = Work::value_variants().iter().copied();
        all.filter(|work| self.works.is_empty() || self.works.contains(work)).collect()
    }

    /// Whether a contender of this name was asked for.
    pub(crate) fn wants(&self, contender: &str) -> bool {
        wants(&self.contenders, contender)
    }

    pub(crate) fn link_size(&self) -> u32 {
        self.link_size.unwrap_or(self.size.min(1000))
    }

    /// Timed runs in works whose single run is long.
    pub(crate) fn few_repetitions(&self) -> u32 {
        self.repetitions.min(3)
    }
}

/// Whether a name is one of these, or begins as one of them that ends with `*`; no names are all names.
pub(crate) fn wants(names: &[String], name: &str) -> bool {
    let fits = |wanted: &String| match wanted.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == wanted,
    };
    names.is_empty() || names.iter().any(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_are_chosen_by_name_or_beginning() {
        let plan = Arguments::parse_from(["bench", "--contenders", "ours-agent,rsync*"]).plan;
        for (name, wanted) in
            [("ours-agent", true), ("ours-agent-lz4", false), ("ours-local", false), ("rsync-delta", true)]
        {
            assert_eq!(plan.wants(name), wanted, "{name}");
        }
        assert_eq!(plan.works().len(), 14);
    }
}

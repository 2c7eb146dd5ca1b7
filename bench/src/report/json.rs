//! Everything, for programs.

use std::fs;
use std::path::Path;
use std::process::Command;

use pgpool_recovery_e2e::{Host, process};
use serde_json::{Map, Value, json};

use super::Table;
use super::bars::Bar;
use crate::plan::Plan;
use crate::tool;

/// The whole run.
pub(crate) fn document(plan: &Plan, tables: &[Table], bars: &[Bar]) -> Value {
    json!({
        "machine": machine(&plan.directory),
        "arguments": std::env::args().skip(1).collect::<Vec<_>>(),
        "plan": {
            "size_mb": plan.size,
            "repetitions": plan.repetitions,
            "cold": plan.cold,
            "rate_mbit": plan.rate,
            "link_size_mb": plan.link_size(),
            "files": plan.files,
            "curve_max_mb": plan.curve_max,
        },
        "works": tables.iter().map(work).collect::<Vec<_>>(),
        "bars": bars,
    })
}

/// Writes a document; a failure is told, and what was measured is in the tables.
pub(crate) fn write(path: &Path, document: &Value) {
    let text = serde_json::to_string_pretty(document).expect("values are JSON") + "\n";
    if let Err(error) = fs::write(path, text) {
        eprintln!("bench: {}: {error}", path.display());
    }
}

/// One work with all of its runs.
pub(crate) fn work(table: &Table) -> Value {
    let rows = table.rows.iter().map(|row| {
        let figures = row.samples.first().map(|sample| sample.figures.as_slice()).unwrap_or_default();
        let figures: Map<String, Value> =
            figures.iter().map(|(name, _)| (name.clone(), json!(row.figure(name)))).collect();
        json!({
            "contender": row.contender,
            "skipped": row.skipped,
            "note": row.note,
            "median": {
                "seconds": row.seconds(),
                "ratio": table.ratio(row),
                "wire": row.wire(),
                "figures": figures,
            },
            "peak_kib": row.memory().map(|(primary, standby)| json!({"primary": primary, "standby": standby})),
            "runs": row.samples,
        })
    });
    json!({
        "work": table.work,
        "facts": table.facts,
        "skipped": table.skipped,
        "contenders": rows.collect::<Vec<_>>(),
    })
}

/// What the numbers were made on.
pub(crate) fn machine(directory: &Path) -> Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let first = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().last()?.trim().to_owned())
    };
    let printed = |mut command: Command| {
        command.arg("--version");
        process::run(command).stdout.trim().to_owned()
    };
    json!({
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "model": of(&cpuinfo, "model name"),
        "memory": of(&meminfo, "MemTotal"),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
        "filesystem": first("stat", &["--file-system", "--format=%T", &directory.display().to_string()]),
        "date": first("date", &["--utc", "--iso-8601=seconds"]),
        "postgresql": printed(Host::here().pg("postgres")),
        "rsync": tool::version("rsync", "--version"),
        "pgbackrest": tool::version("pgbackrest", "version"),
        "pgpool": tool::version("pgpool", "--version"),
        "agent": printed(Host::here().agent()),
    })
}

//! Measures pgpool_recovery side by side with the tools it competes with: `make bench`.
//!
//! It measures what is installed (see the end-to-end harness) on data of its own, checks every result
//! outside of the timed section, and prints one table for each work. docs/benchmarks.md explains them.

mod contenders;
mod damage;
mod data;
mod held_back;
mod interrupt;
mod measure;
mod memory;
mod plan;
mod progress;
mod report;
mod rounds;
mod stage;
mod tool;
mod traffic;
mod tree;
mod verify;
mod works;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser as _;

use crate::interrupt::Stop;
use crate::plan::Plan;
use crate::report::{Table, bars, json, text};
use crate::works::Lab;

fn main() -> ExitCode {
    let plan = Plan::parse();
    interrupt::listen();
    let mut tables: Vec<Table> = Vec::new();
    // The harness panics when something does not work; what was measured before is still worth showing.
    let ended = catch_unwind(AssertUnwindSafe(|| Lab::new(&plan, &mut tables).run()));
    let problem = match ended {
        Ok(Ok(())) => None,
        Ok(Err(Stop::Interrupted)) => Some("interrupted".to_owned()),
        Ok(Err(Stop::Failed(text))) => Some(text),
        Err(_) => Some(format!("{}: see the message above", progress::what())),
    };
    show(&plan, &tables);
    match problem {
        None => ExitCode::SUCCESS,
        Some(text) => {
            eprintln!("bench: {text}");
            ExitCode::FAILURE
        }
    }
}

fn show(plan: &Plan, tables: &[Table]) {
    let bars = bars::all(tables);
    for table in tables {
        println!("{}", text::table(table, plan.markdown));
    }
    println!("{}", bars::text(&bars, plan.markdown));
    if let Some(path) = &plan.json {
        let document = json::document(plan, tables, &bars);
        let document = serde_json::to_string_pretty(&document).expect("values are JSON") + "\n";
        if let Err(error) = std::fs::write(path, document) {
            eprintln!("bench: {}: {error}", path.display());
        }
    }
}

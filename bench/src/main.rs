//! Measures pgpool_recovery side by side with the tools it competes with: `make bench`.
//!
//! It measures what is installed (see the end-to-end harness) on data of its own, checks every result
//! outside of the timed section, and prints one table for each work. docs/benchmarks.md explains them.

mod contenders;
mod damage;
mod data;
mod held_back;
mod hosts;
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
use crate::plan::{Arguments, Mode, Plan};
use crate::report::{Table, bars, json, text};
use crate::works::Lab;

fn main() -> ExitCode {
    let Arguments { mode, plan } = Arguments::parse();
    interrupt::listen();
    if let Some(Mode::Hosts(plan)) = mode {
        return end(hosts::run(&plan).err().map(stopped));
    }
    let mut tables: Vec<Table> = Vec::new();
    // The harness panics when something does not work; what was measured before is still worth showing.
    let ended = catch_unwind(AssertUnwindSafe(|| Lab::new(&plan, &mut tables).run()));
    let problem = match ended {
        Ok(outcome) => outcome.err().map(stopped),
        Err(_) => Some(format!("{}: see the message above", progress::what())),
    };
    show(&plan, &tables);
    end(problem)
}

fn stopped(stop: Stop) -> String {
    match stop {
        Stop::Interrupted => "interrupted".to_owned(),
        Stop::Failed(text) => text,
    }
}

fn end(problem: Option<String>) -> ExitCode {
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
        json::write(path, &json::document(plan, tables, &bars));
    }
}

//! What is measured, one file a kind of work.

mod clone;
mod copies;
mod curve;
mod failover;
mod link;
mod load;
mod machine;
mod many_files;
mod map_curve;
mod small;
mod unchanged;

use std::fs;
use std::path::Path;
use std::process::Command;

use pgpool_recovery_e2e::{Recovery, Scratch};

use crate::contenders::BaseBackup;
use crate::data;
use crate::interrupt::{Outcome, check, failed};
use crate::plan::{Plan, Work};
use crate::progress::{doing, say};
use crate::report::Table;
use crate::stage::{Place, Stage};
use crate::{tool, tree, verify};

/// What the works share.
pub(crate) struct Lab<'a> {
    pub(crate) plan: &'a Plan,
    /// The data most works are done on, made when first needed.
    main: Option<Stage>,
    tables: &'a mut Vec<Table>,
}

impl<'a> Lab<'a> {
    pub(crate) fn new(plan: &'a Plan, tables: &'a mut Vec<Table>) -> Self {
        Self { plan, main: None, tables }
    }

    /// All works that were asked for.
    pub(crate) fn run(&mut self) -> Outcome<()> {
        for work in self.plan.works() {
            check()?;
            doing(format!("work {work:?}"));
            match work {
                Work::Machine => machine::bounds(self)?,
                Work::Refresh10 => copies::refresh(self, "refresh-10", Some(10))?,
                Work::Refresh0 => copies::refresh(self, "refresh-0", None)?,
                Work::Full => copies::full(self)?,
                Work::FullClone => clone::full(self)?,
                Work::Failover => failover::rebuild(self)?,
                Work::Map0 => unchanged::rebuild(self, "map-0", None)?,
                Work::Map1 => unchanged::rebuild(self, "map-1", Some(1))?,
                Work::MapCurve => map_curve::sizes(self)?,
                Work::Link => link::copies(self)?,
                Work::ManyFiles => many_files::refresh(self)?,
                Work::Load => load::during_a_copy(self)?,
                Work::Small => small::start_up(self)?,
                Work::Curve => curve::sizes_and_files(self)?,
            }
            // What comes after these has data of its own.
            if work >= Work::Full {
                self.main = None;
            }
        }
        Ok(())
    }

    pub(crate) fn scratch(&self) -> Scratch {
        Scratch::within(&self.plan.directory)
    }

    pub(crate) fn done(&mut self, table: Table) {
        self.tables.push(table);
    }

    /// A primary of --size with a target that is a stopped standby of it.
    pub(crate) fn main(&mut self) -> Outcome<&Stage> {
        if self.main.is_none() {
            say(&format!("making {} MB of pgbench data", self.plan.size));
            let stage =
                data::pgbench_stage(self.scratch(), Place::default(), self.plan.size, self.plan.fill_factor)?;
            self.main = Some(stage);
        }
        Ok(self.main.as_ref().expect("made above"))
    }
}

/// Makes the target a stopped standby of the primary, unless it is one. Where files can be cloned the two share their blocks, so that
/// large data fit on the disk.
pub(crate) fn stopped_standby(stage: &Stage) -> Outcome<()> {
    if stage.target.has("standby.signal") {
        return Ok(());
    }
    let can_clone = can_clone(stage)?;
    stage.empty_target()?;
    if can_clone {
        // a slot would be dropped before its standby is started again
        let recovery = Recovery::of(&stage.target, &stage.primary).option("slot_name", "");
        let recovery = recovery.option("transport", "local").option("dest_port", stage.target.port());
        if let Err(error) = recovery.call(&mut stage.primary.connect()) {
            return failed(format!("no standby: {error:?}"));
        }
    } else {
        let watch = crate::memory::Watch::start(stage.postmaster(), None);
        BaseBackup::plain().run(stage, &watch)?;
    }
    verify::check(stage).map(drop)
}

fn can_clone(stage: &Stage) -> Outcome<bool> {
    let mut command = Command::new("cp");
    let file = stage.primary.directory().join("PG_VERSION");
    command.arg("--reflink=always").arg(file).arg(stage.target.directory());
    Ok(tool::outcome(command, None)?.status.success())
}

/// Names and sizes of what is to be copied.
pub(crate) fn describe(table: &mut Table, stage: &Stage) -> Outcome<()> {
    match tree::data(stage.primary.directory()) {
        Ok(files) => {
            table.fact("bytes", files.values().sum::<u64>());
            table.fact("files", files.len());
            Ok(())
        }
        Err(error) => failed(format!("the primary's files cannot be listed: {error}")),
    }
}

/// Copies a data directory.
pub(crate) fn copy(from: &Path, to: &Path) -> Outcome<()> {
    let mut command = Command::new("cp");
    command.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    tool::run(command, None).map(drop)
}

/// Gives a stage's target the content of a copy; no page of it was changed for that.
pub(crate) fn put_back(saved: &Path, stage: &Stage) -> Outcome<u64> {
    let _ = fs::remove_dir_all(stage.target.directory());
    copy(saved, stage.target.directory()).map(|()| 0)
}

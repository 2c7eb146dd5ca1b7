//! The last steps, in the order that keeps the target unstartable until it is complete (S2).

use pgdata::configuration::{MAX_BYTES, content};
use pgdata::control_file::PG_CONTROL;
use pgdata::wal::Lsn;

use super::durable::sync_files;
use super::identity;
use super::run::Run;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Kind, Result};
use crate::host::inspect::{auto_configuration, configuration, main_configuration, myrecovery_path};
use crate::host::policy::Cluster;
use crate::host::running;
use crate::manifest::exclude::{CONTROL_ASIDE, FENCED, MARKER, MYRECOVERY_CONF, POSTGRESQL_CONF};
use crate::manifest::path::RelPath;
use crate::replication::recovery_settings;
use crate::replication::standby;
use crate::wire::protocol::data::Put;
use crate::wire::protocol::message::Marker;

/// From here on the target cannot be started: the marker is written, pg_control is out of the way.
///
/// A server that started since the last look is not replaced, nor a directory that was renamed: it gets its pg_control
/// back. No server can be missed, because one first makes the data directory its current one and reads pg_control after
/// that. Whatever fails, what is refused is left without a marker.
pub(super) fn invalidate(run: &Run, marker: &Marker) -> Result<Invalidated> {
    let text = identity::marker_text(marker)?;
    run.target.keep()?;
    let (control, aside) = (RelPath::parse(PG_CONTROL)?, RelPath::parse(CONTROL_ASIDE)?);
    let marker = RelPath::parse(MARKER)?;
    run.set_marker(text.clone());
    let (was_marked, was_aside) = (run.target.stat(&marker)?.is_some(), run.target.stat(&aside)?.is_some());
    let mut is_moved = false;
    let invalidated = run
        .target
        .install(&marker, text.as_bytes(), 0o600)
        .and_then(|()| run.target.rename(&control, &aside))
        .and_then(|moved| {
            is_moved = moved;
            demand_stopped(run)
        });
    match invalidated {
        Ok(()) => Ok(Invalidated { is_moved, was_marked }),
        Err(refusal) => Err(give_back(run, refusal, is_moved || !was_aside, was_marked)),
    }
}

/// What was done to a target that cannot be started any more.
pub(super) struct Invalidated {
    /// Whether its pg_control was in place.
    is_moved: bool,
    was_marked: bool,
}

impl Invalidated {
    /// Gives a target that was complete its pg_control back, if what failed after that has taken nothing from it.
    pub(super) fn undo(&self, run: &Run, failure: Error) -> Error {
        if self.is_moved && !run.target.has_replaced() {
            give_back(run, failure, true, self.was_marked)
        } else {
            failure
        }
    }
}

/// Puts pg_control back, and removes the marker unless there was one before. Returns why that is done.
fn give_back(run: &Run, refusal: Error, may_be_moved: bool, was_marked: bool) -> Error {
    let undo = || {
        let (control, aside) = (RelPath::parse(PG_CONTROL)?, RelPath::parse(CONTROL_ASIDE)?);
        restore_control(run, &control, &aside, may_be_moved)?;
        if !was_marked {
            run.target.remove(&RelPath::parse(MARKER)?)?;
        }
        run.target.sync_directories()
    };
    match undo() {
        Ok(()) => refusal,
        Err(error) => {
            refusal.add_detail(&format!("The directory is left with its marker: {}.", error.message))
        }
    }
}

/// Puts pg_control back if this run has set it aside. A rename whose sync failed has happened, too. What cannot be told
/// is an error: the marker has to stay then.
fn restore_control(run: &Run, control: &RelPath, aside: &RelPath, may_be_moved: bool) -> Result<()> {
    if may_be_moved && run.target.stat(aside)?.is_some() && run.target.stat(control)?.is_none() {
        run.target.rename(aside, control)?;
    }
    Ok(())
}

/// Fails if a server runs, or may run, in the directory, or if its path leads elsewhere by now.
fn demand_stopped(run: &Run) -> Result<()> {
    let opened = run.target.look().ok_or_else(|| Error::new(Kind::Internal, "the target is missing"))?;
    match running::find_at(&opened, run.target.path())? {
        Some(process) => Err(running::refusal(run.target.path(), process)),
        None => run.target.demand_in_place(),
    }
}

/// Installs the standby's own files, makes everything durable, and only then places pg_control.
pub(super) fn finish(run: &Run, cluster: &Cluster, puts: Vec<Put>, wal_end: Lsn) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    let (controls, others): (Vec<Put>, Vec<Put>) =
        puts.into_iter().partition(|put| put.path.as_str() == PG_CONTROL);
    let [control] = controls.as_slice() else {
        return Err(Error::new(Kind::ProtocolViolation, "the run finishes without pg_control"));
    };
    let wal =
        run.wal().ok_or_else(|| Error::new(Kind::Internal, "a run without WAL"))?.sink().finish(wal_end)?;
    for put in &others {
        run.target.install(&put.path, &put.content, put.mode)?;
    }
    include_myrecovery(&run.target, cluster, &mut warnings)?;
    demand_following(cluster, &mut warnings)?;
    let mut installed = identity::installed(run, others.into_iter().map(|put| put.path))?;
    installed.extend(wal);
    sync_files(run)?;
    run.target.sync_directories()?;
    run.cancel.check()?;

    identity::demand_own(run, &installed)?;
    run.target.install(&control.path, &control.content, control.mode)?;
    run.target.remove(&RelPath::parse(CONTROL_ASIDE)?)?;
    // what was fenced as a primary is a standby now
    run.target.remove(&RelPath::parse(FENCED)?)?;
    run.target.remove(&RelPath::parse(MARKER)?)?;
    run.target.sync_directories()?;
    Ok(warnings)
}

/// Makes a configuration that the standby keeps read myrecovery.conf last.
pub(super) fn include_myrecovery(
    target: &DataDirectory,
    cluster: &Cluster,
    warnings: &mut Vec<String>,
) -> Result<()> {
    if recovery_settings::reads_last(&configuration(cluster)) {
        return Ok(());
    }
    let include = myrecovery_path(&cluster.data_directory);
    if let Some(file) = &cluster.config_file {
        // outside the data directory, named by the agent's own configuration: edited in place, because
        // its directory (/etc/postgresql/...) need not be writable
        let text = content(file, MAX_BYTES).map_err(Error::on_path("read configuration", &file))?;
        let write = || {
            use std::io::Write;
            let mut opened = std::fs::OpenOptions::new().append(true).open(file)?;
            opened.write_all(&standby::include_at_end(&text, &include))?;
            opened.sync_all()
        };
        write().map_err(|error| {
            Error::at("extend configuration", file, &error)
                .hint(format!("Add the line: include_if_exists = '{include}'"))
        })?;
        warnings.push(format!("\"{}\" now includes \"{include}\"", file.display()));
        return Ok(());
    }
    let path = RelPath::parse(POSTGRESQL_CONF)?;
    let Some(stat) = target.stat(&path)? else {
        return Ok(());
    };
    let Some(mut text) = target.read(&path, MAX_BYTES)? else {
        return Err(Error::new(Kind::TargetRefused, "the target's postgresql.conf is not a regular file")
            .hint(format!("Add the line: include_if_exists = '{include}', or make it a regular file.")));
    };
    let line = standby::include_at_end(&text, &include);
    text.extend(line);
    target.install(&path, &text, stat.mode)?;
    warnings.push(format!("the target's postgresql.conf now includes \"{include}\""));
    Ok(())
}

/// Reads all files as the server will. They were checked before the run began; other programs, and what the primary sent,
/// may have changed them since.
pub(super) fn demand_following(cluster: &Cluster, warnings: &mut Vec<String>) -> Result<()> {
    let (main, auto) = (configuration(cluster), auto_configuration(&cluster.data_directory));
    if main.files.is_empty() && main.items.is_empty() {
        // there is none yet: the server cannot start
        return Ok(());
    }
    let said = recovery_settings::judge(Some(&main), Some(&auto));
    said.demand_no_conflict("The standby's configuration")?;
    if !recovery_settings::reads_last(&main) {
        let file = main_configuration(cluster);
        return Err(Error::new(
            Kind::TargetRefused,
            format!("\"{}\" does not read {MYRECOVERY_CONF} last", file.display()),
        )
        .detail("Another program changed it during the recovery, or a setting of recovery stands behind that line.")
        .hint("Correct the file, then run the recovery again; it sends only what is missing."));
    }
    warnings.extend(said.problems.iter().map(|problem| format!("the standby may not start: {problem}")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::compare::digest::DigestKey;
    use crate::manifest::list::FileList;
    use crate::receiver::ledger::Ledger;
    use crate::sys::cancel::Cancel;

    fn marker() -> Marker {
        Marker { system_identifier: 7, timeline: 1, ..Marker::default() }
    }

    fn begun(directory: &Path) -> Result<Run> {
        let (key, record) =
            (DigestKey::random()?, std::sync::Arc::new(Ledger::new()).unlisted(&FileList::default()));
        Run::new(DataDirectory::open(directory)?, key, Cancel::new(), FileList::default(), false, record)
    }

    fn invalidated(directory: &Path) -> Result<()> {
        invalidate(&begun(directory)?, &marker()).map(drop)
    }

    #[test]
    fn a_server_that_started_meanwhile_gets_its_pg_control_back() {
        let data = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| data.path().join(name);
        std::fs::create_dir(path("global")).expect("make");
        std::fs::write(path(PG_CONTROL), "control").expect("write");
        let mut server = running::tests::serve(data.path());
        let refusal = invalidated(data.path());
        server.kill().expect("kill");
        server.wait().expect("reap");
        assert_eq!(refusal.expect_err("it runs").kind, Kind::InUse);
        assert_eq!(std::fs::read(path(PG_CONTROL)).expect("in place"), b"control");
        assert!(!path(MARKER).exists() && !path(CONTROL_ASIDE).exists());

        invalidated(data.path()).expect("it has ended");
        assert!(path(MARKER).exists() && path(CONTROL_ASIDE).exists() && !path(PG_CONTROL).exists());
    }

    #[test]
    fn a_refusal_leaves_no_marker_whatever_fails() {
        let data = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| data.path().join(name);
        let elsewhere = tempfile::tempdir().expect("temporary directory");
        std::fs::write(elsewhere.path().join("pg_control"), "control").expect("write");
        std::os::unix::fs::symlink(elsewhere.path(), path("global")).expect("link");
        assert_eq!(invalidated(data.path()).expect_err("nothing is moved through a link").kind, Kind::Io);
        assert_eq!(std::fs::read_dir(data.path()).expect("list").count(), 1, "as it was");
        assert_eq!(std::fs::read(elsewhere.path().join("pg_control")).expect("in place"), b"control");

        std::fs::write(path(MARKER), "of an earlier run").expect("write");
        invalidated(data.path()).expect_err("again");
        assert!(path(MARKER).exists(), "an earlier run's marker stays");
    }

    #[test]
    fn a_server_that_may_be_running_gets_its_pg_control_back() {
        let data = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| data.path().join(name);
        std::fs::create_dir(path("global")).expect("make");
        std::fs::write(path(PG_CONTROL), "control").expect("write");
        // what cannot be read
        std::os::unix::fs::symlink("postmaster.pid", path("postmaster.pid")).expect("link");
        let refusal = invalidated(data.path()).expect_err("cannot tell");
        assert!(refusal.message.contains("cannot tell"), "{refusal}");
        assert!(path(PG_CONTROL).exists() && !path(CONTROL_ASIDE).exists() && !path(MARKER).exists());
    }

    #[test]
    fn a_directory_that_was_renamed_meanwhile_gets_its_pg_control_back() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let (data, moved) = (parent.path().join("data"), parent.path().join("moved"));
        std::fs::create_dir_all(data.join("global")).expect("make");
        std::fs::write(data.join(PG_CONTROL), "control").expect("write");
        let run = begun(&data).expect("opens");
        std::fs::rename(&data, &moved).expect("somebody keeps it");
        let again = || invalidate(&run, &marker()).map(drop);
        assert_eq!(again().expect_err("it is elsewhere").kind, Kind::TargetRefused);
        std::fs::create_dir(&data).expect("and puts another one there");
        assert_eq!(again().expect_err("another one").kind, Kind::TargetRefused);
        assert_eq!(std::fs::read_dir(&moved).expect("list").count(), 1, "as it was");
        assert_eq!(std::fs::read(moved.join(PG_CONTROL)).expect("in place"), b"control");
        std::fs::remove_dir(&data).and_then(|()| std::fs::rename(&moved, &data)).expect("back");
        again().expect("it is the same again");
    }
}

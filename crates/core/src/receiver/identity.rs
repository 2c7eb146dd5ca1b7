//! What was compared and written is what becomes the standby: which file each name stands for, and that nothing else
//! changed it.
//!
//! The lock on the directory keeps other recoveries out, not rsync, pg_rewind or an old script. A file that one of them
//! replaces, after it was compared equal, would be taken for the primary's.

use pgdata::control_file::PG_CONTROL;
use serde::Serialize;

use super::parallel::for_each;
use super::run::Run;
use crate::compare::digest::random_bytes;
use crate::data_directory::Stamp;
use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::MARKER;
use crate::manifest::path::RelPath;
use crate::sys::hexadecimal;
use crate::wire::protocol::message;

/// A file that was installed as a whole, and how it was then.
pub(super) type Installed = (RelPath, Stamp);

/// Largest marker that is read, bytes.
const MARKER_SIZE: u64 = 64 << 10;

/// The marker's text. A random token makes it different for each run.
pub(super) fn marker_text(marker: &message::Marker) -> Result<String> {
    #[derive(Serialize)]
    struct Written<'a> {
        #[serde(flatten)]
        marker: &'a message::Marker,
        run: String,
    }
    let written = Written { marker, run: hexadecimal::encode(&random_bytes()?) };
    let text = serde_json::to_string_pretty(&written)
        .map_err(|error| Error::new(Kind::Internal, format!("could not encode the marker: {error}")))?;
    Ok(format!("{text}\n"))
}

/// How files that were just installed are now.
pub(super) fn installed(run: &Run, paths: impl Iterator<Item = RelPath>) -> Result<Vec<Installed>> {
    paths
        .map(|path| match run.target.stat(&path)? {
            Some(stat) => Ok((path, stat.stamp)),
            None => Err(replaced(&path)),
        })
        .collect()
}

/// The last question before pg_control makes the target startable: is all of it what this run left there?
///
/// It costs one stat of each file, a microsecond or two. Asked when data was reconciled it would have to be asked again
/// here, because the end of the backup, WAL and the sync may take minutes.
pub(super) fn demand_own(run: &Run, installed: &[Installed]) -> Result<()> {
    demand_files_unchanged(run)?;
    for (path, stamp) in installed {
        match run.target.stat(path)? {
            Some(found) => demand_same(path, stamp, &found.stamp)?,
            None => return Err(replaced(path)),
        }
    }
    run.target.demand_in_place()?;
    run.target.demand_links_in_place()?;
    demand_incomplete(run)
}

/// Fails unless the target is as a run in progress leaves it: without pg_control, and with this run's own marker. Another
/// tool that makes a cluster here begins or ends with these.
pub(super) fn demand_incomplete(run: &Run) -> Result<()> {
    let control = RelPath::parse(PG_CONTROL)?;
    if run.target.stat(&control)?.is_some() {
        return Err(strange(format!("file \"{control}\" of the target appeared during the recovery"))
            .detail("Something else works in the target's directory and made it look like a complete cluster, which it is not.")
            .hint("Do not start a server there. Stop what works there, and run the recovery again."));
    }
    let marker = RelPath::parse(MARKER)?;
    let found = run.target.read(&marker, MARKER_SIZE)?;
    if found.as_deref() != run.marker().map(str::as_bytes) {
        return Err(strange(format!("file \"{marker}\" of the target was removed or changed during the recovery"))
            .detail("It marks the directory as incomplete. Something else works there, or another recovery has begun.")
            .hint("Stop what works there, and run the recovery again."));
    }
    Ok(())
}

/// Fails if a planned file is not the one that this run compared or wrote, or was changed since.
pub(super) fn demand_files_unchanged(run: &Run) -> Result<()> {
    // the directory of the last file may have been replaced with all its files
    run.target.forget_last();
    let planned_files = run.planned_files();
    for_each(run, 0..planned_files.len(), |number| {
        let planned = planned_files.file(number);
        if planned.is_gone() {
            return Ok(());
        }
        run.demand_unchanged(&planned, run.target.stat(&planned.path)?.as_ref())
    })
}

/// Fails if a file is not the one that is known, or was changed since.
pub(super) fn demand_same(path: &RelPath, known: &Stamp, found: &Stamp) -> Result<()> {
    if !known.is_same_file(found) {
        return Err(replaced(path));
    }
    if known == found {
        return Ok(());
    }
    Err(strange(format!("file \"{path}\" of the target was changed during the recovery"))
        .detail("Something else works in the target's directory: it wrote to the file, changed its mode or owner, or gave it a second name.")
        .hint("Stop what works there (rsync, pg_rewind, \"cp -al\", for instance), and run the recovery again."))
}

/// Another file, or none, is where one was compared or written.
pub(super) fn replaced(path: &RelPath) -> Error {
    strange(format!("file \"{path}\" of the target was replaced or linked during the recovery"))
        .detail("Something else works in the target's directory: it removed the file, put another one in its place, or gave it a second name.")
        .hint("Stop what works there (rsync, pg_rewind, \"cp -al\", for instance), and run the recovery again.")
}

fn strange(message: String) -> Error {
    Error::new(Kind::InUse, message)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::receiver::run::of_one_page;

    const FILE: &str = "16384";

    fn open(run: &Run) -> Result<std::fs::File> {
        run.open_to_write(&run.planned_files().file(0))
    }

    fn verify(run: &Run) -> Result<()> {
        demand_files_unchanged(run)
    }

    #[test]
    fn what_was_compared_is_the_file_that_is_there_at_the_end() {
        let data = tempfile::tempdir().expect("temporary directory");
        let (path, other) = (data.path().join(FILE), data.path().join("other"));
        for is_written in [false, true] {
            for change in ["replace", "remove", "write", "chmod", "link"] {
                let _ = (fs::remove_file(&path), fs::remove_file(&other));
                fs::write(&path, vec![1; 8192]).expect("write");
                let run = of_one_page(data.path(), FILE);
                let planned_files = run.planned_files();
                let planned = &planned_files.file(0);
                assert!(run.open_present(planned).expect("opens").is_some());
                if is_written {
                    let file = run.open_to_write(planned).expect("the same");
                    file.set_len(8192).expect("writes");
                    run.note(planned, &file).expect("the same");
                }
                verify(&run).expect("nothing has changed");
                fs::File::open(&path).and_then(|file| file.sync_all()).expect("sync");
                verify(&run).expect("a sync changes nothing");
                await_another_time(data.path());
                match change {
                    "replace" => {
                        fs::write(&other, vec![1; 8192])
                            .and_then(|()| fs::rename(&other, &path))
                            .expect("rename");
                    }
                    "remove" => fs::remove_file(&path).expect("remove"),
                    "write" => {
                        use std::os::unix::fs::FileExt;
                        let file = fs::OpenOptions::new().write(true).open(&path).expect("open");
                        file.write_at(&[2], 100).map(drop).expect("write");
                    }
                    "chmod" => {
                        use std::os::unix::fs::PermissionsExt;
                        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
                    }
                    _ => fs::hard_link(&path, &other).expect("link"),
                }
                let error = verify(&run).expect_err(change);
                assert_eq!(error.kind, Kind::InUse, "{change}: {error:?}");
                if !is_written {
                    // the first write sees it too
                    assert_eq!(open(&run).expect_err(change).kind, Kind::InUse);
                }
            }
        }
    }

    #[test]
    fn two_that_write_one_file_do_not_take_each_other_for_strangers() {
        let data = tempfile::tempdir().expect("temporary directory");
        fs::write(data.path().join(FILE), vec![1; 8192]).expect("write");
        let run = of_one_page(data.path(), FILE);
        let planned_files = run.planned_files();
        let planned = &planned_files.file(0);
        assert!(run.open_present(planned).expect("opens").is_some());
        let (one, two) = (open(&run).expect("the same"), open(&run).expect("the same"));
        one.set_len(4096).expect("writes");
        await_another_time(data.path());
        assert!(run.open_present(planned).expect("it is being written").is_some());
        two.set_len(8192).expect("writes");
        run.note(planned, &two).expect("the same");
        await_another_time(data.path());
        one.set_len(8192).and_then(|()| one.set_len(8191)).expect("writes");
        run.note(planned, &one).expect("the same");
        verify(&run).expect("all of it was ours");
    }

    /// Waits until a change gets another time than one before.
    fn await_another_time(directory: &Path) {
        use std::os::unix::fs::MetadataExt;
        let probe = directory.join("probe");
        let time = || {
            fs::write(&probe, "x").expect("write");
            let metadata = fs::metadata(&probe).expect("stat");
            (metadata.ctime(), metadata.ctime_nsec())
        };
        let first = time();
        while time() == first {}
        fs::remove_file(&probe).expect("remove");
    }
}

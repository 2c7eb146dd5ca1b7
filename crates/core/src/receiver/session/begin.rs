//! A run begins: from here on the target cannot be started, or what differs is counted.

use std::path::PathBuf;
use std::sync::Arc;

use tracing::info;

use super::Conversation;
use super::open::Directory;
use super::plan::Planned;
use super::stage::{Begun, Listed};
use crate::compare::digest::DigestKey;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Kind, Result};
use crate::host::{inspect, places, running};
use crate::manifest::plan;
use crate::receiver::reconcile::empty_wal;
use crate::receiver::run::Run;
use crate::receiver::wal_link::Wal;
use crate::receiver::wal_sink::WalSink;
use crate::receiver::{finish, snapshot};
use crate::sys::hexadecimal;
use crate::wire::protocol::message::{Marker, PlanHeader, WalStart};

impl Planned {
    /// Makes the target unstartable, empties its pg_wal and gets ready for data and WAL.
    pub(super) fn begin(
        self,
        conversation: &Conversation<'_>,
        directory: &Directory,
        marker: &Marker,
        digest_key: &str,
        wal: WalStart,
    ) -> Result<Begun> {
        let Self { target, listed: Listed { directories, files }, index, header, kept_beside_wal, unused } =
            self;
        unused?;
        let data_directory = &directory.cluster.data_directory;
        // the sender was told when it opened; whatever it made of that, a running server is safe
        if let Some(process) = running::server(data_directory)? {
            return Err(running::refusal(data_directory, process));
        }
        demand_unchanged(directory, &target, &header)?;
        let digest_key = key(digest_key)?;
        let wal = WalSink::new(wal, marker.system_identifier, kept_beside_wal?)?;
        let trusts_cache = inspect::was_shut_down(data_directory);
        let Conversation { receiver, token, cancel, peer, .. } = conversation;
        let record = receiver.ledger.begin(data_directory, *peer, &files);
        let run = Arc::new(Run::new(*target, digest_key, cancel.clone(), files, trusts_cache, record)?);
        info!(directory = %data_directory.display(), system_identifier = marker.system_identifier,
            files = run.planned_files().len(), "recovery begins: the directory cannot be started until it ends");
        let removed = invalidate(&run, marker, &directories, &header)
            .and_then(|()| empty_wal(&run, &directory.keep, &header))
            .and_then(|removed| wal.make_directories(&run.target).map(|()| removed))
            .inspect_err(|error| run.record.fail(error))?;
        run.set_wal(Wal::new(wal));
        receiver.remember(token, &run);
        Ok(Begun { run, directories, index, header, removed })
    }

    /// Gets ready to tell what would differ.
    pub(super) fn dry_run(self, conversation: &Conversation<'_>, digest_key: &str) -> Result<Begun> {
        let Self { target, listed: Listed { directories, files }, index, header, .. } = self;
        let Conversation { receiver, token, cancel, .. } = conversation;
        let record = receiver.ledger.unlisted(&files);
        let run = Arc::new(Run::dry_run(*target, key(digest_key)?, cancel.clone(), files, record));
        receiver.remember(token, &run);
        Ok(Begun { run, directories, index, header, removed: 0 })
    }
}

/// The directory is still what the sender checked, and so are those beside it.
fn demand_unchanged(directory: &Directory, target: &DataDirectory, header: &PlanHeader) -> Result<()> {
    let path = &directory.cluster.data_directory;
    let look = target.look();
    directory.snapshot.demand_same(look.as_deref().unwrap_or(path), path, &directory.keep)?;
    let mut roots = vec![path.clone()];
    roots.extend(target.wal()?.map(|_| path.join("pg_wal")));
    roots.extend(header.tablespaces.iter().map(|tablespace| PathBuf::from(&tablespace.target)));
    snapshot::demand_roots(target, &roots)
}

/// Writes the marker, makes the links and directories of the plan, and only then begins to sync what was there before: that
/// cannot be interrupted and may take minutes, for which an error would wait. No data has changed if that fails: a target
/// that was complete is startable again, unless something of it has gone already.
fn invalidate(
    run: &Run,
    marker: &Marker,
    directories: &[plan::Directory],
    header: &PlanHeader,
) -> Result<()> {
    let tablespaces =
        header.tablespaces.iter().map(|tablespace| (tablespace.oid.to_string(), tablespace.target.clone()));
    let invalidated =
        finish::invalidate(run, &Marker { tablespaces: tablespaces.collect(), ..marker.clone() })?;
    make_places(run, directories, header).map_err(|failure| invalidated.undo(run, failure))
}

fn make_places(run: &Run, directories: &[plan::Directory], header: &PlanHeader) -> Result<()> {
    rustix::fs::fchmod(run.target.root(), rustix::fs::Mode::from_raw_mode(header.mode & 0o750))
        .map_err(Error::on("set the mode of the data directory"))?;
    // links first: what lies in a tablespace is known to be this target's by them
    let (links, others): (Vec<&plan::Directory>, Vec<&plan::Directory>) =
        directories.iter().partition(|directory| directory.path.as_str() == "pg_tblspc");
    for directory in links {
        run.target.make_directory(&directory.path, directory.mode)?;
    }
    for tablespace in &header.tablespaces {
        run.target.link(&places::link(tablespace)?, &tablespace.target)?;
    }
    for directory in others {
        run.target.make_directory(&directory.path, directory.mode)?;
    }
    run.sink.begin_sync();
    Ok(())
}

fn key(digits: &str) -> Result<DigestKey> {
    hexadecimal::decode(digits.as_bytes())
        .map(DigestKey::from_bytes)
        .ok_or_else(|| Error::new(Kind::ProtocolViolation, "invalid digest key"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use pgdata::control_file::PG_CONTROL;

    use super::*;
    use crate::manifest::exclude::{CONTROL_ASIDE, MARKER};
    use crate::manifest::path::RelPath;
    use crate::manifest::plan::Tablespace;
    use crate::receiver::durable::syncfs_tells_errors;
    use crate::receiver::run::of_one_page;

    #[test]
    fn nothing_is_synced_before_everything_else_of_the_beginning_has_succeeded() {
        let data = tempfile::tempdir().expect("temporary directory");
        let marker = Marker { system_identifier: 7, timeline: 1, ..Marker::default() };
        std::fs::create_dir(data.path().join("global")).expect("make");
        let directory =
            |path: &str| plan::Directory { path: RelPath::parse(path).expect("valid"), mode: 0o700 };
        let header = PlanHeader { mode: 0o700, ..PlanHeader::default() };
        let begin = |directories: &[plan::Directory]| {
            let run = of_one_page(data.path(), "base/5/1");
            let begun = invalidate(&run, &marker, directories, &header);
            (begun.is_ok(), run.sink.is_synced().expect("synced"))
        };
        // its parent is missing
        assert_eq!(begin(&[directory("base/5")]), (false, false));
        // an old kernel does not tell whether a sync succeeded
        let (begun, is_synced) = begin(&[directory("base"), directory("base/5")]);
        assert!(begun && is_synced == syncfs_tells_errors());
    }

    #[test]
    fn a_complete_target_of_which_nothing_has_gone_is_startable_again() {
        for (leads_to, is_replaced) in [("/a", false), ("/before", true)] {
            let data = tempfile::tempdir().expect("temporary directory");
            let path = |name: &str| data.path().join(name);
            let is_startable = || path(PG_CONTROL).exists() && !path(MARKER).exists();
            fs::create_dir(path("global")).expect("make");
            fs::create_dir(path("pg_tblspc")).expect("make");
            fs::write(path(PG_CONTROL), "control").expect("write");
            symlink(leads_to, path("pg_tblspc/1")).expect("link");
            let tablespace =
                |oid, target: &str| Tablespace { oid, source: "/s".into(), target: target.into() };
            let header = PlanHeader {
                mode: 0o700,
                tablespaces: vec![tablespace(1, "/a"), tablespace(2, "/b")],
                ..PlanHeader::default()
            };
            let directory =
                |path: &str| plan::Directory { path: RelPath::parse(path).expect("valid"), mode: 0o700 };
            let begin = |directories: &[plan::Directory]| {
                let run = of_one_page(data.path(), "base/5/1");
                invalidate(&run, &Marker::default(), directories, &header)
            };
            // in a directory that the plan does not have
            let failure = begin(&[directory("pg_tblspc"), directory("base"), directory("none/within")]);
            assert!(failure.expect_err("no parent").message.contains("none/within"));
            assert_eq!(is_startable(), !is_replaced, "{leads_to}");
            assert_eq!(path(CONTROL_ASIDE).exists(), is_replaced, "{leads_to}");
            // what was incomplete before stays so
            begin(&[directory("pg_tblspc"), directory("base")]).expect("begins");
            begin(&[directory("none/within")]).expect_err("no parent");
            assert!(!is_startable() && path(CONTROL_ASIDE).exists());
        }
    }
}

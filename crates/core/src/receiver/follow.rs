//! A server that is to follow another primary, where it is: its files, made durable, and the signal to read them.
//!
//! Either all files are changed or none is. A server reads them only when it is told to, or when it starts.

use pgdata::configuration::{self, MAX_BYTES};
use tracing::info;

use super::finish::{demand_following, include_myrecovery};
use crate::data_directory::DataDirectory;
use crate::error::{Error, Kind, Result};
use crate::host::follow::demand_follower;
use crate::host::policy::Cluster;
use crate::host::running::reload;
use crate::manifest::exclude::{AUTO_CONF, FENCED, MYRECOVERY_CONF, POSTGRESQL_CONF, SECOND_STAGE};
use crate::manifest::path::RelPath;
use crate::replication::recovery_settings::is_overriding;
use crate::sys::cancel::Cancel;
use crate::wire::protocol::follow::{Follow, Followed};

/// What makes a server start as a standby.
const STANDBY_SIGNAL: &str = "standby.signal";

/// Makes the server in a locked directory follow the one that asks.
pub(super) fn follow(
    target: &DataDirectory,
    cluster: &Cluster,
    follow: &Follow,
    cancel: &Cancel,
) -> Result<Followed> {
    let postmaster = demand_follower(cluster, &follow.asker, follow.rejoins)?;
    cancel.check()?;
    let mut files = Files { target, before: Vec::new() };
    let mut warnings = Vec::new();
    if let Err(error) = write(&mut files, cluster, follow, &mut warnings) {
        return Err(files.undo(error));
    }
    let changed = files.changed();
    info!(directory = %cluster.data_directory.display(), changed = changed.join(", "), "it follows another primary");
    let is_told = match postmaster {
        None => false,
        Some(postmaster) => {
            // promoted or stopped meanwhile: then it is left alone
            if demand_follower(cluster, &follow.asker, false)? != Some(postmaster) {
                let message = format!(
                    "the server in \"{}\" was started again meanwhile",
                    cluster.data_directory.display()
                );
                return Err(Error::new(Kind::InUse, message).hint("Call again."));
            }
            reload(postmaster)?;
            true
        }
    };
    Ok(Followed { changed, is_told, warnings })
}

fn write(
    files: &mut Files<'_>,
    cluster: &Cluster,
    follow: &Follow,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let target = files.target;
    files.install(MYRECOVERY_CONF, |_| follow.myrecovery.clone().into_bytes(), follow.mode)?;
    if target.stat(&RelPath::parse(AUTO_CONF)?)?.is_some() {
        files.install(
            AUTO_CONF,
            |text| configuration::without(text, |name, _| is_overriding(name)),
            follow.mode,
        )?;
    }
    if cluster.config_file.is_none() {
        files.remember(POSTGRESQL_CONF)?;
    }
    include_myrecovery(target, cluster, warnings)?;
    demand_following(cluster, warnings)?;
    if follow.rejoins {
        files.install(STANDBY_SIGNAL, |_| Vec::new(), follow.mode)?;
    }
    // whoever follows another primary was not made to be promoted beside that one
    files.remember(SECOND_STAGE)?;
    target.remove(&RelPath::parse(SECOND_STAGE)?)?;
    // the last step: without the mark, and with the signal, it may be started. A standby that runs has outlived its mark, which
    // would forbid its start once it is promoted
    files.remember(FENCED)?;
    target.remove(&RelPath::parse(FENCED)?)?;
    target.sync_directories()
}

/// Content and permission bits of a file; `None`: there was none.
type Content = Option<(Vec<u8>, u32)>;

/// The files of one change, with what they were before.
struct Files<'a> {
    target: &'a DataDirectory,
    before: Vec<(RelPath, Content)>,
}

impl Files<'_> {
    /// Gives a file the content that is made of what it has; of nothing if it is missing.
    fn install(&mut self, name: &str, content: impl FnOnce(&[u8]) -> Vec<u8>, mode: u32) -> Result<()> {
        let path = RelPath::parse(name)?;
        let before = self.read(&path)?;
        let (text, mode) = before.as_ref().map_or((&[] as &[u8], mode), |(text, mode)| (text, *mode));
        let content = content(text);
        if before.as_ref().is_some_and(|(text, _)| *text == content) {
            return Ok(());
        }
        self.before.push((path.clone(), before));
        self.target.install(&path, &content, mode)
    }

    /// Remembers what a file is before something else changes it.
    fn remember(&mut self, name: &str) -> Result<()> {
        let path = RelPath::parse(name)?;
        let before = self.read(&path)?;
        self.before.push((path, before));
        Ok(())
    }

    fn read(&self, path: &RelPath) -> Result<Content> {
        let Some(stat) = self.target.stat(path)? else { return Ok(None) };
        let text = self.target.read(path, MAX_BYTES)?.ok_or_else(|| {
            let message = format!("\"{}\" is not a regular file", self.target.path().join(path).display());
            Error::new(Kind::TargetRefused, message).hint("Make it one, or remove it.")
        })?;
        Ok(Some((text, stat.mode)))
    }

    /// Those that are not as they were.
    fn changed(&self) -> Vec<String> {
        let differs = |(path, before): &&(RelPath, Content)| {
            self.read(path)
                .map_or(true, |now| now.map(|now| now.0) != before.as_ref().map(|before| before.0.clone()))
        };
        self.before.iter().filter(differs).map(|(path, _)| path.to_string()).collect()
    }

    /// Puts everything back. Returns why that is done.
    fn undo(&self, error: Error) -> Error {
        let undo = || -> Result<()> {
            for (path, before) in self.before.iter().rev() {
                match before {
                    Some((text, mode)) => self.target.install(path, text, *mode)?,
                    None => self.target.remove(path).map(drop)?,
                }
            }
            self.target.sync_directories()
        };
        match undo() {
            Ok(()) => error,
            Err(failure) => error
                .add_detail(&format!("What was changed before could not be put back: {}.", failure.message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use rustix::process::Signal;

    use super::*;
    use crate::compare::wal_map::Lineage;
    use crate::sys::FileId;
    use crate::wire::protocol::stop::Asker;

    const AUTO: &str = "work_mem = '8MB'\nprimary_conninfo = 'host=old'\nRecovery_Target_Timeline = 'current'\n\
                        recovery_min_apply_delay = '1h'\nport = 5433\n";

    /// A standby's directory in which a process runs that is taken for its server.
    struct Standby {
        data: tempfile::TempDir,
        cluster: Cluster,
        server: std::process::Child,
    }

    impl Standby {
        fn new() -> Self {
            let data = tempfile::tempdir().expect("temporary directory");
            let place = data.path().canonicalize().expect("real path");
            for directory in ["global", "pg_wal"] {
                fs::create_dir_all(place.join(directory)).expect("make");
            }
            const DB_IN_ARCHIVE_RECOVERY: u32 = 5;
            let control = pgdata::control_file::sample_in_state(42, DB_IN_ARCHIVE_RECOVERY);
            fs::write(place.join("global/pg_control"), control).expect("write");
            for (name, text) in [
                ("standby.signal", ""),
                (POSTGRESQL_CONF, "port = 5432\nprimary_conninfo = 'host=older'\n"),
                (AUTO_CONF, AUTO),
            ] {
                fs::write(place.join(name), text).expect("write");
            }
            let server = crate::host::running::tests::serve(&place);
            Self { data, cluster: Cluster::new(place.clone(), place), server }
        }

        fn follow(&self) -> Result<Followed> {
            let asker = Asker {
                system_identifier: 42,
                history: Lineage::new(1, &[]),
                pasts: Vec::new(),
                identity: FileId { device: 0, inode: 0 },
                boot_id: None,
            };
            let text = "primary_conninfo = 'host=new'\n".to_owned();
            let wanted = Follow { asker, myrecovery: text, mode: 0o600, rejoins: false };
            let target = DataDirectory::open(&self.cluster.data_directory).expect("locked");
            follow(&target, &self.cluster, &wanted, &Cancel::new())
        }

        fn read(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.data.path().join(name)).ok()
        }

        /// How the process ended, if it does within this time: SIGHUP ends a `sleep`.
        fn signal_within(mut self, time: Duration) -> Option<i32> {
            use std::os::unix::process::ExitStatusExt;
            let end = Instant::now() + time;
            let ended = loop {
                let ended = self.server.try_wait().expect("a child");
                if ended.is_some() || Instant::now() >= end {
                    break ended;
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            let _ = self.server.kill().and_then(|()| self.server.wait());
            ended.and_then(|status| status.signal())
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).expect("list");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_standby_gets_its_files_and_is_told_to_read_them() {
        let standby = Standby::new();
        for mark in [FENCED, SECOND_STAGE] {
            fs::write(standby.data.path().join(mark), "{}").expect("write");
        }
        let done = standby.follow().expect("done");
        assert!(done.is_told);
        assert_eq!(done.changed, [MYRECOVERY_CONF, AUTO_CONF, POSTGRESQL_CONF, SECOND_STAGE, FENCED]);
        assert_eq!(standby.read(SECOND_STAGE), None, "it is not to be promoted beside the new primary");
        assert_eq!(standby.read(FENCED), None, "the mark of the primary that it was");
        assert_eq!(standby.read(MYRECOVERY_CONF).as_deref(), Some("primary_conninfo = 'host=new'\n"));
        let kept = "work_mem = '8MB'\nrecovery_min_apply_delay = '1h'\nport = 5433\n";
        assert_eq!(standby.read(AUTO_CONF).as_deref(), Some(kept), "what an operator asked for stays");
        assert!(standby.read(POSTGRESQL_CONF).is_some_and(|text| text.contains("include_if_exists")));
        assert_eq!(standby.signal_within(Duration::from_secs(30)), Some(Signal::HUP.as_raw()));
    }

    #[test]
    fn nothing_is_changed_if_something_cannot_be() {
        // a setting that myrecovery.conf cannot override; no regular file
        let conflict = |place: &Path| {
            fs::write(place.join(POSTGRESQL_CONF), "Recovery_Target_Name = 'x'\n").expect("write");
        };
        let no_file = |place: &Path| {
            fs::remove_file(place.join(AUTO_CONF)).expect("remove");
            fs::create_dir(place.join(AUTO_CONF)).expect("make");
        };
        for (spoil, why) in
            [(&conflict as &dyn Fn(&Path), "would keep the standby from following"), (&no_file, "")]
        {
            let standby = Standby::new();
            spoil(standby.data.path());
            let (names_before, conf, auto) =
                (names(standby.data.path()), standby.read(POSTGRESQL_CONF), standby.read(AUTO_CONF));
            let error = standby.follow().expect_err("refused");
            assert!(error.message.contains(why), "{error:?}");
            assert_eq!(names(standby.data.path()), names_before);
            assert_eq!((standby.read(POSTGRESQL_CONF), standby.read(AUTO_CONF)), (conf, auto));
            assert_eq!(standby.signal_within(Duration::from_millis(100)), None, "it was told nothing");
        }
    }
}

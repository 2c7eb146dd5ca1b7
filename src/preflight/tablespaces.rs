//! Where the tablespaces of the standby lie.

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::policy::resolve;
use pgpool_recovery_core::manifest::Side;
use pgpool_recovery_core::manifest::dropped::{Directories, is_dropped};
use pgpool_recovery_core::manifest::path::{RelPath, normalize_directory, overlap};
use pgpool_recovery_core::manifest::plan::Tablespace;
use pgpool_recovery_core::manifest::scan::tablespace_links;
use pgpool_recovery_core::sys::FileId;
use pgpool_recovery_core::sys::machine;
use pgpool_recovery_core::wire::protocol::message::TargetInfo;

use crate::preflight::PrimaryFacts;

impl PrimaryFacts {
    /// The directory of this cluster in every tablespace.
    pub(crate) fn tablespace_version_directory(&self) -> String {
        format!("PG_{}_{}", self.identity.major_version, self.control.catalog_version)
    }

    /// Where the tablespaces outside the data directory go: as they are now. One whose directory is not there is an error, unless it
    /// was dropped meanwhile. Not for the main thread: it looks at directories of the target's.
    pub(crate) fn tablespaces(&self) -> Result<Vec<Tablespace>> {
        let mut links = Vec::new();
        for (oid, location) in tablespace_links(&self.data_directory, Side::Primary)? {
            let content =
                RelPath::parse(&format!("pg_tblspc/{oid}/{}", self.tablespace_version_directory()))?;
            if !is_dropped(&self.data_directory, &content)? {
                links.push((oid, location));
            }
        }
        let tablespaces: Vec<Tablespace> =
            links.iter().map(|(oid, source)| self.place(*oid, source)).collect::<Result<_>>()?;
        if self.is_local {
            let sources =
                links.iter().map(|(_, source)| Path::new(source)).chain([self.data_directory.as_path()]);
            let sources: Vec<PathBuf> = sources.map(resolve).collect();
            for tablespace in &tablespaces {
                let target = resolve(Path::new(&tablespace.target));
                if let Some(source) = sources.iter().find(|source| overlap(source, &target)) {
                    return Err(own_location(&tablespace.target)
                        .detail(format!("The primary uses \"{}\".", source.display())));
                }
            }
        }
        let targets: HashSet<&str> =
            tablespaces.iter().map(|tablespace| tablespace.target.as_str()).collect();
        if targets.len() < tablespaces.len() {
            return Err(Error::new(Kind::TargetRefused, "two tablespaces are mapped to the same directory")
                .detail("Every tablespace needs a directory of its own.")
                .hint("Correct pgpool_recovery.tablespace_mapping."));
        }
        Ok(tablespaces)
    }

    /// Refuses directories of the target that are the primary's: an agent may run on the primary's host, and links and mounts may lead
    /// there. `listed`: those that the scan has seen, tablespaces and databases among them.
    pub(crate) fn demand_other_locations(
        &self,
        target: &TargetInfo,
        locations: &[FileId],
        listed: &Directories,
    ) -> Result<()> {
        if !machine::may_be_one(self.identity.boot_id.as_deref(), target.boot_id.as_deref()) {
            return Ok(());
        }
        let links = tablespace_links(&self.data_directory, Side::Primary)?;
        let locations: HashSet<&FileId> = locations.iter().collect();
        for (_, source) in &links {
            if locations.contains(&identity(Path::new(source))?) {
                return Err(
                    own_location(source).detail("The target's host and the primary's host are one machine.")
                );
            }
        }
        let listed = listed.iter().map(|(path, identity)| (self.data_directory.join(path), identity));
        match own_directories(&self.data_directory)?
            .into_iter()
            .chain(listed)
            .find(|(_, identity)| locations.contains(identity))
        {
            Some((directory, _)) => Err(Error::new(
                Kind::TargetRefused,
                format!("the target has the primary's own directory \"{}\"", directory.display()),
            )
            .detail("The target's host and the primary's host are one machine, and a link or a mount leads there.")
            .hint("Give the standby directories of its own: correct the link, or what is mounted in its data directory.")),
            None => Ok(()),
        }
    }

    fn place(&self, oid: u32, source: &str) -> Result<Tablespace> {
        // as the setting was read: a link that was made by hand may have a slash too many
        let short = normalize_directory(source).ok();
        let short = short.as_deref().unwrap_or(Path::new(source));
        let mapped = self.settings.tablespace_mapping.iter().find(|(old, _)| Path::new(old) == short);
        let target = match mapped {
            Some((_, new)) => new.clone(),
            None if self.is_local => {
                return Err(Error::new(
                    Kind::TargetRefused,
                    format!("the tablespace in \"{source}\" has no place on the target"),
                )
                .detail("A standby on the same host cannot use the directory where the primary has it.")
                .hint(format!("Set pgpool_recovery.tablespace_mapping = '{source}=/another/directory', or pass it as an option.")));
            }
            None => source.to_owned(),
        };
        Ok(Tablespace { oid, source: source.to_owned(), target })
    }
}

/// A data directory, what is a directory in it and in its pg_wal, and those of its databases, also where no file of theirs travels.
fn own_directories(data_directory: &Path) -> Result<Vec<(PathBuf, FileId)>> {
    let mut own = vec![(data_directory.to_owned(), identity(data_directory)?)];
    for directory in [data_directory.to_owned(), data_directory.join("base"), data_directory.join("pg_wal")] {
        let failed = |error| Error::at("list directory", &directory, &error);
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let path = entry.path();
            match fs::metadata(&path) {
                Ok(found) if found.is_dir() => own.push((path, FileId::from(&found))),
                Ok(_) => {}
                // dropped meanwhile
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(Error::at("stat file", &path, &error)),
            }
        }
    }
    Ok(own)
}

fn identity(directory: &Path) -> Result<FileId> {
    let metadata = fs::metadata(directory).map_err(Error::on_path("stat directory", directory))?;
    Ok(FileId::from(&metadata))
}

fn own_location(path: &str) -> Error {
    Error::new(
        Kind::TargetRefused,
        format!("\"{path}\" is the primary's own and no place for a tablespace of the standby"),
    )
    .hint("Map the tablespace to a directory of the standby's own with tablespace_mapping.")
}

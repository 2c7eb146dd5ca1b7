//! Where tablespaces go: is that place free, or this target's already?

use std::fs;
use std::io;
use std::path::Path;

use pgdata::control_file::PG_CONTROL;

use super::inspect;
use crate::data_directory::DataDirectory;
use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::CONTROL_ASIDE;
use crate::manifest::path::RelPath;
use crate::manifest::plan::Tablespace;
use crate::sys::FileId;

/// The link to a tablespace.
pub(crate) fn link(tablespace: &Tablespace) -> Result<RelPath> {
    RelPath::parse(&format!("pg_tblspc/{}", tablespace.oid))
}

/// Whether the target uses a tablespace's place now: its link leads there, or the marker of an interrupted recovery says
/// that it put the tablespace there.
pub(crate) fn is_ours(target: &DataDirectory, tablespace: &Tablespace) -> Result<bool> {
    let Some(look) = target.look() else { return Ok(false) };
    let location = Path::new(&tablespace.target);
    let (linked, wanted) =
        (identity(&look.join(link(tablespace)?), location)?, identity(location, location)?);
    if linked.is_some() && linked == wanted {
        return Ok(true);
    }
    let (_, marker) = inspect::marker(&look).map_err(|error| cannot_tell(location, "The marker", &error))?;
    let placed = marker.as_ref().and_then(|marker| marker.tablespaces.get(&tablespace.oid.to_string()));
    Ok(placed.is_some_and(|placed| *placed == tablespace.target))
}

/// Whether the directory of a tablespace holds anything, or is something else.
pub(crate) fn is_used(content: &Path) -> Result<bool> {
    let first = match fs::read_dir(content) {
        Ok(mut entries) => entries.next().transpose(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(true),
        Err(error) => Err(error),
    };
    first.map(|entry| entry.is_some()).map_err(|error| cannot_tell(content, "It", &error))
}

/// Refuses a directory within another cluster's data directory: what is written there, that cluster's server may take for its
/// own, or remove. Symbolic links of the path are resolved.
pub(crate) fn demand_outside_clusters(directory: &Path) -> Result<()> {
    for above in directory.ancestors().skip(1) {
        for sign in ["PG_VERSION", PG_CONTROL, CONTROL_ASIDE] {
            match fs::symlink_metadata(above.join(sign)) {
                Ok(_) => return Err(within(directory, above)),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => {
                    let what = above.join(sign);
                    return Err(Error::at("stat file", &what, &error));
                }
            }
        }
    }
    Ok(())
}

fn within(directory: &Path, cluster: &Path) -> Error {
    let message = format!("directory \"{}\" lies within a data directory", directory.display());
    Error::new(Kind::TargetRefused, message)
        .detail(format!("\"{}\" is the data directory of a PostgreSQL cluster.", cluster.display()))
        .hint("Give the standby directories of its own, outside of every other cluster's.")
}

/// Device and inode of what a path leads to; `None` if that is missing.
fn identity(path: &Path, location: &Path) -> Result<Option<FileId>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(FileId::from(&found))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // below what is no directory there is nothing
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        Err(error) => Err(cannot_tell(location, "The target's link, or what it leads to,", &error)),
    }
}

fn cannot_tell(directory: &Path, what: &str, error: &io::Error) -> Error {
    let message = format!("cannot tell whether tablespace directory \"{}\" is in use", directory.display());
    Error::new(Kind::TargetRefused, message)
        .detail(format!("{what} could not be read: {error}."))
        .hint("Make it readable for the receiver's OS user, or map the tablespace to another directory with tablespace_mapping.")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::manifest::exclude::MARKER;
    use crate::wire::protocol::message::Marker;

    #[test]
    fn a_directory_that_cannot_be_listed_is_not_free() {
        let top = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| top.path().join(name);
        assert_eq!(is_used(&at("none")), Ok(false));
        fs::create_dir(at("empty")).expect("make");
        assert_eq!(is_used(&at("empty")), Ok(false));
        fs::write(at("file"), "").expect("write");
        assert_eq!(is_used(&at("file")), Ok(true), "something else would have to go");
        assert_eq!(is_used(top.path()), Ok(true));
        symlink("loop", at("loop")).expect("link");
        let error = is_used(&at("loop")).expect_err("cannot tell");
        assert_eq!(error.kind, Kind::TargetRefused);
        assert!(error.message.contains("cannot tell") && error.hint.is_some(), "{error}");
    }

    #[test]
    fn what_lies_within_a_data_directory_is_refused() {
        let top = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| top.path().join(name);
        fs::create_dir_all(at("main/pg_replslot")).expect("make");
        assert_eq!(demand_outside_clusters(&at("main/base/x/y")), Ok(()), "it is none yet");
        fs::write(at("main/PG_VERSION"), "15\n").expect("write");
        for inside in ["main/base/x/y", "main/pg_replslot", "main/new"] {
            let error = demand_outside_clusters(&at(inside)).expect_err(inside);
            assert!(error.detail.is_some_and(|detail| detail.contains("/main\"")), "{}", error.message);
        }
        assert_eq!(demand_outside_clusters(&at("main")), Ok(()), "the directory itself");
        assert_eq!(demand_outside_clusters(&at("main2/x")), Ok(()));
        symlink("loop", at("loop")).expect("link");
        demand_outside_clusters(&at("loop/x")).expect_err("cannot tell");
    }

    #[test]
    fn a_place_is_the_targets_by_its_link_or_its_marker() {
        let top = tempfile::tempdir().expect("temporary directory");
        let (data, space) = (top.path().join("data"), top.path().join("space"));
        fs::create_dir_all(data.join("pg_tblspc")).expect("make");
        let location = space.to_str().expect("UTF-8").to_owned();
        let tablespace = Tablespace { oid: 16400, source: location.clone(), target: location.clone() };
        let is_ours = || is_ours(&DataDirectory::open(&data).expect("open"), &tablespace);
        assert_eq!(is_ours(), Ok(false), "neither the place nor a link is there");
        fs::create_dir(&space).expect("make");
        assert_eq!(is_ours(), Ok(false));
        let link = data.join("pg_tblspc/16400");
        symlink(&space, &link).expect("link");
        assert_eq!(is_ours(), Ok(true));
        fs::remove_file(&link).expect("a power cut");
        let write = |oid: u32| {
            let tablespaces = BTreeMap::from([(oid.to_string(), location.clone())]);
            let marker = Marker { system_identifier: 7, tablespaces, ..Marker::default() };
            fs::write(data.join(MARKER), serde_json::to_string(&marker).expect("encodes")).expect("write");
        };
        write(16401);
        assert_eq!(is_ours(), Ok(false), "another tablespace's");
        write(16400);
        assert_eq!(is_ours(), Ok(true));
        symlink("16400", &link).expect("link");
        is_ours().expect_err("what cannot be told is no answer");
    }
}

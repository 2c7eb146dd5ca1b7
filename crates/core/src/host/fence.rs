//! The mark of a server that was stopped for good, because another one is the primary now.

use std::path::Path;

use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::FENCED;
use crate::sys::small_file;
use crate::wire::protocol::describe::FenceMark;

/// Longest mark that is read, bytes.
const MAX_MARK: usize = 1 << 16;

/// The mark in a data directory, if there is one. One that cannot be read is an error.
pub fn read(directory: &Path) -> Result<Option<FenceMark>> {
    let path = directory.join(FENCED);
    let Some(text) = small_file::read(&path, MAX_MARK).map_err(Error::on_path("read file", &path))? else {
        return Ok(None);
    };
    serde_json::from_slice(&text).map(Some).map_err(|error| {
        Error::new(Kind::TargetRefused, format!("\"{}\" cannot be understood", path.display()))
            .detail(format!("It should say who fenced the server, and when; the parser says: {error}."))
            .hint("If the server may run again, remove the file.")
    })
}

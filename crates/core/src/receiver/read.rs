//! Reading what the target has.

use rustix::io::Errno;

use super::planned::PlannedFile;
use crate::error::{Error, Result};
use crate::sys::direct::DirectFile;

/// Fills `buffer` from `offset` on; returns how much is there, or `None` if the disk cannot read it.
pub(super) fn read_full(
    file: &mut DirectFile,
    buffer: &mut [u8],
    offset: u64,
    planned: &PlannedFile<'_>,
) -> Result<Option<usize>> {
    match file.read_full(buffer, offset) {
        Ok(filled) => Ok(Some(filled)),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => Ok(None),
        Err(error) => Err(Error::io(format_args!("read file \"{}\" of the target", planned.path), &error)),
    }
}

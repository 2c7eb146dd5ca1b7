//! pg_control of a server that may be running.

use std::path::Path;
use std::time::Duration;

use pgdata::control_file::{ControlFile, PG_CONTROL};

use crate::error::{Error, Kind, Result};

/// How often it is read again when it was caught in the middle of a write.
const READS: usize = 20;

/// Reads pg_control: parsed, and as bytes. The server writes it in place, so a read may catch it
/// half-written; its CRC tells.
pub fn read(data_directory: &Path) -> Result<(ControlFile, Vec<u8>)> {
    let path = data_directory.join(PG_CONTROL);
    until_whole(|| std::fs::read(&path).map_err(Error::on_path("read file", &path)))
}

fn until_whole(mut read: impl FnMut() -> Result<Vec<u8>>) -> Result<(ControlFile, Vec<u8>)> {
    let mut failure = None;
    for _ in 0..READS {
        let bytes = read()?;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((control, bytes)),
            Err(error) => failure = Some(error),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(failure.map_or_else(|| Error::new(Kind::Internal, "pg_control was never read"), Error::from))
}

#[cfg(test)]
mod tests {
    use pgdata::control_file::sample;

    use super::*;

    #[test]
    fn one_that_is_being_written_is_read_again() {
        let mut torn = sample(42);
        torn[100] ^= 1;
        let mut reads = 0;
        let found = until_whole(|| {
            reads += 1;
            Ok(if reads < 3 { torn.clone() } else { sample(42) })
        });
        let (control, bytes) = found.expect("whole at last");
        assert_eq!((control.system_identifier, bytes, reads), (42, sample(42), 3));
        let kind = until_whole(|| Ok(torn.clone())).expect_err("it stays so").kind;
        assert_eq!(kind, Kind::Corrupt);
        let data = tempfile::tempdir().expect("temporary directory");
        assert_eq!(read(data.path()).expect_err("missing").kind, Kind::MissingFile);
    }
}

//! The cluster's shared secret: 32 random bytes, kept as 64 hexadecimal digits in a file that only
//! its owner can read.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::compare::digest::random_bytes;
use crate::error::{Error, Kind, Result};
use crate::sys::hexadecimal;

/// The secret. Has no `Debug` and no `Display`, so that it can never reach a log.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    /// A new random secret.
    pub fn random() -> Result<Self> {
        random_bytes().map(Self)
    }

    /// Reads the file, refusing one that others could read or write.
    pub fn read(path: &Path) -> Result<Self> {
        let hint = "Make one with \"pgpool-recovery-agent secret --output FILE\", copy it to every host, and \
                    let only the PostgreSQL OS user read it (mode 0600).";
        let unreadable = |error: std::io::Error| Error::at("read secret file", path, &error).hint(hint);
        let metadata = fs::metadata(path).map_err(unreadable)?;
        if metadata.mode() & 0o077 != 0 {
            return Err(Error::new(
                Kind::InvalidArgument,
                format!("secret file \"{}\" is accessible to others", path.display()),
            )
            .detail(format!("Its mode is {:04o}, expected is 0600 or less.", metadata.mode() & 0o7777))
            .hint("Run chmod 0600 on the file; make a new secret if others may have read it."));
        }
        if metadata.len() > 4096 {
            return Err(malformed(path).hint(hint));
        }
        let text = fs::read(path).map_err(unreadable)?;
        hexadecimal::decode(text.trim_ascii()).map(Self).ok_or_else(|| malformed(path).hint(hint))
    }

    /// Writes the file, mode 0600. Refuses to replace an existing one.
    pub fn write(&self, path: &Path) -> Result<()> {
        let failed = |error| Error::at("write secret file", path, &error);
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        writeln!(file, "{}", hexadecimal::encode(&self.0)).map_err(failed)?;
        file.sync_all().map_err(failed)
    }

    /// The bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn malformed(path: &Path) -> Error {
    Error::new(Kind::InvalidArgument, format!("secret file \"{}\" holds no secret", path.display()))
        .detail("Expected are 64 hexadecimal digits.")
        .hint("Make one with \"pgpool-recovery-agent secret\", and copy it to every host.")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn survives_the_file_and_is_never_overwritten() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("secret");
        let secret = Secret::random().expect("random");
        secret.write(&path).expect("write");
        assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o600);
        assert_eq!(Secret::read(&path).expect("read").bytes(), secret.bytes());
        assert!(secret.write(&path).is_err());
    }

    #[test]
    fn a_file_others_can_read_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("secret");
        Secret::random().expect("random").write(&path).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        let error = Secret::read(&path).err().expect("refused");
        assert!(error.message.contains("accessible to others"), "{error}");
    }

    #[test]
    fn damage_is_an_error_that_does_not_show_the_content() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for content in ["", "abc", &"g".repeat(64), &"a".repeat(65), &"a".repeat(5000)] {
            let path = directory.path().join("secret");
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)
                .expect("open");
            file.write_all(content.as_bytes()).expect("write");
            let error = Secret::read(&path).err().expect("refused");
            assert!(content.is_empty() || !error.to_string().contains(content));
        }
    }
}

//! Settings and options that hold a list: how its text is read.

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::manifest::exclude::is_of_the_copy;
use pgpool_recovery_core::manifest::path::normalize_directory;

use crate::settings::request::shown;

/// Reads `keep_files`: comma-separated names relative to the data directory.
pub(super) fn keep_files(text: &str) -> Result<Vec<String>> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let beneath = !name.starts_with('/')
                && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
                && !name.chars().any(char::is_control);
            if beneath && !is_of_the_copy(name) {
                return Ok(name.to_owned());
            }
            Err(Error::new(
                Kind::InvalidArgument,
                format!("invalid name in \"keep_files\": {}", shown(name)),
            )
            .detail("A kept file is named by its path relative to the data directory, without \"..\"; data, WAL and what makes a standby cannot be kept.")
            .hint("Separate names by commas, as in: postgresql.conf, pg_hba.conf"))
        })
        .collect()
}

/// Reads `tablespace_mapping`: `old=new, ...`, absolute directories; `\` before a comma, an equals sign
/// or a backslash makes it part of a path (as in pg_basebackup's --tablespace-mapping).
pub(super) fn tablespace_mapping(text: &str) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut sides = vec![String::new()];
    let mut characters = text.chars().chain([',']);
    while let Some(c) = characters.next() {
        let side = sides.last_mut().expect("there is always a side being read");
        match c {
            '\\' => side.extend(characters.next()),
            '=' => sides.push(String::new()),
            ',' => {
                let read = std::mem::replace(&mut sides, vec![String::new()]);
                let read: Vec<&str> = read.iter().map(|side| side.trim()).collect();
                match read[..] {
                    [""] => {}
                    // as PostgreSQL writes the location of a tablespace, or a slash too many would make it another one
                    [old, new] => match (normal(old), normal(new)) {
                        (Some(old), Some(new)) => pairs.push((old, new)),
                        _ => return Err(bad_mapping(&read.join("="))),
                    },
                    _ => return Err(bad_mapping(&read.join("="))),
                }
            }
            c => side.push(c),
        }
    }
    Ok(pairs)
}

/// An absolute path without `..` and control characters, in its shortest form.
fn normal(path: &str) -> Option<String> {
    Some(normalize_directory(path).ok()?.to_str()?.to_owned())
}

fn bad_mapping(found: &str) -> Error {
    Error::new(Kind::InvalidArgument, format!("invalid entry in \"tablespace_mapping\": {}", shown(found)))
        .detail("An entry is OLD=NEW, both absolute directories without \"..\".")
        .hint("Separate entries by commas; write \"\\,\" and \"\\=\" for commas and equals signs in a path.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_files() {
        assert_eq!(
            keep_files(" postgresql.conf, conf.d/a.conf ,").expect("valid"),
            ["postgresql.conf", "conf.d/a.conf"]
        );
        assert!(keep_files("").expect("valid").is_empty());
        assert_eq!(keep_files("pg_hba.conf").expect("valid"), ["pg_hba.conf"]);
        for bad in [
            "/etc/passwd",
            "../x",
            "a//b",
            "./a",
            "a\nb",
            "base",
            "pg_wal",
            "pg_xact/0000",
            "standby.signal",
            "global",
        ] {
            assert_eq!(keep_files(bad).expect_err(bad).kind, Kind::InvalidArgument);
        }
    }

    #[test]
    fn mappings() {
        let pair = |old: &str, new: &str| (old.to_owned(), new.to_owned());
        assert_eq!(tablespace_mapping("").expect("valid"), []);
        assert_eq!(
            tablespace_mapping(r"/a=/b, /c\,d=/e\=f\\,").expect("valid"),
            [pair("/a", "/b"), pair("/c,d", r"/e=f\")]
        );
        assert_eq!(
            tablespace_mapping("/srv/a/=/srv//b/./c/").expect("valid"),
            [pair("/srv/a", "/srv/b/c")],
            "however it is written"
        );
        for bad in ["/a", "a=/b", "/a=b", "/a=/b=/c", "=", "/a=/b/../c", "/a=/b\nc", "/=/b"] {
            assert_eq!(tablespace_mapping(bad).expect_err(bad).kind, Kind::InvalidArgument, "{bad}");
        }
    }
}

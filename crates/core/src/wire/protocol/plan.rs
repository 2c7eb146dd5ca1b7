//! The plan as it travels: binary, because it may have millions of files. A frame is decoded without the ones before it.

use super::data::{Reader, violation};
use crate::error::{Error, Kind, Result};
use crate::manifest::list::FileList;
use crate::manifest::path::RelPath;
use crate::manifest::plan::{Directory, File};

/// Sender: a part of the plan; no answer. Body: [`DIRECTORY`] and [`FILES`] in any number.
pub const PLAN: u8 = 0x08;

/// A directory: mode u16, length of its path u16, path.
const DIRECTORY: u8 = 1;

/// Files of one directory and of one mode: mode u16, length of the directory's path u16 (0: the data directory), that path, the
/// number of files u16, then of each its size u64, the length of its name u8, and its name.
const FILES: u8 = 2;

/// Bytes after which the sender begins another frame.
const PART: usize = 256 << 10;

/// What a plan consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory; its parents came before.
    Directory(Directory),
    /// A file; its number is that of the files before it.
    File(File),
}

/// Encodes a plan; every body goes to `send`.
pub fn encode_plan(
    directories: &[Directory],
    files: &FileList,
    mut send: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut body = Vec::new();
    for directory in directories {
        encode_head(DIRECTORY, directory.mode, directory.path.as_str(), &mut body)?;
        if body.len() >= PART {
            send(&std::mem::take(&mut body))?;
        }
    }
    for (directory, mode, mut numbers) in files.runs() {
        while !numbers.is_empty() {
            encode_head(FILES, mode, directory, &mut body)?;
            let count_at = body.len();
            body.extend_from_slice(&[0; 2]);
            let mut count = 0_u16;
            while body.len() < PART && count < u16::MAX {
                let Some(number) = numbers.next() else { break };
                body.extend_from_slice(&files.size(number).to_le_bytes());
                let name = files.name(number);
                body.push(u8::try_from(name.len()).map_err(|_| too_long(name))?);
                body.extend_from_slice(name.as_bytes());
                count += 1;
            }
            body[count_at..count_at + 2].copy_from_slice(&count.to_le_bytes());
            if body.len() >= PART {
                send(&std::mem::take(&mut body))?;
            }
        }
    }
    if body.is_empty() { Ok(()) } else { send(&body) }
}

fn encode_head(kind: u8, mode: u32, path: &str, body: &mut Vec<u8>) -> Result<()> {
    body.push(kind);
    body.extend_from_slice(&u16::try_from(mode & 0o7777).unwrap_or_default().to_le_bytes());
    body.extend_from_slice(&u16::try_from(path.len()).map_err(|_| too_long(path))?.to_le_bytes());
    body.extend_from_slice(path.as_bytes());
    Ok(())
}

/// No file system that PostgreSQL runs on has such names.
fn too_long(name: &str) -> Error {
    let shown: String = name.chars().take(100).collect();
    Error::new(Kind::Unsupported, format!("file name is too long: \"{shown}...\""))
}

/// Decodes a body; every entry goes to `take`, which may refuse it.
pub fn decode_plan(body: &[u8], mut take: impl FnMut(Entry) -> Result<()>) -> Result<()> {
    let mut reader = Reader(body);
    while !reader.0.is_empty() {
        let kind = reader.u8()?;
        let mode = u32::from(reader.u16()?);
        let path = text(&mut reader, |reader| reader.u16().map(usize::from))?;
        match kind {
            DIRECTORY => take(Entry::Directory(Directory { path: RelPath::parse(path)?, mode }))?,
            FILES => {
                let directory = if path.is_empty() { None } else { Some(RelPath::parse(path)?) };
                for _ in 0..reader.u16()? {
                    let size = reader.u64()?;
                    let name = text(&mut reader, |reader| reader.u8().map(usize::from))?;
                    let path = match &directory {
                        Some(directory) => directory.join(name)?,
                        None => RelPath::parse(name)?,
                    };
                    if name.contains('/') {
                        return Err(violation(format!("name of a file with a slash: \"{path}\"")));
                    }
                    take(Entry::File(File { path, size, mode }))?;
                }
            }
            other => return Err(violation(format!("plan with an entry of kind {other}"))),
        }
    }
    Ok(())
}

fn text<'a>(reader: &mut Reader<'a>, length: fn(&mut Reader<'a>) -> Result<usize>) -> Result<&'a str> {
    let length = length(reader)?;
    std::str::from_utf8(reader.bytes(length)?).map_err(|_| violation("path that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(bodies: &[Vec<u8>]) -> Result<(Vec<Directory>, FileList)> {
        let (mut directories, mut files) = (Vec::new(), FileList::default());
        for body in bodies {
            decode_plan(body, |entry| {
                match entry {
                    Entry::Directory(directory) => directories.push(directory),
                    Entry::File(file) => files.push(&file),
                }
                Ok(())
            })?;
        }
        Ok((directories, files))
    }

    fn encode(directories: &[Directory], files: &FileList) -> Vec<Vec<u8>> {
        let mut bodies = Vec::new();
        let sent = encode_plan(directories, files, |body| {
            bodies.push(body.to_vec());
            Ok(())
        });
        sent.expect("encodes");
        bodies
    }

    fn path(text: &str) -> RelPath {
        RelPath::parse(text).expect("valid")
    }

    #[test]
    fn a_file_of_a_large_plan_takes_sixteen_bytes() {
        const COUNT: usize = 200_000;
        let file = |number| File { path: path(&format!("base/5/{number}")), size: u64::MAX, mode: 0o600 };
        let files: FileList = (1_000_000..1_000_000 + COUNT).map(file).collect();
        let bodies = encode(&[], &files);
        assert!(bodies.len() > 10 && bodies.iter().all(|body| body.len() < PART + 1100));
        assert!(bodies.iter().map(Vec::len).sum::<usize>() <= COUNT * 16 + 1000);
        assert_eq!(decode(&bodies).expect("decodes"), (Vec::new(), files));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let head = |kind: u8, path: &[u8]| {
            [&[kind, 0x80, 1][..], &u16::try_from(path.len()).expect("short").to_le_bytes(), path].concat()
        };
        let file = |name: &[u8]| {
            let length = u8::try_from(name.len()).expect("short");
            [&8192_u64.to_le_bytes()[..], &[length], name].concat()
        };
        let valid = [head(FILES, b"base"), vec![1, 0], file(b"5")].concat();
        assert_eq!(decode(std::slice::from_ref(&valid)).expect("decodes").1.file(0).path, path("base/5"));
        for cut in 1..valid.len() {
            assert_eq!(decode(&[valid[..cut].to_vec()]).expect_err("cut").kind, Kind::ProtocolViolation);
        }
        for (what, body) in [
            ("an unknown entry", head(3, b"base")),
            ("a directory that is the data directory", head(DIRECTORY, b"")),
            ("a directory elsewhere", head(DIRECTORY, b"../x")),
            ("files elsewhere", [head(FILES, b"/etc"), vec![1, 0], file(b"passwd")].concat()),
            ("a file elsewhere", [head(FILES, b"base"), vec![1, 0], file(b"..")].concat()),
            ("a file without a name", [head(FILES, b"base"), vec![1, 0], file(b"")].concat()),
            ("a name with a slash", [head(FILES, b"base"), vec![1, 0], file(b"5/1")].concat()),
            ("a path that is too long", [head(FILES, &[b'a'; 1020]), vec![1, 0], file(b"5678")].concat()),
            ("no UTF-8", [head(FILES, b"base"), vec![1, 0], file(&[0xFF])].concat()),
            ("bytes behind the end", [&valid[..], &[0]].concat()),
        ] {
            assert_eq!(decode(&[body]).expect_err(what).kind, Kind::ProtocolViolation, "{what}");
        }
    }

    proptest! {
        #[test]
        fn plans_round_trip(
            directories in prop::collection::vec(("[a-z]{1,9}(/[a-zé]{1,9}){0,2}", 0_u32..0o7777), 0..20),
            files in prop::collection::vec(("([ab]/){0,2}[a-zé]{1,9}", any::<u64>(), 0_u32..3), 0..200),
        ) {
            let directories: Vec<Directory> =
                directories.into_iter().map(|(text, mode)| Directory { path: path(&text), mode }).collect();
            let files: FileList =
                files.into_iter().map(|(text, size, mode)| File { path: path(&text), size, mode }).collect();
            prop_assert_eq!(decode(&encode(&directories, &files)).expect("decodes"), (directories, files));
        }

        #[test]
        fn whatever_arrives_is_decoded_or_refused(
            body: Vec<u8>,
            near in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(2), Just(b'a'), any::<u8>()], 0..100),
        ) {
            let _ = decode_plan(&body, |_| Ok(()));
            let _ = decode_plan(&near, |_| Ok(()));
        }
    }
}

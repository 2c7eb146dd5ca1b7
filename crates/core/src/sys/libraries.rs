//! The libraries that decide in which order a server sorts text: the GNU C library and ICU.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys::cancel::Cancel;
use crate::sys::{process, small_file};

/// How long the loader may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Most bytes of a C library, and of a list of mappings.
const MOST: usize = 16 << 20;

/// What goes before the version in the banner of the GNU C library (csu/version.c).
const BANNER: (&str, &str) = ("GNU C Library", "release version ");

/// The part of ICU that compares text.
const ICU: &str = "libicui18n.so.";

/// Versions of these libraries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Libraries {
    /// The GNU C library's, as `gnu_get_libc_version()` has it: `2.36`; `None`: it is another one, or not known.
    pub glibc: Option<String>,
    /// The major version of ICU, which is part of the names of its files: `72`; `None`: the program is linked without it,
    /// or against a static one.
    pub icu: Option<String>,
}

impl Libraries {
    /// Those that a program would be started with. What cannot be told is none.
    pub(crate) fn of_program(program: &Path, cancel: &Cancel) -> Self {
        // glibc's loader says what it would load and runs nothing, as ldd has it do; any other one runs the program
        let mut command = process::command(program, ["--version"]);
        command.env("LD_TRACE_LOADED_OBJECTS", "1");
        process::run(command, DEADLINE, cancel)
            .map_or_else(|_| Self::default(), |outcome| Self::in_trace(&outcome.stdout))
    }

    /// What the loader says: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2b8d5e0000)`, a line for each file.
    fn in_trace(trace: &str) -> Self {
        let mut found = Self::default();
        for (name, rest) in trace.lines().filter_map(|line| line.trim().split_once(" => ")) {
            let file = rest.rsplit_once(" (0x").map_or(rest, |(file, _)| file);
            if name == "libc.so.6" {
                found.glibc = small_file::head(Path::new(file), MOST).and_then(|content| in_banner(&content));
            }
            found.icu = found.icu.or_else(|| icu(name));
        }
        found
    }
}

/// The major version of the ICU that this process has loaded.
pub fn loaded_icu() -> Option<String> {
    let maps = small_file::head(Path::new("/proc/self/maps"), MOST)?;
    in_maps(&String::from_utf8_lossy(&maps))
}

/// The ICU among the files that are mapped: `7f... r-xp 00000000 08:01 4711 /usr/lib/x86_64-linux-gnu/libicui18n.so.72.1`.
fn in_maps(maps: &str) -> Option<String> {
    maps.lines().filter_map(|line| line.rsplit_once('/')).find_map(|(_, name)| icu(name))
}

fn icu(name: &str) -> Option<String> {
    let version = name.strip_prefix(ICU)?;
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    (!digits.is_empty()).then_some(digits)
}

/// The version in a C library's own words: `GNU C Library (Debian GLIBC 2.36-9+deb12u13) stable release version 2.36.`
fn in_banner(library: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(library);
    let (_, banner) = text.split_once(BANNER.0)?;
    let (_, version) = banner.lines().next()?.split_once(BANNER.1)?;
    let version: String = version.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    let version = version.trim_end_matches('.');
    (!version.is_empty()).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_loader_tells_what_a_program_is_started_with() {
        let own = Libraries::of_program(Path::new("/proc/self/exe"), &Cancel::new());
        let glibc = own.glibc.expect("tests run with the GNU C library");
        assert!(glibc.starts_with("2.") && glibc[2..].bytes().all(|byte| byte.is_ascii_digit()), "{glibc}");
        assert_eq!(own.icu, None, "they are linked without ICU");
        assert_eq!(loaded_icu(), None);
        let none = Libraries::of_program(Path::new("/no/such/program"), &Cancel::new());
        assert_eq!(none, Libraries::default());
    }

    #[test]
    fn a_trace_is_read() {
        let top = tempfile::tempdir().expect("temporary directory");
        let libc = top.path().join("libc.so.6");
        let content =
            b"\x7fELF\xff\0GNU C Library (GNU libc) stable release version 2.34.\nCopyright (C) 2021\0";
        fs::write(&libc, content).expect("write");
        let trace = format!(
            "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibicuuc.so.67 => /lib64/libicuuc.so.67 (0x00007f)\n\
             \tlibicui18n.so.67 => /lib64/libicui18n.so.67 (0x00007f)\n\tlibc.so.6 => {} (0x00007f)\n\
             \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n",
            libc.display()
        );
        let expected = Libraries { glibc: Some("2.34".to_owned()), icu: Some("67".to_owned()) };
        assert_eq!(Libraries::in_trace(&trace), expected);
        // what is not found is named all the same
        let missing = "\tlibicui18n.so.76 => not found\n\tlibc.so.6 => not found\n";
        assert_eq!(Libraries::in_trace(missing), Libraries { glibc: None, icu: Some("76".to_owned()) });
        assert_eq!(Libraries::in_trace("postgres (PostgreSQL) 15.18\n"), Libraries::default());
    }

    #[test]
    fn a_banner_is_found_among_other_bytes() {
        for (banner, version) in [
            ("GNU C Library (Debian GLIBC 2.36-9+deb12u13) stable release version 2.36.\n", Some("2.36")),
            ("GNU C Library (GNU libc) development release version 2.40.9000.\n", Some("2.40.9000")),
            ("GNU C Library\nstable release version 2.36.\n", None),
            ("stable release version 2.36.\n", None),
            ("GNU C Library (x) stable release version .\n", None),
        ] {
            let library = [&b"\0\xfe"[..], banner.as_bytes(), b"\0\x80"].concat();
            assert_eq!(in_banner(&library).as_deref(), version, "{banner}");
        }
    }

    #[test]
    fn what_is_mapped_tells_the_icu() {
        let maps = "7f00-7f01 r--p 00000000 08:01 47 /usr/lib/libicuuc.so.72.1\n\
            7f01-7f02 r-xp 00000000 08:01 48 /usr/lib/x86_64-linux-gnu/libicui18n.so.72.1 (deleted)\n7f03-7f04 rw-p 0 00:00 0\n";
        assert_eq!(in_maps(maps).as_deref(), Some("72"));
        assert_eq!(in_maps("7f00-7f01 r--p 0 08:01 47 /usr/lib/libicui18n.so.x\n"), None);
    }

    proptest! {
        #[test]
        fn nothing_that_is_read_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "[ -~\n\t]{0,120}") {
            let _ = in_banner(&bytes);
            let _ = in_banner(&[b"GNU C Library release version ".as_slice(), &bytes].concat());
            let _ = in_maps(&text);
            let _ = Libraries::in_trace(&text);
        }
    }
}

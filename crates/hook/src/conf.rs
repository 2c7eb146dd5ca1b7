//! pgpool.conf, as Pgpool-II reads it (src/config/pool_config.l): a string has no escapes, `'` cannot be in it, and the
//! last of several settings of one name counts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// Most bytes of a file.
const MAX_BYTES: u64 = 4 << 20;

/// How deep files may include others (CONF_FILE_MAX_DEPTH).
const MAX_DEPTH: u32 = 10;

/// Most nodes (MAX_NUM_BACKENDS).
const MAX_NODES: u32 = 128;

/// What the file says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Conf {
    pub(crate) path: PathBuf,
    settings: BTreeMap<String, String>,
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) id: u32,
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Empty if it is not set.
    pub(crate) data_directory: String,
    /// Empty if it is not set.
    pub(crate) application_name: String,
    /// As it is written.
    pub(crate) flags: String,
}

impl Node {
    /// `node 1 (host:5432)`
    pub(crate) fn name(&self) -> String {
        format!("node {} ({}:{})", self.id, self.host, self.port)
    }
}

impl Conf {
    /// Reads the file and those that it includes.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let mut conf = Self { path: path.to_owned(), settings: BTreeMap::new() };
        conf.read_file(path, 0)?;
        Ok(conf)
    }

    fn read_file(&mut self, path: &Path, depth: u32) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Failure::new(format!("\"{}\" is included too deep", path.display())));
        }
        let unreadable = |error: &dyn std::fmt::Display| {
            Failure::new(format!("could not read \"{}\": {error}", path.display()))
        };
        let mut text = Vec::new();
        let file = File::open(path).map_err(|error| unreadable(&error))?;
        file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(|error| unreadable(&error))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(unreadable(&"it is no configuration file"));
        }
        let text = String::from_utf8_lossy(&text);
        for (number, line) in text.lines().enumerate() {
            let wrong = || Failure::new(format!("\"{}\" line {}: syntax error", path.display(), number + 1));
            let Some((name, value)) = parse_line(line).map_err(|()| wrong())? else { continue };
            // what has no use here may be in any encoding
            let has_use = name == "include" || name.starts_with("backend_") || name.starts_with("pcp_");
            if has_use && value.contains(char::REPLACEMENT_CHARACTER) {
                let line = number + 1;
                return Err(Failure::new(format!(
                    "\"{}\" line {line}: the value of {name} is not UTF-8",
                    path.display()
                )));
            }
            if name == "include" {
                let included = path.parent().unwrap_or(Path::new("/")).join(value);
                self.read_file(&included, depth + 1)?;
            } else {
                self.settings.insert(name, value);
            }
        }
        Ok(())
    }

    /// A setting; empty if it is not there.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    /// Whether a boolean is on; they are off unless the file says so.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        let value = self.get(name).to_lowercase();
        // as parse_bool_with_len of pool_config.l: any beginning of these words
        ["true", "yes"].iter().any(|word| !value.is_empty() && word.starts_with(&value))
            || value == "on"
            || value == "1"
    }

    /// The nodes, by number. Those without a host are none.
    pub(crate) fn nodes(&self) -> Result<Vec<Node>> {
        let mut nodes = Vec::new();
        for id in 0..MAX_NODES {
            let of = |name: &str| self.get(&format!("backend_{name}{id}"));
            if of("hostname").is_empty() {
                continue;
            }
            let port = match of("port") {
                "" => 5432,
                text => text.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
                    Failure::new(format!(
                        "\"{}\": backend_port{id} is \"{text}\", which is no port",
                        self.path.display()
                    ))
                })?,
            };
            nodes.push(Node {
                id,
                host: of("hostname").to_owned(),
                port,
                data_directory: of("data_directory").to_owned(),
                application_name: of("application_name").to_owned(),
                flags: of("flag").to_owned(),
            });
        }
        if nodes.is_empty() {
            let message = format!("\"{}\" has no backend_hostname0", self.path.display());
            return Err(Failure::new(message).hint("Name Pgpool-II's own file with --config."));
        }
        Ok(nodes)
    }
}

/// Name, in lower case, and value of a setting; none if the line has none.
fn parse_line(line: &str) -> std::result::Result<Option<(String, String)>, ()> {
    let line = line.trim_start_matches([' ', '\t', '\r']);
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || !c.is_ascii();
    let end = line.find(|c| !is_of_name(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(());
    }
    let blank = [' ', '\t', '\r'];
    let rest = rest.trim_start_matches(blank);
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start_matches(blank);
    let (value, rest) = if rest.starts_with('\'') {
        let end = end_of_string(rest).ok_or(())?;
        (&rest[1..end], &rest[end + 1..])
    } else {
        let end = rest.find(|c: char| blank.contains(&c) || c == '#' || c == '\'').unwrap_or(rest.len());
        rest.split_at(end)
    };
    let rest = rest.trim_start_matches(blank);
    if !rest.is_empty() && !rest.starts_with('#') {
        return Err(());
    }
    Ok(Some((name.to_ascii_lowercase(), value.to_owned())))
}

/// Where the string ends that begins here: the longest match of `\'([^'\n]|\\.)*\'`. So a quote after a backslash ends it
/// only if no later one does.
fn end_of_string(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut end = None;
    for (place, byte) in bytes.iter().enumerate().skip(1) {
        if *byte == b'\'' {
            end = Some(place);
            if place < 2 || bytes[place - 1] != b'\\' {
                break;
            }
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn conf(text: impl AsRef<[u8]>) -> Result<Conf> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("pgpool.conf");
        std::fs::write(&path, text).expect("write");
        std::fs::write(directory.path().join("more.conf"), "backend_hostname1 = 'b'\n").expect("write");
        std::fs::write(directory.path().join("round.conf"), "include 'round.conf'\n").expect("write");
        Conf::read(&path)
    }

    #[test]
    fn values_are_those_that_pgpool_has() {
        for (line, name, value) in [
            ("port = 9999", "port", "9999"),
            ("PORT=9999 # there", "port", "9999"),
            ("  port 9999\r", "port", "9999"),
            ("x = 'a b' # it's", "x", "a b"),
            ("x = ''", "x", ""),
            ("x = ", "x", ""),
            ("x = on", "x", "on"),
            ("x = ALLOW_TO_FAILOVER", "x", "ALLOW_TO_FAILOVER"),
            ("x = '# no comment'", "x", "# no comment"),
            // no escape is undone
            (r"x = 'a\b'", "x", r"a\b"),
            (r"x = 'it\'s'", "x", r"it\'s"),
            (r"x = 'c:\'", "x", r"c:\"),
            (r"x = '\$\$%h\$\$'", "x", r"\$\$%h\$\$"),
        ] {
            assert_eq!(conf(line).expect(line).get(name), value, "{line}");
        }
        assert_eq!(conf("x = 1\nX = 2\n").expect("good").get("x"), "2", "the last one counts");
        for line in ["x = 'a", "= 1", "x = 'a' b", "1x = 2", "x = a b"] {
            let failure = conf(format!("# a comment\n{line}\n")).expect_err(line);
            assert!(failure.message.contains("line 2"), "{failure}");
        }
    }

    #[test]
    fn booleans_are_on_by_any_word_of_pgpools() {
        for (value, is_on) in
            [("on", true), ("'TRUE'", true), ("y", true), ("1", true), ("off", false), ("0", false)]
        {
            assert_eq!(conf(format!("x = {value}")).expect("good").is_on("x"), is_on, "{value}");
        }
        assert!(!conf("").expect("good").is_on("x"));
    }

    #[test]
    fn nodes_come_from_all_files() {
        let text = "backend_hostname0 = 'a'\nbackend_port0 = 5433\nbackend_data_directory0 = '/srv/my data'\n\
                    backend_application_name0 = 'a1'\nbackend_flag0 = 'DISALLOW_TO_FAILOVER'\ninclude 'more.conf'\n";
        let nodes = conf(text).expect("good").nodes().expect("two");
        assert_eq!((nodes.len(), nodes[0].data_directory.as_str(), nodes[0].port), (2, "/srv/my data", 5433));
        assert_eq!((nodes[1].id, nodes[1].name().as_str()), (1, "node 1 (b:5432)"));
        for (text, named) in [
            ("include 'none.conf'\n", "none.conf"),
            ("include 'round.conf'\n", "too deep"),
            ("backend_hostname0 = 'a'\nbackend_port0 = 0\n", "backend_port0"),
            ("backend_hostname0 = 'a'\nbackend_port0 = x\n", "\"x\""),
            ("port = 1\n", "no backend_hostname0"),
        ] {
            let failure = conf(text).and_then(|conf| conf.nodes()).expect_err(named);
            assert!(failure.message.contains(named), "{failure}");
        }
        let latin = conf(b"# M\xfcller\nlogdir = '/m\xfcller'\nbackend_hostname0 = 'a'\nbackend_data_directory0 = '/m\xfcller'\n");
        let failure = latin.expect_err("not UTF-8");
        assert!(failure.message.contains("line 4") && failure.message.contains("backend_data_directory0"));
        assert!(
            Conf::read(Path::new("/nowhere/pgpool.conf")).expect_err("none").message.contains("/nowhere")
        );
    }

    proptest! {
        #[test]
        fn no_text_is_too_much(text in "\\PC*") {
            let _ = parse_line(&text);
        }

        #[test]
        fn a_string_without_quotes_is_kept(value in "[^'\\\\\\p{C}]*") {
            let found = parse_line(&format!("x = '{value}' # y"));
            prop_assert_eq!(found, Ok(Some(("x".to_owned(), value))));
        }
    }
}

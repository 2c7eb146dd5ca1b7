//! The project's documents as tests read them: fenced blocks, what each is for, what is said before it.
//!
//! A fence's info string is its language and then `name=value` or a bare word, which a reader of the
//! rendered page does not see:
//!
//! - `host=node1,node2`: run there (`sh`, `sql`); `user=postgres` as that user (default root)
//! - `path=/etc/x host=...`: a file to write there; `append`: to add to its end
//! - `until=60`: repeat it for so many seconds until it shows the output below
//! - `background`: the next block is run beside it
//! - `fails`: it is meant to fail
//! - `output`: what the block above shows; `...` stands for anything, in a line or as lines
//! - `by=FILE`: a test or script has these lines
//! - `shown`: nothing to execute

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A fenced block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Where its first fence is, counted from 1.
    pub line: usize,
    pub language: String,
    pub attributes: BTreeMap<String, String>,
    pub text: String,
    /// The last heading, and what is written between the block before and this one.
    pub heading: String,
    pub introduction: String,
}

impl Block {
    pub fn is(&self, word: &str) -> bool {
        self.attributes.contains_key(word)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.get("host").unwrap_or_default().split(',').filter(|host| !host.is_empty())
    }

    pub fn user(&self) -> &str {
        self.get("user").unwrap_or("root")
    }
}

/// The fenced blocks of a Markdown document.
pub fn blocks(text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut heading = String::new();
    let mut said = String::new();
    let mut open: Option<(Block, usize)> = None;
    for (index, line) in text.lines().enumerate() {
        let bare = line.trim_start();
        if let Some((block, indent)) = &mut open {
            if bare.trim_end() == "```" {
                blocks.extend(open.take().map(|(block, _)| block));
            } else {
                // a block within a list is indented as a whole
                block.text.push_str(line.get(*indent..).unwrap_or(bare));
                block.text.push('\n');
            }
        } else if let Some(info) = bare.strip_prefix("```") {
            let mut words = info.split_whitespace();
            let language = words.next().unwrap_or_default().to_owned();
            let attributes = words
                .map(|word| word.split_once('=').unwrap_or((word, "")))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            // blocks without a word between them share what is said before the first
            let shared = said.trim().is_empty() && !blocks.is_empty();
            let introduction = if shared {
                blocks.last().map(|block| block.introduction.clone()).unwrap_or_default()
            } else {
                std::mem::take(&mut said)
            };
            said.clear();
            let block = Block {
                line: index + 1,
                language,
                attributes,
                text: String::new(),
                heading: heading.clone(),
                introduction,
            };
            open = Some((block, line.len() - bare.len()));
        } else {
            if let Some(title) = bare.strip_prefix('#') {
                title.trim_start_matches('#').trim().clone_into(&mut heading);
            }
            said.push_str(line);
            said.push('\n');
        }
    }
    if let Some((block, _)) = open {
        panic!("the block of line {} does not end", block.line);
    }
    blocks
}

/// The top of the project.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the project")
}

/// The documents at the top and everything in docs/ but the decisions, which tell of their day.
pub fn all() -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "RELEASE.md", "SECURITY.md"]
        .into_iter()
        .map(|name| project().join(name))
        .collect();
    let docs = std::fs::read_dir(project().join("docs")).expect("docs/");
    paths.extend(
        docs.map(|entry| entry.expect("an entry of docs/").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "md")),
    );
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            (path, text)
        })
        .collect()
}

/// Whether `shown` is what a document says: line by line, spaces and rules of tables in any number, `...`
/// for any part of a line, and as a line of its own for any lines.
pub fn agrees(said: &str, shown: &str) -> bool {
    let said: Vec<String> = said.trim().lines().map(tight).collect();
    let shown: Vec<String> = shown.trim().lines().map(tight).collect();
    lines_agree(&said, &shown)
}

fn lines_agree(said: &[String], shown: &[String]) -> bool {
    match said.split_first() {
        None => shown.is_empty(),
        Some((line, rest)) if line == "..." => {
            (0..=shown.len()).any(|skipped| lines_agree(rest, &shown[skipped..]))
        }
        Some((line, rest)) => shown
            .split_first()
            .is_some_and(|(first, others)| line_agrees(line, first) && lines_agree(rest, others)),
    }
}

fn line_agrees(said: &str, shown: &str) -> bool {
    let parts: Vec<&str> = said.split("...").collect();
    let [first, middle @ .., last] = parts.as_slice() else {
        return said == shown;
    };
    let Some(mut rest) = shown.strip_prefix(first) else {
        return false;
    };
    for part in middle {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// A line with one space for many, and one dash for the rules of a table.
fn tight(line: &str) -> String {
    let mut tight = line.split_whitespace().collect::<Vec<_>>().join(" ");
    if tight.chars().all(|character| "-+".contains(character)) {
        while tight.contains("--") {
            tight = tight.replace("--", "-");
        }
    }
    tight
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A guide\n\n## First\nOn `node1`:\n```sh host=node1,node2 user=postgres until=5\necho 1\n```\n\
        ```text output\n1\n```\n1. In a list:\n   ```ini path=/x append\n   a = 1\n     b\n   ```\n";

    #[test]
    fn blocks_are_found_with_what_is_said_of_them() {
        let blocks = blocks(TEXT);
        let [command, output, file] = blocks.as_slice() else { panic!("{blocks:?}") };
        assert_eq!((command.line, command.language.as_str(), command.text.as_str()), (5, "sh", "echo 1\n"));
        assert_eq!(command.hosts().collect::<Vec<_>>(), ["node1", "node2"]);
        assert_eq!(
            (command.user(), command.get("until"), command.heading.as_str()),
            ("postgres", Some("5"), "First")
        );
        assert!(command.introduction.contains("`node1`"));
        assert!(output.is("output") && output.introduction == command.introduction);
        assert_eq!(
            (file.text.as_str(), file.get("path"), file.is("append")),
            ("a = 1\n  b\n", Some("/x"), true)
        );
        assert_eq!((file.user(), file.introduction.trim()), ("root", "1. In a list:"));
    }

    #[test]
    fn output_agrees_or_not() {
        for (said, shown, expected) in [
            ("a  b\n--+---\n", " a b \n-----+-\n", true),
            ("up ... streaming", "up  standby  streaming", true),
            ("up ... streaming", "up standby catchup", false),
            ("0/...", "0/3000028", true),
            ("first\n...\nlast", "first\nlast", true),
            ("first\n...\nlast", "first\na\nb\nlast", true),
            ("first\n...\nlast", "first\na\nb", false),
            ("...", "", true),
            ("(0 rows)", "(1 row)", false),
            ("a", "a\nb", false),
            ("a\nb", "a", false),
            ("a...b...c", "a1b2c", true),
            ("a...b...c", "a1c2b", false),
        ] {
            assert_eq!(agrees(said, shown), expected, "{said:?} {shown:?}");
        }
    }
}

//! What Pgpool-II tells of a failover: `%d %h %p %D %m %H %M %P %r %R %N %S`, the order of its samples.
//!
//! It quotes nothing, so a directory with blanks is several words and an empty one is none; what does not exist is `""`,
//! an empty word. `%p`, `%d` and `%m` begin with a blank from 4.4 on, which shows if the operator has quoted them. So the
//! words are read in every way that fits, and there must be one.

use crate::conf::Node;
use crate::failure::{Failure, Result};

/// Words besides the two directories.
const OTHERS: usize = 10;

const USAGE: &str = "Write in pgpool.conf: pgpool-recovery-hook failover %d %h %p %D %m %H %M %P %r %R %N %S";

/// A failover, as Pgpool-II tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// The node that failed, or that is to follow: `%d %h %p %D`.
    pub(crate) node: u32,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) directory: String,
    /// The new main node, or the new primary: `%m %H %r`; none if no node is left.
    pub(crate) new: Option<Place>,
    /// The old primary: `%P`; none if no primary was known.
    pub(crate) old_primary: Option<u32>,
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) node: u32,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Node {
    /// Where its server is.
    pub(crate) fn place(&self) -> Place {
        Place { node: self.id, host: self.host.clone(), port: self.port }
    }
}

impl Event {
    /// Understands the words. The nodes decide between two ways of reading them.
    pub(crate) fn parse(words: &[String], nodes: &[Node]) -> Result<Self> {
        let Some(of_directories) = words.len().checked_sub(OTHERS) else {
            let message = format!("{} arguments are too few: 12 are expected", words.len());
            return Err(Failure::new(message).hint(USAGE));
        };
        let readings: Vec<_> = (0..=of_directories).map(|words_of_one| read(words, words_of_one)).collect();
        let mut good: Vec<&Reading> = readings.iter().filter_map(|reading| reading.as_ref().ok()).collect();
        if good.len() > 1 {
            let told: Vec<String> = good.iter().map(|reading| reading.describe()).collect();
            good.retain(|reading| reading.fits(nodes));
            if good.len() != 1 {
                let message = format!("the arguments can be read in several ways: {}", told.join(", or "));
                return Err(Failure::new(message)
                    .hint("Use data directories without blanks, or quote %D and %R in pgpool.conf."));
            }
        }
        let Some(reading) = good.first() else {
            // with the usual number of words it is clear which is which; else the one that went best says what is wrong
            let usual = (words.len() == OTHERS + 2).then_some(1);
            let misfits =
                readings.into_iter().enumerate().filter_map(|(i, reading)| Some((i, reading.err()?)));
            let misfit = misfits.max_by_key(|(i, (place, _))| (usual == Some(*i), *place));
            return Err(Failure::new(misfit.map(|(_, (_, why))| why).unwrap_or_default()).hint(USAGE));
        };
        reading.event(nodes)
    }
}

/// One way of reading the words.
#[derive(Debug, Clone)]
struct Reading {
    event: Event,
    new_directory: String,
}

/// How far a reading went, and what is wrong there.
type Misfit = (usize, String);

fn read(words: &[String], words_of_directory: usize) -> Result<Reading, Misfit> {
    let words_of_new = words.len() - OTHERS - words_of_directory;
    let at = |place: usize| words[place].trim();
    let wrong = |place: usize, name: &str, what: &str| {
        (place, format!("argument {name} is \"{}\", which is no {what}", at(place)))
    };
    let number = |place: usize, name: &str| {
        at(place)
            .parse::<i32>()
            .ok()
            .filter(|number| *number >= -1)
            .ok_or_else(|| wrong(place, name, "node number"))
    };
    let host = |place: usize, name: &str| {
        let text = at(place);
        let is_one = !text.is_empty() && !text.contains(char::is_whitespace);
        if is_one { Ok(text.to_owned()) } else { Err(wrong(place, name, "host")) }
    };
    let port = |place: usize, name: &str| {
        at(place).parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(|| wrong(place, name, "port"))
    };
    let directory = |first: usize, count: usize, name: &str| {
        let text = words[first..first + count].join(" ").trim().to_owned();
        let is_one = text.starts_with('/') || text.is_empty() && count <= 1;
        if is_one { Ok(text) } else { Err(wrong(first, name, "absolute path")) }
    };
    let node = number(0, "%d")?;
    let node = u32::try_from(node).map_err(|_| wrong(0, "%d", "node number"))?;
    let (host_of_node, port_of_node) = (host(1, "%h")?, port(2, "%p")?);
    let directory_of_node = directory(3, words_of_directory, "%D")?;
    let next = 3 + words_of_directory;
    let new = match u32::try_from(number(next, "%m")?) {
        // what the words say of a node that does not exist is of no use
        Err(_) => None,
        Ok(new) => Some((new, host(next + 1, "%H")?)),
    };
    number(next + 2, "%M")?;
    let old_primary = number(next + 3, "%P")?;
    let new = match new {
        None => None,
        Some((node, host)) => Some(Place { node, host, port: port(next + 4, "%r")? }),
    };
    let new_directory = directory(next + 5, words_of_new, "%R")?;
    let last = next + 5 + words_of_new;
    if old_primary >= 0 {
        host(last, "%N")?;
        port(last + 1, "%S")?;
    }
    let event = Event {
        node,
        host: host_of_node,
        port: port_of_node,
        directory: directory_of_node,
        new,
        old_primary: u32::try_from(old_primary).ok(),
    };
    Ok(Reading { event, new_directory })
}

impl Reading {
    fn describe(&self) -> String {
        format!("%D = \"{}\" and %R = \"{}\"", self.event.directory, self.new_directory)
    }

    /// Whether the directories are those of pgpool.conf.
    fn fits(&self, nodes: &[Node]) -> bool {
        let is_of = |id: u32, directory: &str| {
            nodes.iter().any(|node| node.id == id && is_same(&node.data_directory, directory))
        };
        is_of(self.event.node, &self.event.directory)
            && self.event.new.as_ref().is_none_or(|new| is_of(new.node, &self.new_directory))
    }

    /// The event, unless it contradicts itself or pgpool.conf. The directory is that of pgpool.conf where the words have
    /// lost it, or its blanks.
    fn event(&self, nodes: &[Node]) -> Result<Event> {
        let mut event = self.event.clone();
        let find = |id: u32, name: &str| {
            nodes.iter().find(|node| node.id == id).ok_or_else(|| {
                Failure::new(format!("argument {name} is {id}, and pgpool.conf has no node of that number"))
                    .hint("Is it Pgpool-II's own file? --config names another one.")
            })
        };
        let node = find(event.node, "%d")?;
        if event.directory.is_empty() || is_same(&node.data_directory, &event.directory) {
            event.directory.clone_from(&node.data_directory);
        }
        if let Some(new) = &event.new {
            find(new.node, "%m")?;
            if new.node == event.node {
                return Err(Failure::new(format!("arguments %d and %m both are {}", event.node)).hint(USAGE));
            }
        }
        if let Some(old) = event.old_primary {
            find(old, "%P")?;
        }
        Ok(event)
    }
}

/// The same directory but for the number of blanks, which the shell does not keep.
fn is_same(one: &str, other: &str) -> bool {
    one.split_whitespace().eq(other.split_whitespace())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes() -> Vec<Node> {
        let node = |id: u32, directory: &str| Node {
            id,
            host: format!("host{id}"),
            port: 5432,
            data_directory: directory.to_owned(),
            application_name: String::new(),
            flags: String::new(),
        };
        vec![node(0, "/data"), node(1, "/my  data"), node(2, "")]
    }

    fn words(line: &[&str]) -> Vec<String> {
        line.iter().map(|word| (*word).to_owned()).collect()
    }

    fn parse(line: &[&str]) -> Result<Event> {
        Event::parse(&words(line), &nodes())
    }

    fn place(node: u32) -> Option<Place> {
        Some(Place { node, host: format!("host{node}"), port: 5432 })
    }

    #[test]
    fn the_vectors_of_all_lines_of_pgpool_are_understood() {
        let (primary, unknown) = (Some(0), None);
        for (line, directory, new, old) in [
            // 4.1: %M is the old main node
            (
                vec!["0", "host0", "5432", "/data", "2", "host2", "0", "0", "5432", "/d", "host0", "5432"],
                "/data",
                place(2),
                primary,
            ),
            // 4.2 and later: %M is %P
            (
                vec!["0", "host0", "5432", "/data", "2", "host2", "-1", "-1", "5432", "/d", "", ""],
                "/data",
                place(2),
                unknown,
            ),
            // 4.4 and later, with %d, %p and %m in quotes
            (
                vec![" 0", "host0", " 5432", "/data", " 2", "host2", "0", "0", "5432", "/d", "host0", "5432"],
                "/data",
                place(2),
                primary,
            ),
            // no node is left
            (
                vec!["0", "host0", "5432", "/data", "-1", "", "0", "0", "", "", "host0", "5432"],
                "/data",
                None,
                primary,
            ),
            // an empty %D disappears: it is that of pgpool.conf
            (
                vec!["0", "host0", "5432", "2", "host2", "0", "0", "5432", "/d", "host0", "5432"],
                "/data",
                place(2),
                primary,
            ),
            // and so does an empty %R
            (
                vec!["0", "host0", "5432", "/data", "2", "host2", "0", "0", "5432", "host0", "5432"],
                "/data",
                place(2),
                primary,
            ),
            (
                vec!["0", "host0", "5432", "2", "host2", "0", "0", "5432", "host0", "5432"],
                "/data",
                place(2),
                primary,
            ),
            // in quotes it is an empty word
            (
                vec!["0", "host0", "5432", "", "2", "host2", "0", "0", "5432", "", "host0", "5432"],
                "/data",
                place(2),
                primary,
            ),
        ] {
            let event = parse(&line).unwrap_or_else(|failure| panic!("{line:?}: {failure}"));
            assert_eq!(
                (event.directory.as_str(), event.new, event.old_primary),
                (directory, new, old),
                "{line:?}"
            );
            assert_eq!((event.node, event.host.as_str(), event.port), (0, "host0", 5432));
        }
    }

    #[test]
    fn a_directory_with_blanks_survives() {
        let event = parse(&[
            "1", "host1", "5432", "/my", "data", "0", "host0", "1", "1", "5432", "/data", "host1", "5432",
        ]);
        assert_eq!(event.expect("good").directory, "/my  data", "with the blanks of pgpool.conf");
        let event = parse(&[
            "0", "host0", "5432", "/data", "1", "host1", "0", "0", "5432", "/my", "data", "host0", "5432",
        ]);
        assert_eq!(event.expect("good").directory, "/data");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = ["0", "host0", "5432", "/data", "2", "host2", "0", "0", "5432", "/d", "host0", "5432"];
        for (place, word, named) in [
            (0, "x", "%d"),
            (0, "-1", "%d"),
            (0, "7", "%d is 7"),
            (1, "", "%h"),
            (2, "0", "%p"),
            (2, "99999", "%p"),
            (3, "data", "%D"),
            (4, "one", "%m"),
            (4, "0", "%d and %m"),
            (4, "9", "%m is 9"),
            (5, "", "%H"),
            (6, "", "%M"),
            (7, "-2", "%P"),
            (7, "9", "%P is 9"),
            (8, "", "%r"),
            (9, "d", "%R"),
            (10, "", "%N"),
            (11, "x", "%S"),
        ] {
            let mut line = good;
            line[place] = word;
            let failure = parse(&line).expect_err(named);
            assert!(failure.message.contains(named) && failure.hint.is_some(), "{named}: {failure}");
        }
        for few in 0..10 {
            assert!(parse(&good[..few]).expect_err("too few").message.contains("too few"));
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_decided_by_pgpool_conf_or_refused() {
        // "/a 2 host2 0 0 5432 /b" could be %D up to "/a", or up to "/b"
        let line = [
            "0", "host0", "5432", "/a", "2", "host2", "0", "0", "5432", "/b", "2", "host2", "0", "0", "5432",
            "/c", "host0", "5432",
        ];
        let failure = parse(&line).expect_err("ambiguous");
        assert!(
            failure.message.contains("several ways") && failure.message.contains("%D = \"/a\""),
            "{failure}"
        );
        let mut nodes = nodes();
        nodes[0].data_directory = "/a".to_owned();
        nodes[2].data_directory = "/b 2 host2 0 0 5432 /c".to_owned();
        assert_eq!(Event::parse(&words(&line), &nodes).expect("decided").directory, "/a");
    }

    proptest! {
        #[test]
        fn no_words_are_too_much(line in proptest::collection::vec("[-/a0-9 ]{0,3}", 0..20)) {
            let _ = Event::parse(&line, &nodes());
        }
    }
}

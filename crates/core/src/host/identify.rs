//! IDENTIFY_SYSTEM by psql, as a server's own OS user: what a server says of itself to a replication connection.

use std::path::Path;
use std::process::Command;

use crate::sys::process;

/// What the command answers: "7713200000000000001|1|0/3000148|".
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Identity<'a> {
    pub(super) system_identifier: u64,
    /// The timeline that the server writes or replays.
    pub(super) timeline: u32,
    /// Its position there, as text.
    pub(super) position: &'a str,
}

/// A psql that logs in with a connection string, asks that, and then `more`.
pub(super) fn command(bin_directory: &Path, conninfo: &str, more: Option<&str>) -> Command {
    let mut command = process::command(
        &bin_directory.join("psql"),
        ["-X", "-A", "-t", "-w", "-d", conninfo, "-c", "IDENTIFY_SYSTEM"],
    );
    command.args(more.into_iter().flat_map(|more| ["-c", more]));
    command
}

/// The answer among the lines that psql printed.
pub(super) fn parse(answer: &str) -> Option<Identity<'_>> {
    answer.lines().find_map(|line| {
        let mut columns = line.trim().split('|');
        Some(Identity {
            system_identifier: columns.next()?.trim().parse().ok()?,
            timeline: columns.next()?.parse().ok()?,
            position: columns.next()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_found_among_other_lines() {
        let found = parse("words\nsaid|1|2\n 42|3|0/3000148|\n43|1|0/1|\n").expect("it is there");
        assert_eq!(found, Identity { system_identifier: 42, timeline: 3, position: "0/3000148" });
        for none in ["", "42", "42|3", "42|x|0/1|", "x|3|0/1|", "-1|3|0/1|"] {
            assert_eq!(parse(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_asked_besides_comes_after_it() {
        let arguments = |more| {
            let command = command(Path::new("/bin"), "host=db1", more);
            command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect::<Vec<_>>()
        };
        let first = ["-X", "-A", "-t", "-w", "-d", "host=db1", "-c", "IDENTIFY_SYSTEM"];
        assert_eq!(arguments(None), first);
        assert_eq!(arguments(Some("SELECT 1"))[first.len()..], ["-c", "SELECT 1"]);
    }
}

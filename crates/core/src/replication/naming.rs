//! Names made from templates: `application_name` and the replication slot of a standby.

use crate::error::{Error, Kind, Result};

/// What a template can refer to.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// `%h`: the target's host, as the caller gave it.
    pub host: &'a str,
    /// `%n`: Pgpool-II's number of the node.
    pub id: Option<i32>,
    /// `%p`: the target's port.
    pub port: Option<u16>,
}

/// Expands a template; `setting` names it in errors.
pub fn expand(setting: &str, template: &str, node: Node<'_>) -> Result<String> {
    let mut name = String::new();
    let mut chars = template.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            name.push(c);
            continue;
        }
        let unknown = |what: &str| {
            Error::new(
                Kind::InvalidArgument,
                format!("template \"{template}\" for \"{setting}\" needs the target's {what}"),
            )
            .detail("The caller did not give it.")
            .hint(format!(
                "Pass option \"{}\", or set pgpool_recovery.{setting} to a template without it.",
                if what == "port" { "dest_port" } else { "node_id" }
            ))
        };
        match chars.next() {
            // as Pgpool-II does: a socket directory means this host
            Some('h') if node.host.is_empty() || node.host.starts_with('/') => name.push_str("localhost"),
            Some('h') => name.push_str(node.host),
            Some('n') => name.push_str(&node.id.ok_or_else(|| unknown("node id"))?.to_string()),
            Some('p') => name.push_str(&node.port.ok_or_else(|| unknown("port"))?.to_string()),
            Some('%') => name.push('%'),
            other => {
                return Err(Error::new(
                    Kind::InvalidArgument,
                    format!("invalid template \"{template}\" for \"{setting}\""),
                )
                .detail(format!("It contains \"%{}\".", other.map(String::from).unwrap_or_default()))
                .hint("%h is the target's host, %n its node id, %p its port, %% a percent sign."));
            }
        }
    }
    Ok(name)
}

/// A slot name made of any text, by the rule of Pgpool-II's sample scripts: lower case, and whatever
/// a slot name cannot have becomes `_`.
pub fn slot_name(text: &str) -> String {
    text.chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' { c } else { '_' })
        .collect()
}

/// Most bytes of a name in PostgreSQL: NAMEDATALEN - 1.
const MAX_SHOWN: usize = 63;

/// An application_name as a walsender of PostgreSQL `major` shows it in `pg_stat_replication`.
///
/// The server first cuts it after 63 bytes (truncate_identifier; a walsender has no database and so counts bytes,
/// not characters) and then replaces what is not printable ASCII (pg_clean_ascii): each byte by `?` up to PostgreSQL
/// 15, by `\xNN` from 16 on, of which again the first 63 bytes are shown (pgstat_report_appname).
pub fn shown_application_name(name: &str, major: u32) -> String {
    let mut shown = String::new();
    for &byte in name.as_bytes().iter().take(MAX_SHOWN) {
        match byte {
            b' '..=b'~' => shown.push(char::from(byte)),
            _ if major < 16 => shown.push('?'),
            _ => shown.push_str(&format!("\\x{byte:02x}")),
        }
    }
    shown.truncate(MAX_SHOWN);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Node<'_> = Node { host: "DB-1.example", id: Some(2), port: Some(5433) };

    #[test]
    fn templates_expand() {
        assert_eq!(expand("x", "%h", NODE).expect("valid"), "DB-1.example");
        assert_eq!(expand("x", "server%n_%p%%", NODE).expect("valid"), "server2_5433%");
        assert_eq!(expand("x", "%h", Node { host: "/tmp", ..NODE }).expect("valid"), "localhost");
        assert_eq!(expand("x", "", NODE).expect("valid"), "");
    }

    #[test]
    fn what_cannot_be_expanded_is_an_error() {
        for template in ["%x", "%", "a%"] {
            assert!(expand("slot_name", template, NODE).is_err(), "{template}");
        }
        let error = expand("slot_name", "node%n", Node { id: None, ..NODE }).expect_err("no node id");
        assert!(error.hint.is_some_and(|hint| hint.contains("node_id")));
        assert!(expand("slot_name", "node%p", Node { port: None, ..NODE }).is_err());
    }

    #[test]
    fn slot_names_follow_the_sample_scripts() {
        assert_eq!(slot_name("DB-1.example"), "db_1_example");
        assert_eq!(slot_name("fe80::1%eth0"), "fe80__1_eth0");
    }

    #[test]
    fn a_plain_application_name_is_shown_as_it_is() {
        for major in 13..=18 {
            assert_eq!(shown_application_name("node 1's", major), "node 1's");
            let long = "n".repeat(90);
            assert_eq!(shown_application_name(&long, major), "n".repeat(63));
        }
    }

    #[test]
    fn up_to_15_other_bytes_are_question_marks() {
        for major in 13..=15 {
            assert_eq!(shown_application_name("knoten-s\u{fc}d\t", major), "knoten-s??d?");
            // the character's second byte is the 64th
            let name = format!("{}\u{fc}x", "n".repeat(62));
            assert_eq!(shown_application_name(&name, major), format!("{}?", "n".repeat(62)));
        }
    }

    #[test]
    fn from_16_on_other_bytes_are_escaped() {
        for major in 16..=18 {
            assert_eq!(shown_application_name("knoten-s\u{fc}d\t", major), r"knoten-s\xc3\xbcd\x09");
            let name = format!("{}\u{fc}x", "n".repeat(61));
            assert_eq!(shown_application_name(&name, major), format!(r"{}\x", "n".repeat(61)));
        }
    }
}

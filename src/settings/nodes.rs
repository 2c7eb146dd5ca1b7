//! The nodes beside a standby that is promoted: an option that is an array of objects.

use pgpool_recovery_core::error::{Error, Kind, Result};
use serde_json::Value;

use crate::settings::options::{found, integer, invalid, text};
use crate::settings::request;

/// Most nodes of one call: Pgpool-II's own limit (MAX_NUM_BACKENDS).
const MOST: usize = 128;

/// A node beside this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OtherNode {
    pub(crate) host: String,
    pub(crate) directory: String,
    pub(crate) port: u16,
    /// Pgpool-II's number of the node.
    pub(crate) id: Option<i32>,
}

impl OtherNode {
    /// As messages call it: `node 2 (db2:5432)`.
    pub(crate) fn name(&self) -> String {
        let place = format!("{}:{}", if self.host.is_empty() { "localhost" } else { &self.host }, self.port);
        self.id.map_or_else(|| format!("the node {place}"), |id| format!("node {id} ({place})"))
    }
}

/// Reads the option.
pub(super) fn nodes(key: &str, value: &Value) -> Result<Vec<OtherNode>> {
    let Value::Array(nodes) = value else {
        return Err(invalid(key, value, "Expected an array of objects"));
    };
    if nodes.len() > MOST {
        return Err(Error::new(Kind::InvalidArgument, format!("option \"{key}\" has {} nodes", nodes.len()))
            .detail(format!("At most {MOST} are expected."))
            .hint("Name each node once."));
    }
    let nodes: Vec<OtherNode> = nodes.iter().map(|node| read(key, node)).collect::<Result<_>>()?;
    for (at, node) in nodes.iter().enumerate() {
        let is_same = |other: &&OtherNode| (&other.host, &other.directory) == (&node.host, &node.directory);
        if nodes[..at].iter().any(|other| is_same(&other)) {
            return Err(Error::new(
                Kind::InvalidArgument,
                format!("option \"{key}\" names {} twice", node.name()),
            )
            .detail(format!("Both are \"{}\" on host \"{}\".", node.directory, node.host))
            .hint("Name each node once."));
        }
    }
    Ok(nodes)
}

const KEYS: &str =
    "A node has \"host\", \"port\" and \"directory\" (or \"data_directory\"), and may have \"node_id\".";

fn read(key: &str, node: &Value) -> Result<OtherNode> {
    let bad = |what: String| {
        Error::new(Kind::InvalidArgument, format!("invalid node in option \"{key}\": {what}"))
            .detail(KEYS)
            .hint("For instance: [{\"node_id\": 2, \"host\": \"db2\", \"port\": 5432, \"directory\": \"/srv/data\"}].")
    };
    let Value::Object(fields) = node else {
        return Err(bad(format!("found {}", found(node))));
    };
    let (mut host, mut directory, mut port, mut id) = (None, None, None, None);
    for (name, value) in fields {
        match name.as_str() {
            "host" => host = Some(request::host(name, &text(name, value)?)?),
            "dir" | "directory" | "data_directory" if directory.is_none() => {
                directory = Some(request::directory(name, &text(name, value)?)?);
            }
            "port" => port = Some(integer(name, value, &(1..=65_535))? as u16),
            "node_id" if value.is_null() => {}
            "node_id" => id = Some(integer(name, value, &(0..=i32::MAX))?),
            _ => return Err(bad(format!("unexpected {}", request::shown(name)))),
        }
    }
    let missing = |name: &str| bad(format!("\"{name}\" is missing"));
    Ok(OtherNode {
        host: host.ok_or_else(|| missing("host"))?,
        directory: directory.ok_or_else(|| missing("directory"))?,
        port: port.ok_or_else(|| missing("port"))?,
        id,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_are_read() {
        let read = |value: Value| nodes("nodes", &value);
        let found = read(json!([
            { "host": "db1", "port": 5432, "directory": "/srv/1", "node_id": 1 },
            { "host": "", "port": 5433, "data_directory": "/srv/2", "node_id": null },
            { "host": "db3", "port": 5432, "dir": "/srv/1" },
        ]));
        let found = found.expect("valid");
        let names: Vec<String> = found.iter().map(OtherNode::name).collect();
        assert_eq!(names, ["node 1 (db1:5432)", "the node localhost:5433", "the node db3:5432"]);
        assert_eq!((found[1].directory.as_str(), found[1].id), ("/srv/2", None));
        assert_eq!(read(json!([])), Ok(Vec::new()));
    }

    #[test]
    fn what_is_no_node_is_named() {
        let good = json!({ "host": "db1", "port": 5432, "directory": "/srv/1", "node_id": 1 });
        for (key, value, why) in [
            ("port", json!("5432"), "port"),
            ("port", json!(0), "port"),
            ("host", json!(7), "host"),
            ("host", json!("a b"), "host"),
            ("directory", json!("relative"), "directory"),
            ("node_id", json!(-1), "node_id"),
            ("extra", json!(1), "extra"),
        ] {
            let mut node = good.clone();
            node[key] = value;
            let error = nodes("nodes", &json!([node])).expect_err(key);
            assert!(error.kind == Kind::InvalidArgument && error.message.contains(why), "{error:?}");
        }
        for missing in ["port", "host", "directory"] {
            let mut node = good.clone();
            node.as_object_mut().expect("an object").remove(missing);
            let error = nodes("nodes", &json!([node])).expect_err(missing);
            assert!(
                error.message.contains(&format!("\"{missing}\" is missing")) && error.hint.is_some(),
                "{error:?}"
            );
        }
        for value in [json!({}), json!("x"), json!([1]), json!([null]), json!(vec![good.clone(); MOST + 1])] {
            assert_eq!(nodes("nodes", &value).expect_err("refused").kind, Kind::InvalidArgument);
        }
        let twice = nodes("nodes", &json!([good, good])).expect_err("refused");
        assert!(twice.message.contains("twice"), "{twice}");
    }
}

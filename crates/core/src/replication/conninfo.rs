//! libpq's connection strings: keywords and values, or a URI.

/// A value as it stands in a string of keywords and values.
pub(crate) fn quoted(value: &str) -> String {
    let plain = !value.is_empty()
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:/%@+,".contains(&byte));
    if plain { value.to_owned() } else { format!("'{}'", escaped(value)) }
}

/// A value as it stands between the quotes of such a string.
pub(crate) fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "\\'")
}

/// The keywords and their values, each once: of several the last counts. `None`: libpq would not read it.
pub(crate) fn pairs(conninfo: &str) -> Option<Vec<(String, String)>> {
    let uri = ["postgresql://", "postgres://"].iter().find_map(|scheme| conninfo.strip_prefix(scheme));
    let all = uri.map_or_else(|| keywords(conninfo), of_uri)?;
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (key, value) in all {
        pairs.retain(|(earlier, _)| *earlier != key);
        pairs.push((key, value));
    }
    Some(pairs)
}

/// Keywords and values, in their order (conninfo_parse in fe-connect.c).
fn keywords(conninfo: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = conninfo.trim_start();
    while !rest.is_empty() {
        let (key, tail) = rest.split_once('=')?;
        let key = key.trim_end();
        if key.is_empty() || key.contains(|c: char| c.is_whitespace() || c == ':' || c == '/') {
            return None;
        }
        let tail = tail.trim_start();
        let is_quoted = tail.starts_with('\'');
        let mut chars = tail.char_indices();
        if is_quoted {
            chars.next();
        }
        let (mut value, mut end) = (String::new(), None);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
                '\'' if is_quoted => {
                    end = Some(at + 1);
                    break;
                }
                c if !is_quoted && c.is_whitespace() => {
                    end = Some(at);
                    break;
                }
                c => value.push(c),
            }
        }
        if is_quoted && end.is_none() {
            return None;
        }
        pairs.push((key.to_owned(), value));
        rest = tail[end.unwrap_or(tail.len())..].trim_start();
    }
    Some(pairs)
}

/// What follows the scheme of a URI (conninfo_uri_parse_options in fe-connect.c):
/// `[user[:password]@][host[:port]][,...][/dbname][?keyword=value[&...]]`.
fn of_uri(rest: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut put = |key: &str, value: &str| -> Option<()> {
        let value = decoded(value)?;
        pairs.push((key.to_owned(), value));
        Some(())
    };
    let mut rest = rest;
    if let Some(at) = rest.find(['@', '/']).filter(|&at| rest.as_bytes().get(at) == Some(&b'@')) {
        let (user, password) = rest[..at].split_once(':').unwrap_or((&rest[..at], ""));
        for (key, value) in [("user", user), ("password", password)] {
            if !value.is_empty() {
                put(key, value)?;
            }
        }
        rest = &rest[at + 1..];
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    loop {
        let (host, tail) = match rest.strip_prefix('[') {
            Some(inner) => {
                let (host, tail) = inner.split_once(']')?;
                let ends = tail.is_empty() || tail.starts_with([':', '/', '?', ',']);
                (host, Some(tail).filter(|_| ends && !host.is_empty())?)
            }
            None => rest.split_at(rest.find([':', '/', '?', ',']).unwrap_or(rest.len())),
        };
        let (port, tail) = match tail.strip_prefix(':') {
            Some(tail) => tail.split_at(tail.find(['/', '?', ',']).unwrap_or(tail.len())),
            None => ("", tail),
        };
        hosts.push(host);
        ports.push(port);
        rest = tail;
        match tail.strip_prefix(',') {
            Some(more) => rest = more,
            None => break,
        }
    }
    for (key, values) in [("host", hosts.join(",")), ("port", ports.join(","))] {
        if !values.is_empty() {
            put(key, &values)?;
        }
    }
    let (path, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let database = path.strip_prefix('/').unwrap_or_default();
    if !database.is_empty() {
        put("dbname", database)?;
    }
    for parameter in parameters.split('&').filter(|_| !parameters.is_empty()) {
        let (key, value) = parameter.split_once('=').filter(|(_, value)| !value.contains('='))?;
        match (decoded(key)?.as_str(), value) {
            ("", _) => return None,
            // as JDBC has it
            ("ssl", "true") => put("sslmode", "require")?,
            (key, value) => put(key, value)?,
        }
    }
    Some(pairs)
}

/// Percent-encoding taken away (conninfo_uri_decode).
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let value = digit()? * 16 + digit()?;
        bytes.push(u8::try_from(value).ok().filter(|&value| value != 0)?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(conninfo: &str) -> Vec<(String, String)> {
        pairs(conninfo).unwrap_or_else(|| panic!("{conninfo} is readable"))
    }

    fn expected(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn keywords_and_values_are_read() {
        assert_eq!(
            read(r"host=db1 password = 'it\'s \\ a' user=repl application_name='node 1'"),
            expected(&[
                ("host", "db1"),
                ("password", r"it's \ a"),
                ("user", "repl"),
                ("application_name", "node 1")
            ])
        );
        assert_eq!(read("  "), Vec::new());
        assert_eq!(
            read("password=one host='' password=two"),
            expected(&[("host", ""), ("password", "two")]),
            "the last of several counts"
        );
    }

    #[test]
    fn a_uri_is_read() {
        assert_eq!(
            read("postgresql://re%70l:se%20cret%40@db1:5433,[::1],%2Frun:1/x?sslmode=verify-full&a%62c=%3D"),
            expected(&[
                ("user", "repl"),
                ("password", "se cret@"),
                ("host", "db1,::1,/run"),
                ("port", "5433,,1"),
                ("dbname", "x"),
                ("sslmode", "verify-full"),
                ("abc", "=")
            ])
        );
        assert_eq!(read("postgres://"), Vec::new());
        assert_eq!(
            read("postgres:///x?host=/run&ssl=true"),
            expected(&[("dbname", "x"), ("host", "/run"), ("sslmode", "require")])
        );
        assert_eq!(read("postgres://db1?user=u"), expected(&[("host", "db1"), ("user", "u")]));
        assert_eq!(read("postgres://db1/a@b"), expected(&[("host", "db1"), ("dbname", "a@b")]));
    }

    #[test]
    fn what_libpq_does_not_read_is_not_read() {
        for bad in ["host", "host='x", "=x", "a b=c", "http://db1/x=1"] {
            assert_eq!(pairs(bad), None, "{bad}");
        }
        for bad in ["[::1", "[]", "[::1]x", "db1?x", "db1?x=1=2", "db1?=1", "db%1", "db%zz", "db%00", "%ff"] {
            assert_eq!(pairs(&format!("postgresql://{bad}")), None, "{bad}");
        }
    }
}

//! libpq's keyword/value connection strings.

/// The string without its password, and the password. `None`: it is not of that form.
pub(crate) fn without_password(conninfo: &str) -> Option<(String, Option<String>)> {
    let mut pairs = pairs(conninfo)?;
    // the last of several counts
    let password = pairs.iter().rev().find(|(key, _)| key == "password").map(|(_, value)| value.clone());
    pairs.retain(|(key, _)| key != "password");
    let words: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    Some((words.join(" "), password))
}

/// A value as it stands in such a string.
pub(crate) fn quoted(value: &str) -> String {
    let plain = !value.is_empty()
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:/%@+,".contains(&byte));
    if plain { value.to_owned() } else { format!("'{}'", escaped(value)) }
}

/// A value as it stands between the quotes of such a string.
pub(crate) fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "\\'")
}

/// Keywords and values, in their order (conninfo_parse in fe-connect.c).
fn pairs(conninfo: &str) -> Option<Vec<(String, String)>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_taken_out() {
        let (shown, password) =
            without_password(r"host=db1 password = 'it\'s \\ a' user=repl application_name='node 1'")
                .expect("readable");
        assert_eq!(shown, "host=db1 user=repl application_name='node 1'");
        assert_eq!(password.as_deref(), Some(r"it's \ a"));
    }

    #[test]
    fn what_libpq_does_not_read_is_not_read() {
        for bad in ["postgresql://db1/x", "postgres://db1?user=x", "host", "host='x", "=x", "a b=c"] {
            assert_eq!(without_password(bad), None, "{bad}");
        }
        assert_eq!(without_password("  "), Some((String::new(), None)));
        let (shown, password) = without_password("password=one host='' password=two").expect("readable");
        assert_eq!((shown.as_str(), password.as_deref()), ("host=''", Some("two")));
    }
}

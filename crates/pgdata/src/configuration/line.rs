//! One line of a configuration file, token by token as in PostgreSQL's src/backend/utils/misc/guc-file.l.
//!
//! No token of that scanner spans lines, so a file is read line by line. Bytes above 127 are letters to it, in whatever
//! encoding they are.

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Nothing: it is blank, or a comment.
    Empty,
    /// `name = value`, or `name value`.
    Setting {
        /// As written: PostgreSQL compares names without regard to ASCII case.
        name: Vec<u8>,
        /// Without quotes and escapes.
        value: Vec<u8>,
    },
    /// PostgreSQL reports a syntax error and does not start.
    Malformed,
}

enum Token<'a> {
    Identifier(&'a [u8]),
    Qualified(&'a [u8]),
    Unquoted(&'a [u8]),
    Number(&'a [u8]),
    Quoted(&'a [u8]),
    Equals,
    End,
    Other,
}

/// Parses a line; a line end at its end does not matter.
pub fn parse(line: &[u8]) -> Line {
    setting(line).unwrap_or(Line::Malformed)
}

fn setting(line: &[u8]) -> Option<Line> {
    let (first, rest) = token(line);
    let name = match first {
        Token::End => return Some(Line::Empty),
        Token::Identifier(name) | Token::Qualified(name) => name,
        _ => return None,
    };
    let (mut next, mut rest) = token(rest);
    if let Token::Equals = next {
        (next, rest) = token(rest);
    }
    let value = match next {
        // a qualified name is none, as in PostgreSQL
        Token::Identifier(value) | Token::Unquoted(value) | Token::Number(value) => value.to_vec(),
        Token::Quoted(value) => unquoted(value)?,
        _ => return None,
    };
    matches!(token(rest).0, Token::End).then(|| Line::Setting { name: name.to_vec(), value })
}

/// The first token and what follows it.
fn token(text: &[u8]) -> (Token<'_>, &[u8]) {
    let text = after(text, run(text, |byte| b" \t\r".contains(&byte)));
    let Some(first) = text.first().copied() else {
        return (Token::End, text);
    };
    match first {
        b'\n' | b'#' => (Token::End, &[]),
        b'=' => (Token::Equals, after(text, 1)),
        b'\'' => match quoted_length(text) {
            Some(length) => split(text, length, Token::Quoted),
            None => (Token::Other, after(text, 1)),
        },
        _ if is_letter(first) => {
            let length =
                run(text, |byte| is_letter(byte) || byte.is_ascii_digit() || b"-._:/".contains(&byte));
            let word = before(text, length);
            let is_identifier = |part: &[u8]| {
                part.first().copied().is_some_and(is_letter)
                    && part.iter().all(|byte| !b"-.:/".contains(byte))
            };
            // flex takes the longest match, and of equally long ones the rule that comes first
            let kind = if is_identifier(word) {
                Token::Identifier
            } else if word.iter().filter(|byte| **byte == b'.').count() == 1
                && word.split(|byte| *byte == b'.').all(is_identifier)
            {
                Token::Qualified
            } else {
                Token::Unquoted
            };
            split(text, length, kind)
        }
        _ => match integer_length(text).max(real_length(text)) {
            0 => (Token::Other, after(text, 1)),
            length => split(text, length, Token::Number),
        },
    }
}

/// Length of a quoted string, with its quotes. A quote is doubled within, or escaped by a backslash.
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut end = None;
    let mut at = 1;
    loop {
        match (text.get(at)?, text.get(at + 1)) {
            (b'\'', next) => {
                end = Some(at + 1);
                if next != Some(&b'\'') {
                    return end;
                }
                at += 2;
            }
            (b'\n', _) | (b'\\', None | Some(b'\n')) => return end,
            (b'\\', _) => at += 2,
            _ => at += 1,
        }
        if at >= text.len() {
            return end;
        }
    }
}

/// The content of a quoted string (`DeescapeQuotedString`). `None` for one with a NUL byte, which PostgreSQL mistakes
/// for its end.
fn unquoted(text: &[u8]) -> Option<Vec<u8>> {
    let content = before(after(text, 1), text.len().saturating_sub(2));
    if content.contains(&0) {
        return None;
    }
    let mut value = Vec::with_capacity(content.len());
    let mut bytes = content.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\'' => {
                bytes.next_if_eq(&b'\'');
                value.push(b'\'');
            }
            b'\\' => match bytes.next()? {
                b'b' => value.push(8),
                b'f' => value.push(12),
                b'n' => value.push(b'\n'),
                b'r' => value.push(b'\r'),
                b't' => value.push(b'\t'),
                digit @ b'0'..=b'7' => {
                    let mut octal = u32::from(digit - b'0');
                    for _ in 0..2 {
                        let Some(digit) = bytes.next_if(|byte| (b'0'..=b'7').contains(byte)) else {
                            break;
                        };
                        octal = octal * 8 + u32::from(digit - b'0');
                    }
                    value.push(octal.to_le_bytes()[0]);
                }
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    // an escaped NUL ends the C string
    if let Some(end) = value.iter().position(|byte| *byte == 0) {
        value.truncate(end);
    }
    Some(value)
}

fn integer_length(text: &[u8]) -> usize {
    let sign = sign_length(text);
    let unsigned = after(text, sign);
    let digits = run(unsigned, |byte| byte.is_ascii_digit());
    if digits == 0 {
        return 0;
    }
    let with_unit = |number: usize| number + run(after(unsigned, number), |byte| byte.is_ascii_alphabetic());
    let decimal = with_unit(digits);
    let hexadecimal =
        match unsigned.strip_prefix(b"0x").map(|rest| run(rest, |byte| byte.is_ascii_hexdigit())) {
            None | Some(0) => 0,
            Some(digits) => with_unit(2 + digits),
        };
    sign + decimal.max(hexadecimal)
}

fn real_length(text: &[u8]) -> usize {
    let sign = sign_length(text);
    let whole = sign + run(after(text, sign), |byte| byte.is_ascii_digit());
    if after(text, whole).first() != Some(&b'.') {
        return 0;
    }
    let number = whole + 1 + run(after(text, whole + 1), |byte| byte.is_ascii_digit());
    let rest = after(text, number);
    if !matches!(rest.first(), Some(b'e' | b'E')) {
        return number;
    }
    let sign = 1 + sign_length(after(rest, 1));
    match run(after(rest, sign), |byte| byte.is_ascii_digit()) {
        0 => number,
        digits => number + sign + digits,
    }
}

fn sign_length(text: &[u8]) -> usize {
    usize::from(matches!(text.first(), Some(b'-' | b'+')))
}

const fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

/// How many bytes at the beginning are of a kind.
fn run(text: &[u8], is_in: impl Fn(u8) -> bool) -> usize {
    text.iter().take_while(|byte| is_in(**byte)).count()
}

fn before(text: &[u8], length: usize) -> &[u8] {
    text.get(..length).unwrap_or(text)
}

fn after(text: &[u8], length: usize) -> &[u8] {
    text.get(length..).unwrap_or_default()
}

fn split<'a>(text: &'a [u8], length: usize, kind: impl Fn(&'a [u8]) -> Token<'a>) -> (Token<'a>, &'a [u8]) {
    (kind(before(text, length)), after(text, length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(line: &str) -> Option<String> {
        match parse(line.as_bytes()) {
            Line::Setting { name, value } => {
                assert_eq!(name, b"a", "{line}");
                Some(String::from_utf8_lossy(&value).into_owned())
            }
            _ => None,
        }
    }

    #[test]
    fn values_are_read_as_the_server_reads_them() {
        for (line, expected) in [
            ("a = on", "on"),
            ("a on\n", "on"),
            ("\t a=on # comment\r\n", "on"),
            ("a 'x # y'", "x # y"),
            ("a = 'it''s'", "it's"),
            (r"a = 'it\'s \\ \t\061\7z'", "it's \\ \t1\u{7}z"),
            (r"a = 'cut\000off'", "cut"),
            ("a = ''", ""),
            ("a = ''''", "'"),
            ("a = 16MB", "16MB"),
            ("a = -0x1Fz", "-0x1Fz"),
            ("a = .5e-3", ".5e-3"),
            ("a = x-y:z/w.v.u", "x-y:z/w.v.u"),
            ("a = grün", "grün"),
        ] {
            assert_eq!(value(line).as_deref(), Some(expected), "{line}");
        }
        for line in ["", "  \t\r\n", "# a = 1", "\r"] {
            assert_eq!(parse(line.as_bytes()), Line::Empty, "{line:?}");
        }
        let qualified = Line::Setting { name: b"A_b.c\xe9".to_vec(), value: b"1".to_vec() };
        assert_eq!(parse(b"A_b.c\xe9 = 1"), qualified);
    }

    #[test]
    fn what_the_server_calls_a_syntax_error_is_one() {
        for line in [
            "a",
            "a =",
            "a = = 1",
            "a = b.c",
            "a = 1 2",
            "a = 1.5GB",
            "a = 'open",
            r"a = 'open\'",
            "a = 'x''",
            "a = /tmp",
            "a-b = 1",
            "a.b.c = 1",
            "1 = a",
            "'a' = 1",
            "a = \0",
            "a = 'x\0'",
            "a; b = 1",
        ] {
            assert_eq!(parse(line.as_bytes()), Line::Malformed, "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(line in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = parse(&line);
        }

        #[test]
        fn near_lines_are_read(line in r"[a'\\= #.0x-]{0,20}") {
            let _ = parse(line.as_bytes());
        }

        #[test]
        fn what_is_quoted_is_read_back(value in "[^\0\n]{0,30}") {
            let line = format!("name = '{}'\n", value.replace('\\', r"\\").replace('\'', "''"));
            let expected = Line::Setting { name: b"name".to_vec(), value: value.into_bytes() };
            prop_assert_eq!(parse(line.as_bytes()), expected);
        }
    }
}

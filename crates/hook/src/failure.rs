//! Why something did not work: one line, because a line is what Pgpool-II's log has for it.

use std::fmt;

pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// What a server, a program or this one said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What PostgreSQL's ERROR has.
    pub(crate) sqlstate: Option<String>,
    pub(crate) message: String,
    pub(crate) detail: Option<String>,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with more words before it.
    #[must_use]
    pub(crate) fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }

    pub(crate) fn is(&self, sqlstate: &str) -> bool {
        self.sqlstate.as_deref() == Some(sqlstate)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.message))?;
        if let Some(sqlstate) = &self.sqlstate {
            write!(f, " ({sqlstate})")?;
        }
        for (label, text) in [("DETAIL", &self.detail), ("HINT", &self.hint)] {
            if let Some(text) = text {
                write!(f, " {label}: {}", one_line(text))?;
            }
        }
        Ok(())
    }
}

/// Lines become one.
pub(crate) fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure {
            sqlstate: Some("55000".to_owned()),
            detail: Some("It is ahead.\n\n  By far.".to_owned()),
            ..Failure::new("no\n").hint("Rebuild it.").at("node 1")
        };
        assert_eq!(failure.to_string(), "node 1: no (55000) DETAIL: It is ahead.; By far. HINT: Rebuild it.");
        assert!(failure.is("55000"));
    }
}

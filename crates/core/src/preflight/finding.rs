//! The answer to one question that is asked before a recovery.

use crate::error::Error;

/// The answer to one question: what was found, or why the target is refused.
pub struct Finding {
    /// The question, as `pgpool_recovery_check` names it.
    pub step: &'static str,
    /// The answer.
    pub answer: Result<String, Error>,
    /// A bad answer is worth knowing, but a recovery succeeds without a better one.
    pub is_advice: bool,
    /// What an operator should know although the answer is good.
    pub warnings: Vec<String>,
}

impl Finding {
    /// A question whose answer must be good.
    pub const fn new(step: &'static str, answer: Result<String, Error>) -> Self {
        Self { step, answer, is_advice: false, warnings: Vec::new() }
    }

    /// A question that an operator wants to know the answer of.
    pub const fn advice(step: &'static str, answer: Result<String, Error>) -> Self {
        Self { step, answer, is_advice: true, warnings: Vec::new() }
    }

    /// One row of several pieces of advice; `good`: what it says without any.
    pub fn advice_of(step: &'static str, good: String, problems: Vec<Error>) -> Self {
        Self::advice(step, problems.into_iter().reduce(and).map_or(Ok(good), Err))
    }

    /// The same with warnings.
    #[must_use]
    pub fn warned(mut self, warnings: Vec<String>) -> Self {
        self.warnings.extend(warnings);
        self
    }
}

/// Two errors in one: what both say, each remedy once.
fn and(mut error: Error, other: Error) -> Error {
    let both = |one: Option<String>, other: Option<String>| match (one, other) {
        (Some(one), Some(other)) if !one.contains(&other) => Some(format!("{one} {other}")),
        (one, other) => one.or(other),
    };
    error.message = format!("{}; {}", error.message, other.message);
    error.detail = both(error.detail, other.detail);
    error.hint = both(error.hint, other.hint);
    error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn pieces_of_advice_share_a_row() {
        let advice = |message: &str, hint: &str| {
            Error::new(Kind::WrongState, message.to_owned())
                .detail(format!("Why {message}."))
                .hint(hint.to_owned())
        };
        let found = |problems| Finding::advice_of("step", "good".to_owned(), problems);
        assert_eq!(found(Vec::new()).answer, Ok("good".to_owned()));
        let finding = found(vec![advice("a", "Do."), advice("b", "Do."), advice("c", "Do more.")]);
        let error = finding.answer.expect_err("three");
        assert!(finding.is_advice);
        assert_eq!(error.message, "a; b; c");
        assert_eq!(error.detail.as_deref(), Some("Why a. Why b. Why c."));
        assert_eq!(error.hint.as_deref(), Some("Do. Do more."));
        let bare = Error::new(Kind::WrongState, "x");
        let error = found(vec![bare, advice("a", "Do.")]).answer.expect_err("two");
        assert_eq!((error.message.as_str(), error.hint.as_deref()), ("x; a", Some("Do.")));
    }
}

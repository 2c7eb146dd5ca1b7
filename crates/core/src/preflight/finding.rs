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

    /// The same with warnings.
    #[must_use]
    pub fn warned(mut self, warnings: Vec<String>) -> Self {
        self.warnings.extend(warnings);
        self
    }
}

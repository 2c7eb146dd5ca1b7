//! Configuration files in PostgreSQL's `name = 'value'` syntax (Pgpool-II's is the same).

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Settings by name; a later value replaces an earlier one.
#[derive(Debug, Clone, Default)]
pub struct Conf {
    settings: BTreeMap<String, String>,
}

impl Conf {
    pub fn set(&mut self, name: impl Into<String>, value: impl ToString) -> &mut Self {
        self.settings.insert(name.into(), value.to_string());
        self
    }

    /// The text of the file.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.settings {
            writeln!(text, "{name} = '{}'", value.replace('\'', "''")).expect("a String takes it");
        }
        text
    }
}

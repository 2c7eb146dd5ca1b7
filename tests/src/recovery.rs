//! Calling the product's SQL functions the way a person does.

use postgres::error::DbError;
use postgres::{Client, Error};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::wait;

/// An ERROR as the server raised it.
#[derive(Debug, Clone)]
pub struct SqlError {
    pub sqlstate: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

impl SqlError {
    /// What PostgreSQL said; panics if the failure was of another kind (a lost connection, say).
    #[track_caller]
    pub fn from(error: &Error) -> Self {
        let error: &DbError = error.as_db_error().unwrap_or_else(|| panic!("not an SQL error: {error:?}"));
        Self {
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().unwrap_or_default().to_owned(),
            hint: error.hint().unwrap_or_default().to_owned(),
        }
    }

    /// All it says, for looking for a word wherever it stands.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}", self.message, self.detail, self.hint)
    }

    /// Insists on the SQLSTATE and on an explanation beyond the message.
    #[track_caller]
    pub fn expect(self, sqlstate: &str) -> Self {
        assert_eq!(self.sqlstate, sqlstate, "{self:?}");
        assert!(!self.detail.is_empty() || !self.hint.is_empty(), "neither DETAIL nor HINT: {self:?}");
        assert!(!self.message.is_empty() && !self.message.ends_with('.'), "{self:?}");
        self
    }

    /// Insists that some part of it holds `word`.
    #[track_caller]
    pub fn says(self, word: &str) -> Self {
        let text = self.text().to_lowercase();
        assert!(text.contains(&word.to_lowercase()), "no \"{word}\" in {self:?}");
        self
    }
}

/// One call of `pgpool_recovery_1st_stage(text, text, integer, jsonb)`.
#[derive(Debug, Clone)]
pub struct Recovery {
    pub host: Option<String>,
    pub directory: Option<String>,
    pub port: Option<i32>,
    options: Value,
}

impl Recovery {
    /// Rebuilds `target` from `primary`, where `target` is on its own host.
    pub fn of(target: &Cluster, primary: &Cluster) -> Self {
        Self::to("localhost", target.dir(), primary.port())
    }

    pub fn to(host: &str, directory: &str, port: u16) -> Self {
        Self {
            host: Some(host.to_owned()),
            directory: Some(directory.to_owned()),
            port: Some(i32::from(port)),
            options: json!({}),
        }
    }

    /// Adds one option.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.options[name] = value.into();
        self
    }

    /// The call as a statement without parameters.
    pub fn sql(&self) -> String {
        let text = |value: &Option<String>| {
            value.as_ref().map_or("NULL".to_owned(), |value| format!("'{}'", value.replace('\'', "''")))
        };
        let options = text(&Some(self.options.to_string()));
        let port = self.port.map_or("NULL".to_owned(), |port| port.to_string());
        format!(
            "SELECT pgpool_recovery_1st_stage({}, {}, {port}, {options}::jsonb)",
            text(&self.host),
            text(&self.directory)
        )
    }

    /// Calls it in a session of the caller's.
    pub fn call(&self, client: &mut Client) -> Result<Report, Error> {
        let sql = "SELECT pgpool_recovery_1st_stage($1::text, $2::text, $3::integer, $4::jsonb)";
        let row = client.query_one(sql, &[&self.host, &self.directory, &self.port, &self.options])?;
        Ok(Report(row.get(0)))
    }

    /// Calls it in a new session on `primary`.
    #[track_caller]
    pub fn run(&self, primary: &Cluster) -> Report {
        match self.call(&mut primary.connect()) {
            Ok(report) => report,
            Err(error) => panic!("{self:?}: {error:?}\n{}", primary.log()),
        }
    }

    /// [`Recovery::run`], once a run that broke off has let go of the target: an agent may still have to notice.
    #[track_caller]
    pub fn run_when_let_in(&self, primary: &Cluster) -> Report {
        wait::until("the run to be let in", wait::PATIENCE, || match self.call(&mut primary.connect()) {
            Ok(report) => Some(report),
            Err(error) => {
                assert_eq!(SqlError::from(&error).sqlstate, "55006", "{error:?}\n{}", primary.log());
                None
            }
        })
    }

    /// Calls it in a new session on `primary` and expects an ERROR.
    #[track_caller]
    pub fn fail(&self, primary: &Cluster) -> SqlError {
        match self.call(&mut primary.connect()) {
            Ok(report) => panic!("{self:?} succeeded: {}", report.0),
            Err(error) => SqlError::from(&error),
        }
    }
}

/// `SELECT pgpool_remote_start(host, directory)`.
#[track_caller]
pub fn remote_start(primary: &Cluster, host: &str, directory: &str) {
    if let Err(error) = try_remote_start(primary, host, directory) {
        panic!("{error:?}\n{}", primary.log());
    }
}

/// `SELECT pgpool_remote_start(host, directory)`, where it may fail.
pub fn try_remote_start(primary: &Cluster, host: &str, directory: &str) -> Result<(), SqlError> {
    let sql = "SELECT pgpool_remote_start($1, $2)";
    match primary.connect().query_one(sql, &[&host, &directory]) {
        Ok(row) => {
            assert!(row.get::<_, bool>(0), "false instead of an ERROR");
            Ok(())
        }
        Err(error) => Err(SqlError::from(&error)),
    }
}

/// What a finished first stage tells.
#[derive(Debug)]
pub struct Report(pub Value);

impl Report {
    /// The value at a JSON pointer.
    #[track_caller]
    pub fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {}", self.0))
    }

    #[track_caller]
    pub fn number(&self, pointer: &str) -> u64 {
        self.at(pointer).as_u64().unwrap_or_else(|| panic!("{pointer} is no number in {}", self.0))
    }

    #[track_caller]
    pub fn text(&self, pointer: &str) -> &str {
        self.at(pointer).as_str().unwrap_or_else(|| panic!("{pointer} is no text in {}", self.0))
    }
}

//! A first stage, step by step.

use pgpool_recovery_core::error::{Error, Kind, Result};

use crate::request::Request;
use crate::settings::Settings;

/// One pre-flight check.
pub(crate) struct CheckRow {
    pub(crate) step: String,
    pub(crate) ok: bool,
    pub(crate) detail: String,
    pub(crate) hint: Option<String>,
}

pub(crate) fn first_stage(_request: Request, _settings: Settings) -> Result<serde_json::Value> {
    Err(Error::new(Kind::Unsupported, "not implemented yet"))
}

pub(crate) fn check(_request: Request, _settings: Settings) -> Result<Vec<CheckRow>> {
    Err(Error::new(Kind::Unsupported, "not implemented yet"))
}

pub(crate) fn remote_start(_host: &str, _dir: &str, _settings: Settings) -> Result<()> {
    Err(Error::new(Kind::Unsupported, "not implemented yet"))
}

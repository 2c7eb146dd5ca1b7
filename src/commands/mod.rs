//! What a person or Pgpool-II asks for: a file for each, which reads as a table of contents.

pub(crate) mod check;
mod clock;
pub(crate) mod dry_run;
pub(crate) mod first_stage;
pub(crate) mod follow;
pub(crate) mod legacy_call;
pub(crate) mod pgctl;
pub(crate) mod promote;
pub(crate) mod remote_start;
pub(crate) mod script;
pub(crate) mod second_stage;
pub(crate) mod status;
pub(crate) mod stop;

//! PostgreSQL's side: everything `unsafe`, one concern a file, no logic of the product.
//!
//! The rest of the extension sees safe functions and guards. A guard undoes its work when it is
//! dropped, also while a PostgreSQL ERROR unwinds through Rust frames; see [`cleanup`].
//! A FATAL error (a terminated backend) unwinds nothing: what must be undone then is undone by
//! PostgreSQL itself (backup, ephemeral slot, progress) or ahead of time (see [`threads`]).
#![allow(unsafe_code, reason = "this is the one place for calls into the server")]

pub(crate) mod backup;
pub(crate) mod catalog;
pub(crate) mod cleanup;
pub(crate) mod compat;
pub(crate) mod interrupts;
pub(crate) mod json;
pub(crate) mod log;
pub(crate) mod privileges;
pub(crate) mod progress;
pub(crate) mod query;
pub(crate) mod slot;
pub(crate) mod text;
pub(crate) mod threads;

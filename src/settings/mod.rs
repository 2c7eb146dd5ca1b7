//! How it is done: the settings `pgpool_recovery.*`, the options of one call, and the request.
//!
//! ```text
//!  table     every setting and option, one row each: begin here to add one
//!  macros    what is made of a row
//!  kinds     integers, texts, choices, ...: how a value is stored, read and checked
//!  nodes     the nodes beside a standby that is promoted
//!  values    texts that hold a list
//!  options   the options of one call, laid over the settings
//!  request   the arguments of the SQL functions
//! ```
//!
//! All settings are SUSET: a superuser sets them for the server, a database, a role or a session, and the
//! options of one call overlay them. None may be set by the role that calls: it could name files and commands
//! for the server's OS user to read and run.

mod kinds;
mod macros;
mod nodes;
pub(crate) mod options;
pub(crate) mod request;
mod table;
mod values;

use pgpool_recovery_core::error::Result;
use pgrx::guc::{GucContext, GucFlags};

use crate::pg::compat;
use crate::settings::kinds::{Definition, Setting, Text};
pub(crate) use crate::settings::nodes::OtherNode;
pub(crate) use crate::settings::table::{
    Compression, Fence, OnDiverged, Overwrite, Scripts, Settings, SkipUnchanged, Transport,
};

static PG_CTL: Text = Text::new(c"");

/// Registers every setting with PostgreSQL; called by `_PG_init`.
pub(crate) fn define() {
    table::define();
    // The C extension read this as an undefined placeholder, which anyone could set and whose value the
    // server then ran. From the configuration file or command line only.
    PG_CTL.define(Definition {
        name: c"pgpool.pg_ctl",
        about: c"Path of the pg_ctl that pgpool_pgctl() runs; empty: the server's own.",
        context: GucContext::Sighup,
        flags: GucFlags::SUPERUSER_ONLY,
    });
    compat::reserve_setting_prefix(c"pgpool_recovery");
}

/// `pgpool.pg_ctl`, the C extension's setting: the path of pg_ctl; empty: the server's own.
pub(crate) fn pg_ctl() -> Result<String> {
    PG_CTL.current("pgpool.pg_ctl")
}

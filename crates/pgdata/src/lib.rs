//! PostgreSQL's files, read without a server. Nothing here knows of recovery.
//!
//! | module | file | PostgreSQL's source |
//! |---|---|---|
//! | [`control_file`] | `global/pg_control` | `catalog/pg_control.h` |
//! | [`checksum`] | pages of relations | `storage/checksum_impl.h` |
//! | [`page`] | pages of relations, and what of them is not logged | `storage/bufpage.h`, `access/common/bufmask.c` |
//! | [`wal`] | `pg_wal`: names, pages, records | `access/xlog_internal.h`, `access/xlogrecord.h` |
//! | [`history`] | timeline history files | `access/transam/timeline.c` |
//! | [`wal_summary`] | `pg_wal/summaries` | `common/blkreftable.c` |
//! | [`configuration`] | `postgresql.conf` and what it includes | `utils/misc/guc-file.l` |
#![forbid(unsafe_code)]
#![warn(missing_docs)]
// a backend runs this, and they panic where its stderr is a closed pipe or a full disk
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod bytes;
pub mod checksum;
pub mod configuration;
pub mod control_file;
pub mod history;
pub mod page;
pub mod wal;
pub mod wal_summary;

//! Read-only queries through SPI.
//!
//! pgrx's shortcuts (`Spi::get_one` and friends) assign a transaction id even for a SELECT; a recovery
//! that runs for an hour would hold back vacuum on the whole primary. This path assigns none.

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::datum::DatumWithOid;
use pgrx::spi::SpiError;
use pgrx::{Spi, pg_sys};

use super::horizon;
use super::text::Text;

/// One row, every column cast to text by the query.
pub(super) struct Row(Vec<Option<Text>>);

impl Row {
    /// The next column, as bytes; `None` for NULL.
    pub(super) fn bytes(&mut self) -> Option<Vec<u8>> {
        if self.0.is_empty() { None } else { self.0.remove(0).map(Text::into_bytes) }
    }

    /// The next column, as a string; `None` for NULL. `what` names it in the error.
    pub(super) fn string(&mut self, what: &str) -> Result<Option<String>> {
        if self.0.is_empty() {
            Ok(None)
        } else {
            self.0.remove(0).map(|text| text.into_string(what)).transpose()
        }
    }
}

/// Runs a query. What PostgreSQL raises unwinds from here as it is.
pub(super) fn rows(sql: &str, arguments: &[DatumWithOid<'_>]) -> Result<Vec<Row>> {
    debug_assert!(!horizon::is_let_go(), "a query while the statement has no snapshot");
    let collect = || -> std::result::Result<Vec<Row>, SpiError> {
        Spi::connect(|client| {
            let table = client.select(sql, None, arguments)?;
            let columns = table.columns()?;
            let mut rows = Vec::with_capacity(table.len());
            for tuple in table {
                let row: std::result::Result<Vec<_>, _> =
                    (1..=columns).map(|n| tuple.get::<Text>(n)).collect();
                rows.push(Row(row?));
            }
            Ok(rows)
        })
    };
    collect().map_err(|error| {
        Error::new(Kind::Internal, "could not read a query's result").detail(format!("{error}."))
    })
}

/// The same of what there is now: else the snapshot is that of the statement that called us, perhaps long ago.
pub(super) fn rows_of_now(sql: &str) -> Result<Vec<Row>> {
    // SAFETY: the snapshot is copied; what the query raises ends the (sub)transaction, which pops it.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
    let rows = rows(sql, &[]);
    // SAFETY: the one from above: the query has popped its own.
    unsafe { pg_sys::PopActiveSnapshot() };
    rows
}

/// Runs a query that returns exactly one row.
pub(super) fn row(sql: &str, arguments: &[DatumWithOid<'_>]) -> Result<Row> {
    rows(sql, arguments)?.pop().ok_or_else(|| Error::new(Kind::Internal, "a query returned no row"))
}

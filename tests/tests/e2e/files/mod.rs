//! What our readers of PostgreSQL's files say is what PostgreSQL's own programs say.

mod summaries; // the summaries of PostgreSQL 17 and later, against the WAL
mod wal; // pg_waldump

//! What our readers of PostgreSQL's files say is what PostgreSQL's own programs say.

mod wal; // pg_waldump

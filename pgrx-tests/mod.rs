//! In-database tests: run inside a server by `make test-indb`, compiled into the extension under the
//! feature `pg_test`. Each file holds its own schema module, because pgrx takes inline modules only.

mod functions;
mod guards;
mod scripts;
mod settings;
mod support;
mod upgrade;

//! Tests that need the machine for themselves: they measure time or hide a server from all others.
//! Each makes its scratch directory with `Scratch::alone()`, which waits for all other tests and holds up the next.

mod floods; // a recovery while a crowd without the secret keeps an agent busy
mod hidden_server; // a running server whose directory the kernel does not show
mod progress; // PostgreSQL's progress view moves on every two seconds

//! Tests that need the machine for themselves: they measure time, load the machine or hide a server from all others.
//! Each makes its scratch directory with `Scratch::alone()`, which waits for all other tests and holds up the next.

mod floods; // connections to an agent that do not know the secret
mod gigabyte; // a link that is cut at nine tenths of a gigabyte: only the rest is sent again
mod hidden_server; // a running server whose directory the kernel does not show
mod progress; // PostgreSQL's progress view moves on every two seconds
mod racing_start; // a server that starts while a recovery begins
mod soak; // recoveries under write load and DDL, round after round

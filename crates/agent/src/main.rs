//! The receiver daemon of pgpool_recovery.
fn main() {}

//! Writes docs/errors.md to standard output.

fn main() {
    print!("{}", pgpool_recovery_e2e::error_table::document());
}

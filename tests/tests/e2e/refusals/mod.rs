//! What is refused: an ERROR that explains itself, a target as it was, nothing left on the primary.

mod advice; // what is told before a run and stops none: releases, libraries, limits of slots, settings without effect
mod arguments_and_targets; // NULLs, unusable text, unknown options, targets that must not be replaced, privileges to call
mod cannot_tell; // what cannot be looked at is no "no"
mod changed_meanwhile; // targets that another tool changes, and targets that hold what the primary never saw
mod check; // pgpool_recovery_check: all answers at once
mod dry_run; // the option dry_run changes nothing and tells the figures of the run
mod hung; // file systems that answer nothing hold up no other session and no other directory
mod lost_data; // what of the primary cannot be found or named is not taken for dropped
mod mounts; // what is mounted in a target, read-only or in the place of a file
mod obstacles; // what a run could not remove, enter, read or write is found before it begins
mod primary_address; // addresses of the primary that a caller may not choose
mod privileges; // what a role with EXECUTE and REPLICATION may not do

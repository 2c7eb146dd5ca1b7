//! Runs that are interrupted: the primary goes on, the target does not start, the next run completes it.

mod every_moment; // every fault, at the start, in the middle and near the end of a run
mod gigabyte; // a link that is cut at nine tenths of a gigabyte: only the rest is sent again
mod held_up_disk; // for longer than a host may be silent
mod interrupted; // the session after a cancel, and a slot that was there before
mod killed_postmaster; // alone: its children are to notice
mod leaving_out; // while what did not change is left out: the proof, what travels, and a proof that is contradicted
mod out_of_memory; // malloc fails
mod power_cut; // order and durability of what the receiver writes, by strace
mod retried; // the same call goes on when the agent is back
mod retried_kinds; // the same in every kind of run
mod stale_cache; // a page that only the page cache has
mod trial; // a run that a fault happens to

//! What an ERROR leaves behind that does not reach whoever aborts the transaction.
//!
//! Code of the server's that raises an ERROR lets go of nothing: locks in shared memory, pins of buffers, open files, the
//! place in a queue of waiters stay until the (sub)transaction is aborted. Who catches an ERROR and goes on has to do that,
//! or the next step waits for a lock that this very process holds, with all interrupts held.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null;

use pgrx::pg_sys;

use super::{cleanup, compat, error_stack};

/// Runs `act` in a subtransaction of its own, which is rolled back on an ERROR or a panic before that is returned: as PL/pgSQL has
/// it for a block with EXCEPTION (`exec_stmt_block()` in pl_exec.c). A replication slot that `act` took and did not let go of is
/// released, which the server itself does at the end of a command only.
///
/// What `act` returns must not hold anything that belongs to a subtransaction.
pub(super) fn run<T>(act: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    let _aside = error_stack::set_aside();
    let had_slot = holds_slot();
    // SAFETY: reads a variable of this process.
    let done = if unsafe { pg_sys::IsTransactionState() } {
        within(act)
    } else {
        // nothing but what `abandon` lets go of can be held without one
        catch_unwind(AssertUnwindSafe(act)).map_err(error_stack::take).inspect_err(|_| abandon())
    };
    if done.is_err() && !had_slot && holds_slot() {
        // SAFETY: the session holds a slot, as was seen just now. Releasing an ephemeral one drops it.
        cleanup::quietly("release a replication slot", || unsafe { pg_sys::ReplicationSlotRelease() });
    }
    done
}

fn holds_slot() -> bool {
    // SAFETY: reads a pointer of this process.
    unsafe { !pg_sys::MyReplicationSlot.is_null() }
}

fn within<T>(act: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    // SAFETY: a transaction is open and no ERROR is on its way: the order is that of exec_stmt_block(). Memory context and
    // resource owner of the caller live longer than the subtransaction. What fails in beginning, releasing or rolling back is an
    // ERROR that unwinds from here, to whoever aborts the whole.
    unsafe {
        let (context, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        pg_sys::BeginInternalSubTransaction(null());
        pg_sys::CurrentMemoryContext = context;
        let done = catch_unwind(AssertUnwindSafe(act)).map_err(error_stack::take);
        match &done {
            Ok(_) => pg_sys::ReleaseCurrentSubTransaction(),
            Err(_) => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::CurrentMemoryContext = context;
        pg_sys::CurrentResourceOwner = owner;
        done
    }
}

/// Lets go of what the frames of an ERROR have left, as far as that cannot wait for the end of the (sub)transaction: the
/// first acts of AbortSubTransaction() (xact.c, 13 to 19). To do that once more is harmless, and so it is when nothing is held.
///
/// For clean-up that cannot run in a subtransaction, because it undoes what belongs to the one around it. Pins, open files and
/// locks of tables are left to the end of that one, and so is what fails here. From 19 on the lock of a page goes with its pin
/// (ResOwnerReleaseBuffer in bufmgr.c) and stays, too: clean-up must read no table.
pub(super) fn abandon() {
    // SAFETY: called by the main thread when the frames that held any of this are gone, or will not go on. An ERROR of one of
    // these is caught here: where one unwinds already, another that escaped would abort the process.
    let done = catch_unwind(|| unsafe {
        pg_sys::LWLockReleaseAll();
        pg_sys::pgstat_report_wait_end();
        compat::abandon_io();
        pg_sys::UnlockBuffers();
        pg_sys::XLogResetInsertion();
        pg_sys::ConditionVariableCancelSleep();
        pg_sys::LockErrorCleanup();
    });
    if done.is_err() {
        error_stack::flush();
    }
}

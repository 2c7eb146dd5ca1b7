//! The middle of the server's own work, as an ERROR finds it: for tests of what is left when somebody catches that.

use std::ffi::CString;
use std::mem::zeroed;

use pgrx::pg_sys;

use super::{cleanup, compat};

/// A lightweight lock, a condition variable and a relation to be in the middle of.
pub(crate) struct Trouble {
    lock: Box<pg_sys::LWLock>,
    variable: Box<pg_sys::ConditionVariable>,
    /// pg_class, whose entry of the relation cache lasts as long as the session.
    relation: pg_sys::Relation,
    references: i32,
}

impl Trouble {
    pub(crate) fn new() -> Self {
        // SAFETY: both are plain memory, made valid by the server's functions, and no other process sees them.
        unsafe {
            let (mut lock, mut variable) = (Box::new(zeroed()), Box::new(zeroed()));
            pg_sys::LWLockInitialize(&raw mut *lock, compat::new_tranche());
            pg_sys::ConditionVariableInit(&raw mut *variable);
            let mode = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
            let relation = pg_sys::relation_open(pg_sys::RelationRelationId, mode);
            pg_sys::relation_close(relation, mode);
            Self { lock, variable, relation, references: (*relation).rd_refcnt }
        }
    }

    /// Opens a relation, reads a buffer, takes a snapshot and fails.
    pub(crate) fn raise(&mut self) {
        // SAFETY: what the server does itself when it works; all is let go of by an abort.
        unsafe {
            let mode = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
            let relation = pg_sys::relation_open(pg_sys::RelationRelationId, mode);
            pg_sys::ReadBuffer(relation, 0);
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        self.fail();
    }

    /// Takes a lock, queues for a condition, shows a wait and raises an ERROR.
    pub(crate) fn fail(&mut self) {
        // SAFETY: as above. The last call raises the ERROR.
        unsafe {
            let mode = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
            pg_sys::LWLockAcquire(&raw mut *self.lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
            pg_sys::ConditionVariablePrepareToSleep(&raw mut *self.variable);
            pg_sys::pgstat_report_wait_start(pg_sys::PG_WAIT_EXTENSION);
            pg_sys::relation_open(pg_sys::InvalidOid, mode);
        }
    }

    /// The same, of which nobody hears.
    pub(crate) fn raise_quietly(&mut self) {
        cleanup::quietly("get out of trouble", || self.fail());
    }

    /// Makes a replication slot this session's and fails.
    pub(crate) fn raise_with_slot(&mut self, name: &str) {
        let name = CString::new(name).expect("no NUL byte");
        // SAFETY: the session holds no slot, and the name is valid.
        unsafe { compat::create_ephemeral_slot(&name) };
        self.raise();
    }

    /// What is held all the same.
    pub(crate) fn left(&mut self) -> Vec<&'static str> {
        // SAFETY: reads variables and memory of this process; the relation's entry is nailed in the cache.
        unsafe {
            let mut fresh: pg_sys::ConditionVariable = zeroed();
            pg_sys::ConditionVariableInit(&raw mut fresh);
            let is_left = [
                ("a lock", pg_sys::LWLockHeldByMe(&raw mut *self.lock)),
                ("a place in a queue", self.variable.wakeup.head != fresh.wakeup.head),
                ("a wait event", (*pg_sys::MyProc).wait_event_info != 0),
                ("held interrupts", pg_sys::InterruptHoldoffCount != 0),
                ("a replication slot", !pg_sys::MyReplicationSlot.is_null()),
                ("a relation", (*self.relation).rd_refcnt != self.references),
            ];
            is_left.into_iter().filter_map(|(what, is_left)| is_left.then_some(what)).collect()
        }
    }
}

//! The physical replication slot of the standby to be.
//!
//! The slot is held by this backend during the run. One that we made is ephemeral until the run
//! succeeded: PostgreSQL drops it on ERROR, on exit of the backend and after a crash, so no failure
//! of ours leaves a slot that retains WAL for ever (slot.c, `RS_EPHEMERAL`).

use std::ffi::CString;

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::pg_sys;

use super::{catalog, checkpoint, cleanup, compat, log, raised};

/// Longest slot name in bytes: NAMEDATALEN with its NUL.
const MAX_NAME: usize = 63;

/// A physical slot held by this session, with WAL reserved. Dropping it releases the slot: one that
/// [`Slot::reserve`] made disappears, one that it found stays, and reserves nothing if it did not before.
#[derive(Debug)]
pub(crate) struct Slot {
    name: String,
    created: bool,
    /// It was there, and reserved no WAL: that is undone unless the slot is kept.
    was_empty: bool,
    /// Where the new standby's WAL begins. Older WAL is kept for the standby that is there, as long as that lasts.
    start_lsn: Lsn,
}

impl Slot {
    /// Makes the slot, or takes over an inactive physical one of that name. One that has lost WAL is of no use to its
    /// standby and is replaced. A slot that was made, or had never reserved WAL, reserves from the last checkpoint on, which may
    /// be later than `start_lsn`: ask [`Slot::reserves_from_start`].
    ///
    /// Called after the backup has started, whose checkpoint finds no session to terminate over an old slot.
    pub(crate) fn reserve(name: &str, start_lsn: Lsn) -> Result<Self> {
        validate(name)?;
        let c_name = CString::new(name).expect("a valid slot name has no NUL byte");
        // SAFETY: reads a pointer of this process.
        if unsafe { !pg_sys::MyReplicationSlot.is_null() } {
            return Err(Error::new(Kind::InUse, "this session already holds a replication slot")
                .hint("Call from another session."));
        }
        // There before the server makes one this session's: an ERROR after that (an invalidated one in 18, say) releases it, which
        // the server does at the end of a command only, and a caller may catch it.
        let mut slot = Self { name: name.to_owned(), created: false, was_empty: false, start_lsn };
        if let Some(found) = catalog::slot(name)? {
            if found.slot_type != "physical" {
                return Err(wrong_type(name, &found.slot_type));
            }
            if let Some(pid) = found.active_pid {
                return Err(active(name, pid));
            }
            if !found.is_lost() {
                // SAFETY: the session holds no slot, as checked above.
                unsafe { compat::acquire_slot(&c_name) };
                slot.was_empty = found.wal_status.is_none();
                if slot.was_empty {
                    // SAFETY: MyReplicationSlot is this slot, which has no restart_lsn. It is not marked dirty, so that it has
                    // none again after a crash.
                    unsafe { pg_sys::ReplicationSlotReserveWal() };
                } else {
                    // one that keeps more than the server lets it loses that at the next checkpoint anyway
                    slot.check_wal_reserved()?;
                }
                return Ok(slot);
            }
            // SAFETY: as above; the server takes and drops the slot, or raises an ERROR if another session
            // was faster.
            unsafe { pg_sys::ReplicationSlotDrop(c_name.as_ptr(), true) };
        } else {
            catalog::check_free_slot()?;
        }
        compat::check_slot_requirements();
        // SAFETY: the session holds no slot and the name is valid.
        unsafe { compat::create_ephemeral_slot(&c_name) };
        slot.created = true;
        // SAFETY: MyReplicationSlot is the slot just made; the order is that of
        // create_physical_replication_slot() in slotfuncs.c.
        unsafe {
            pg_sys::ReplicationSlotReserveWal();
            pg_sys::ReplicationSlotMarkDirty();
            pg_sys::ReplicationSlotSave();
        }
        Ok(slot)
    }

    /// Whether [`Slot::reserve`] made it.
    pub(crate) const fn is_new(&self) -> bool {
        self.created
    }

    /// Whether all WAL of the backup is kept.
    pub(crate) fn reserves_from_start(&self) -> bool {
        self.restart_lsn() <= self.start_lsn
    }

    /// Another backup begins, later.
    pub(crate) fn begin_at(&mut self, start_lsn: Lsn) {
        self.start_lsn = start_lsn;
    }

    /// Gives up the WAL from before the backup: what was on the target is not going to follow any more.
    pub(crate) fn forget_older(&self) {
        self.advance(self.start_lsn);
    }

    /// Gives up the WAL before a position, which the target has or does not need. It never goes back.
    ///
    /// As a walsender does it when a standby has confirmed what it has (PhysicalConfirmReceivedLocation in walsender.c): without a
    /// write to disk, which the next checkpoint makes.
    pub(crate) fn advance(&self, position: Lsn) {
        let kept = self.restart_lsn();
        if kept == Lsn(0) || position <= kept {
            return;
        }
        // SAFETY: MyReplicationSlot is not null, or restart_lsn would be 0, and this session holds the slot. Its fields are
        // changed under its spinlock, between whose ends nothing can fail, wait or be interrupted. The two functions after that
        // are what the server calls then; they take locks of their own.
        unsafe {
            let slot = pg_sys::MyReplicationSlot;
            pg_sys::SpinLockAcquire(&raw mut (*slot).mutex);
            (*slot).data.restart_lsn = position.0;
            pg_sys::SpinLockRelease(&raw mut (*slot).mutex);
            pg_sys::ReplicationSlotMarkDirty();
            pg_sys::ReplicationSlotsComputeRequiredLSN();
        }
    }

    /// The oldest WAL position the slot keeps; 0 if the server invalidated the slot.
    pub(crate) fn restart_lsn(&self) -> Lsn {
        // SAFETY: non-null as long as self lives, unless the server took the slot away; the owner may
        // read its own slot's fields without the spinlock (slot.h).
        unsafe {
            let slot = pg_sys::MyReplicationSlot;
            if slot.is_null() { Lsn(0) } else { Lsn((*slot).data.restart_lsn) }
        }
    }

    /// Keeps the WAL that is not durable on the target yet. If that is more than the server lets a slot keep, it is given up
    /// before the checkpointer terminates this session: what has not been sent by then is still in pg_wal, until the next
    /// checkpoint removes it. `flushed` is how far WAL is going to be sent as yet.
    pub(crate) fn follow(&self, durable: Lsn, flushed: Lsn) -> Result<()> {
        self.advance(durable);
        if !self.is_reserved() {
            self.advance(flushed);
        }
        self.check_wal_reserved()
    }

    /// Fails if the server removed WAL that the slot should keep, or will at the next checkpoint.
    /// Cheap enough for several calls a second; outruns the checkpointer, which would terminate us.
    pub(crate) fn check_wal_reserved(&self) -> Result<()> {
        if self.is_reserved() {
            return Ok(());
        }
        // what only the standby that is there would need is not kept for it any more
        self.forget_older();
        if self.is_reserved() {
            return Ok(());
        }
        Err(Error::new(
            Kind::SlotLost,
            format!("replication slot \"{}\" does not keep the WAL the standby needs", self.name),
        )
        .detail(
            "The primary wrote WAL faster than the target made it durable, by more than max_slot_wal_keep_size lets a slot keep.",
        )
        .hint(
            "Increase max_slot_wal_keep_size, then run the recovery again: it sends only what still differs.",
        ))
    }

    fn is_reserved(&self) -> bool {
        use pg_sys::WALAvailability as Availability;
        // SAFETY: reads shared memory under the server's own locks.
        let availability = unsafe { pg_sys::GetWALAvailability(self.restart_lsn().0) };
        matches!(availability, Availability::WALAVAIL_RESERVED | Availability::WALAVAIL_EXTENDED)
    }

    /// Releases the slot now, and has the WAL removed that is kept for no other. Only the end of the run may follow.
    pub(crate) fn give_up(&self) {
        self.release();
        checkpoint::request();
    }

    /// Releases the slot, if this session still holds it.
    fn release(&self) {
        // SAFETY: reads a pointer of this process.
        if unsafe { pg_sys::MyReplicationSlot.is_null() } {
            return;
        }
        cleanup::quietly("release the replication slot", || {
            if self.was_empty {
                // SAFETY: as below. Nothing between the ends of the spinlock can fail, wait or be interrupted. The two functions
                // after that are what the server calls when a restart_lsn has changed; they take locks of their own.
                unsafe {
                    let slot = pg_sys::MyReplicationSlot;
                    pg_sys::SpinLockAcquire(&raw mut (*slot).mutex);
                    (*slot).data.restart_lsn = 0;
                    pg_sys::SpinLockRelease(&raw mut (*slot).mutex);
                    pg_sys::ReplicationSlotMarkDirty();
                    pg_sys::ReplicationSlotsComputeRequiredLSN();
                }
            }
            // SAFETY: this session holds a slot, and it is this one: reserve() found none before. Releasing
            // an ephemeral slot drops it.
            unsafe { pg_sys::ReplicationSlotRelease() }
        });
    }

    /// Makes the slot outlive this run and releases it, for the standby to use.
    pub(crate) fn keep(mut self) -> Result<()> {
        self.check_wal_reserved()?;
        if self.created {
            // SAFETY: MyReplicationSlot is ours and ephemeral; check_wal_reserved saw it alive.
            unsafe { pg_sys::ReplicationSlotPersist() };
        } else if self.was_empty {
            // SAFETY: as above, but for a persistent one.
            unsafe {
                pg_sys::ReplicationSlotMarkDirty();
                pg_sys::ReplicationSlotSave();
            }
            self.was_empty = false;
        }
        // Drop releases it; a persistent slot stays.
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.release();
    }
}

/// Drops a slot that nothing has come to use. Whatever fails, it stays. The session must hold none.
pub(crate) fn drop_idle(name: &str) {
    let dropped = raised::caught(|| {
        if let Some(found) = catalog::slot(name)?
            && found.active_pid.is_none()
            && let Ok(name) = CString::new(name)
        {
            // SAFETY: the session holds no slot: Slot::keep has released it. The server raises an ERROR if another session was
            // faster.
            unsafe { pg_sys::ReplicationSlotDrop(name.as_ptr(), true) };
        }
        Ok(())
    });
    if let Err(error) = dropped {
        log::log(&format!("pgpool_recovery: could not drop replication slot \"{name}\": {}", error.message));
    }
}

/// The refusal of a slot that no standby can use.
pub(crate) fn wrong_type(name: &str, slot_type: &str) -> Error {
    Error::new(Kind::InUse, format!("replication slot \"{name}\" is a {slot_type} slot"))
        .detail("A standby needs a physical slot of that name.")
        .hint("Choose another name with pgpool_recovery.slot_name.")
}

/// The refusal of a slot that is in use.
pub(crate) fn active(name: &str, pid: i32) -> Error {
    Error::new(Kind::InUse, format!("replication slot \"{name}\" is active for PID {pid}"))
        .detail("A standby that streams, or another recovery, uses the slot.")
        .hint("Stop the standby that uses it, or choose another name with pgpool_recovery.slot_name. After the standby's host has failed it is released within wal_sender_timeout.")
}

/// Whether `name` can name a slot: 1 to 63 of `a-z`, `0-9`, `_`.
pub(crate) fn validate(name: &str) -> Result<()> {
    let valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(valid) {
        return Ok(());
    }
    Err(Error::new(
        Kind::InvalidArgument,
        format!("invalid replication slot name {}", crate::settings::request::shown(name)),
    )
    .detail(format!("It has {} bytes.", name.len()))
    .hint(
        "A slot name has 1 to 63 lower-case letters, digits and underscores; see pgpool_recovery.slot_name.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let longest = "a".repeat(MAX_NAME);
        for good in ["a", "node_1", longest.as_str()] {
            assert_eq!(validate(good), Ok(()));
        }
        let long = "a".repeat(MAX_NAME + 1);
        for bad in ["", "A", "a-b", "a.b", "a b", "\u{e4}", long.as_str()] {
            assert_eq!(validate(bad).expect_err(bad).kind, Kind::InvalidArgument);
        }
    }
}

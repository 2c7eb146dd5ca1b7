//! How far a session has come, and what it has by then. None can be made outside of [`super`].

use pgdata::wal::Lsn;

use super::wal::WalStream;
use crate::manifest::list::FileList;

/// The target was looked at, and locked if it is going to be replaced.
pub struct Opened(pub(super) ());

/// The receiver has the plan.
pub struct Planned {
    pub(super) files: FileList,
}

/// The target cannot be started until the session has finished. From here on WAL is sent as the server flushes it.
pub struct Begun {
    pub(super) files: FileList,
    pub(super) wal: WalStream,
}

/// All data was sent.
pub struct Sent {
    pub(super) wal: WalStream,
}

/// Every file of the plan has its size, and what is surplus is gone.
pub struct Reconciled {
    pub(super) wal: WalStream,
}

/// The target has all the WAL that it needs, too.
pub struct Complete {
    /// Where it ends.
    pub(super) wal_end: Lsn,
}

/// The target is complete and durable, or what differs has been counted.
pub struct Finished(pub(super) ());

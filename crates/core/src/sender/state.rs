//! How far a session has come, and what it has by then. None can be made outside of [`super`].

use super::transfer::Links;
use crate::manifest::list::FileList;

/// The target was looked at, and locked if it is going to be replaced.
pub struct Opened(pub(super) ());

/// The receiver has the plan.
pub struct Planned {
    pub(super) files: FileList,
}

/// The target cannot be started until the session has finished.
pub struct Begun {
    pub(super) files: FileList,
}

/// All data was sent.
pub struct Sent {
    pub(super) files: FileList,
    pub(super) links: Links,
}

/// Every file of the plan has its size, and what is surplus is gone. WAL may come.
pub struct Reconciled {
    pub(super) files: FileList,
    pub(super) links: Links,
}

/// The target has the WAL, too.
pub struct Complete(pub(super) ());

/// The target is complete and durable, or what differs has been counted.
pub struct Finished(pub(super) ());

//! The operating system, without a word of PostgreSQL.

pub mod addresses;
pub(crate) mod blocks;
pub(crate) mod buffer;
pub mod cancel;
pub mod clock;
pub(crate) mod direct;
pub(crate) mod directory_lock;
mod file_id;
pub(crate) mod hexadecimal;
pub mod libraries;
pub mod lock;
pub mod machine;
pub mod parallel;
pub(crate) mod process;
pub mod size;
pub(crate) mod small_file;
pub mod sockets;
pub mod space;
pub(crate) mod timely;

pub use file_id::FileId;

//! PostgreSQL's side: everything `unsafe`, one concern a file, no logic of the product.
//!
//! The rest of the extension sees safe functions and guards. A guard undoes its work when it is
//! dropped, also while a PostgreSQL ERROR unwinds through Rust frames; see [`cleanup`].
//! A FATAL error (a terminated backend, or one whose postmaster died) unwinds nothing: what must be undone then is undone by
//! PostgreSQL itself (backup, ephemeral slot, progress) or ahead of time (see [`threads`]).
//!
//! A PostgreSQL function is called through pgrx's generated wrapper, which turns an ERROR (a longjmp) into a panic that
//! unwinds; so do SPI and `direct_function_call`. The lint `ffi_unwind_calls` finds functions that have none. What is
//! called or touched without one, and why it may be:
//!
//! | where | what | why no ERROR can jump over a frame of ours |
//! |---|---|---|
//! | [`log`] | `errstart`, `errcode`, `errmsg_internal`, `errdetail_internal`, `errhint`, `errhidestmt`, `errfinish` | called inside `pg_guard_ffi_boundary`, which is what the wrappers use, by a closure that owns nothing |
//! | [`checkpoint`] | `RequestCheckpoint`, for which pgrx has no wrapper | called inside `pg_guard_ffi_boundary`, by a closure that owns nothing |
//! | [`compat`] | `pgaio_error_cleanup`, for which pgrx has no wrapper | called inside `pg_guard_ffi_boundary`, by a closure that owns nothing |
//! | [`compat`] | `die` | a signal handler, which the server calls and which sets flags |
//! | [`memory`] | `mmap`, `munmap`, `malloc`, `calloc`, `realloc`, `posix_memalign`, `free`, `gettid`, `getpid`, `pthread_create`, `__cxa_thread_atexit_impl` | libc's; they raise nothing |
//! | [`horizon`] | `ActivePortal` with its query, plan and snapshot; `XactIsoLevel` | variables of this process, and what the statement that called us has; read, and the pointers to the snapshot set |
//! | [`horizon`] | `dladdr` | libc's; it raises nothing |
//! | [`threads`] | `sigfillset`, `pthread_sigmask` | libc's; they raise nothing |
//! | [`log`] | `error_context_stack` | a variable of this process, read and set |
//! | [`interrupts`] | `ProcDiePending`, `ProcSignalBarrierPending`, `InterruptHoldoffCount`, `CritSectionCount`, and `InterruptPending` in `check_for_interrupts!` | variables of this process, read |
//! | [`postmaster`] | `IsUnderPostmaster`, `PostmasterPid` | variables of this process, read |
//! | [`postmaster`] | `PostmasterIsAliveInternal`, for which pgrx has no wrapper | reads a pipe; it raises nothing but FATAL, which does not return |
//! | [`slot`] | `MyReplicationSlot` and the slot it points to | the owner may read its slot (slot.h), and change it under its spinlock |
//! | [`slot`] | `SpinLockAcquire`, `SpinLockRelease` | they raise nothing; a lock that is stuck for minutes ends the server, as everywhere in it |
//! | [`compat`] | `MyProcPort` and the first field of the `Port` it points to | set once, when the session begins |
//! | [`sequences`] | the memory that a background worker and the session that asked share, and the lock of a sequence by its OID | memory is read and written in Rust; all else goes through wrappers |
//! | `error_stack` | `CurrentMemoryContext`, `InterruptHoldoffCount` | variables of this process, set and put back |
//! | `subtransaction` | `CurrentMemoryContext`, `CurrentResourceOwner`, `MyReplicationSlot` | variables of this process, read, and the first two put back |
//! | [`text`] | `varlena_to_byte_slice` | pgrx's, in Rust: reads memory that was detoasted before |
#![allow(unsafe_code, reason = "this is the one place for calls into the server")]

pub(crate) mod backup;
pub(crate) mod catalog;
mod checkpoint;
pub(crate) mod cleanup;
pub(crate) mod compat;
mod error_stack;
pub(crate) mod horizon;
pub(crate) mod interrupts;
pub(crate) mod json;
pub(crate) mod libc_version;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod postmaster;
pub(crate) mod privileges;
pub(crate) mod progress;
pub(crate) mod query;
pub(crate) mod raised;
pub(crate) mod recovery;
pub(crate) mod sequences;
pub(crate) mod slot;
mod subtransaction;
pub(crate) mod tablespace_lock;
pub(crate) mod text;
pub(crate) mod threads;
#[cfg(any(test, feature = "pg_test"))]
pub(crate) mod trouble;
pub(crate) mod wal;

//! Sequences, flushed exactly: in each database a background worker, which needs no password and no line of pg_hba.conf.
//!
//! WAL has the value of a sequence up to 32 ahead (SEQ_LOG_VALS in sequence.c), so a standby that is promoted goes on with a
//! later one than its primary. setval() to the value that it has writes that one.

use std::ffi::CStr;
use std::mem::size_of;
use std::ptr::{addr_of_mut, copy_nonoverlapping, null_mut};
use std::time::Duration;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::bgworkers::{BackgroundWorkerBuilder, BackgroundWorkerStatus, DynamicBackgroundWorker};
use pgrx::{pg_guard, pg_sys};

use super::catalog::Database;
use super::raised::{self, Raised};
use super::{cleanup, compat, interrupts, query, threads};

/// How many sequences are locked at a time.
const BATCH: usize = 200;

/// How often is looked whether the worker has ended.
const LOOK: Duration = Duration::from_millis(5);

/// Bytes of an error that a worker can tell.
const TEXT: usize = 1000;

/// Lets a worker connect to a database that allows no connections (BGWORKER_BYPASS_ALLOWCONN in bgworker.h).
const BYPASS_ALLOWCONN: u32 = 1;

/// What no segment has for a handle (DSM_HANDLE_INVALID in dsm_impl.h): a worker that gets it ends at once.
const NO_SEGMENT: u32 = 0;

/// What was done in a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flushed {
    /// Sequences of which WAL had a later value.
    pub(crate) sequences: u64,
    /// Unlogged tables, indexes and sequences, of which a standby has nothing.
    pub(crate) unlogged: u64,
}

/// What the two processes share.
#[repr(C)]
struct Shared {
    database: pg_sys::Oid,
    /// Written last.
    state: u32,
    sequences: u64,
    unlogged: u64,
    length: u32,
    text: [u8; TEXT],
}

const STARTED: u32 = 0;
const FLUSHED: u32 = 1;
const FAILED: u32 = 2;

/// Flushes the sequences of one database.
pub(crate) fn flush(database: &Database) -> Result<Flushed> {
    let segment = Segment::make(database.oid);
    start(segment.handle())?.wait();
    segment.outcome(database)
}

/// Fails if there would be no worker now. The one that this gets does nothing.
pub(crate) fn try_worker() -> Result<()> {
    start(NO_SEGMENT).map(Worker::wait)
}

fn start(handle: u32) -> Result<Worker> {
    let worker = BackgroundWorkerBuilder::new("pgpool_recovery sequences")
        .set_library("$libdir/pgpool_recovery")
        .set_function("pgpool_recovery_flush_sequences")
        .set_argument(Some(pg_sys::Datum::from(handle)))
        .enable_spi_access();
    let worker = worker.load_dynamic().map_err(|_| {
        Error::new(Kind::LimitExceeded, "no background worker is free to flush sequences")
            .detail("max_worker_processes of them are in use.")
            .hint(
                "Increase max_worker_processes and restart the server, or call again when others have ended.",
            )
    })?;
    Ok(Worker(Some(worker)))
}

/// A worker, terminated if nobody waits for it any more.
struct Worker(Option<DynamicBackgroundWorker>);

impl Worker {
    /// Waits until it has ended, answering interrupts.
    fn wait(mut self) {
        while let Some(Ok(_) | Err(BackgroundWorkerStatus::NotYetStarted)) =
            self.0.as_ref().map(DynamicBackgroundWorker::pid)
        {
            threads::pause(LOOK);
        }
        self.0 = None;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(worker) = self.0.take() {
            cleanup::quietly("end the worker that flushes sequences", || {
                let _ = worker.terminate();
            });
        }
    }
}

/// Shared memory for one worker.
struct Segment(*mut pg_sys::dsm_segment);

impl Segment {
    fn make(database: pg_sys::Oid) -> Self {
        // SAFETY: raises an ERROR where there is no room. The memory is as large as `Shared`, aligned for any type
        // (dsm_segment_address), and no other process knows it yet.
        unsafe {
            let segment = pg_sys::dsm_create(size_of::<Shared>() as pg_sys::Size, 0);
            let shared = pg_sys::dsm_segment_address(segment).cast::<Shared>();
            shared.write(Shared {
                database,
                state: STARTED,
                sequences: 0,
                unlogged: 0,
                length: 0,
                text: [0; TEXT],
            });
            Self(segment)
        }
    }

    fn handle(&self) -> u32 {
        // SAFETY: the segment lives as long as self.
        unsafe { pg_sys::dsm_segment_handle(self.0) }
    }

    /// What the worker, which has ended, has left.
    fn outcome(&self, database: &Database) -> Result<Flushed> {
        // SAFETY: the segment lives as long as self, and no other process writes to it any more.
        let shared = unsafe { pg_sys::dsm_segment_address(self.0).cast::<Shared>().read() };
        let name = &database.name;
        match shared.state {
            FLUSHED => Ok(Flushed { sequences: shared.sequences, unlogged: shared.unlogged }),
            FAILED => {
                let length = TEXT.min(shared.length as usize);
                let text = String::from_utf8_lossy(&shared.text[..length]).into_owned();
                Err(Error::new(Kind::WrongState, format!("could not flush the sequences of database \"{name}\""))
                    .detail(format!("The server said: {text}."))
                    .hint("If a session holds a sequence, end it: no client may work on this server now. Then run the recovery again."))
            }
            _ => Err(Error::new(
                Kind::WrongState,
                format!("could not flush the sequences of database \"{name}\""),
            )
            .detail("The background worker for it has ended without a word.")
            .hint("See the log of this server, then run the recovery again.")),
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: the segment was made by this process, and is still attached: the transaction has not ended.
        cleanup::quietly("release shared memory", || unsafe { pg_sys::dsm_detach(self.0) });
    }
}

/// The worker's own process.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pgpool_recovery_flush_sequences(argument: pg_sys::Datum) {
    let handle = argument.value() as pg_sys::dsm_handle;
    interrupts::worker_begins();
    if handle == NO_SEGMENT {
        return;
    }
    // SAFETY: called by the server when a background worker begins. The segment is attached until the process ends, and this
    // process alone writes to it. What fails raises an ERROR, which ends the process.
    unsafe {
        let segment = pg_sys::dsm_attach(handle);
        if segment.is_null() {
            // the session that asked is gone
            return;
        }
        let shared = pg_sys::dsm_segment_address(segment).cast::<Shared>();
        let user = pg_sys::InvalidOid;
        pg_sys::BackgroundWorkerInitializeConnectionByOid((*shared).database, user, BYPASS_ALLOWCONN);
        settings();
        let done = raised::noting(flush_all, |raised| fail(shared, &raised));
        match done {
            Ok(Flushed { sequences, unlogged }) => {
                (*shared).sequences = sequences;
                (*shared).unlogged = unlogged;
                (*shared).state = FLUSHED;
            }
            Err(error) => tell(shared, &error.to_string()),
        }
    }
}

/// What a database or a role may have set otherwise.
fn settings() {
    let set = |name: &CStr, value: &CStr| {
        // SAFETY: NUL-terminated strings, which are copied.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    };
    set(c"search_path", c"pg_catalog, pg_temp");
    set(c"default_transaction_read_only", c"off");
    // a session that holds a sequence is told of, not waited for
    set(c"lock_timeout", c"10s");
    set(c"statement_timeout", c"0");
    // the standby is waited for when all is written
    set(c"synchronous_commit", c"local");
    if let Some(timeout) = compat::TRANSACTION_TIMEOUT {
        set(timeout, c"0");
    }
}

fn fail(shared: *mut Shared, raised: &Raised) {
    // the sequence on which it waited stays unknown
    tell(shared, &raised.error().message);
}

fn tell(shared: *mut Shared, text: &str) {
    let length = text.len().min(TEXT);
    // SAFETY: the segment is attached, and is written by this process alone; the text has at least as many bytes.
    unsafe {
        copy_nonoverlapping(text.as_ptr(), addr_of_mut!((*shared).text).cast::<u8>(), length);
        (*shared).length = length as u32;
        (*shared).state = FAILED;
    }
}

fn flush_all() -> Result<Flushed> {
    let (sequences, unlogged) = transaction(|| {
        let sql = "SELECT c.oid::text FROM pg_catalog.pg_class AS c
                   WHERE c.relkind = 'S' AND c.relpersistence = 'p' ORDER BY c.oid";
        let mut sequences = Vec::new();
        for mut row in query::rows(sql, &[])? {
            sequences.extend(row.string("a sequence")?.and_then(|oid| oid.parse::<u32>().ok()));
        }
        let sql =
            "SELECT pg_catalog.count(*)::text FROM pg_catalog.pg_class AS c WHERE c.relpersistence = 'u'";
        let unlogged = query::row(sql, &[])?.string("a number")?.and_then(|count| count.parse().ok());
        Ok((sequences, unlogged.unwrap_or(0)))
    })?;
    let mut flushed = 0;
    for batch in sequences.chunks(BATCH) {
        flushed += transaction(|| {
            let mut flushed = 0;
            for sequence in batch {
                interrupts::check();
                flushed += u64::from(flush_one(*sequence)?);
            }
            Ok(flushed)
        })?;
    }
    Ok(Flushed { sequences: flushed, unlogged })
}

/// Flushes one sequence. False if there was nothing to do, or it is gone.
fn flush_one(sequence: u32) -> Result<bool> {
    let Some(State { last_value, log_cnt, is_called }) = lock_and_read(pg_sys::Oid::from(sequence)) else {
        return Ok(false);
    };
    if log_cnt == 0 {
        return Ok(false);
    }
    let sql = format!(
        "SELECT pg_catalog.setval({sequence}::pg_catalog.oid::pg_catalog.regclass, '{last_value}'::pg_catalog.int8, {is_called})::text"
    );
    query::row(&sql, &[]).map(|_| true)
}

/// What a sequence consists of (`FormData_pg_sequence_data` in sequence.h).
#[repr(C)]
struct State {
    last_value: i64,
    /// How many values WAL is ahead.
    log_cnt: i64,
    is_called: bool,
}

/// Locks a sequence until the transaction ends, and reads it; `None` if it is gone. As ALTER SEQUENCE has it, the lock keeps nextval()
/// out, so that the value that is read is the one that is written.
///
/// It is read by its number: what has its name may be something else, by whoever owns the schema, and this process would run
/// that as a superuser.
fn lock_and_read(sequence: pg_sys::Oid) -> Option<State> {
    // SAFETY: what is opened is closed in the reverse order, or by the transaction's abort. A sequence has one tuple, of
    // the fields of `State`, which is copied while the scan holds it. What fails raises an ERROR, as does a lock that is not to
    // be had in time.
    unsafe {
        let relation = pg_sys::try_relation_open(sequence, pg_sys::ShareRowExclusiveLock as pg_sys::LOCKMODE);
        if relation.is_null() {
            return None;
        }
        let mut state = None;
        if (*(*relation).rd_rel).relkind as u8 == pg_sys::RELKIND_SEQUENCE {
            let (no_index, keys) = (pg_sys::InvalidOid, null_mut());
            let scan = pg_sys::systable_beginscan(relation, no_index, false, null_mut(), 0, keys);
            if let Some(tuple) = pg_sys::systable_getnext(scan).as_ref() {
                let header = tuple.t_data;
                state = Some(header.byte_add((*header).t_hoff.into()).cast::<State>().read_unaligned());
            }
            pg_sys::systable_endscan(scan);
        }
        pg_sys::relation_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        state
    }
}

/// Runs `body` in a transaction of the worker's. One that fails is undone by the end of the process.
fn transaction<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: the process is connected to a database and in no transaction: the order is that of a background worker
    // (worker_spi.c).
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    }
    let done = body()?;
    // SAFETY: the snapshot and the transaction are those of above.
    unsafe {
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
    }
    Ok(done)
}

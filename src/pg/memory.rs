//! Memory that cannot be had.
//!
//! Rust's collections abort the process where malloc fails, and a session that ends by SIGABRT takes all others of the
//! server with it (S1). So this library's malloc has something set aside, does not give up where a thread can wait, and
//! tells the main thread, which fails the run. The threads of the run then give back what they have.

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use libc::{c_int, c_void, pthread_attr_t, pthread_t};
use pgpool_recovery_core::error::{Error, Kind, Result};

use super::log;

/// What is set aside, bytes: enough for a thread's buffers, and for an error to reach the client.
const RESERVE: usize = 4 << 20;

/// What only small requests get of that, bytes, before the run's threads end: the C library ends the process where it has none for
/// itself.
const LARGE: usize = 16 << 10;

/// What the main thread has of a stack from the beginning, bytes.
const STACK: usize = 512 << 10;

/// What is there for a thread's first steps, bytes.
const FIRST_STEPS: usize = 256 << 10;

/// More than the C library takes to remember that a thread-local variable has to be dropped, bytes; large enough to be given back to
/// all and not to be kept for its thread.
const REMEMBERED: usize = 4 << 10;

/// Between two attempts.
const TRY: Duration = Duration::from_millis(10);

/// How long the main thread tries: nothing trips the run's switch meanwhile.
const MAIN_PATIENCE: Duration = Duration::from_millis(200);

/// How long threads have to give back memory that others wait for.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is set aside: address space that is accounted for, but has not been touched. NULL: nothing.
static SET_ASIDE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// The size of the last allocation that failed, until it is acted on. 0: none did.
static FAILED: AtomicUsize = AtomicUsize::new(0);

/// How many threads wait for memory.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Allocates. The main thread returns with memory or not at all, all others when there is some.
#[cfg(not(test))]
fn insist(size: usize, allocate: impl Fn() -> *mut c_void) -> *mut c_void {
    let memory = allocate();
    if memory.is_null() { insist_after_failure(size, allocate) } else { memory }
}

/// The program that runs the tests has no server to link with.
#[cfg(test)]
fn insist(_: usize, allocate: impl Fn() -> *mut c_void) -> *mut c_void {
    allocate()
}

#[cfg_attr(test, expect(dead_code, reason = "see above"))]
#[cold]
fn insist_after_failure(size: usize, allocate: impl Fn() -> *mut c_void) -> *mut c_void {
    FAILED.store(size.max(1), Ordering::SeqCst);
    give_back();
    WAITING.fetch_add(1, Ordering::SeqCst);
    let begin = Instant::now();
    loop {
        // the main thread has tripped the switch once it has seen that something failed
        let may_have_it = size < LARGE || is_main_thread() || FAILED.load(Ordering::SeqCst) == 0;
        let memory = if may_have_it { allocate() } else { ptr::null_mut() };
        if !memory.is_null() {
            WAITING.fetch_sub(1, Ordering::SeqCst);
            return memory;
        }
        if is_main_thread() && begin.elapsed() >= MAIN_PATIENCE {
            log::end_for_want_of_memory();
        }
        sleep(TRY);
    }
}

fn is_main_thread() -> bool {
    // SAFETY: two system calls that cannot fail.
    unsafe { libc::gettid() == libc::getpid() }
}

/// Sets memory aside, unless it is. Without it no work begins.
pub(super) fn set_aside() -> Result<()> {
    if !SET_ASIDE.load(Ordering::SeqCst).is_null() {
        return Ok(());
    }
    let memory = map(RESERVE).ok_or_else(|| out_of_memory(RESERVE))?;
    SET_ASIDE.store(memory, Ordering::SeqCst);
    Ok(())
}

/// Gives the main thread the stack that it needs. The kernel gives more of it where it is first touched, and ends the process with
/// SIGSEGV where no address space is left by then.
pub(crate) fn grow_stack() -> Result<()> {
    let room = map(STACK).ok_or_else(|| out_of_memory(STACK))?;
    // SAFETY: what was just mapped, which nobody else knows.
    unsafe { libc::munmap(room, STACK) };
    touch_stack();
    Ok(())
}

#[inline(never)]
#[expect(clippy::large_stack_arrays, reason = "that is its purpose")]
fn touch_stack() {
    std::hint::black_box([0_u8; STACK]);
}

/// Memory that is nobody else's. Not malloc's, which may keep what is given back for the thread that had it.
fn map(length: usize) -> Option<*mut c_void> {
    let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping.
    let memory = unsafe { libc::mmap(ptr::null_mut(), length, access, kind, -1, 0) };
    (memory != libc::MAP_FAILED).then_some(memory)
}

/// Gives back what is set aside.
fn give_back() {
    let memory = SET_ASIDE.swap(ptr::null_mut(), Ordering::SeqCst);
    if !memory.is_null() {
        // SAFETY: what `set_aside` mapped; the swap gives it to one thread only.
        unsafe { libc::munmap(memory, RESERVE) };
    }
}

/// What failed before is no business of the command that begins.
pub(crate) fn forget() {
    FAILED.store(0, Ordering::SeqCst);
}

/// Fails if an allocation has failed since this was asked last, also if it succeeded at last.
pub(super) fn check() -> Result<()> {
    match FAILED.swap(0, Ordering::SeqCst) {
        0 => Ok(()),
        size => Err(out_of_memory(size)),
    }
}

/// Ends the session once threads have waited in vain for too long. `since`: since when the caller has seen them do so.
pub(super) fn end_if_in_vain(since: &mut Option<Instant>) {
    if WAITING.load(Ordering::SeqCst) == 0 {
        *since = None;
    } else if since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
        log::end_for_want_of_memory();
    }
}

type Start = unsafe extern "C" fn(*mut c_void) -> *mut c_void;

unsafe extern "C" {
    // pthread_create(); the linker gives it this name (build.rs)
    fn __real_pthread_create(
        thread: *mut pthread_t,
        attributes: *const pthread_attr_t,
        start: Start,
        argument: *mut c_void,
    ) -> c_int;
}

/// Takes the place of pthread_create() in this library. The C library gives a thread of ours its thread-local variables when it first
/// uses one, and ends the process, with a status that is a crash for the postmaster, where it has no memory for them. So a
/// thread begins with memory that it gives back at its first step; where there is none it is not started.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_pthread_create(
    thread: *mut pthread_t,
    attributes: *const pthread_attr_t,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    let Some(room) = map(FIRST_STEPS) else { return libc::EAGAIN };
    // SAFETY: the mapping is large enough and aligned to a page; the thread owns it once it has been started. The
    // arguments are the caller's.
    unsafe {
        room.cast::<(Start, *mut c_void)>().write((start, argument));
        let error = __real_pthread_create(thread, attributes, begin, room);
        if error != 0 {
            libc::munmap(room, FIRST_STEPS);
        }
        error
    }
}

/// A thread's first step. It uses no thread-local variable.
unsafe extern "C" fn begin(room: *mut c_void) -> *mut c_void {
    // SAFETY: what `__wrap_pthread_create` wrote, for this thread only.
    unsafe {
        let (start, argument) = room.cast::<(Start, *mut c_void)>().read();
        libc::munmap(room, FIRST_STEPS);
        start(argument)
    }
}

type Dropper = unsafe extern "C" fn(*mut c_void);

unsafe extern "C" {
    // __cxa_thread_atexit_impl(); as above
    fn __real___cxa_thread_atexit_impl(drop: Dropper, variable: *mut c_void, library: *mut c_void) -> c_int;
}

/// Takes the place of the function by which Rust has a thread-local variable dropped at the end of its thread. The C library ends
/// the process where it has no memory to remember that. So it is called once there is some.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap___cxa_thread_atexit_impl(
    drop: Dropper,
    variable: *mut c_void,
    library: *mut c_void,
) -> c_int {
    make_sure_of_memory();
    // SAFETY: the caller's arguments, and its promises.
    unsafe { __real___cxa_thread_atexit_impl(drop, variable, library) }
}

/// Returns once malloc has some.
fn make_sure_of_memory() {
    // SAFETY: memory that nobody else knows is given back at once.
    unsafe { libc::free(insist(REMEMBERED, || __real_malloc(REMEMBERED))) };
}

unsafe extern "C" {
    // malloc() and the like; as above
    fn __real_malloc(size: usize) -> *mut c_void;
    fn __real_calloc(count: usize, size: usize) -> *mut c_void;
    fn __real_realloc(memory: *mut c_void, size: usize) -> *mut c_void;
    fn __real_posix_memalign(memory: *mut *mut c_void, alignment: usize, size: usize) -> c_int;
}

/// Takes the place of malloc() in this library: of Rust's allocator, of what the standard library allocates beside that for its
/// threads, and of C libraries.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_malloc(size: usize) -> *mut c_void {
    // SAFETY: passed on to the caller.
    insist(size, || unsafe { __real_malloc(size) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_calloc(count: usize, size: usize) -> *mut c_void {
    // SAFETY: passed on to the caller.
    let allocate = || unsafe { __real_calloc(count, size) };
    // what no memory is large enough for is the caller's fault
    count.checked_mul(size).map_or_else(allocate, |bytes| insist(bytes, allocate))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_realloc(memory: *mut c_void, size: usize) -> *mut c_void {
    // what fails leaves the memory as it was; to 0 bytes it is given back, and nothing is no failure
    // SAFETY: passed on to the caller.
    let allocate = || unsafe { __real_realloc(memory, size) };
    if size == 0 { allocate() } else { insist(size, allocate) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap_posix_memalign(memory: *mut *mut c_void, alignment: usize, size: usize) -> c_int {
    // SAFETY: passed on to the caller, and below with a place of our own.
    let allocate = |place| unsafe { __real_posix_memalign(place, alignment, size) };
    match allocate(memory) {
        libc::ENOMEM => {
            let found = insist(size, || {
                let mut found = ptr::null_mut();
                if allocate(&raw mut found) == 0 { found } else { ptr::null_mut() }
            });
            // SAFETY: the caller's place for the answer.
            unsafe { memory.write(found) };
            if found.is_null() { libc::ENOMEM } else { 0 }
        }
        done => done,
    }
}

fn out_of_memory(size: usize) -> Error {
    Error::new(Kind::OutOfMemory, "out of memory")
        .detail(format!("Allocating {size} bytes failed."))
        .hint("Set pgpool_recovery.jobs lower, or raise the limits of the server's memory (ulimit -v, LimitAS of the unit, vm.overcommit_ratio) and repeat it.")
}

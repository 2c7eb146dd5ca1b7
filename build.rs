//! The linker leads what allocates, what starts threads, and what registers the ends of their variables, through `src/pg/memory.rs`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for function in
        ["malloc", "calloc", "realloc", "posix_memalign", "pthread_create", "__cxa_thread_atexit_impl"]
    {
        println!("cargo::rustc-link-arg=-Wl,--wrap={function}");
    }
    // The functions of the tests are found by a section that the linker would drop. cargo-pgrx has this flag, too, but
    // gives it to every crate, so that all of them are built once more.
    if std::env::var_os("CARGO_FEATURE_PG_TEST").is_some() {
        println!("cargo::rustc-link-arg-cdylib=-Wl,--no-gc-sections");
    }
}

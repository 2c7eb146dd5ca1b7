//! The linker leads what starts threads, and what registers the ends of their variables, through `src/pg/memory.rs`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg=-Wl,--wrap=pthread_create");
    println!("cargo::rustc-link-arg=-Wl,--wrap=__cxa_thread_atexit_impl");
}

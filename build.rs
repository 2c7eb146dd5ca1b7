//! The linker leads what starts threads through `src/pg/memory.rs`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg=-Wl,--wrap=pthread_create");
}

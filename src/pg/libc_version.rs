//! The C library that this server runs with.

/// The version of the GNU C library that this process has loaded, which an update may have replaced on the disk; `None`: it
/// is another one.
#[cfg(target_env = "gnu")]
pub(crate) fn glibc() -> Option<String> {
    // SAFETY: it takes nothing, cannot fail, and returns a constant that ends in NUL.
    let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
    Some(version.to_string_lossy().into_owned())
}

/// The version of the GNU C library that this process has loaded; `None`: it is another one.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn glibc() -> Option<String> {
    None
}

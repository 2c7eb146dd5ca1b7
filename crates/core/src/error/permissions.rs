//! Whose is a file, and who are we? What an operator has to know who is told that a permission is missing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The owner and mode of a file, and of the directory that holds it, as far as this process can see them, and its own
/// user. `None`: neither can be seen.
pub(super) fn describe(path: &Path) -> Option<String> {
    // a relative name says nothing about where it lies
    let visible: Vec<String> =
        path.ancestors().filter(|path| path.is_absolute()).filter_map(owner).take(2).collect();
    if visible.is_empty() {
        return None;
    }
    let user = name(rustix::process::geteuid().as_raw());
    Some(format!("{}. This process runs as {user}.", visible.join(", and ")))
}

fn owner(path: &Path) -> Option<String> {
    let found = fs::symlink_metadata(path).ok()?;
    let kind = if found.is_dir() { "directory " } else { "" };
    Some(format!(
        "{kind}\"{}\" belongs to {} and has mode {:04o}",
        path.display(),
        name(found.uid()),
        found.mode() & 0o7777
    ))
}

/// A user by name, or by number where it has no name on this host.
fn name(uid: u32) -> String {
    match uzers::get_user_by_uid(uid) {
        Some(user) => format!("user {}", user.name().display()),
        None => format!("the user with id {uid}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_and_its_directory_are_described() {
        let top = tempfile::tempdir().expect("temporary directory");
        let (closed, file) = (top.path().join("closed"), top.path().join("closed/file"));
        fs::create_dir(&closed).expect("make");
        fs::write(&file, "").expect("write");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("mode");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o711)).expect("mode");
        let said = describe(&file).expect("visible");
        let user = name(rustix::process::geteuid().as_raw());
        let (closed, file) = (closed.display(), file.display());
        assert_eq!(
            said,
            format!(
                "\"{file}\" belongs to {user} and has mode 0640, and directory \"{closed}\" belongs to {user} and has mode 0711. \
                 This process runs as {user}."
            )
        );
        let missing = top.path().join("closed/missing");
        let said = describe(&missing).expect("its directory is visible");
        assert!(said.starts_with("directory \"") && said.contains("0711"), "{said}");
        assert_eq!(describe(Path::new("base/1/2")), None, "it may lie anywhere");
    }

    #[test]
    fn users_have_names() {
        assert_eq!(name(0), "user root");
        assert_eq!(name(4_000_000_000), "the user with id 4000000000");
    }
}

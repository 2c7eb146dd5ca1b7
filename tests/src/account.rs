//! The operating-system account the servers run under.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

/// Numeric ids of an account, as /etc/passwd has them.
#[derive(Debug, Clone, Copy)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

/// User `postgres`. Panics with the reason if the tests cannot run here at all.
pub fn postgres() -> Account {
    static ACCOUNT: OnceLock<Account> = OnceLock::new();
    *ACCOUNT.get_or_init(|| {
        assert!(
            rustix::process::geteuid().is_root(),
            "the end-to-end tests start servers as user postgres and make network namespaces: run them as root (make test does)"
        );
        let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd is readable");
        let line = passwd
            .lines()
            .find(|line| line.starts_with("postgres:"))
            .expect("there is no user postgres: run scripts/setup.sh");
        let mut fields = line.split(':').skip(2).map(|id| id.parse().expect("a number in /etc/passwd"));
        Account { uid: fields.next().expect("uid"), gid: fields.next().expect("gid") }
    })
}

/// Gives `path` to user `postgres`.
pub fn give(path: &Path) {
    let account = postgres();
    std::os::unix::fs::lchown(path, Some(account.uid), Some(account.gid))
        .unwrap_or_else(|error| panic!("could not give {} to postgres: {error}", path.display()));
}

//! Where a program runs: on this machine as it is, or in a network namespace with an address of its own.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::netns::Namespace;
use crate::{account, server};

/// A place to run servers in, always as user `postgres`.
#[derive(Debug, Clone, Default)]
pub struct Host {
    pub(crate) namespace: Option<Arc<Namespace>>,
}

impl Host {
    /// This machine's own network.
    pub fn here() -> Self {
        Self::default()
    }

    pub(crate) fn inside(namespace: Arc<Namespace>) -> Self {
        Self { namespace: Some(namespace) }
    }

    /// The address other hosts reach this one by.
    pub fn address(&self) -> &str {
        self.namespace.as_ref().map_or("127.0.0.1", |namespace| namespace.address())
    }

    /// The file that stands for its network namespace; None: the machine's own.
    pub fn namespace(&self) -> Option<PathBuf> {
        self.namespace.as_ref().map(|namespace| namespace.path())
    }

    /// A command that will run here as user `postgres`, with an environment of its own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let account = account::postgres();
        let mut command;
        if let Some(namespace) = &self.namespace {
            // Entering a namespace takes root, so nsenter gives it up itself.
            command = Command::new("nsenter");
            command.arg(format!("--net={}", namespace.path().display()));
            command.args(["--setuid", &account.uid.to_string(), "--setgid", &account.gid.to_string()]);
            command.arg("--").arg(program);
        } else {
            command = Command::new(program);
            command.uid(account.uid).gid(account.gid);
        }
        // Nothing of the caller's: RUST_BACKTRACE alone would put a backtrace into every DETAIL,
        // PG* would lead clients elsewhere.
        command.env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs([("LANG", "C.UTF-8"), ("HOME", "/tmp"), ("USER", "postgres"), ("TZ", "UTC")]);
        command.current_dir("/");
        command
    }

    /// [`Host::command`] for a program of the PostgreSQL under test.
    pub fn pg(&self, program: &str) -> Command {
        self.command(server::program(program))
    }

    /// [`Host::command`] for the installed hook.
    pub fn hook(&self) -> Command {
        let program = std::env::var_os("PGPOOL_RECOVERY_HOOK")
            .map_or_else(|| PathBuf::from("/usr/local/bin/pgpool-recovery-hook"), PathBuf::from);
        self.command(program)
    }

    /// [`Host::command`] for the installed agent.
    pub fn agent(&self) -> Command {
        let program = std::env::var_os("PGPOOL_RECOVERY_AGENT")
            .map_or_else(|| PathBuf::from("/usr/local/bin/pgpool-recovery-agent"), PathBuf::from);
        self.command(program)
    }
}

/// A command of [`Host::here`] that is process 1 of a pid namespace of its own, as in a container without an init.
pub fn as_process_1(command: &Command) -> Command {
    unshared(command, &["--pid", "--fork", "--kill-child", "--mount-proc"])
}

/// A command of [`Host::here`] in a mount namespace of its own, in which each first file lies over the second one.
pub fn among_mounts(command: &Command, mounts: &[(PathBuf, PathBuf)]) -> Command {
    let script =
        "while [ \"$1\" != -- ]; do mount --bind \"$1\" \"$2\" || exit; shift 2; done; shift; exec \"$@\"";
    let mut arguments: Vec<&OsStr> =
        ["--mount", "--propagation", "private", "sh", "-c", script, "sh"].map(OsStr::new).into();
    arguments.extend(mounts.iter().flat_map(|(file, over)| [file.as_os_str(), over.as_os_str()]));
    arguments.push(OsStr::new("--"));
    unshared(command, &arguments)
}

/// A command of [`Host::here`] on another Debian: its root directory is `root`, which stays as it is, with the directory `shared` of this
/// one. What is changed there is in memory below `shared`, and goes with the command.
pub fn in_root(command: &Command, root: &Path, shared: &Path) -> Command {
    const SCRIPT: &str = "set -e; root=$1 shared=$2 program=$3 over=$2/other-root
        mkdir \"$over\"; mount -t tmpfs tmpfs \"$over\"; mkdir \"$over/changes\" \"$over/work\" \"$over/root\"
        mount -t overlay -o \"lowerdir=$root,upperdir=$over/changes,workdir=$over/work\" overlay \"$over/root\"
        over=$over/root
        mkdir -p \"$over$shared\" \"$over$(dirname \"$program\")\"; : >>\"$over$program\"
        mount --bind \"$program\" \"$over$program\"; mount --bind \"$shared\" \"$over$shared\"
        mount --rbind /proc \"$over/proc\"; mount --rbind /dev \"$over/dev\"
        cp /etc/passwd /etc/group \"$over/etc/\"
        shift 3; exec chroot \"$over\" \"$@\"";
    let program = Path::new(command.get_program());
    let mut arguments: Vec<&OsStr> =
        ["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"].map(OsStr::new).into();
    arguments.extend([root.as_os_str(), shared.as_os_str(), program.as_os_str()]);
    unshared(command, &arguments)
}

/// The command behind these arguments of unshare.
fn unshared(command: &Command, arguments: &[impl AsRef<OsStr>]) -> Command {
    // entering a namespace takes root, so setpriv gives it up inside
    let account = account::postgres();
    let mut unshare = Command::new("unshare");
    unshare.args(arguments).args(["setpriv", "--clear-groups"]);
    unshare.args(["--reuid", &account.uid.to_string(), "--regid", &account.gid.to_string()]);
    unshare.arg(command.get_program()).args(command.get_args()).env_clear().current_dir("/");
    unshare.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    unshare
}

//! The settings `pgpool_recovery.*`: their definition, and the snapshot the rest works with.
//!
//! All are SUSET: a superuser sets them for the server, a database, a role or a session, and the
//! options of one call overlay them (see [`crate::settings::options`]). None may be set by the role that calls:
//! it could name files and commands for the server's OS user to read and run.

pub(crate) mod options;
pub(crate) mod request;

use std::ffi::{CStr, CString};
use std::time::Duration;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::manifest::exclude::is_of_the_copy;
use pgpool_recovery_core::manifest::path::normalize_directory;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};

use crate::pg::compat;

/// How a target is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum Transport {
    /// A target on this host is written directly, any other through its agent.
    #[name = c"auto"]
    Auto,
    /// Always through the agent.
    #[name = c"agent"]
    Agent,
    /// Always written directly.
    #[name = c"local"]
    Local,
}

/// Which non-empty target may be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum Overwrite {
    /// A stopped cluster with this primary's system identifier, or what an interrupted recovery left.
    #[name = c"same"]
    Same,
    /// Any stopped PostgreSQL cluster.
    #[name = c"any_cluster"]
    AnyCluster,
}

/// How data is compressed on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum Compression {
    /// By what pays.
    #[name = c"auto"]
    Auto,
    /// Not at all.
    #[name = c"off"]
    Off,
    /// LZ4.
    #[name = c"lz4"]
    Lz4,
    /// Zstandard.
    #[name = c"zstd"]
    Zstd,
}

/// What `pgpool_recovery` does with a script name that is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum Scripts {
    /// Runs the script of that name in the data directory.
    #[name = c"run"]
    Run,
    /// Ignores the name and recovers.
    #[name = c"ignore"]
    Ignore,
    /// Raises an error.
    #[name = c"refuse"]
    Refuse,
}

// Defaults, once for PostgreSQL and once for Rust.
const AGENT_PORT_DEFAULT: u16 = 9897;
const START_TIMEOUT_DEFAULT: u32 = 60;
const SECRET_FILE_DEFAULT: &CStr = c"/etc/pgpool-recovery/secret";
const HOST_TEMPLATE_DEFAULT: &CStr = c"%h";
const KEEP_FILES_DEFAULT: &CStr = c"postgresql.conf";

/// Most parallel streams.
pub(crate) const MAX_JOBS: i32 = 64;
/// Longest wait for a standby to stream, in seconds (a day).
pub(crate) const MAX_START_TIMEOUT: i32 = 86_400;

static AGENT_PORT: GucSetting<i32> = GucSetting::<i32>::new(AGENT_PORT_DEFAULT as i32);
static SECRET_FILE: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(SECRET_FILE_DEFAULT));
static TRANSPORT: GucSetting<Transport> = GucSetting::<Transport>::new(Transport::Auto);
static REPLICATION_USER: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static PRIMARY_HOST: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static APPLICATION_NAME: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(HOST_TEMPLATE_DEFAULT));
static SLOT_NAME: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(HOST_TEMPLATE_DEFAULT));
static PASSFILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static RESTORE_COMMAND: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static OVERWRITE: GucSetting<Overwrite> = GucSetting::<Overwrite>::new(Overwrite::Same);
static KEEP_FILES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(KEEP_FILES_DEFAULT));
static TABLESPACE_MAPPING: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static JOBS: GucSetting<i32> = GucSetting::<i32>::new(0);
static COMPRESSION: GucSetting<Compression> = GucSetting::<Compression>::new(Compression::Auto);
static MAX_RATE: GucSetting<i32> = GucSetting::<i32>::new(0);
static CLONE: GucSetting<bool> = GucSetting::<bool>::new(true);
static VERIFY_CHECKSUMS: GucSetting<bool> = GucSetting::<bool>::new(true);
static SCRIPTS: GucSetting<Scripts> = GucSetting::<Scripts>::new(Scripts::Run);
static START_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(START_TIMEOUT_DEFAULT as i32);
static LOCAL_DIRECTORIES: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));
static PG_CTL: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c""));

/// The settings that apply to one call, options included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where agents listen.
    pub(crate) agent_port: u16,
    /// File with the cluster's shared secret.
    pub(crate) secret_file: String,
    pub(crate) transport: Transport,
    /// User in `primary_conninfo`; empty: the caller.
    pub(crate) replication_user: String,
    /// Host in `primary_conninfo` when the caller passes none; empty: found out.
    pub(crate) primary_host: String,
    /// Template: `%h` target host, `%n` node id, `%p` target port.
    pub(crate) application_name: String,
    /// Template, see product documentation; empty: no slot.
    pub(crate) slot_name: String,
    /// `passfile` in `primary_conninfo`; empty: none.
    pub(crate) passfile: String,
    /// `restore_command` of the standby; empty: none.
    pub(crate) restore_command: String,
    pub(crate) overwrite: Overwrite,
    /// Names of the standby's own files, relative to its data directory.
    pub(crate) keep_files: Vec<String>,
    /// Pairs of absolute directories: where the primary has a tablespace, where the standby gets it.
    pub(crate) tablespace_mapping: Vec<(String, String)>,
    /// Parallel streams; 0: by the number of CPUs.
    pub(crate) jobs: usize,
    pub(crate) compression: Compression,
    /// kB/s over all streams; 0: no limit.
    pub(crate) max_rate: u64,
    /// Share blocks with a target on the same file system.
    pub(crate) clone: bool,
    /// Check page checksums while reading.
    pub(crate) verify_checksums: bool,
    pub(crate) scripts: Scripts,
    /// How long to wait for the standby to stream.
    pub(crate) start_timeout: Duration,
    /// Setting only: beneath which directories a caller who is no superuser may have local targets.
    pub(crate) local_directories: String,
    /// Neither setting nor option: whether these two bind the caller at all.
    pub(crate) caller_is_superuser: bool,
    /// Option only: Pgpool-II's number of the node.
    pub(crate) node_id: Option<i32>,
    /// Option only: the target's own port.
    pub(crate) dest_port: Option<u16>,
    /// Option only: spread checkpoint instead of a fast one.
    pub(crate) wait_for_checkpoint: bool,
    /// Option only: start the standby in the same call.
    pub(crate) start: bool,
    /// Option only: tell what would be sent, and change nothing.
    pub(crate) dry_run: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let text = |value: &CStr| value.to_string_lossy().into_owned();
        Self {
            agent_port: AGENT_PORT_DEFAULT,
            secret_file: text(SECRET_FILE_DEFAULT),
            transport: Transport::Auto,
            replication_user: String::new(),
            primary_host: String::new(),
            application_name: text(HOST_TEMPLATE_DEFAULT),
            slot_name: text(HOST_TEMPLATE_DEFAULT),
            passfile: String::new(),
            restore_command: String::new(),
            overwrite: Overwrite::Same,
            keep_files: vec![text(KEEP_FILES_DEFAULT)],
            tablespace_mapping: Vec::new(),
            jobs: 0,
            compression: Compression::Auto,
            max_rate: 0,
            clone: true,
            verify_checksums: true,
            scripts: Scripts::Run,
            start_timeout: Duration::from_secs(u64::from(START_TIMEOUT_DEFAULT)),
            local_directories: String::new(),
            caller_is_superuser: false,
            node_id: None,
            dest_port: None,
            wait_for_checkpoint: false,
            start: false,
            dry_run: false,
        }
    }
}

impl Settings {
    /// The session's settings as they are now, without options.
    pub(crate) fn current() -> Result<Self> {
        Ok(Self {
            agent_port: u16::try_from(AGENT_PORT.get()).unwrap_or(AGENT_PORT_DEFAULT),
            secret_file: text("secret_file", &SECRET_FILE)?,
            transport: TRANSPORT.get(),
            replication_user: text("replication_user", &REPLICATION_USER)?,
            primary_host: text("primary_host", &PRIMARY_HOST)?,
            application_name: text("application_name", &APPLICATION_NAME)?,
            slot_name: text("slot_name", &SLOT_NAME)?,
            passfile: text("passfile", &PASSFILE)?,
            restore_command: text("restore_command", &RESTORE_COMMAND)?,
            overwrite: OVERWRITE.get(),
            keep_files: keep_files(&text("keep_files", &KEEP_FILES)?)?,
            tablespace_mapping: tablespace_mapping(&text("tablespace_mapping", &TABLESPACE_MAPPING)?)?,
            jobs: usize::try_from(JOBS.get()).unwrap_or_default(),
            compression: COMPRESSION.get(),
            max_rate: u64::try_from(MAX_RATE.get()).unwrap_or_default(),
            clone: CLONE.get(),
            verify_checksums: VERIFY_CHECKSUMS.get(),
            scripts: SCRIPTS.get(),
            start_timeout: Duration::from_secs(u64::try_from(START_TIMEOUT.get()).unwrap_or_default()),
            local_directories: text("local_directories", &LOCAL_DIRECTORIES)?,
            ..Self::default()
        })
    }
}

/// `pgpool.pg_ctl`, the C extension's setting: the path of pg_ctl; empty: the server's own.
pub(crate) fn pg_ctl() -> Result<String> {
    text("pgpool.pg_ctl", &PG_CTL)
}

fn text(name: &str, setting: &GucSetting<Option<CString>>) -> Result<String> {
    let value = setting.get().unwrap_or_default();
    value.into_string().map_err(|_| {
        Error::new(Kind::InvalidArgument, format!("setting \"{name}\" is not valid UTF-8"))
            .hint("Use ASCII or UTF-8, whatever the encoding of the database.")
    })
}

/// Reads `keep_files`: comma-separated names relative to the data directory.
pub(crate) fn keep_files(text: &str) -> Result<Vec<String>> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let beneath = !name.starts_with('/')
                && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
                && !name.chars().any(char::is_control);
            if beneath && !is_of_the_copy(name) {
                return Ok(name.to_owned());
            }
            Err(Error::new(
                Kind::InvalidArgument,
                format!("invalid name in \"keep_files\": {}", crate::settings::request::shown(name)),
            )
            .detail("A kept file is named by its path relative to the data directory, without \"..\"; data, WAL and what makes a standby cannot be kept.")
            .hint("Separate names by commas, as in: postgresql.conf, pg_hba.conf"))
        })
        .collect()
}

/// Reads `tablespace_mapping`: `old=new, ...`, absolute directories; `\` before a comma, an equals sign
/// or a backslash makes it part of a path (as in pg_basebackup's --tablespace-mapping).
pub(crate) fn tablespace_mapping(text: &str) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut sides = vec![String::new()];
    let mut characters = text.chars().chain([',']);
    while let Some(c) = characters.next() {
        let side = sides.last_mut().expect("there is always a side being read");
        match c {
            '\\' => side.extend(characters.next()),
            '=' => sides.push(String::new()),
            ',' => {
                let read = std::mem::replace(&mut sides, vec![String::new()]);
                let read: Vec<&str> = read.iter().map(|side| side.trim()).collect();
                match read[..] {
                    [""] => {}
                    // as PostgreSQL writes the location of a tablespace, or a slash too many would make it another one
                    [old, new] => match (normal(old), normal(new)) {
                        (Some(old), Some(new)) => pairs.push((old, new)),
                        _ => return Err(bad_mapping(&read.join("="))),
                    },
                    _ => return Err(bad_mapping(&read.join("="))),
                }
            }
            c => side.push(c),
        }
    }
    Ok(pairs)
}

/// An absolute path without `..` and control characters, in its shortest form.
fn normal(path: &str) -> Option<String> {
    Some(normalize_directory(path).ok()?.to_str()?.to_owned())
}

fn bad_mapping(found: &str) -> Error {
    Error::new(
        Kind::InvalidArgument,
        format!("invalid entry in \"tablespace_mapping\": {}", crate::settings::request::shown(found)),
    )
    .detail("An entry is OLD=NEW, both absolute directories without \"..\".")
    .hint("Separate entries by commas; write \"\\,\" and \"\\=\" for commas and equals signs in a path.")
}

/// Registers every setting with PostgreSQL; called by `_PG_init`.
pub(crate) fn define() {
    let plain = GucFlags::default();
    // Names of files and commands of the server's OS user.
    let private = GucFlags::SUPERUSER_ONLY;

    integer(
        c"pgpool_recovery.agent_port",
        c"Port on which recovery agents listen.",
        &AGENT_PORT,
        1,
        65_535,
        plain,
    );
    string(
        c"pgpool_recovery.secret_file",
        c"File with the shared secret of the primary and the agents, mode 0600.",
        &SECRET_FILE,
        private,
    );
    choice(c"pgpool_recovery.transport", c"How a target is reached: auto, agent or local.", &TRANSPORT);
    string(
        c"pgpool_recovery.replication_user",
        c"User in the standby's primary_conninfo; empty: the role that calls.",
        &REPLICATION_USER,
        plain,
    );
    string(
        c"pgpool_recovery.primary_host",
        c"Host in the standby's primary_conninfo when the caller passes none.",
        &PRIMARY_HOST,
        plain,
    );
    string(
        c"pgpool_recovery.application_name",
        c"Template of application_name in the standby's primary_conninfo: %h host, %n node id, %p port.",
        &APPLICATION_NAME,
        plain,
    );
    string(
        c"pgpool_recovery.slot_name",
        c"Template of the standby's replication slot: %h host, %n node id, %p port; empty: no slot.",
        &SLOT_NAME,
        plain,
    );
    string(
        c"pgpool_recovery.passfile",
        c"Password file in the standby's primary_conninfo.",
        &PASSFILE,
        private,
    );
    string(
        c"pgpool_recovery.restore_command",
        c"restore_command written to the standby.",
        &RESTORE_COMMAND,
        private,
    );
    choice(
        c"pgpool_recovery.overwrite",
        c"Which non-empty target may be replaced: same (a cluster of this system) or any_cluster.",
        &OVERWRITE,
    );
    string(
        c"pgpool_recovery.keep_files",
        c"Files of the standby's own that are neither overwritten nor removed, separated by commas.",
        &KEEP_FILES,
        plain,
    );
    string(
        c"pgpool_recovery.tablespace_mapping",
        c"Directories of tablespaces on the standby: old=new, separated by commas.",
        &TABLESPACE_MAPPING,
        plain,
    );
    integer(
        c"pgpool_recovery.jobs",
        c"Parallel streams; 0: by the number of CPUs.",
        &JOBS,
        0,
        MAX_JOBS,
        plain,
    );
    choice(c"pgpool_recovery.compression", c"Compression on the wire: auto, off, lz4 or zstd.", &COMPRESSION);
    integer(
        c"pgpool_recovery.max_rate",
        c"Most data sent to a target per second, before compression; 0: no limit.",
        &MAX_RATE,
        0,
        i32::MAX,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_bool_guc(
        c"pgpool_recovery.clone",
        c"Let a target on the primary's own file system share blocks with it where that can be done.",
        c"",
        &CLONE,
        GucContext::Suset,
        plain,
    );
    GucRegistry::define_bool_guc(
        c"pgpool_recovery.verify_checksums",
        c"Check page checksums while reading, as pg_basebackup does.",
        c"",
        &VERIFY_CHECKSUMS,
        GucContext::Suset,
        plain,
    );
    choice(
        c"pgpool_recovery.scripts",
        c"What pgpool_recovery() does with the name of a script: run it, ignore it, or refuse.",
        &SCRIPTS,
    );
    integer(
        c"pgpool_recovery.start_timeout",
        c"How long pgpool_remote_start() waits for the standby to stream.",
        &START_TIMEOUT,
        1,
        MAX_START_TIMEOUT,
        GucFlags::UNIT_S,
    );
    string(
        c"pgpool_recovery.local_directories",
        c"Directories beneath which callers who are not superusers may have local targets, separated by commas.",
        &LOCAL_DIRECTORIES,
        private,
    );
    // The C extension read this as an undefined placeholder, which anyone could set and whose value the
    // server then ran. From the configuration file or command line only.
    GucRegistry::define_string_guc(
        c"pgpool.pg_ctl",
        c"Path of the pg_ctl that pgpool_pgctl() runs; empty: the server's own.",
        c"",
        &PG_CTL,
        GucContext::Sighup,
        private,
    );
    compat::reserve_setting_prefix(c"pgpool_recovery");
}

fn string(
    name: &'static CStr,
    about: &'static CStr,
    setting: &'static GucSetting<Option<CString>>,
    flags: GucFlags,
) {
    GucRegistry::define_string_guc(name, about, c"", setting, GucContext::Suset, flags);
}

fn integer(
    name: &'static CStr,
    about: &'static CStr,
    setting: &'static GucSetting<i32>,
    min: i32,
    max: i32,
    flags: GucFlags,
) {
    GucRegistry::define_int_guc(name, about, c"", setting, min, max, GucContext::Suset, flags);
}

fn choice<T: pgrx::guc::GucEnum>(name: &'static CStr, about: &'static CStr, setting: &'static GucSetting<T>) {
    GucRegistry::define_enum_guc(name, about, c"", setting, GucContext::Suset, GucFlags::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_files() {
        assert_eq!(
            keep_files(" postgresql.conf, conf.d/a.conf ,").expect("valid"),
            ["postgresql.conf", "conf.d/a.conf"]
        );
        assert!(keep_files("").expect("valid").is_empty());
        assert_eq!(keep_files("pg_hba.conf").expect("valid"), ["pg_hba.conf"]);
        for bad in [
            "/etc/passwd",
            "../x",
            "a//b",
            "./a",
            "a\nb",
            "base",
            "pg_wal",
            "pg_xact/0000",
            "standby.signal",
            "global",
        ] {
            assert_eq!(keep_files(bad).expect_err(bad).kind, Kind::InvalidArgument);
        }
    }

    #[test]
    fn mappings() {
        let pair = |old: &str, new: &str| (old.to_owned(), new.to_owned());
        assert_eq!(tablespace_mapping("").expect("valid"), []);
        assert_eq!(
            tablespace_mapping(r"/a=/b, /c\,d=/e\=f\\,").expect("valid"),
            [pair("/a", "/b"), pair("/c,d", r"/e=f\")]
        );
        assert_eq!(
            tablespace_mapping("/srv/a/=/srv//b/./c/").expect("valid"),
            [pair("/srv/a", "/srv/b/c")],
            "however it is written"
        );
        for bad in ["/a", "a=/b", "/a=b", "/a=/b=/c", "=", "/a=/b/../c", "/a=/b\nc", "/=/b"] {
            assert_eq!(tablespace_mapping(bad).expect_err(bad).kind, Kind::InvalidArgument, "{bad}");
        }
    }
}

//! Everything we ask the server about itself: the only file with catalog SQL.
//!
//! Every name is schema-qualified, every query read-only. Callers are elevated (see
//! [`super::privileges`]), so nothing is hidden from a role that may merely execute our functions.

use std::net::SocketAddr;

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::preflight::collation;
use pgpool_recovery_core::preflight::slot_limits::Limits;
use pgpool_recovery_core::preflight::standby_parameters::Required;
use pgpool_recovery_core::replication::hot_standby;
use pgpool_recovery_core::replication::own_address::Server;
use pgpool_recovery_core::replication::streaming::Walsender;
use pgpool_recovery_core::sys::sockets;
use pgpool_recovery_core::wire::protocol::upstream::Endpoint;
use pgrx::pg_sys;
use serde::Deserialize;

use super::{compat, postmaster, query};
use crate::preflight::authority::Own;

/// What a recovery must know about this server.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Primary {
    pub(crate) data_directory: String,
    /// Directory of the server's own programs.
    pub(crate) bin_directory: String,
    pub(crate) config_file: String,
    /// Relative to the data directory unless absolute.
    pub(crate) log_directory: String,
    #[serde(deserialize_with = "unsigned")]
    pub(crate) system_identifier: u64,
    /// The timeline WAL is written to (of the last checkpoint, on a standby).
    pub(crate) timeline: u32,
    /// As `server_version_num`: 150004 is 15.4.
    pub(crate) server_version_num: u32,
    /// As `server_version`: `15.4 (Debian 15.4-1)`.
    pub(crate) server_version: String,
    /// Bytes.
    pub(crate) block_size: u32,
    /// Bytes.
    pub(crate) wal_segment_size: u32,
    /// Blocks of a full segment of a relation (1 GB, usually).
    pub(crate) relation_segment_blocks: u32,
    pub(crate) data_checksums: bool,
    /// Mode of files may be wider than 0600: `initdb --allow-group-access`.
    pub(crate) group_access: bool,
    pub(crate) port: u16,
    /// As set: comma-separated, may be empty or `*`.
    pub(crate) listen_addresses: String,
    /// As set: comma-separated, may be empty.
    pub(crate) unix_socket_directories: String,
    pub(crate) in_recovery: bool,
    pub(crate) wal_level: String,
    /// Bytes.
    pub(crate) max_wal_size: u64,
    pub(crate) max_wal_senders: u32,
    pub(crate) used_wal_senders: u32,
    pub(crate) max_replication_slots: u32,
}

// jsonb_build_object takes 100 arguments at most.
const PRIMARY: &str = "
SELECT pg_catalog.jsonb_build_object(
    'data_directory', pg_catalog.current_setting('data_directory'),
    'bin_directory', (SELECT c.setting FROM pg_catalog.pg_config() AS c WHERE c.name = 'BINDIR'),
    'config_file', pg_catalog.current_setting('config_file'),
    'log_directory', pg_catalog.current_setting('log_directory'),
    'system_identifier', (SELECT s.system_identifier FROM pg_catalog.pg_control_system() AS s),
    'timeline', (SELECT c.timeline_id FROM pg_catalog.pg_control_checkpoint() AS c),
    'server_version_num', pg_catalog.current_setting('server_version_num')::int4,
    'server_version', pg_catalog.current_setting('server_version'),
    'block_size', pg_catalog.current_setting('block_size')::int4,
    'wal_segment_size', (SELECT i.bytes_per_wal_segment FROM pg_catalog.pg_control_init() AS i),
    'relation_segment_blocks', (SELECT i.blocks_per_segment FROM pg_catalog.pg_control_init() AS i),
    'data_checksums', pg_catalog.current_setting('data_checksums') = 'on',
    'group_access', pg_catalog.current_setting('data_directory_mode') <> '0700',
    'port', pg_catalog.current_setting('port')::int4,
    'listen_addresses', pg_catalog.current_setting('listen_addresses'),
    'unix_socket_directories', pg_catalog.current_setting('unix_socket_directories'),
    'in_recovery', pg_catalog.pg_is_in_recovery(),
    'wal_level', pg_catalog.current_setting('wal_level'),
    'max_wal_size', pg_catalog.pg_size_bytes(pg_catalog.current_setting('max_wal_size')),
    'max_wal_senders', pg_catalog.current_setting('max_wal_senders')::int4,
    'used_wal_senders', (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_get_wal_senders()),
    'max_replication_slots', pg_catalog.current_setting('max_replication_slots')::int4
)::text";

// Fails on a standby, so asked apart. The insertion timeline is not in pg_control until a checkpoint.
const TIMELINE: &str =
    "SELECT pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8)";

/// Reads what a recovery must know about this server.
pub(crate) fn primary() -> Result<Primary> {
    let text = query::row(PRIMARY, &[])?.string("a setting of this server")?.unwrap_or_default();
    let mut primary: Primary = serde_json::from_str(&text).map_err(|error| {
        Error::new(Kind::Internal, "could not read the properties of this server").detail(format!("{error}."))
    })?;
    if !primary.in_recovery
        && let Some(hex) = query::row(TIMELINE, &[])?.string("the timeline")?
        && let Ok(timeline) = u32::from_str_radix(&hex, 16)
    {
        primary.timeline = timeline;
    }
    Ok(primary)
}

/// What a standby says of its recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replay {
    /// How far it has received WAL since its start; `None`: it has received none.
    pub(crate) received: Option<Lsn>,
    /// Whether replay is paused, or is asked to pause.
    pub(crate) is_paused: bool,
    /// Whether the startup process waits for WAL: all that can be read is replayed.
    pub(crate) waits_for_wal: bool,
}

/// What this server says of its recovery, as long as that goes on.
pub(crate) fn replay() -> Result<Replay> {
    let sql = "SELECT (pg_catalog.pg_last_wal_receive_lsn() - '0/0'::pg_lsn)::text,
                   (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_is_wal_replay_paused() ELSE false END)::text,
                   EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS a WHERE a.backend_type = 'startup'
                       AND a.wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval'))::text";
    let mut row = query::row(sql, &[])?;
    let received = row.string("a position")?.and_then(|lsn| lsn.parse().ok().map(Lsn));
    let mut truth = || row.bytes().as_deref() == Some(b"true");
    Ok(Replay { received, is_paused: truth(), waits_for_wal: truth() })
}

/// What this standby's walreceiver says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Walreceiver {
    /// When it got its last message, if it streams: microseconds since 1970 by this server's clock.
    pub(crate) received: Option<i64>,
    /// Where it gets them from.
    pub(crate) sender: Option<Endpoint>,
}

/// Whether WAL is streamed to this server, and when the last message came.
pub(crate) fn walreceiver() -> Result<Walreceiver> {
    let sql = "SELECT (SELECT (EXTRACT(EPOCH FROM r.last_msg_receipt_time) * 1000000)::int8::text
                    FROM pg_catalog.pg_stat_wal_receiver AS r WHERE r.status = 'streaming'),
                   (SELECT r.sender_host FROM pg_catalog.pg_stat_wal_receiver AS r),
                   (SELECT r.sender_port::text FROM pg_catalog.pg_stat_wal_receiver AS r)";
    let mut row = query::row(sql, &[])?;
    let received = row.string("a time")?.and_then(|time| time.parse().ok());
    let (host, port) = (row.string("a host")?, row.string("a port")?);
    let sender = host.zip(port).map(|(host, port)| Endpoint::new(host, port));
    Ok(Walreceiver { received, sender })
}

/// Asks this server, a standby, to end its recovery; waits for nothing.
pub(crate) fn request_promotion() -> Result<()> {
    query::row("SELECT pg_catalog.pg_promote(false)::text", &[]).map(drop)
}

/// The parameters of which a hot standby must have as much as this server.
pub(crate) fn required_by_standbys() -> Result<Vec<Required>> {
    let sql = "SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                   'name', s.name, 'value', s.setting::int8, 'default', s.boot_val::int8,
                   'is_on_command_line', s.source OPERATOR(pg_catalog.=) 'command line'))::text
               FROM pg_catalog.pg_settings AS s
               WHERE s.name OPERATOR(pg_catalog.=) ANY (pg_catalog.string_to_array($1, ','))";
    let names = hot_standby::PARAMETERS.join(",");
    let text = query::row(sql, &[names.as_str().into()])?.string("parameters of this server")?;
    serde_json::from_str(&text.unwrap_or_default()).map_err(|error| {
        Error::new(Kind::Internal, "could not read what a standby needs").detail(format!("{error}."))
    })
}

/// Where this server can be reached.
pub(crate) fn own_address() -> Result<Own> {
    let port = own_port()?;
    let listening = match sockets::listening_of(postmaster::process(), port) {
        // only root can read the open files of a program that has a file capability
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => sockets::listening(port),
        listening => listening,
    };
    let listening = listening.map_err(Error::on("read where this server listens (/proc)"))?;
    let socket_directories = setting("unix_socket_directories")?.unwrap_or_default();
    Ok(Own { port, server: Server { listening, socket_directories } })
}

/// The port of this server.
pub(crate) fn own_port() -> Result<u16> {
    let port = setting("port")?.unwrap_or_default();
    port.parse()
        .map_err(|_| Error::new(Kind::Internal, format!("could not read this server's port \"{port}\"")))
}

/// The data directory.
pub(crate) fn data_directory() -> Result<String> {
    setting("data_directory").map(Option::unwrap_or_default)
}

/// Directory of the server's own programs.
pub(crate) fn bin_directory() -> Result<String> {
    let sql = "SELECT c.setting FROM pg_catalog.pg_config() AS c WHERE c.name = 'BINDIR'";
    Ok(query::row(sql, &[])?.string("the program directory")?.unwrap_or_default())
}

/// A setting's value; `None` if there is no such setting.
pub(crate) fn setting(name: &str) -> Result<Option<String>> {
    query::row("SELECT pg_catalog.current_setting($1, true)", &[name.into()])?.string(name)
}

/// What a role may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Role {
    pub(crate) can_login: bool,
    /// REPLICATION, or superuser.
    pub(crate) can_replicate: bool,
}

/// Whether a line of pg_hba.conf for replication has a method by which the password is sent in clear.
pub(crate) fn asks_standbys_for_cleartext() -> Result<bool> {
    let sql = "SELECT pg_catalog.count(*)::text FROM pg_catalog.pg_hba_file_rules AS r
               WHERE 'replication' OPERATOR(pg_catalog.=) ANY (r.database)
                   AND r.auth_method OPERATOR(pg_catalog.=) ANY ('{password,ldap,radius,pam,bsd}'::pg_catalog.text[])";
    Ok(query::row(sql, &[])?.string("the number of lines of pg_hba.conf")?.is_none_or(|count| count != "0"))
}

/// A role by its name; `None` if there is none.
pub(crate) fn role(name: &str) -> Result<Option<Role>> {
    let sql = "SELECT r.rolcanlogin::text, (r.rolreplication OR r.rolsuper)::text
               FROM pg_catalog.pg_roles AS r WHERE r.rolname = $1::text";
    let Some(mut row) = query::rows(sql, &[name.into()])?.pop() else { return Ok(None) };
    let mut truth = || row.bytes().as_deref() == Some(b"true");
    Ok(Some(Role { can_login: truth(), can_replicate: truth() }))
}

/// A replication slot as the catalog shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlotState {
    pub(crate) slot_type: String,
    pub(crate) active_pid: Option<i32>,
    /// `reserved`, `extended`, `unreserved` or `lost`; `None`: no WAL reserved yet.
    pub(crate) wal_status: Option<String>,
}

impl SlotState {
    /// Whether the server has removed WAL that it should keep: no standby can use it any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }
}

/// A slot by its name.
pub(crate) fn slot(name: &str) -> Result<Option<SlotState>> {
    let sql = "SELECT s.slot_type, s.active_pid::text, s.wal_status
               FROM pg_catalog.pg_get_replication_slots() AS s WHERE s.slot_name = $1::text";
    let Some(mut row) = query::rows(sql, &[name.into()])?.pop() else { return Ok(None) };
    Ok(Some(SlotState {
        slot_type: row.string("slot_type")?.unwrap_or_default(),
        active_pid: row.string("active_pid")?.and_then(|pid| pid.parse().ok()),
        wal_status: row.string("wal_status")?,
    }))
}

/// Bytes of WAL that an inactive physical slot retains; `None` if there is no such slot.
pub(crate) fn retained_by_idle_slot(name: &str) -> Result<Option<u64>> {
    let sql = "SELECT ((CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                              ELSE pg_catalog.pg_current_wal_lsn() END) - s.restart_lsn)::int8::text
               FROM pg_catalog.pg_get_replication_slots() AS s
               WHERE s.slot_name = $1::text AND s.slot_type = 'physical' AND NOT s.active";
    let Some(mut row) = query::rows(sql, &[name.into()])?.pop() else { return Ok(None) };
    // one that reserved nothing, or lost it, retains nothing
    Ok(Some(row.string("the WAL a slot retains")?.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)))
}

/// Fails if no further replication slot can be made. From PostgreSQL 19 on REPACK has places of its own for its slots, and an
/// output plugin that serves nobody else (max_repack_replication_slots, pgrepack.c).
pub(crate) fn check_free_slot() -> Result<()> {
    let sql = "SELECT pg_catalog.current_setting('max_replication_slots'),
                      (SELECT pg_catalog.count(*) FROM pg_catalog.pg_get_replication_slots() AS s
                       WHERE s.plugin IS DISTINCT FROM 'pgrepack')::text";
    let mut row = query::row(sql, &[])?;
    let mut number =
        || -> Result<u32> { Ok(row.string("a number")?.and_then(|n| n.parse().ok()).unwrap_or(0)) };
    let (limit, used) = (number()?, number()?);
    if used < limit {
        return Ok(());
    }
    Err(Error::new(Kind::LimitExceeded, "all replication slots are in use")
        .detail(format!("max_replication_slots is {limit}, and {used} slots exist."))
        .hint(
            "Drop a slot that is no longer needed, or increase max_replication_slots and restart the server.",
        ))
}

/// What limits the slots of this server, and how much it writes. What a server does not know of these is NULL.
pub(crate) fn slot_limits() -> Result<Limits> {
    let sql = "SELECT pg_catalog.jsonb_build_object(
                   'keep', pg_catalog.pg_size_bytes(pg_catalog.current_setting('max_slot_wal_keep_size')),
                   'idle', EXTRACT(epoch FROM pg_catalog.current_setting('idle_replication_slot_timeout', true)::interval)::int8,
                   'written', CASE WHEN pg_catalog.pg_is_in_recovery() THEN 0
                       ELSE GREATEST(0, pg_catalog.pg_current_wal_lsn() - c.redo_lsn) END::int8,
                   'within', GREATEST(0, EXTRACT(epoch FROM pg_catalog.clock_timestamp() - c.checkpoint_time))::int8)::text
               FROM pg_catalog.pg_control_checkpoint() AS c";
    let text = query::row(sql, &[])?.string("the limits of slots")?.unwrap_or_default();
    serde_json::from_str(&text).map_err(|error| {
        Error::new(Kind::Internal, "could not read the limits of slots").detail(format!("{error}."))
    })
}

/// The databases that can be connected to, and their default collations. What a version does not record is NULL.
pub(crate) fn collations() -> Result<Vec<collation::Database>> {
    let sql = format!(
        "SELECT d.datname::text, COALESCE(pg_catalog.to_jsonb(d) OPERATOR(pg_catalog.->>) 'datlocprovider', 'c'), d.datcollate::text,
             pg_catalog.to_jsonb(d) OPERATOR(pg_catalog.->>) 'datcollversion', {}
         FROM pg_catalog.pg_database AS d WHERE d.datallowconn ORDER BY d.oid",
        compat::DATABASE_COLLATION_VERSION
    );
    let mut databases = Vec::new();
    for mut row in query::rows(&sql, &[])? {
        // a name in the encoding of another database
        let mut text = || row.bytes().map(|text| String::from_utf8_lossy(&text).into_owned());
        let (name, provider, collate) = (text(), text(), text());
        databases.push(collation::Database {
            name: name.unwrap_or_default(),
            provider: provider.unwrap_or_default(),
            collate: collate.unwrap_or_default(),
            recorded: text(),
            actual: text(),
        });
    }
    Ok(databases)
}

/// This server's walsenders.
pub(crate) fn walsenders() -> Result<Vec<Walsender>> {
    // Session data is cached until the end of the transaction: without this a loop never sees news.
    query::rows("SELECT pg_catalog.pg_stat_clear_snapshot()::text", &[])?;
    let sql = "SELECT r.pid::text, r.state, r.application_name, s.slot_name::text,
                      pg_catalog.host(r.client_addr), r.client_port::text,
                      pg_catalog.trunc(EXTRACT(epoch FROM pg_catalog.clock_timestamp() - r.backend_start) * 1000)::bigint::text,
                      (r.sent_lsn - '0/0'::pg_lsn)::text, (r.flush_lsn - '0/0'::pg_lsn)::text,
                      (r.replay_lsn - '0/0'::pg_lsn)::text
               FROM pg_catalog.pg_stat_replication AS r
               LEFT JOIN pg_catalog.pg_get_replication_slots() AS s ON s.active_pid = r.pid";
    query::rows(sql, &[])?.into_iter().map(walsender).collect()
}

fn walsender(mut row: query::Row) -> Result<Walsender> {
    let pid = row.string("pid")?.and_then(|pid| pid.parse().ok()).unwrap_or(0);
    let state = row.string("state")?.unwrap_or_default();
    let application_name = row.string("application_name")?.unwrap_or_default();
    let slot_name = row.string("slot_name")?;
    let (host, port) = (row.string("client_addr")?, row.string("client_port")?);
    let client = match (host, port) {
        (Some(host), Some(port)) => {
            let unknown = || Error::new(Kind::Internal, "could not read a walsender's client address");
            // a link-local address may have its scope behind it
            let address = host.split('%').next().unwrap_or_default().parse().map_err(|_| unknown())?;
            Some(SocketAddr::new(address, port.parse().map_err(|_| unknown())?))
        }
        // a unix socket
        _ => None,
    };
    // negative: the clock was set back
    let age = row.string("backend_start")?.and_then(|age| age.parse::<i64>().ok()).unwrap_or(i64::MAX);
    let age = age.max(0).cast_unsigned();
    let mut lsn =
        || -> Result<Option<Lsn>> { Ok(row.string("a position")?.and_then(|lsn| lsn.parse().ok().map(Lsn))) };
    let (sent, flushed, replayed) = (lsn()?, lsn()?, lsn()?);
    Ok(Walsender { pid, state, application_name, slot_name, client, age, sent, flushed, replayed })
}

/// The major version: `15`.
pub(crate) fn major_version() -> Result<u32> {
    let version = setting("server_version_num")?.and_then(|version| version.parse::<u32>().ok());
    version
        .map(|version| version / 10_000)
        .ok_or_else(|| Error::new(Kind::Internal, "could not read server_version_num"))
}

/// Resource managers that extensions have brought: they change files in ways that only they know.
pub(crate) fn foreign_resource_managers() -> Result<Vec<String>> {
    if major_version()? < 15 {
        // there is no such thing yet
        return Ok(Vec::new());
    }
    let sql = "SELECT r.rm_name FROM pg_catalog.pg_get_wal_resource_managers() AS r WHERE NOT r.rm_builtin";
    let mut names = Vec::new();
    for mut row in query::rows(sql, &[])? {
        names.push(row.string("a resource manager")?.unwrap_or_default());
    }
    Ok(names)
}

/// A database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Database {
    pub(crate) oid: pg_sys::Oid,
    pub(crate) name: String,
}

/// Every database that can be connected to. One whose DROP was interrupted (datconnlimit -2) cannot.
pub(crate) fn databases() -> Result<Vec<Database>> {
    let sql = "SELECT d.oid::text, d.datname::text FROM pg_catalog.pg_database AS d
               WHERE d.datconnlimit OPERATOR(pg_catalog.<>) -2 ORDER BY d.oid";
    let mut databases = Vec::new();
    for mut row in query::rows_of_now(sql)? {
        let oid = row.string("a database")?.and_then(|oid| oid.parse::<u32>().ok());
        let unknown = || Error::new(Kind::Internal, "could not read the databases of this server");
        let oid = pg_sys::Oid::from(oid.ok_or_else(unknown)?);
        // a name in the encoding of another database
        let name = row.bytes().map(|name| String::from_utf8_lossy(&name).into_owned());
        databases.push(Database { oid, name: name.unwrap_or_default() });
    }
    Ok(databases)
}

/// A tablespace, or a database in the one where it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) tablespace: u32,
    pub(crate) database: Option<u32>,
}

/// Where this server has data, as its catalogs say at this moment: databases, but for those whose DROP was interrupted
/// (datconnlimit -2), and the tablespaces that were made (after `FirstNormalObjectId`).
pub(crate) fn places() -> Result<Vec<Place>> {
    let sql = "SELECT d.dattablespace::text, d.oid::text FROM pg_catalog.pg_database AS d
               WHERE d.datconnlimit OPERATOR(pg_catalog.<>) -2
               UNION ALL
               SELECT t.oid::text, NULL FROM pg_catalog.pg_tablespace AS t
               WHERE t.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid";
    let number = |oid: Option<String>| oid.and_then(|oid| oid.parse::<u32>().ok());
    let mut places = Vec::new();
    for mut row in query::rows_of_now(sql)? {
        let tablespace = number(row.string("a tablespace")?);
        let unknown = || Error::new(Kind::Internal, "could not read where this server's databases are");
        let tablespace = tablespace.ok_or_else(unknown)?;
        places.push(Place { tablespace, database: number(row.string("a database")?) });
    }
    Ok(places)
}

/// A transaction that may still write, if there is one: what it is, as a DETAIL shows it.
pub(crate) fn open_transaction() -> Result<Option<String>> {
    // see `walsenders`
    query::rows("SELECT pg_catalog.pg_stat_clear_snapshot()::text", &[])?;
    let sql = "SELECT pg_catalog.format('Process %s (%s) has an open transaction in database \"%s\".',
                      a.pid, COALESCE(a.backend_type, 'unknown'), COALESCE(a.datname, ''))
               FROM pg_catalog.pg_stat_activity AS a WHERE a.backend_xid IS NOT NULL
               UNION ALL
               SELECT pg_catalog.format('Transaction \"%s\" is prepared in database \"%s\".', p.gid, p.database)
               FROM pg_catalog.pg_prepared_xacts AS p
               LIMIT 1";
    let Some(mut row) = query::rows(sql, &[])?.pop() else { return Ok(None) };
    row.string("an open transaction")
}

/// How many transactions are prepared.
pub(crate) fn prepared_transactions() -> Result<u64> {
    count("SELECT pg_catalog.count(*)::text FROM pg_catalog.pg_prepared_xacts")
}

/// How many subscriptions are enabled.
pub(crate) fn enabled_subscriptions() -> Result<u64> {
    count("SELECT pg_catalog.count(*)::text FROM pg_catalog.pg_subscription AS s WHERE s.subenabled")
}

fn count(sql: &str) -> Result<u64> {
    Ok(query::row(sql, &[])?.string("a number")?.and_then(|count| count.parse().ok()).unwrap_or(0))
}

/// Ends the current WAL segment and returns the name of its file.
pub(crate) fn switch_wal() -> Result<String> {
    let sql = "SELECT pg_catalog.pg_walfile_name(pg_catalog.pg_switch_wal())";
    Ok(query::row(sql, &[])?.string("the name of a WAL file")?.unwrap_or_default())
}

/// PostgreSQL shows the unsigned system identifier as a signed bigint.
fn unsigned<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<u64, D::Error> {
    i64::deserialize(deserializer).map(i64::cast_unsigned)
}

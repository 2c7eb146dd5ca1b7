//! Two hosts with a primary, an agent, and the place of a standby.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde_json::{Value, json};

use super::Plan;
use super::remote::{Remote, quoted};
use crate::data::{ROWS_OF_A_FULL_PAGE, scale};
use crate::interrupt::{Outcome, Stop, failed};
use crate::progress::say;
use crate::traffic;

/// The first port that is tried.
const PORTS: u16 = 28_432;

/// Kilobytes besides the data: WAL, and what a server makes itself.
const BESIDES: u64 = 6 << 20;

#[derive(Debug)]
pub(super) struct Pair {
    pub(super) primary: Remote,
    pub(super) standby: Remote,
    pub(super) primary_address: String,
    pub(super) standby_address: String,
    /// Of PostgreSQL's programs.
    primary_bin: String,
    pub(super) standby_bin: String,
    agent: String,
    /// Of both servers; the agent has the next one.
    pub(super) port: u16,
    pub(super) major: u32,
    facts: Value,
}

impl Pair {
    /// Looks at both hosts. Nothing is made there but a directory on each.
    pub(super) fn meet(plan: &Plan, sockets: &Path) -> Outcome<Self> {
        let host = |destination: &str| destination.rsplit('@').next().unwrap_or_default().to_owned();
        let mut pair = Self {
            primary: Remote::new("primary", &plan.primary, &plan.ssh, sockets),
            standby: Remote::new("standby", &plan.standby, &plan.ssh, sockets),
            primary_address: plan.primary_address.clone().unwrap_or_else(|| host(&plan.primary)),
            standby_address: plan.standby_address.clone().unwrap_or_else(|| host(&plan.standby)),
            primary_bin: String::new(),
            standby_bin: String::new(),
            agent: String::new(),
            port: 0,
            major: 0,
            facts: Value::Null,
        };
        pair.look(plan).inspect_err(|_| pair.clean_up())?;
        Ok(pair)
    }

    fn look(&mut self, plan: &Plan) -> Outcome<()> {
        if plan.primary == plan.standby {
            return failed("--primary and --standby name the same host".to_owned());
        }
        let wanted = plan.bin_directory.as_deref();
        for remote in [&self.primary, &self.standby] {
            if remote.run("id -u")?.trim() == "0" {
                return failed(format!(
                    "{} logs in as root, and PostgreSQL does not run as root: name the user that runs PostgreSQL there",
                    remote.destination()
                ));
            }
        }
        let (version, bin) =
            postgresql(&self.primary, wanted, &["postgres", "pg_ctl", "initdb", "psql", "pgbench"])?;
        self.primary_bin = bin;
        let programs = ["postgres", "pg_ctl", "pg_basebackup", "psql"];
        let (standbys, bin) = postgresql(&self.standby, wanted, &programs)?;
        self.standby_bin = bin;
        self.major = major(&version);
        if self.major != major(&standbys) {
            return failed(format!(
                "the primary's host has {version}, the standby's {standbys}: name programs of one major version with --bin-directory"
            ));
        }
        let agent = plan.agent.as_deref().map_or_else(
            || "command -v pgpool-recovery-agent || ls /usr/local/bin/pgpool-recovery-agent /usr/bin/pgpool-recovery-agent 2>/dev/null | head -n 1".to_owned(),
            |agent| format!("command -v {}", quoted(agent)),
        );
        self.agent = self.standby.run(&format!("{{ {agent}; }} || true"))?.trim().to_owned();
        if self.agent.is_empty() {
            return failed(format!(
                "pgpool-recovery-agent is not installed on {}: install it, or name it with --agent",
                self.standby.destination()
            ));
        }
        let size = u64::from(plan.size) * 1000;
        for (remote, needed) in [(&self.primary, size + BESIDES), (&self.standby, 2 * size + BESIDES)] {
            let free =
                remote.run(&format!("df -Pk {} | awk 'NR == 2 {{ print $4 }}'", quoted(&plan.directory)))?;
            let free: u64 = free.trim().parse().unwrap_or(0);
            if free < needed {
                return failed(format!(
                    "{} has {} MB free in {}, {} are needed for --size {}: choose a smaller size, or another --directory",
                    remote.destination(),
                    free / 1000,
                    plan.directory,
                    needed / 1000,
                    plan.size
                ));
            }
        }
        self.port = self.free_ports(plan.port)?;
        let machine = "uname -r; nproc; sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1";
        self.facts = json!({
            "primary": self.primary.run(machine)?.lines().collect::<Vec<_>>(),
            "standby": self.standby.run(machine)?.lines().collect::<Vec<_>>(),
            "postgresql": version,
            "agent": self.standby.run(&format!("{} --version", quoted(&self.agent)))?.trim(),
        });
        self.primary.make_directory(&plan.directory)?;
        self.standby.make_directory(&plan.directory)?;
        say(&format!("{} on {}", self.primary.path(""), self.primary.destination()));
        say(&format!("{} on {}", self.standby.path(""), self.standby.destination()));
        Ok(())
    }

    /// Two ports in a row that nobody listens on at either host.
    fn free_ports(&self, wanted: Option<u16>) -> Outcome<u16> {
        let list = "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '$4 == \"0A\" { print $2 }'";
        let tables = [self.primary.run(list)?, self.standby.run(list)?].concat();
        let taken: Vec<u16> = tables.lines().filter_map(port).collect();
        let is_free = |port: u16| !taken.contains(&port) && !taken.contains(&(port + 1));
        let free = match wanted {
            Some(port) => Some(port).filter(|port| is_free(*port)),
            None => (PORTS..PORTS + 1000).step_by(2).find(|port| is_free(*port)),
        };
        let Some(free) = free else {
            return failed("the ports are taken on one of the hosts: choose another with --port".to_owned());
        };
        Ok(free)
    }

    /// A primary with data, and an agent.
    pub(super) fn set_up(&self, plan: &Plan) -> Outcome<()> {
        say(&format!("making {} MB of pgbench data", plan.size));
        let secrets = self
            .standby
            .run(&format!("{} secret --output secret >/dev/null; cat secret", quoted(&self.agent)))?;
        self.primary.run_with("umask 077; cat >secret", &secrets)?;
        let password = password()?;
        let line = format!("*:*:*:postgres:{password}\n");
        for remote in [&self.primary, &self.standby] {
            remote.run_with("umask 077; cat >pgpass", &line)?;
        }
        self.primary.run_with(
            &format!(
                "umask 077; cat >password
{bin}/initdb -D primary -U postgres -A scram-sha-256 --pwfile=password --no-locale -E UTF8 >initdb.log
rm -f password
cat >>primary/postgresql.conf <<'CONF'
fsync = on
shared_buffers = 256MB
max_wal_size = 2GB
wal_keep_size = 1GB
checkpoint_timeout = 1d
autovacuum = off
CONF
printf 'host all,replication postgres 0.0.0.0/0 scram-sha-256\\nhost all,replication postgres ::/0 scram-sha-256\\n' >>primary/pg_hba.conf",
                bin = quoted(&self.primary_bin)
            ),
            &password,
        )?;
        self.start(&self.primary, &self.primary_bin, "primary", "*")?;
        let extension =
            self.sql("SELECT count(*) FROM pg_available_extensions WHERE name = 'pgpool_recovery'")?;
        if extension != "1" {
            return failed(format!(
                "the extension pgpool_recovery is not installed for the server in {} on {}",
                self.primary_bin,
                self.primary.destination()
            ));
        }
        self.sql("CREATE EXTENSION pgpool_recovery")?;
        self.primary.run(&format!(
            "PGPASSFILE=$PWD/pgpass {}/pgbench -h \"$PWD\" -p {} -U postgres -i -q -s {} postgres >pgbench.log 2>&1",
            quoted(&self.primary_bin),
            self.port,
            scale(plan.size, 100)
        ))?;
        self.sql("VACUUM FREEZE")?;
        self.sql("CHECKPOINT")?;
        let agent = format!(
            "listen = \"[::]:{}\"\nsecret_file = \"{}\"\n\n[[cluster]]\ndata_directory = \"{}\"\nbin_directory = \"{}\"\n",
            self.port + 1,
            self.standby.path("secret"),
            self.standby.path("target"),
            self.standby_bin
        );
        self.standby.run_with("umask 077; cat >agent.toml; mkdir target", &agent)?;
        self.standby.run(&format!(
            "setsid {} serve --config agent.toml </dev/null >agent.log 2>&1 &
echo $! >agent.pid
for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.3; grep -q . agent.log && break; done
kill -0 \"$(cat agent.pid)\" || {{ cat agent.log >&2; exit 1; }}",
            quoted(&self.agent)
        ))?;
        Ok(())
    }

    fn start(&self, remote: &Remote, bin: &str, data: &str, listen: &str) -> Outcome<()> {
        let secret = remote.path("secret");
        let options = format!(
            "-p {} -c unix_socket_directories={} -c listen_addresses='{listen}' -c pgpool_recovery.secret_file={secret}",
            self.port,
            remote.path("").trim_end_matches('/'),
        );
        remote.run(&format!(
            "{}/pg_ctl -s -w -t 600 -D \"$PWD/{data}\" -l {data}.log -o {} start </dev/null >/dev/null 2>&1 || {{ tail -n 20 {data}.log >&2; exit 1; }}",
            quoted(bin),
            quoted(&options)
        ))?;
        Ok(())
    }

    pub(super) fn start_standby(&self) -> Outcome<()> {
        self.start(&self.standby, &self.standby_bin, "target", "")
    }

    pub(super) fn stop_standby(&self) -> Outcome<()> {
        let bin = quoted(&self.standby_bin);
        self.standby.run(&format!("{bin}/pg_ctl -s -w -t 600 -D \"$PWD/target\" -m fast stop")).map(drop)
    }

    /// The beginning of a call of psql on the primary, which runs in our directory there.
    pub(super) fn psql(&self) -> String {
        psql(&self.primary_bin, self.port)
    }

    /// What a query says on the primary.
    pub(super) fn sql(&self, query: &str) -> Outcome<String> {
        let said = self.primary.run(&format!("{} -c {} </dev/null", self.psql(), quoted(query)))?;
        Ok(said.trim().to_owned())
    }

    /// Waits until the standby has replayed all WAL and streams, and gives what its rows are.
    pub(super) fn catch_up(&self) -> Outcome<String> {
        let end = self.sql("SELECT pg_current_wal_flush_lsn()")?;
        let psql = psql(&self.standby_bin, self.port);
        let is_there = format!(
            "SELECT coalesce(pg_last_wal_replay_lsn() >= '{end}', false) AND EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')"
        );
        let rows = self.standby.run(&format!(
            "n=0; until [ \"$({psql} -c {} </dev/null)\" = t ]; do n=$((n + 1)); [ $n -lt 600 ] || {{ echo 'it does not stream' >&2; tail -n 20 target.log >&2; exit 1; }}; sleep 0.2; done
{psql} -c {} </dev/null",
            quoted(&is_there),
            quoted(FINGERPRINT)
        ))?;
        Ok(rows.trim().to_owned())
    }

    /// What the primary's rows are.
    pub(super) fn fingerprint(&self) -> Outcome<String> {
        self.sql(FINGERPRINT)
    }

    /// Changes about so many of a hundred of the table's pages.
    pub(super) fn change(&self, percent: u32) -> Outcome<()> {
        let every = ROWS_OF_A_FULL_PAGE * 100 / percent;
        self.sql(&format!("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid % {every} = 0"))?;
        self.sql("VACUUM pgbench_accounts")?;
        self.sql("CHECKPOINT").map(drop)
    }

    /// Bytes that the primary's interface to the standby has carried so far, as far as that can be told.
    pub(super) fn carried(&self) -> Outcome<Option<u64>> {
        let said = self.primary.run(&format!(
            "a=$(getent ahosts {} | awk 'NR == 1 {{ print $1 }}')
PATH=$PATH:/usr/sbin:/sbin; ip -o route get \"$a\" 2>/dev/null | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p'; cat /proc/net/dev",
            quoted(&self.standby_address)
        ))?;
        let (interface, table) = said.split_once('\n').unwrap_or_default();
        Ok(traffic::count(table, interface))
    }

    pub(super) fn conninfo(&self) -> String {
        format!(
            "host={} port={} user=postgres passfile={}",
            self.primary_address,
            self.port,
            self.standby.path("pgpass")
        )
    }

    pub(super) fn facts(&self) -> &Value {
        &self.facts
    }

    pub(super) fn clean_up(&mut self) {
        let (primary_bin, standby_bin) = (self.primary_bin.clone(), self.standby_bin.clone());
        self.standby.clean_up(&standby_bin);
        self.primary.clean_up(&primary_bin);
    }
}

const FINGERPRINT: &str = "SELECT count(*), sum(hashtext(t::text)::bigint) FROM pgbench_accounts t";

fn psql(bin: &str, port: u16) -> String {
    format!(
        "PGPASSFILE=$PWD/pgpass {}/psql -XAtq -v ON_ERROR_STOP=1 -h \"$PWD\" -p {port} -U postgres -d postgres",
        quoted(bin)
    )
}

/// What PostgreSQL a host has, and where: `wanted`, or the newest.
fn postgresql(remote: &Remote, wanted: Option<&str>, programs: &[&str]) -> Outcome<(String, String)> {
    let places = wanted.map_or_else(
        || "$(pg_config --bindir 2>/dev/null || true) /usr/lib/postgresql/*/bin /usr/pgsql-*/bin".to_owned(),
        quoted,
    );
    let tests: Vec<String> = programs.iter().map(|program| format!("[ -x \"$d/{program}\" ]")).collect();
    let said = remote.run(&format!(
        "for d in {places}; do {{ {} && printf '%s\\t%s\\n' \"$(\"$d/postgres\" --version)\" \"$d\"; }} || true; done",
        tests.join(" && ")
    ))?;
    let found =
        said.lines().filter_map(|line| line.split_once('\t')).max_by_key(|(version, _)| major(version));
    match found {
        Some((version, bin)) => Ok((version.to_owned(), bin.to_owned())),
        None => failed(format!(
            "no PostgreSQL with {} on {}: install it, or say where with --bin-directory",
            programs.join(", "),
            remote.destination()
        )),
    }
}

/// Of `postgres (PostgreSQL) 15.18 (Debian ...)`.
fn major(version: &str) -> u32 {
    let number = version.split(") ").nth(1).unwrap_or_default();
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

/// Of a local address in `/proc/net/tcp`.
fn port(address: &str) -> Option<u16> {
    u16::from_str_radix(address.rsplit(':').next()?, 16).ok()
}

fn password() -> Outcome<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Stop::Failed(format!("/dev/urandom: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hosts_say_is_understood() {
        assert_eq!(major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), 15);
        assert_eq!(major("postgres (PostgreSQL) 19rc1"), 19);
        assert_eq!(major("no such thing"), 0);
        assert_eq!(port("0100007F:1538"), Some(5432));
        assert_eq!(port("00000000000000000000000000000000:26A9"), Some(9897));
    }
}

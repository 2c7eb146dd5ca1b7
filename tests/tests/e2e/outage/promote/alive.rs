//! A primary that lives, although the question to it fails: only where no connection comes about is nobody there.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pgpool_recovery_e2e::recovery::SqlError;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::server::program;
use pgpool_recovery_e2e::wait::{PATIENCE, until, until_true};
use pgpool_recovery_e2e::{Cluster, Host, Scratch, process};
use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};

use super::{Trio, promote, with};

/// A primary and a standby of it, without an agent.
struct Pair {
    scratch: Scratch,
    old: Cluster,
    one: Cluster,
}

impl Pair {
    fn new() -> Self {
        Self::of(Scratch::new(), |old| old)
    }

    fn of(scratch: Scratch, primary: impl FnOnce(Cluster) -> Cluster) -> Self {
        let old = primary(Cluster::place(&scratch, &Host::here(), "old")).into_primary();
        let one = Cluster::standby_by_basebackup(&old, &Host::here(), "one");
        Self { scratch, old, one }
    }

    /// The primary speaks TLS, with the first of two certificates.
    fn with_certificates() -> Self {
        let scratch = Scratch::new();
        for name in ["first", "second"] {
            let mut openssl = Host::here().command("openssl");
            openssl.args([
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "10",
                "-subj",
                "/CN=127.0.0.1",
            ]);
            openssl
                .args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
                .arg(scratch.join(format!("{name}.key")));
            openssl.arg("-out").arg(scratch.join(format!("{name}.crt")));
            process::run(openssl).ok();
        }
        let pair = Self::of(scratch, |old| old);
        pair.certify("first");
        pair.old.append_conf("ssl", "on");
        pair.old.reload();
        pair
    }

    fn certificate(&self, name: &str) -> PathBuf {
        self.scratch.join(format!("{name}.crt"))
    }

    fn certify(&self, name: &str) {
        for suffix in ["key", "crt"] {
            let text = fs::read_to_string(self.scratch.join(format!("{name}.{suffix}"))).expect("read");
            write_as_postgres(&self.old.directory().join(format!("server.{suffix}")), &text, 0o600);
        }
        self.old.reload();
    }

    /// The standby follows by this connection string from now on.
    fn follow_by(&self, conninfo: &str) {
        follow_by(&self.one, conninfo);
    }

    /// The standby's server is started anew with this in its environment.
    fn restart_with(&self, variable: &str) {
        restart_with(&self.one, variable);
    }

    /// Why it is not promoted.
    #[track_caller]
    fn refused(&self) -> SqlError {
        let error = promote(&self.one, None, &json!({})).expect_err("a second primary was made");
        assert!(self.one.in_recovery());
        error.expect("55000")
    }

    /// The primary's end ends the refusal.
    #[track_caller]
    fn promoted_without_the_primary(&self) {
        self.old.kill();
        promote(&self.one, None, &json!({})).expect("promoted");
        assert!(!self.one.in_recovery());
    }
}

/// A standby's server is started anew with this in its environment.
fn restart_with(standby: &Cluster, variable: &str) {
    let wrapper = standby.scratch().join("postgres-with-environment");
    let text = format!("#!/bin/sh\nexec env {variable} {} \"$@\"\n", program("postgres").display());
    write_as_postgres(&wrapper, &text, 0o755);
    standby.stop(pgpool_recovery_e2e::cluster::Stop::Fast);
    standby.start_by(&wrapper);
}

fn follow_by(standby: &Cluster, conninfo: &str) {
    standby.append_conf("primary_conninfo", conninfo);
    standby.reload();
    let is_read = "SELECT current_setting('primary_conninfo') = $1";
    until_true("the new setting", PATIENCE, || standby.get(is_read, &[&conninfo]));
}

/// It lets nobody in, since the server that it asks does not answer: no login fails, and none succeeds.
#[test]
fn a_primary_whose_logins_hang_lives() {
    let pair = Pair::new();
    let (_silent, port) = silent();
    let ldap = format!("ldap ldapserver=127.0.0.1 ldapport={port} ldapprefix=\"cn=\" ldapsuffix=\",dc=x\"");
    pair.old.set_hba(&format!("local all all trust\nhost all,replication all all {ldap}\n"));
    pair.old.reload();
    pair.follow_by(&format!("host=127.0.0.1 port={} user=postgres password=x", pair.old.port()));
    let streams = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
    until_true("the walreceiver to end", PATIENCE, || pair.one.get::<i64>(streams, &[]) == 0);
    pair.refused().says("another primary is alive").says("login");
    pair.promoted_without_the_primary();
}

/// A listener that the kernel accepts connections for, and that never says a word, as a frozen server's.
fn silent() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    (listener, port)
}

fn uri(primary: &Cluster) -> String {
    format!(
        "postgresql://postgres@{}:{}/?application_name=by%20uri",
        primary.host().address(),
        primary.port()
    )
}

#[test]
fn a_primary_is_asked_whose_address_is_a_uri() {
    let pair = Pair::new();
    pair.follow_by(&uri(&pair.old));
    pair.refused().says("another primary is alive").says("answers as a primary on timeline 1");
    pair.promoted_without_the_primary();
}

#[test]
fn a_primary_whose_certificate_is_not_trusted_lives() {
    let pair = Pair::with_certificates();
    let (host, port) = (pair.old.host().address(), pair.old.port());
    let trusts = pair.certificate("first");
    let conninfo = format!(
        "host={host} port={port} user=postgres sslmode=verify-ca application_name=tls sslrootcert={}",
        trusts.display()
    );
    pair.follow_by(&conninfo);
    pair.refused().says("answers as a primary");
    pair.certify("second");
    pair.refused().says("another primary is alive").says("certificate verify failed");
    // what is to be trusted cannot be read, so nobody can be asked
    pair.follow_by(&conninfo.replace("first.crt", "none.crt"));
    pair.refused().says("nothing is promoted").says("none.crt");
    pair.follow_by(&conninfo);
    pair.promoted_without_the_primary();
}

#[test]
fn the_primary_is_asked_in_the_environment_of_the_standbys_server() {
    let pair = Pair::with_certificates();
    let (host, port) = (pair.old.host().address(), pair.old.port());
    pair.follow_by(&format!("host={host} port={port} user=postgres sslmode=verify-full"));
    pair.restart_with(&format!("PGSSLROOTCERT={}", pair.certificate("first").display()));
    pair.refused().says("answers as a primary");
    let services = pair.scratch.join("services.conf");
    write_as_postgres(&services, &format!("[up]\nhost={host}\nport={port}\n[other]\nport=1\n"), 0o600);
    pair.follow_by("service=up user=postgres");
    pair.restart_with(&format!("PGSERVICEFILE={}", services.display()));
    pair.refused().says("answers as a primary");
    pair.follow_by("service=unheard_of user=postgres");
    pair.refused().says("cannot tell whether the primary lives").says("unheard_of").says("primary_conninfo");
    pair.follow_by("service=up user=postgres");
    pair.promoted_without_the_primary();
}

#[test]
fn the_primary_may_be_any_of_several_hosts() {
    let pair = Pair::new();
    let ((_one, first), (_two, second)) = (silent(), silent());
    let host = pair.old.host().address();
    pair.follow_by(&format!(
        "connect_timeout=2 host=127.0.0.1,127.0.0.1,{host} port={first},{second},{} user=postgres",
        pair.old.port()
    ));
    pair.refused().says("answers as a primary");
    // one that refuses tells nothing of the others
    pair.follow_by(&format!("host=127.0.0.1,{host} port=1,{} user=nobody_at_all", pair.old.port()));
    pair.refused().says("nobody_at_all");
    pair.promoted_without_the_primary();
}

/// New connections fail as if nobody were there, and the old ones go on.
#[test]
fn a_primary_that_a_standby_still_hears_lives() {
    let trio = Trio::new();
    let sockets = trio.old.scratch().sockets();
    let by_socket = format!("host={} port={} user=postgres", sockets.display(), trio.old.port());
    // it asks its primary for a word after half of this
    trio.two.append_conf("wal_receiver_timeout", "6s");
    for standby in [&trio.one, &trio.two] {
        follow_by(standby, &format!("{by_socket} application_name={}", standby.name()));
    }
    let mut client = trio.old.connect();
    client.batch_execute("CREATE TABLE more (n int) WITH (autovacuum_enabled = off)").expect("made");
    until_true("both to stream by the socket", PATIENCE, || {
        let sql =
            "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming' AND sender_host LIKE '/%'";
        [&trio.one, &trio.two].iter().all(|standby| standby.get::<i64>(sql, &[]) == 1)
    });
    let (socket, hidden) = (sockets.join(format!(".s.PGSQL.{}", trio.old.port())), sockets.join("hidden"));
    fs::rename(&socket, &hidden).expect("hidden");
    let over = AtomicBool::new(false);
    let own = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                client.batch_execute("INSERT INTO more VALUES (1)").expect("the primary lives");
                thread::sleep(Duration::from_millis(50));
            }
        });
        let own = promote(&trio.one, None, &trio.options);
        over.store(true, Ordering::Relaxed);
        own
    });
    let own = own.expect_err("a second primary was made");
    own.expect("55000").says("another primary is alive").says("this standby").says("walreceiver");
    // by the word of another node's host: both have the same WAL, and nothing writes more of it
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'background writer'";
    let writer: i32 = client.query_one(sql, &[]).expect("it runs").get(0);
    kill_process(process::pid(writer.unsigned_abs()), Signal::STOP).expect("stopped");
    fs::rename(&hidden, &socket).expect("back");
    for standby in [&trio.two, &trio.one] {
        standby.wait_for_replay(&trio.old);
    }
    fs::rename(&socket, &hidden).expect("hidden");
    trio.without(&trio.one, || ());
    let error = promote(&trio.one, None, &trio.nodes(&[&trio.two])).expect_err("a second primary was made");
    error.expect("55000").says("another primary is alive").says("node 2").says("walreceiver");
    trio.demand_nothing_promoted();
    trio.old.kill();
    promote(&trio.one, None, &trio.nodes(&[&trio.two])).expect("promoted");
}

/// Of the hosts in the string one is a standby, and the other takes no connections any more, but goes on as a primary.
#[test]
fn a_standby_among_the_hosts_hides_no_primary() {
    let trio = Trio::new();
    let sockets = trio.old.scratch().sockets();
    let (old, two) = (trio.old.port(), trio.two.port());
    follow_by(&trio.one, &format!("host={},127.0.0.1 port={old},{two} user=postgres", sockets.display()));
    follow_by(&trio.two, &format!("host={} port={old} user=postgres", sockets.display()));
    let streams_from = |port: u16| {
        let sql = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming' AND sender_port = $1";
        trio.one.get::<i64>(sql, &[&i32::from(port)]) == 1
    };
    until_true("the standby to stream by the socket", PATIENCE, || streams_from(old));
    let mut client = trio.old.connect();
    client.batch_execute("CREATE TABLE more (n int)").expect("made");
    let (socket, hidden) = (sockets.join(format!(".s.PGSQL.{old}")), sockets.join("hidden"));
    fs::rename(&socket, &hidden).expect("hidden");
    let over = AtomicBool::new(false);
    let nodes = [json!({}), trio.nodes(&[&trio.two])];
    let answers = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                client.batch_execute("INSERT INTO more VALUES (1)").expect("the primary lives");
                thread::sleep(Duration::from_millis(50));
            }
        });
        let answers = nodes.map(|options| promote(&trio.one, None, &options));
        over.store(true, Ordering::Relaxed);
        answers
    });
    for answer in answers {
        let error = answer.expect_err("a second primary was made").expect("55000");
        error.says("another primary is alive").says("walreceiver");
    }
    trio.demand_nothing_promoted();
    trio.old.kill();
    // what the other standby sends says nothing of the primary
    until_true("the standby to stream from the other one", PATIENCE, || streams_from(two));
    promote(&trio.one, None, &trio.nodes(&[&trio.two])).expect("promoted");
}

#[test]
fn the_primary_of_a_node_is_asked_whose_address_is_a_uri() {
    let trio = Trio::new();
    follow_by(&trio.two, &uri(&trio.old));
    let nodes = trio.nodes(&[&trio.two]);
    // even an idle primary writes some WAL, which a standby that is cut off does not receive
    let error = until("a look before that", PATIENCE, || {
        follow_by(&trio.one, &uri(&trio.old));
        trio.one.wait_for_replay(&trio.old);
        trio.without(&trio.one, || ());
        let error = promote(&trio.one, None, &nodes).expect_err("a second primary was made");
        (!error.message.contains("has received more")).then_some(error)
    });
    error.expect("55000").says("another primary is alive").says("node 2").says("answers as a primary");
    follow_by(&trio.two, "service=unheard_of");
    let error = promote(&trio.one, None, &nodes).expect_err("a second primary was made");
    error.expect("55000").says("cannot tell").says("node 2").says("unheard_of");
    trio.demand_nothing_promoted();
}

/// The agent of a node is heard, and its server does not tell it whom it follows, or hears.
#[test]
fn what_a_node_does_not_say_makes_no_silence() {
    let trio = Trio::new();
    trio.without(&trio.one, || ());
    trio.two.set_hba("local all all reject\nhost all,replication all 127.0.0.1/32 trust\n");
    kill_process(process::pid(trio.two.postmaster().expect("it runs")), Signal::HUP).expect("reloaded");
    until_true("it to let nobody in", PATIENCE, || {
        let mut psql = Host::here().pg("psql");
        psql.args(["-h".as_ref(), trio.two.scratch().sockets().as_os_str(), "-p".as_ref()]);
        psql.args([&trio.two.port().to_string(), "-d", "postgres", "-c", "SELECT 1"]);
        !process::run(psql).status.success()
    });
    let nodes = trio.nodes(&[&trio.two]);
    let refused = || promote(&trio.one, None, &nodes).expect_err("a second primary was made").expect("55000");
    // its files say whom it follows
    refused().says("another primary is alive").says("node 2").says("answers as a primary");
    // it streams on, and its files lead elsewhere by now
    trio.two.append_conf("primary_conninfo", "host=127.0.0.1 port=1 user=postgres");
    refused().says("cannot tell").says("node 2").says("pg_hba.conf");
    assert!(trio.one.in_recovery());
    trio.two.append_conf("primary_conninfo", "service=unheard_of");
    refused().says("cannot tell").says("node 2").says("unheard_of");
    assert!(trio.one.in_recovery());
}

/// The primary is idle, and new connections to it fail.
#[test]
fn who_had_no_time_to_answer_was_not_silent() {
    let pair = Pair::new();
    let sockets = pair.old.scratch().sockets();
    pair.follow_by(&format!("host={} port={} user=postgres", sockets.display(), pair.old.port()));
    until_true("it to stream by the socket", PATIENCE, || {
        let sql =
            "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming' AND sender_host LIKE '/%'";
        pair.one.get::<i64>(sql, &[]) == 1
    });
    let socket = sockets.join(format!(".s.PGSQL.{}", pair.old.port()));
    fs::rename(&socket, sockets.join("hidden")).expect("hidden");
    let refused = |deadline: u32| {
        promote(&pair.one, None, &json!({ "deadline": deadline })).expect_err("a second primary was made")
    };
    refused(9).expect("55000").says("nothing is promoted");
    refused(5).expect("57014").says("too little time").says("deadline");
    assert!(pair.one.in_recovery());
}

#[test]
fn a_primary_that_was_stopped_for_good_need_not_be_asked() {
    let trio = Trio::new();
    // it streams, and nothing tells any more where from
    let services = trio.one.scratch().join("services");
    let up = format!("[up]\nhost=127.0.0.1\nport={}\nuser=postgres\n", trio.old.port());
    write_as_postgres(&services, &up, 0o600);
    restart_with(&trio.one, &format!("PGSERVICEFILE={}", services.display()));
    follow_by(&trio.one, "service=up");
    trio.one.wait_for_replay(&trio.old);
    fs::remove_file(&services).expect("removed");
    for options in [trio.option("fence", "off"), with(&trio.options, "agent_port", 1)] {
        let error = promote(&trio.one, Some(&trio.old), &options).expect_err("nobody knows");
        error.expect("55000").says("nothing is promoted");
    }
    trio.demand_nothing_promoted();
    let report: Value = promote(&trio.one, Some(&trio.old), &trio.options).expect("promoted");
    assert_eq!(report["fenced"]["fenced"], json!(true), "{report}");
}

#[test]
fn no_secret_is_in_a_command_line_and_a_frozen_primary_holds_up_nothing() {
    let pair = Pair::new();
    let (_silent, port) = silent();
    pair.one.wait_for_replay(&pair.old);
    pair.old.kill();
    pair.follow_by(&format!(
        "host=127.0.0.1 port={port} user=postgres password=alsosecret sslpassword=topsecret"
    ));
    let over = AtomicBool::new(false);
    let (report, seen) = thread::scope(|scope| {
        let seen = scope.spawn(|| {
            let mut seen = Vec::new();
            while !over.load(Ordering::Relaxed) {
                seen.extend(questions());
                thread::sleep(Duration::from_millis(20));
            }
            seen
        });
        let report = promote(&pair.one, None, &json!({}));
        over.store(true, Ordering::Relaxed);
        (report, seen.join().expect("looked"))
    });
    assert_eq!(report.expect("promoted")["result"], "promoted");
    let own: Vec<_> = seen.iter().filter(|line| line.contains("replication=true")).collect();
    assert!(own.iter().any(|line| line.contains(&port.to_string())), "{seen:?}");
    assert!(own.iter().all(|line| !line.contains("secret")), "{own:?}");
}

/// The command lines of programs that ask a server what it is.
fn questions() -> Vec<String> {
    let processes = fs::read_dir("/proc").expect("read");
    let lines = processes.filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains("IDENTIFY_SYSTEM") && line.contains("psql")).collect()
}

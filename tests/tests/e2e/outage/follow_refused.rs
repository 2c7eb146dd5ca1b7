//! What `pgpool_recovery_follow` refuses, and leaves as it was.

use std::net::TcpListener;

use pgdata::wal::Lsn;
use pgpool_recovery_e2e::agent;
use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::process;
use pgpool_recovery_e2e::recovery::SqlError;
use pgpool_recovery_e2e::stage::Transport;
use pgpool_recovery_e2e::{Cluster, Scratch, by_both_transports, wait};
use rustix::process::{Signal, kill_process};

use super::follow::{Trio, follow};
use super::stop::ALLOWED;

/// A standby in whose replay nothing moves connects to no other primary.
#[test]
fn a_standby_whose_replay_is_paused_follows_once_it_goes_on() {
    let trio = Trio::new(Transport::Agent);
    trio.old.execute("CREATE TABLE replicated ()");
    trio.new.wait_for_replay(&trio.old);
    trio.third.wait_for_replay(&trio.old);
    trio.third.execute("SELECT pg_wal_replay_pause()");
    trio.old.kill();
    trio.new.promote();
    let running = trio.third.postmaster();
    let error = follow(&trio.new, &trio.third, &trio.options).expect_err("paused");
    error.expect("55000").says("is paused").says("pg_wal_replay_resume");
    trio.demand_untouched(running);
    trio.third.execute("SELECT pg_wal_replay_resume()");
    follow(&trio.new, &trio.third, &trio.options).expect("follows");
    trio.demand_following(&trio.third);
}

#[test]
fn a_standby_that_is_stopped_stays_so() {
    let trio = Trio::new(Transport::Agent);
    trio.fail_over();
    trio.third.stop(Stop::Fast);
    for on_diverged in ["report", "rebuild"] {
        let error =
            follow(&trio.new, &trio.third, &trio.option("on_diverged", on_diverged)).expect_err("stopped");
        error.expect("55000").says("is stopped");
    }
    trio.demand_untouched(None);
}

#[test]
fn a_standby_whose_login_is_refused_goes_on_running_and_says_why() {
    let trio = Trio::new(Transport::Agent);
    trio.fail_over();
    trio.new.execute("CREATE ROLE repl LOGIN REPLICATION PASSWORD 'right'");
    trio.new.set_hba(
        "local all all trust\nhost replication repl 0.0.0.0/0 scram-sha-256\nhost all all 0.0.0.0/0 trust\n",
    );
    trio.new.reload();
    let running = trio.third.postmaster();
    let passfile = trio.third.scratch().join("passfile");
    let write = |password: &str| {
        let text = format!("*:*:*:repl:{password}\n");
        pgpool_recovery_e2e::scratch::write_as_postgres(&passfile, &text, 0o600);
    };
    write("wrong");
    let mut options = trio.option("replication_user", "repl");
    options["passfile"] = passfile.to_str().into();
    options["follow_timeout"] = 3.into();
    let error = follow(&trio.new, &trio.third, &options).expect_err("refused").expect("58000");
    error.says("password authentication failed").says("was not restarted");
    assert_eq!(trio.third.postmaster(), running);
    write("right");
    follow(&trio.new, &trio.third, &options).expect("follows");
    trio.demand_following(&trio.third);
    assert_eq!(trio.third.postmaster(), running);
}

#[test]
fn a_slot_that_is_taken_is_left_alone_and_so_is_the_standby() {
    let trio = Trio::with(Transport::Agent, ALLOWED, |old| old.with("wal_level", "logical"));
    trio.fail_over();
    trio.new.execute("SELECT pg_create_logical_replication_slot('third', 'pgoutput')");
    let running = trio.third.postmaster();
    let error = follow(&trio.new, &trio.third, &trio.options).expect_err("taken");
    error.expect("55006").says("logical slot");
    trio.demand_untouched(running);
    // no slot is no answer to a slot that is in use
    follow(&trio.new, &trio.third, &trio.option("slot_name", "")).expect("follows");
}

#[test]
fn a_standby_whose_wal_is_gone_has_diverged() {
    let trio = Trio::new(Transport::Agent);
    for (setting, value) in [("wal_keep_size", "0"), ("max_wal_size", "32MB"), ("min_wal_size", "32MB")] {
        trio.new.append_conf(setting, value);
    }
    trio.new.reload();
    trio.without(&trio.third, || trio.old.execute("CREATE TABLE replicated ()"));
    trio.old.kill();
    trio.new.promote();
    let needed: String = trio.third.get("SELECT pg_last_wal_replay_lsn()::text", &[]);
    // from 19 on the server fills it up with zeros
    let needed = needed.parse::<Lsn>().expect("a position").to_string();
    for _ in 0..6 {
        trio.new.execute("SELECT pg_logical_emit_message(true, 'e2e', ''); SELECT pg_switch_wal()");
        trio.new.execute("CHECKPOINT");
    }
    let running = trio.third.postmaster();
    let error = follow(&trio.new, &trio.third, &trio.options).expect_err("gone");
    error.expect("55000").says("diverged").says("no longer has").says(&needed);
    trio.demand_untouched(running);
}

/// An error is not a no: whether it has diverged is not known.
#[test]
fn a_standby_that_lets_nobody_in_is_not_judged() {
    let trio = Trio::new(Transport::Agent);
    trio.fail_over();
    trio.third.set_hba("local all all reject\n");
    let postmaster = trio.third.postmaster();
    kill_process(process::pid(postmaster.expect("it runs")), Signal::HUP).expect("signaled");
    wait::until_true("the login to be refused", wait::PATIENCE, || {
        trio.third.config().connect(postgres::NoTls).is_err()
    });
    let error = follow(&trio.new, &trio.third, &trio.option("on_diverged", "rebuild")).expect_err("unknown");
    error.expect("55000").says("cannot tell").says("pg_hba.conf");
    trio.demand_untouched(postmaster);
}

/// A walreceiver that does not end: a restart helps where it is allowed.
fn wedged(lines: &str) -> (Trio, Option<u32>) {
    let trio = Trio::with(Transport::Agent, lines, |old| old);
    trio.old.execute("CREATE TABLE replicated ()");
    trio.new.wait_for_replay(&trio.old);
    trio.third.wait_for_replay(&trio.old);
    let receiver: i32 = trio.third.get("SELECT pid FROM pg_stat_wal_receiver", &[]);
    kill_process(process::pid(receiver.unsigned_abs()), Signal::STOP).expect("stopped");
    trio.old.kill();
    trio.new.promote();
    let running = trio.third.postmaster();
    (trio, running)
}

#[test]
fn a_standby_that_does_not_stream_is_restarted_once() {
    let (trio, running) = wedged(ALLOWED);
    let mut options = trio.option("follow_timeout", 2);
    options["stop_timeout"] = 1.into();
    let report = follow(&trio.new, &trio.third, &options).expect("restarted");
    assert_eq!(report["result"], "restarted", "{report}");
    assert_ne!(trio.third.postmaster(), running);
    trio.demand_following(&trio.third);
}

#[test]
fn a_standby_that_may_not_be_stopped_is_not_restarted() {
    let (trio, running) = wedged("");
    let error = follow(&trio.new, &trio.third, &trio.option("follow_timeout", 2)).expect_err("not allowed");
    error.expect("58000").says("does not stream").says("was not restarted").says("may not stop");
    assert_eq!(trio.third.postmaster(), running);
}

#[test]
fn an_agent_that_is_not_there_or_has_another_secret_is_no_answer() {
    let trio = Trio::new(Transport::Agent);
    trio.fail_over();
    let running = trio.third.postmaster();
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let error = follow(&trio.new, &trio.third, &trio.option("agent_port", free.port())).expect_err("nobody");
    error.expect("08001");
    let other = agent::secret(trio.third.scratch(), "other-secret");
    let error =
        follow(&trio.new, &trio.third, &trio.option("secret_file", other.to_str())).expect_err("refused");
    error.expect("28000");
    trio.demand_untouched(running);
}

fn what_does_not_belong_here_is_refused(transport: Transport) {
    let trio = Trio::new(transport);
    // a standby is asked
    let error = follow(&trio.new, &trio.third, &trio.options).expect_err("no primary");
    error.expect("55000").says("this server is a standby");
    // of another system
    let foreign = Cluster::place(trio.third.scratch(), trio.third.host(), "foreign");
    let foreign = foreign.initdb_argument("--data-checksums").into_primary();
    let error = follow(&foreign, &trio.third, &trio.options).expect_err("another system");
    error.expect("55000").says("system identifier");
    let missing = Cluster::place(trio.third.scratch(), trio.third.host(), "missing");
    let options = trio.option("transport", "local");
    let error = follow(&trio.old, &missing, &options).expect_err("nothing is there");
    error.expect("55000").says("holds no cluster");
    assert!(!missing.directory().exists(), "and nothing was made");
    trio.demand_untouched(trio.third.postmaster());
}

by_both_transports!(what_does_not_belong_here_is_refused);

#[test]
fn arguments_are_checked() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let mut client = primary.connect();
    for (arguments, sqlstate) in [
        ("NULL, '/srv/b', 5432, 'h', 5432, 1", "22004"),
        ("'localhost', NULL, 5432, 'h', 5432, 1", "22004"),
        ("'localhost', '/srv/b', NULL, 'h', 5432, 1", "22004"),
        ("'localhost', '/srv/b', 5432, NULL, 5432, 1", "22004"),
        ("'localhost', '/srv/b', 5432, 'h', NULL, 1", "22004"),
        ("'localhost', '/srv/b', 5432, 'h', 5432, NULL", "22004"),
        ("'localhost', '/srv/b', 5432, 'h', 5432, 1, NULL", "22004"),
        ("'local host', '/srv/b', 5432, 'h', 5432, 1", "22023"),
        ("'localhost', 'relative', 5432, 'h', 5432, 1", "22023"),
        ("'localhost', '/srv/b', 0, 'h', 5432, 1", "22023"),
        ("'localhost', '/srv/b', 5432, 'h;', 5432, 1", "22023"),
        ("'localhost', '/srv/b', 5432, 'h', 65536, 1", "22023"),
        ("'localhost', '/srv/b', 5432, 'h', 5432, -1", "22023"),
        ("'localhost', '/srv/b', 5432, 'h', 5432, 1, '[]'", "22023"),
        ("'localhost', '/srv/b', 5432, 'h', 5432, 1, '{\"unknown\": 1}'", "22023"),
        ("'localhost', '/srv/b', 5432, 'h', 5432, 1, '{\"on_diverged\": \"wipe\"}'", "22023"),
        ("'localhost', '/srv/b', 5432, 'h', 5432, 1, '{\"follow_timeout\": 0}'", "22023"),
        ("'localhost', '/srv/b', 5432, 'h', 5432, 1, '{\"dry_run\": true}'", "22023"),
        ("'localhost', '/srv/b', 5432, 'h', 5432, 1, '{\"start\": true}'", "22023"),
    ] {
        let sql = format!("SELECT pgpool_recovery_follow({arguments})");
        let error = client.query_one(&sql, &[]).expect_err(&sql);
        SqlError::from(&error).expect(sqlstate);
    }
}

#[test]
fn a_role_needs_the_right_and_names_no_other_primary() {
    let trio = Trio::new(Transport::Agent);
    trio.new.append_conf("pgpool_recovery.transport", "agent");
    for name in ["agent_port", "secret_file"] {
        let value = trio.options[name].to_string();
        trio.new.append_conf(&format!("pgpool_recovery.{name}"), value.trim_matches('"'));
    }
    trio.new.reload();
    trio.fail_over();
    trio.new.execute(
        "CREATE ROLE stranger LOGIN; CREATE ROLE operator LOGIN REPLICATION;
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO stranger, operator",
    );
    let running = trio.third.postmaster();
    let ask = |role: &str, host: &str, options: &str| {
        let mut client = trio.new.connect();
        client.batch_execute(&format!("SET SESSION AUTHORIZATION {role}")).expect("a role");
        let (third, new) = (&trio.third, &trio.new);
        let call = format!(
            "SELECT pgpool_recovery_follow('localhost', '{}', {}, '{host}', {}, 2, '{options}')",
            third.dir(),
            third.port(),
            new.port()
        );
        client.simple_query(&call).map(drop).map_err(|error| SqlError::from(&error))
    };
    let own = trio.new.host().address();
    ask("stranger", own, "{}").expect_err("no right").expect("42501").says("REPLICATION");
    ask("operator", "192.0.2.1", "{}").expect_err("elsewhere").expect("42501").says("primary_host");
    ask("operator", own, "{\"passfile\": \"/x\"}").expect_err("an option").expect("42501").says("passfile");
    trio.demand_untouched(running);
    ask("operator", own, "{\"slot_name\": \"third\"}").expect("follows");
    assert_eq!(trio.third.postmaster(), running);
    trio.demand_following(&trio.third);
}

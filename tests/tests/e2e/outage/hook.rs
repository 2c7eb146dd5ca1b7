//! `pgpool-recovery-hook` without Pgpool-II: what it does with nonsense and with hosts that do not answer.

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::process::{self, Finished};
use pgpool_recovery_e2e::wait::{PATIENCE, until_true};
use pgpool_recovery_e2e::{Cluster, Host, Scratch};

/// A pgpool.conf with these nodes.
fn conf(scratch: &Scratch, nodes: &[(&str, u16, &str)]) -> std::path::PathBuf {
    let mut text =
        String::from("backend_clustering_mode = 'streaming_replication'\nrecovery_user = 'postgres'\n");
    for (id, (host, port, directory)) in nodes.iter().enumerate() {
        text += &format!(
            "backend_hostname{id} = '{host}'\nbackend_port{id} = {port}\nbackend_data_directory{id} = '{directory}'\n\
             backend_application_name{id} = 'server{id}'\n"
        );
    }
    scratch.write("pgpool.conf", &text, 0o600)
}

/// Runs it, and says how long that took.
fn hook(command: &str, conf: &Path, arguments: &[&str]) -> (Finished, Duration) {
    let mut hook = Host::here().hook();
    hook.arg(command).arg("--config").arg(conf).args(arguments);
    let started = Instant::now();
    (process::run(hook), started.elapsed())
}

#[track_caller]
fn fails(finished: &Finished, words: &[&str]) {
    assert!(!finished.status.success(), "{finished:?}");
    for word in words {
        assert!(finished.stderr.contains(word), "no \"{word}\" in {finished:?}");
    }
}

/// The old primary is node 0, the new main node 1.
fn failover_of(nodes: &[(&str, u16, &str)]) -> Vec<String> {
    let (old, new) = (nodes[0], nodes[1]);
    let port = |node: (&str, u16, &str)| node.1.to_string();
    vec![
        "0".to_owned(),
        old.0.to_owned(),
        port(old),
        old.2.to_owned(),
        "1".to_owned(),
        new.0.to_owned(),
        "0".to_owned(),
        "0".to_owned(),
        port(new),
        new.2.to_owned(),
        old.0.to_owned(),
        port(old),
    ]
}

fn texts(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn nonsense_is_named_and_a_missing_pgpool_conf_too() {
    let scratch = Scratch::new();
    let nodes = [("127.0.0.1", 1, "/srv/a"), ("127.0.0.1", 2, "/srv/b")];
    let conf = conf(&scratch, &nodes);
    let words = failover_of(&nodes);
    for command in ["failover", "follow"] {
        fails(&hook(command, &conf, &[]).0, &["WORDS"]);
        fails(&hook(command, &conf, &["0"]).0, &["too few"]);
        let mut wrong = texts(&words);
        wrong[4] = "one";
        fails(&hook(command, &conf, &wrong).0, &["FAILED", "%m", "one"]);
        wrong[4] = "9";
        fails(&hook(command, &conf, &wrong).0, &["no node of that number"]);
        fails(&hook(command, &scratch.join("none.conf"), &texts(&words)).0, &["none.conf"]);
    }
    fails(&hook("attach", &conf, &["7"]).0, &["no node 7"]);
    let finished = hook("check", &scratch.join("none.conf"), &[]).0;
    assert!(!finished.status.success() && finished.stdout.contains("FAIL"), "{finished:?}");
    fails(&hook("promote", &conf, &[]).0, &["promote"]);
    // this machine has one at a usual place, or none
    let bad = scratch.write("bad.conf", "backend_hostname0 'a\n", 0o600);
    fails(&hook("failover", &bad, &texts(&words)).0, &["line 1"]);
}

#[test]
fn a_standbys_failure_is_nothing_to_do() {
    let scratch = Scratch::new();
    // nothing answers there: it must not even be asked
    let nodes = [("127.0.0.1", 1, "/srv/a"), ("127.0.0.1", 2, "/srv/b"), ("127.0.0.1", 3, "")];
    let conf = conf(&scratch, &nodes);
    for (words, why) in [
        // as Pgpool-II 4.3 calls it when node 1, a standby, fails; an empty %D disappears
        ("1 127.0.0.1 2 /srv/b 0 127.0.0.1 0 0 1 /srv/a 127.0.0.1 1", "node 0 is the primary"),
        ("2 127.0.0.1 3 0 127.0.0.1 0 0 1 /srv/a 127.0.0.1 1", "node 0 is the primary"),
    ] {
        let (finished, _) = hook("failover", &conf, &words.split(' ').collect::<Vec<_>>());
        assert!(finished.status.success(), "{finished:?}");
        assert!(finished.stderr.contains("nothing to do") && finished.stderr.contains(why), "{finished:?}");
    }
    let last = ["0", "127.0.0.1", "1", "/srv/a", "-1", "", "0", "0", "", "", "127.0.0.1", "1"];
    let (finished, _) = hook("failover", &conf, &last);
    assert!(finished.status.success() && finished.stderr.contains("no node is left"), "{finished:?}");
    fails(&hook("follow", &conf, &last).0, &["no new primary"]);
}

#[test]
fn hosts_that_do_not_answer_hold_it_up_for_no_longer_than_its_limit() {
    let scratch = Scratch::new();
    // the kernel accepts, and nobody says a word
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = silent.local_addr().expect("address").port();
    for (host, port, said) in [
        ("127.0.0.1", port, "timeout expired"),
        ("no-such-host.invalid", 5432, "no-such-host.invalid"),
        ("127.0.0.1", 1, "Connection refused"),
    ] {
        let nodes = [("127.0.0.1", 1, "/srv/a"), (host, port, "/srv/b")];
        let conf = conf(&scratch, &nodes);
        let words = failover_of(&nodes);
        for command in ["failover", "follow"] {
            let (finished, took) = hook(command, &conf, &texts(&words));
            fails(&finished, &["FAILED", said]);
            assert!(took < Duration::from_secs(20), "{took:?}: {finished:?}");
        }
    }
    let nodes = [("127.0.0.1", 1, "/srv/a"), ("127.0.0.1", port, "/srv/b")];
    let conf = conf(&scratch, &nodes);
    let words = failover_of(&nodes);
    let mut arguments = vec!["--timeout", "2"];
    arguments.extend(texts(&words));
    let (finished, took) = hook("failover", &conf, &arguments);
    fails(&finished, &["gave no answer within 2 s"]);
    assert!(took < Duration::from_secs(8), "{took:?}");
    let (finished, took) = hook("attach", &conf, &["--timeout", "2", "1"]);
    fails(&finished, &["FAILED"]);
    assert!(took < Duration::from_secs(8), "{took:?}");
    let (finished, took) = hook("check", &conf, &["--timeout", "3"]);
    assert!(!finished.status.success() && took < Duration::from_secs(20), "{took:?} {finished:?}");
    for line in ["FAIL  node 0", "FAIL  node 1", "FAIL  no node is a primary", "FAIL  PCP"] {
        assert!(finished.stdout.contains(line), "no \"{line}\" in {finished:?}");
    }
}

#[test]
fn a_refusal_of_the_servers_is_told_with_its_sqlstate_and_changes_nothing() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
    // the function is not there
    primary.execute("DROP EXTENSION pgpool_recovery");
    standby.wait_for_replay(&primary);
    let nodes = [("127.0.0.1", primary.port(), primary.dir()), ("127.0.0.1", standby.port(), standby.dir())];
    let conf = conf(&scratch, &nodes);
    let words = failover_of(&nodes);
    let (finished, _) = hook("failover", &conf, &texts(&words));
    fails(&finished, &["FAILED", "node 1", "pgpool_recovery_promote", "(42883)"]);
    assert_eq!(finished.stderr.lines().filter(|line| line.contains("FAILED")).count(), 1, "{finished:?}");
    assert!(standby.in_recovery() && !primary.in_recovery());
    let (finished, _) = hook("check", &conf, &[]);
    assert!(!finished.status.success(), "{finished:?}");
    for line in ["lacks functions", "no standby streams from node 0", "\"standby\"", "FAIL  PCP"] {
        assert!(finished.stdout.contains(line), "no \"{line}\" in {finished:?}");
    }
}

/// Its call waits for another one, and gives up; then the server is a primary all the same.
#[test]
fn a_promotion_that_has_happened_in_spite_of_an_error_is_one() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
    let nodes = [("127.0.0.1", primary.port(), primary.dir()), ("127.0.0.1", standby.port(), standby.dir())];
    let conf = conf(&scratch, &nodes);
    let words = failover_of(&nodes);
    let arguments: Vec<_> = ["--timeout", "8"].into_iter().chain(texts(&words)).collect();
    let turn = std::fs::File::open(standby.directory()).expect("open");
    turn.lock().expect("nobody else");
    let finished = std::thread::scope(|scope| {
        let called = scope.spawn(|| hook("failover", &conf, &arguments).0);
        std::thread::sleep(Duration::from_secs(1));
        standby.promote();
        called.join().expect("no panic")
    });
    assert!(finished.status.success(), "{finished:?}");
    assert!(finished.stderr.contains("node 1 is promoted all the same"), "{finished:?}");
    assert!(finished.stderr.contains("is the primary") && !standby.in_recovery(), "{finished:?}");
}

/// Its data directory is not known, so that only the hook asks it; and it speaks, if only to refuse.
#[test]
fn a_node_that_lets_the_hook_not_in_may_be_a_primary() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let [standby, other] =
        ["standby", "other"].map(|name| Cluster::standby_by_basebackup(&primary, &Host::here(), name));
    let nodes = [
        ("127.0.0.1", primary.port(), primary.dir()),
        ("127.0.0.1", standby.port(), standby.dir()),
        ("127.0.0.1", other.port(), ""),
    ];
    let (conf, words) = (conf(&scratch, &nodes), failover_of(&nodes));
    other.promote();
    other.set_hba("local all all trust\nhost all all all reject\n");
    other.reload();
    primary.kill();
    let (finished, _) = hook("failover", &conf, &texts(&words));
    fails(&finished, &["FAILED", "cannot tell whether node 2", "(55000)", "rejects connection"]);
    assert!(standby.in_recovery());
    // a login that hangs is none that fails: the server asks another one, which never answers
    let mute = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = mute.local_addr().expect("address").port();
    let ldap = format!("ldap ldapserver=127.0.0.1 ldapport={port} ldapprefix=\"cn=\" ldapsuffix=\",dc=x\"");
    other.set_hba(&format!("local all all trust\nhost all all all {ldap}\n"));
    other.reload();
    let mut asking = Host::here().hook();
    asking.arg("failover").arg("--config").arg(&conf).args(texts(&words)).env("PGPASSWORD", "x");
    let finished = process::run(asking);
    fails(&finished, &["FAILED", "cannot tell whether node 2", "(55000)", "speaks with clients"]);
    assert!(standby.in_recovery());
    other.set_hba("local all all trust\nhost all all all trust\n");
    other.reload();
    // without rights but to log in
    other.execute("CREATE ROLE hook LOGIN");
    let arguments: Vec<_> = ["--user", "hook"].into_iter().chain(texts(&words)).collect();
    let (finished, _) = hook("failover", &conf, &arguments);
    fails(&finished, &["FAILED", "node 2", "runs as a primary already", "(55000)"]);
    assert!(standby.in_recovery());
}

/// Whose data directory is not known cannot be stopped, so it must not live.
#[test]
fn a_failed_primary_without_a_directory_is_asked_whether_it_lives() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
    standby.wait_for_replay(&primary);
    // only the way of its WAL is cut
    standby.append_conf("primary_conninfo", "host=127.0.0.1 port=1 user=postgres connect_timeout=1");
    standby.reload();
    let streams = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming'";
    until_true("the walreceiver to end", PATIENCE, || standby.get::<i64>(streams, &[]) == 0);
    let nodes = [("127.0.0.1", primary.port(), ""), ("127.0.0.1", standby.port(), standby.dir())];
    let (conf, words) = (conf(&scratch, &nodes), failover_of(&nodes));
    let (finished, _) = hook("failover", &conf, &texts(&words));
    fails(&finished, &["FAILED", "node 0", "runs as a primary already", "(55000)"]);
    assert!(standby.in_recovery() && !primary.in_recovery());
    primary.kill();
    let (finished, _) = hook("failover", &conf, &texts(&words));
    assert!(finished.status.success() && !standby.in_recovery(), "{finished:?}");
}

/// Pgpool-II knew no primary when the node failed, which was one. Somebody had shut it down, and it stays so.
#[test]
fn the_node_that_failed_is_fenced_where_no_primary_was_known() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let standby = Cluster::standby_by_basebackup(&primary, &Host::here(), "standby");
    let nodes = [("127.0.0.1", primary.port(), primary.dir()), ("127.0.0.1", standby.port(), standby.dir())];
    let conf = conf(&scratch, &nodes);
    let mut words = failover_of(&nodes);
    words.splice(6..8, ["-1".to_owned(), "-1".to_owned()]);
    words.splice(10..12, [String::new(), String::new()]);
    primary.stop(Stop::Fast);
    let (finished, _) = hook("failover", &conf, &texts(&words));
    assert!(finished.status.success() && !standby.in_recovery(), "{finished:?}");
    assert!(finished.stderr.contains(r#""was_running":false"#), "{finished:?}");
    assert!(primary.directory().join("pgpool_recovery.fenced").exists(), "{finished:?}");
    assert!(!primary.directory().join("standby.signal").exists(), "it is not made to follow unasked");
}

/// Programs that say what a Pgpool-II would of the nodes whose files are in a directory.
fn pcp(scratch: &Scratch, up: &[u32]) -> std::path::PathBuf {
    let directory = scratch.join("pcp");
    std::fs::create_dir_all(&directory).expect("make");
    std::fs::set_permissions(&directory, Permissions::from_mode(0o777)).expect("chmod");
    let program = |name: &str, text: &str| {
        let text =
            format!("#!/bin/sh\nfor node; do :; done\nfile='{}'/node$node\n{text}\n", directory.display());
        scratch.write(format!("pcp/{name}"), &text, 0o755);
    };
    program(
        "pcp_node_info",
        "if [ -e $file ]; then echo '127.0.0.1 1 2 0.5 up up x x 0 none none x'; \
         else echo '127.0.0.1 1 3 nan down down x x 0 none none x'; fi",
    );
    program("pcp_attach_node", "touch $file");
    for node in 0..3 {
        let file = directory.join(format!("node{node}"));
        if up.contains(&node) {
            std::fs::write(file, "").expect("write");
        } else {
            let _ = std::fs::remove_file(file);
        }
    }
    directory
}

/// Somebody has started the old primary again. The new one takes no connection for now, or is known by a standby of it only.
#[test]
fn an_old_primary_is_not_attached_while_a_later_one_may_be_there() {
    let scratch = Scratch::new();
    let old = Cluster::primary(&scratch);
    let new = Cluster::standby_by_basebackup(&old, &Host::here(), "new");
    old.stop(Stop::Fast);
    new.promote();
    let third = Cluster::standby_by_basebackup(&new, &Host::here(), "third");
    old.start();
    let node = |cluster: &'_ Cluster| ("127.0.0.1", cluster.port(), cluster.dir().to_owned());
    let nodes = [node(&old), node(&new), node(&third)];
    let nodes: Vec<_> =
        nodes.iter().map(|(host, port, directory)| (*host, *port, directory.as_str())).collect();
    let conf = conf(&scratch, &nodes);
    let attach = |up: &[u32]| {
        let directory = pcp(&scratch, up);
        let mut hook = Host::here().hook();
        let path = std::env::var("PATH").unwrap_or_default();
        hook.env("PATH", format!("{}:{path}", directory.display()));
        hook.arg("attach").arg("--config").arg(&conf).arg("0");
        let finished = process::run(hook);
        assert_eq!(finished.status.success(), directory.join("node0").exists(), "{finished:?}");
        finished
    };
    fails(&attach(&[1, 2]), &["and so is node 1"]);
    new.stop(Stop::Fast);
    fails(&attach(&[1, 2]), &["cannot tell whether node 0", "node 1"]);
    fails(&attach(&[2]), &["node 0", "is not the last primary", "on timeline 2"]);
    third.stop(Stop::Fast);
    fails(&attach(&[2]), &["cannot tell whether node 0", "node 2"]);
    // both are held down: it is what there is
    let attached = attach(&[]);
    assert!(attached.status.success() && attached.stderr.contains("is attached"), "{attached:?}");
}

#[test]
fn what_others_have_made_in_the_database_is_not_run() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    primary.execute(
        "CREATE ROLE mallory; GRANT CREATE ON SCHEMA public TO mallory; SET SESSION AUTHORIZATION mallory;
         CREATE FUNCTION public.grab(text, text) RETURNS text LANGUAGE plpgsql
             AS 'BEGIN ALTER ROLE mallory SUPERUSER; RETURN NULL; END';
         CREATE AGGREGATE public.count(text) (SFUNC = public.grab, STYPE = text);
         CREATE FUNCTION public.json_build_object(text, boolean, text, text) RETURNS json LANGUAGE plpgsql
             AS 'BEGIN ALTER ROLE mallory SUPERUSER; RETURN NULL; END';
         CREATE FUNCTION public.pgpool_recovery_stop(varchar, varchar) RETURNS text LANGUAGE plpgsql
             AS 'BEGIN ALTER ROLE mallory SUPERUSER; RETURN NULL; END'",
    );
    let conf = conf(&scratch, &[("127.0.0.1", primary.port(), primary.dir())]);
    let (finished, _) = hook("check", &conf, &[]);
    let is_grabbed = "SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'";
    assert!(!primary.get::<bool>(is_grabbed, &[]), "{finished:?}");
    assert!(finished.stdout.contains("primary"), "{finished:?}");
}

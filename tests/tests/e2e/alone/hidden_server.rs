//! A server that the kernel hides is not replaced. It is in doubt for every directory of its host, so that no other
//! recovery succeeds while it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pgpool_recovery_e2e::cluster::Stop;
use pgpool_recovery_e2e::scratch::write_as_postgres;
use pgpool_recovery_e2e::stage::Condition;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, Stage, Transport, server, wait};

/// The answer of a step of the check: whether it is well, and all it says.
fn step(primary: &Cluster, target: &Cluster, options: &serde_json::Value, step: &str) -> (bool, String) {
    let sql = "SELECT ok, concat_ws(' ', detail, hint) FROM pgpool_recovery_check('localhost', $1, $2, $3)
        WHERE step = $4";
    let port = i32::from(primary.port());
    let row = primary.connect().query_one(sql, &[&target.dir(), &port, options, &step]).expect(step);
    (row.get(0), row.get(1))
}

/// A copy of the server's programs whose `postgres` has a file capability: the kernel hides what it does from processes
/// without it, those of its own user among them.
fn capable_programs(scratch: &Scratch) -> PathBuf {
    // not "bin": the server would look for its libraries and data beside it
    let programs = scratch.mkdir("programs");
    let copied = Command::new("cp").arg("-aL").arg(server::programs().join(".")).arg(&programs).status();
    assert!(copied.expect("cp").success());
    let set = Command::new("setcap").arg("cap_sys_nice+ep").arg(programs.join("postgres")).status();
    assert!(set.expect("setcap: run scripts/setup.sh").success());
    programs
}

/// Starts a server as pg_ctl would, and waits until it accepts connections.
fn start(programs: &Path, cluster: &Cluster) -> Child {
    let mut command = Host::here().command("setsid");
    command.arg(programs.join("postgres")).arg("-D").arg(cluster.directory());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let server = command.spawn().expect("postgres");
    wait::until_true("the server to be ready", wait::PATIENCE, || {
        cluster.has("postmaster.pid") && cluster.read("postmaster.pid").contains("ready")
    });
    server
}

#[test]
fn a_server_that_the_kernel_hides_is_not_replaced() {
    let scratch = Scratch::alone();
    let stage = Stage::on(&scratch).quiet().standby(Condition::Stopped).agent().build();
    let (primary, standby) = (&stage.primary, &stage.target);
    let mut server = start(&capable_programs(&scratch), standby);
    let pid = standby.postmaster().expect("it runs");
    let hidden = Host::here().command("readlink").arg(format!("/proc/{pid}/cwd")).output().expect("readlink");
    assert!(!hidden.status.success(), "the test needs a server that hides its directory");
    let pid_file = standby.read("postmaster.pid");
    let options = |transport: Transport| serde_json::json!({ "transport": transport.name() });
    let fail = |transport| stage.recovery_by(transport).option("slot_name", "another").fail(primary);
    for transport in Transport::BOTH {
        let (ok, said) = step(primary, standby, &options(transport), "target_stopped");
        assert!(!ok && said.contains(&format!("Process {pid}")), "{said}");
        fail(transport).expect("55006").says("running");
        // without the file it cannot be told what that server is
        fs::remove_file(standby.directory().join("postmaster.pid")).expect("removed");
        let (ok, said) = step(primary, standby, &options(transport), "target_stopped");
        assert!(!ok && said.contains("cannot tell") && said.contains("could not be read"), "{said}");
        fail(transport).expect("55006").says("cannot tell");
        write_as_postgres(&standby.directory().join("postmaster.pid"), &pid_file, 0o600);
    }
    assert!(!standby.has("pgpool_recovery.incomplete"));
    standby.wait_for_replay(primary);

    // another directory is not that server's: its command line and postmaster.pid say which one is
    let other = Cluster::place(&scratch, &Host::here(), "other");
    let recovery = Recovery::of(&other, primary).option("slot_name", "other").option("transport", "local");
    recovery.run(primary);
    standby.stop(Stop::Fast);
    // it is reaped
    let _ = server.wait();
}

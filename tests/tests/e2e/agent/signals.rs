//! Signals to an agent: SIGHUP reads its files again, some end it in order, and no other one ends it.

use std::fs;
use std::time::Duration;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::{Cluster, Host, Recovery, Scratch, process, wait, workload};
use rustix::process::Signal;

fn stage(scratch: &Scratch) -> (Cluster, Cluster, Agent, Recovery) {
    let secret = agent::secret(scratch, "secret");
    let primary = Cluster::place(scratch, &Host::here(), "primary")
        .with("pgpool_recovery.secret_file", secret.display())
        .with("pgpool_recovery.transport", "agent")
        .into_primary();
    let target = Cluster::place(scratch, &Host::here(), "target");
    let agent = Agent::start(scratch, &Host::here(), &secret, &[target.directory()]);
    let recovery = Recovery::to("127.0.0.1", target.dir(), primary.port())
        .option("agent_port", agent.port())
        .option("dest_port", target.port());
    (primary, target, agent, recovery)
}

fn reload(agent: &mut Agent, expected: &str) {
    let before = agent.log().matches(expected).count();
    agent.signal(Signal::HUP);
    wait::until_true(expected, wait::PATIENCE, || agent.log().matches(expected).count() > before);
}

#[test]
fn no_signal_ends_an_agent_by_accident() {
    let scratch = Scratch::new();
    let (primary, _target, mut agent, recovery) = stage(&scratch);
    for signal in [Signal::USR1, Signal::USR2, Signal::ALARM] {
        agent.signal(signal);
    }
    reload(&mut agent, "reloaded");
    let mut command = Host::here().agent();
    command.args(["status", "--config"]).arg(agent.config());
    process::run(command).ok();
    recovery.run(&primary);
    agent.signal(Signal::QUIT);
    let status = wait::until("the agent's end", wait::PATIENCE, || agent.ended());
    assert!(status.success() && agent.log().contains("stopped"), "{status}\n{}", agent.log());
}

#[test]
fn a_reload_takes_what_the_files_say_and_keeps_the_old_if_they_are_bad() {
    let scratch = Scratch::new();
    let (primary, target, mut agent, recovery) = stage(&scratch);
    let good = fs::read_to_string(agent.config()).expect("the configuration");
    for (bad, said) in [
        ("nonsense = 1\n".to_owned() + &good, "nonsense"),
        (good.replace("secret\"", "nowhere\""), "nowhere"),
    ] {
        fs::write(agent.config(), bad).expect("written");
        reload(&mut agent, "not reloaded");
        assert!(agent.log().contains(said), "{}", agent.log());
        recovery.run(&primary);
    }
    let other = Cluster::place(&scratch, &Host::here(), "other");
    let mut elsewhere = recovery.clone();
    elsewhere.directory = Some(other.dir().to_owned());
    elsewhere.fail(&primary).says("does not serve").says("reload");
    fs::write(agent.config(), good.replace(target.dir(), other.dir())).expect("written");
    reload(&mut agent, "reloaded: 1 data directories, the same secret");
    elsewhere.run(&primary);
    recovery.fail(&primary).says("does not serve");
}

/// The run began with the old secret and the old configuration.
#[test]
fn a_reload_does_not_disturb_a_recovery() {
    let scratch = Scratch::new();
    let (primary, target, mut agent, recovery) = stage(&scratch);
    workload::fill(&primary, 8);
    let running = Running::start(&primary, &recovery.clone().option("max_rate", 4000), "");
    running.wait_for_bytes(&primary, 1);
    let (old, new) = (scratch.join("secret"), agent::secret(&scratch, "secret.new"));
    let kept = fs::read(&old).expect("the secret");
    fs::rename(&new, &old).expect("in place");
    let good = fs::read_to_string(agent.config()).expect("the configuration");
    fs::write(agent.config(), good.replace(target.dir(), &format!("{}-no-more", target.dir())))
        .expect("written");
    reload(&mut agent, "reloaded: 1 data directories, the new secret");
    running.finish_within(Duration::from_secs(120)).expect("it goes on");
    // the primary reads the new secret at each call
    recovery.fail(&primary).says("does not serve");
    fs::write(agent.config(), good).expect("written");
    reload(&mut agent, "the same secret");
    recovery.run(&primary);
    fs::write(&old, kept).expect("the old secret");
    recovery.fail(&primary).expect("28000");
}

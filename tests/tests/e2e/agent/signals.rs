//! Signals to an agent: SIGHUP reads its files again, some end it in order, and no other one ends it.

use std::fs;
use std::time::Duration;

use pgpool_recovery_e2e::agent::{self, Agent};
use pgpool_recovery_e2e::background::Running;
use pgpool_recovery_e2e::{Cluster, Host, Stage, Transport, process, wait, workload};
use rustix::process::Signal;

fn stage() -> Stage {
    Stage::builder().through(Transport::Agent).build()
}

fn reload(agent: &mut Agent, expected: &str) {
    let before = agent.log().matches(expected).count();
    agent.signal(Signal::HUP);
    wait::until_true(expected, wait::PATIENCE, || agent.log().matches(expected).count() > before);
}

#[test]
fn no_signal_ends_an_agent_by_accident() {
    let mut stage = stage();
    let recovery = stage.recovery();
    for signal in [Signal::USR1, Signal::USR2, Signal::ALARM] {
        stage.agent_mut().signal(signal);
    }
    reload(stage.agent_mut(), "reloaded");
    let mut command = Host::here().agent();
    command.args(["status", "--config"]).arg(stage.agent().config());
    process::run(command).ok();
    recovery.run(&stage.primary);
    stage.agent_mut().signal(Signal::QUIT);
    let status = wait::until("the agent's end", wait::PATIENCE, || stage.agent_mut().ended());
    assert!(status.success() && stage.agent().log().contains("stopped"), "{status}\n{}", stage.agent().log());
}

#[test]
fn a_reload_takes_what_the_files_say_and_keeps_the_old_if_they_are_bad() {
    let mut stage = stage();
    let recovery = stage.recovery();
    let good = fs::read_to_string(stage.agent().config()).expect("the configuration");
    for (bad, said) in [
        ("nonsense = 1\n".to_owned() + &good, "nonsense"),
        (good.replace("secret\"", "nowhere\""), "nowhere"),
    ] {
        fs::write(stage.agent().config(), bad).expect("written");
        reload(stage.agent_mut(), "not reloaded");
        assert!(stage.agent().log().contains(said), "{}", stage.agent().log());
        recovery.run(&stage.primary);
    }
    let other = Cluster::place(&stage.scratch, &Host::here(), "other");
    let mut elsewhere = recovery.clone();
    elsewhere.directory = Some(other.dir().to_owned());
    elsewhere.fail(&stage.primary).says("does not serve").says("reload");
    fs::write(stage.agent().config(), good.replace(stage.target.dir(), other.dir())).expect("written");
    reload(stage.agent_mut(), "reloaded: 1 data directories, the same secret");
    elsewhere.run(&stage.primary);
    recovery.fail(&stage.primary).says("does not serve");
}

/// The run began with the old secret and the old configuration.
#[test]
fn a_reload_does_not_disturb_a_recovery() {
    let mut stage = stage();
    let recovery = stage.recovery();
    workload::fill(&stage.primary, 8);
    let running = Running::start(&stage.primary, &recovery.clone().option("max_rate", 4000), "");
    running.wait_for_bytes(&stage.primary, 1);
    let (old, new) = (stage.scratch.join("secret"), agent::secret(&stage.scratch, "secret.new"));
    let kept = fs::read(&old).expect("the secret");
    fs::rename(&new, &old).expect("in place");
    let good = fs::read_to_string(stage.agent().config()).expect("the configuration");
    fs::write(
        stage.agent().config(),
        good.replace(stage.target.dir(), &format!("{}-no-more", stage.target.dir())),
    )
    .expect("written");
    reload(stage.agent_mut(), "reloaded: 1 data directories, the new secret");
    running.finish_within(Duration::from_secs(120)).expect("it goes on");
    // the primary reads the new secret at each call
    recovery.fail(&stage.primary).says("does not serve");
    fs::write(stage.agent().config(), good).expect("written");
    reload(stage.agent_mut(), "the same secret");
    recovery.run(&stage.primary);
    fs::write(&old, kept).expect("the old secret");
    recovery.fail(&stage.primary).expect("28000");
}

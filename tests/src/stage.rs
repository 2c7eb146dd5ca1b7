//! What most tests start from: a primary, a target, and perhaps an agent for the target.

use std::path::PathBuf;

use crate::agent::{self, Agent};
use crate::cluster::{Cluster, Stop};
use crate::host::Host;
use crate::recovery::Recovery;
use crate::scratch::Scratch;
use crate::{probe, workload};

/// How the data reaches the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The primary's backend writes the target itself.
    Local,
    Agent,
}

impl Transport {
    pub const BOTH: [Self; 2] = [Self::Local, Self::Agent];

    /// As the setting and the option have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Agent => "agent",
        }
    }
}

/// Tests of both transports: for each function `name(Transport)` the tests `name::local` and `name::through_an_agent`.
#[macro_export]
macro_rules! by_both_transports {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn local() {
                super::$name($crate::stage::Transport::Local);
            }

            #[test]
            fn through_an_agent() {
                super::$name($crate::stage::Transport::Agent);
            }
        }
    )+};
}

/// What the target is when the test begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// A directory that does not exist.
    Missing,
    /// A standby that streams.
    Running,
    /// A standby that was shut down.
    Stopped,
    /// A standby that was killed.
    Killed,
}

type Change = Box<dyn FnOnce(Cluster) -> Cluster>;

/// How a [`Stage`] is set.
pub struct Builder {
    scratch: Scratch,
    primary: Change,
    target: Change,
    megabytes: u32,
    is_settled: bool,
    condition: Condition,
    /// With what follows the target's section of its configuration.
    agent: Option<String>,
    is_through_agent: bool,
}

/// A running primary with the extension and a target, on this machine.
#[derive(Debug)]
pub struct Stage {
    agent: Option<Agent>,
    pub target: Cluster,
    pub primary: Cluster,
    /// The file of the secret that the primary and the agent share.
    pub secret: PathBuf,
    pub scratch: Scratch,
}

impl Builder {
    /// Changes the primary before it is made.
    #[must_use]
    pub fn primary(self, change: impl FnOnce(Cluster) -> Cluster + 'static) -> Self {
        Self { primary: Box::new(move |cluster| change((self.primary)(cluster))), ..self }
    }

    /// A primary that [`probe::assert_nothing_left`] can look at.
    #[must_use]
    pub fn quiet(self) -> Self {
        self.primary(probe::quiet)
    }

    /// Adds a setting of the primary's.
    #[must_use]
    pub fn with(self, name: &'static str, value: impl ToString) -> Self {
        let value = value.to_string();
        self.primary(move |cluster| cluster.with(name, value))
    }

    /// Changes the target before it is made.
    #[must_use]
    pub fn target(self, change: impl FnOnce(Cluster) -> Cluster + 'static) -> Self {
        Self { target: Box::new(change), ..self }
    }

    /// [`workload::fill`]s the primary before a standby is made.
    #[must_use]
    pub fn filled(self, megabytes: u32) -> Self {
        Self { megabytes, ..self }
    }

    /// [`workload::settle`]s it then.
    #[must_use]
    pub fn settled(self) -> Self {
        Self { is_settled: true, ..self }
    }

    /// Makes the target a standby of the primary's; without this it is missing.
    #[must_use]
    pub fn standby(self, condition: Condition) -> Self {
        Self { condition, ..self }
    }

    /// An agent for the target, whose port the primary has in its configuration.
    #[must_use]
    pub fn agent(self) -> Self {
        self.agent_with("")
    }

    /// The same with more lines for the target's section of the agent's configuration.
    #[must_use]
    pub fn agent_with(self, lines: &str) -> Self {
        Self { agent: Some(lines.to_owned()), ..self }
    }

    /// With an agent, every recovery goes through it unless it says otherwise.
    #[must_use]
    pub fn through(self, transport: Transport) -> Self {
        match transport {
            Transport::Local => self,
            Transport::Agent => {
                let agent = self.agent.or_else(|| Some(String::new()));
                Self { is_through_agent: true, agent, ..self }
            }
        }
    }

    /// Starts it all.
    #[track_caller]
    pub fn build(self) -> Stage {
        let scratch = self.scratch;
        let secret = agent::secret(&scratch, "secret");
        let target = (self.target)(Cluster::place(&scratch, &Host::here(), "target"));
        let agent = self.agent.map(|lines| {
            let cluster = agent::cluster(target.directory()) + &lines;
            Agent::start_with(&scratch, &Host::here(), &secret, &cluster)
        });
        let mut primary = Cluster::place(&scratch, &Host::here(), "primary")
            .with("pgpool_recovery.secret_file", secret.display());
        if let Some(agent) = &agent {
            primary = primary.with("pgpool_recovery.agent_port", agent.port());
        }
        if self.is_through_agent {
            primary = primary.with("pgpool_recovery.transport", "agent");
        }
        let primary = (self.primary)(primary).into_primary();
        if self.megabytes > 0 {
            workload::fill(&primary, self.megabytes);
        }
        if self.is_settled {
            workload::settle(&primary);
        }
        if self.condition != Condition::Missing {
            target.become_standby_of(&primary);
        }
        match self.condition {
            Condition::Missing | Condition::Running => {}
            Condition::Stopped => target.stop(Stop::Fast),
            Condition::Killed => target.kill(),
        }
        Stage { agent, target, primary, secret, scratch }
    }
}

impl Stage {
    /// One in a new scratch directory.
    pub fn builder() -> Builder {
        Self::on(&Scratch::new())
    }

    /// One in this scratch directory.
    pub fn on(scratch: &Scratch) -> Builder {
        Builder {
            scratch: scratch.clone(),
            primary: Box::new(|cluster| cluster),
            target: Box::new(|cluster| cluster),
            megabytes: 0,
            is_settled: false,
            condition: Condition::Missing,
            agent: None,
            is_through_agent: false,
        }
    }

    /// The target's recovery from the primary.
    pub fn recovery(&self) -> Recovery {
        Recovery::of(&self.target, &self.primary)
            .option("application_name", self.target.name())
            .option("dest_port", self.target.port())
    }

    /// The same by one of two transports.
    pub fn recovery_by(&self, transport: Transport) -> Recovery {
        self.recovery().option("transport", transport.name())
    }

    #[track_caller]
    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("a stage with an agent")
    }

    /// The primary, the target and its agent, each on its own: one may be changed while the others are used.
    pub fn parts(&mut self) -> (&Cluster, &Cluster, &mut Agent) {
        (&self.primary, &self.target, self.agent.as_mut().expect("a stage with an agent"))
    }

    #[track_caller]
    pub fn agent_mut(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("a stage with an agent")
    }

    /// Starts the target as an operator does after a recovery.
    #[track_caller]
    pub fn remote_start(&self) {
        crate::recovery::remote_start(&self.primary, "localhost", self.target.dir());
    }
}

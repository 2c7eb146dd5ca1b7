//! What Pgpool-II calls: promotes a standby, lets the others follow, attaches and rebuilds nodes. Everything is done by
//! the extension's SQL functions, the pcp programs and what pgpool.conf says; this is the thin shell around them that ends
//! in time and says why.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, CommandFactory, Parser, Subcommand};

mod ancestors;
mod attach;
mod check;
mod conf;
mod event;
mod failover;
mod failure;
mod follow;
mod manual;
mod pcp;
mod program;
mod role;
mod silence;
mod sql;
mod worker;

use conf::{Conf, Node};
use failure::Result;
use pcp::Pcp;
use sql::Login;

/// What Pgpool-II calls at a failover, for pgpool_recovery: no script, no ssh, no secret.
///
/// failover_command = 'pgpool-recovery-hook failover %d %h %p %D %m %H %M %P %r %R %N %S'
///
/// It logs in to the nodes by psql (.pgpass) and to Pgpool-II by the pcp programs (.pcppass), as the user that Pgpool-II
/// runs as, and reads the nodes from Pgpool-II's own pgpool.conf.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// What all commands have.
#[derive(Debug, Clone, Args)]
struct Common {
    /// pgpool.conf; by default that of the Pgpool-II that calls, else one at a usual place.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The role that logs in to the nodes; by default PGUSER, else recovery_user of pgpool.conf.
    #[arg(long)]
    user: Option<String>,
    /// The database that has the extension; by default PGDATABASE, else recovery_database of pgpool.conf, else postgres.
    #[arg(long)]
    database: Option<String>,
    /// Where Pgpool-II's PCP listens; by default as pgpool.conf says, else localhost.
    #[arg(long)]
    pcp_host: Option<String>,
    /// The user of PCP; by default the first one in .pcppass for it.
    #[arg(long)]
    pcp_user: Option<String>,
    /// How long all of it may take, seconds.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=3600))]
    timeout: u32,
}

#[derive(Subcommand)]
enum Command {
    /// For failover_command: promotes the new main node if the primary failed, and lets the others follow it.
    Failover {
        #[command(flatten)]
        common: Common,
        /// Have Pgpool-II rebuild a standby that has diverged. Up to 4.4 it handles no other failover meanwhile.
        #[arg(long)]
        rebuild: bool,
        /// %d %h %p %D %m %H %M %P %r %R %N %S
        #[arg(required = true, allow_hyphen_values = true, trailing_var_arg = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// For follow_primary_command: lets a node follow the new primary, and attaches it.
    Follow {
        #[command(flatten)]
        common: Common,
        /// Leave a standby that has diverged as it is; else Pgpool-II rebuilds it when the follow commands have ended.
        #[arg(long)]
        no_rebuild: bool,
        /// %d %h %p %D %m %H %M %P %r %R %N %S
        #[arg(required = true, allow_hyphen_values = true, trailing_var_arg = true, value_name = "WORDS")]
        words: Vec<String>,
    },
    /// Attaches a node once it has proved that it follows the primary.
    Attach {
        #[command(flatten)]
        common: Common,
        /// Its number in pgpool.conf.
        node: u32,
    },
    /// Logs in to every node and to PCP, and lists what would fail at a failover. Changes nothing.
    Check {
        #[command(flatten)]
        common: Common,
    },
    /// What goes on after the hook has ended.
    #[command(hide = true)]
    Worker {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        work: worker::Work,
    },
    /// Print a completion script for a shell.
    #[command(hide = true)]
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    #[command(hide = true)]
    Man,
}

/// What a command works with.
struct Context {
    common: Common,
    conf: Conf,
    nodes: Vec<Node>,
    login: Login,
    pcp: Pcp,
    /// When it has to be over.
    end: Instant,
}

impl Context {
    fn new(common: Common) -> Result<Self> {
        let end = Instant::now() + Duration::from_secs(common.timeout.into());
        let path = common.config.clone().map_or_else(ancestors::pgpool_conf, Ok)?;
        let conf = Conf::read(&path)?;
        let nodes = conf.nodes()?;
        let either = |option: &Option<String>, variable: &str, setting: &str| {
            let set = || Some(conf.get(setting)).filter(|set| !set.is_empty()).map(str::to_owned);
            option.clone().or_else(|| std::env::var(variable).ok()).or_else(set)
        };
        let login = Login {
            user: either(&common.user, "PGUSER", "recovery_user"),
            database: either(&common.database, "PGDATABASE", "recovery_database")
                .unwrap_or_else(|| "postgres".to_owned()),
        };
        let pcp = Pcp::new(&conf, common.pcp_host.clone(), common.pcp_user.clone());
        Ok(Self { common, conf, nodes, login, pcp, end })
    }
}

fn main() -> ExitCode {
    let (name, outcome) = match Arguments::parse().command {
        Command::Failover { common, rebuild, words } => (
            "failover",
            Context::new(common).and_then(|context| failover::failover(&context, rebuild, &words)),
        ),
        Command::Follow { common, no_rebuild, words } => {
            ("follow", Context::new(common).and_then(|context| follow::follow(&context, !no_rebuild, &words)))
        }
        Command::Attach { common, node } => {
            ("attach", Context::new(common).and_then(|context| attach::attach(&context, node)))
        }
        Command::Check { common } => return check::print(Context::new(common)),
        Command::Worker { common, work } => {
            ("worker", Context::new(common).and_then(|context| worker::work(&context, &work)))
        }
        Command::Completion { shell } => {
            let mut command = Arguments::command();
            let name = command.get_name().to_owned();
            clap_complete::generate(shell, &mut command, name, &mut std::io::stdout());
            return ExitCode::SUCCESS;
        }
        Command::Man => {
            return match manual::write(&Arguments::command(), &mut std::io::stdout()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            };
        }
    };
    match outcome {
        Ok(done) => {
            say(name, &done);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            say(name, &format!("FAILED: {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// A line for Pgpool-II's log, which has what its commands write to their standard error.
fn say(command: &str, text: &str) {
    eprintln!("pgpool-recovery-hook {command}: {text}");
}

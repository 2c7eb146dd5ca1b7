//! The receiver daemon of pgpool_recovery: takes a rebuilt standby from its primary and starts it.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use pgpool_recovery_core::error::{Error, Result};
use pgpool_recovery_core::wire::secret::Secret;
use tracing::error;
use tracing_subscriber::EnvFilter;

mod agent;
mod check;
mod config;
mod door;
mod endpoint;
mod init;
mod manual;
mod may_start;
mod metrics;
mod serve;
mod status;
mod strangers;
mod watch;

use config::Config;

/// Receives a rebuilt PostgreSQL standby from its primary and starts it.
///
/// Runs on every database host as the PostgreSQL OS user. Its peer is the extension pgpool_recovery in
/// the primary; both prove that they know the cluster's secret.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Listen for primaries until SIGTERM. SIGHUP reads configuration and secret again.
    Serve {
        /// The configuration file.
        #[arg(long, default_value = "/etc/pgpool-recovery/agent.toml")]
        config: PathBuf,
    },
    /// Make a new secret: 64 hexadecimal digits in a file of mode 0600. Copy it to every host.
    Secret {
        /// The file to make; an existing one is never replaced.
        #[arg(long)]
        output: PathBuf,
    },
    /// Ask a running agent what it serves and how its recoveries go. Fails if it does not answer.
    Status {
        /// The configuration file: it tells the port and the secret.
        #[arg(long, default_value = "/etc/pgpool-recovery/agent.toml")]
        config: PathBuf,
        /// Another host's agent, at the same port and with the same secret.
        #[arg(long)]
        host: Option<String>,
        /// Print JSON, for programs.
        #[arg(long)]
        json: bool,
        /// Go on until Ctrl-C or SIGTERM: progress bars on a terminal, elsewhere a line for each change. An agent that
        /// does not answer is shown, and asked again.
        #[arg(long, conflicts_with = "json")]
        watch: bool,
        /// How often to ask with --watch, seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 1, requires = "watch",
              value_parser = clap::value_parser!(u64).range(1..=3600))]
        interval: u64,
    },
    /// May the server in a directory be started? Fails if another node has replaced it, and says which. For a unit's
    /// ExecStartPre.
    MayStart {
        /// The configuration file: it tells the other nodes and the secret.
        #[arg(long, default_value = "/etc/pgpool-recovery/agent.toml")]
        config: PathBuf,
        /// The data directory, as the configuration lists it.
        directory: PathBuf,
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
    /// Check the configuration and the secret without starting anything; warn of what a recovery would miss.
    Check {
        /// The configuration file.
        #[arg(long, default_value = "/etc/pgpool-recovery/agent.toml")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let level = EnvFilter::try_from_env("PGPOOL_RECOVERY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .init();
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error { message, detail, hint, .. }) => {
            error!("{message}");
            for (label, text) in [("DETAIL", detail), ("HINT", hint)] {
                if let Some(text) = text {
                    error!("{label}: {text}");
                }
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve { .. } if init::is_process_1() => init::run(),
        Command::Serve { config } => serve::serve(&config),
        Command::Status { config, host, watch: true, interval, .. } => {
            watch::watch(&Config::read(&config)?, host, Duration::from_secs(interval))
        }
        Command::Status { config, host, json, .. } => status::print(&Config::read(&config)?, host, json),
        Command::MayStart { config, directory } => may_start::demand(Config::read(&config)?, &directory),
        Command::Secret { output } => Secret::random()?.write(&output),
        Command::Completion { shell } => {
            let mut command = Arguments::command();
            let name = command.get_name().to_owned();
            clap_complete::generate(shell, &mut command, name, &mut std::io::stdout());
            Ok(())
        }
        Command::Man => manual::write(&Arguments::command(), &mut std::io::stdout())
            .map_err(Error::on("write the manual page")),
        Command::Check { config } => check::print(Config::read(&config)?),
    }
}

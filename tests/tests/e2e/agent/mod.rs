//! The agent: recoveries through it, and the daemon itself.

mod process_1; // as process 1 of a container
mod recovery; // recoveries through an agent, and what may listen in its place
mod signals; // SIGHUP, and the signals that end it
mod status; // its status command and its metrics
pub(crate) mod strangers; // connections that do not know the secret
mod watch; // its status command with --watch, on a terminal and elsewhere

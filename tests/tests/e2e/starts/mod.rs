//! The start of a rebuilt standby, and what it follows.

mod before_connections; // what a start tells while no login is possible
mod follows; // leftovers of recovery settings in any configuration
mod lost; // the agent, while a standby starts
mod own_files; // the files and addresses that a standby keeps
mod racing; // a server that starts while a recovery begins
mod streaming; // the trial login, and what counts as this standby's streaming

//! The questions that a promotion asks, each of which may take a while.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::upstream::Upstream;
use pgpool_recovery_core::host::upstream::ready::{self, Ready};
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::addresses;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::parallel::{self, Job};
use pgpool_recovery_core::wire::protocol::describe::Description;
use pgpool_recovery_core::wire::protocol::upstream::Told;

use super::Old;
use super::told::{unless_hurried, untold};
use crate::pg::catalog;
use crate::pg::threads::{self, DropAside};
use crate::preflight::reach::Way;
use crate::settings::{OtherNode, Settings};

/// How long each may take to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(5);

/// How much longer an answer may take than what it says that it takes.
const ON_THE_WAY: Duration = Duration::from_secs(1);

/// How long a server that ends or starts is left alone before it is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// What the first questions take.
pub(super) const QUESTIONS: Duration = ANSWER.saturating_add(ON_THE_WAY);

/// One answer.
pub(super) enum Found {
    Old(Box<DropAside<Session>>),
    OldSaid(Box<Description>),
    OldSpeaks(bool),
    Node(Box<Description>),
    /// A node's host was reached, and does not tell what its server is.
    Closed(Error),
    Upstream(Told),
    UpstreamOf(Option<Told>),
}

pub(super) fn old_job(old: &Old, settings: &Settings, time: Duration) -> Result<Job<'static, Found>> {
    let way = Way::to(&old.host, &old.directory, settings)?;
    let host = old.host.clone();
    let look = move |cancel: &Cancel| {
        addresses::demand_told(&host, cancel)?;
        way.look(cancel).map(|session| Found::Old(Box::new(session)))
    };
    Ok(Job { name: old.name(), time, work: Box::new(look) })
}

pub(super) fn old_said_job(old: &Old, settings: &Settings, time: Duration) -> Result<Job<'static, Found>> {
    let way = Way::to(&old.host, &old.directory, settings)?;
    let describe = move |cancel: &Cancel| Ok(Found::OldSaid(Box::new(way.look(cancel)?.describe()?)));
    Ok(Job { name: old.name(), time, work: Box::new(describe) })
}

/// Whether a server speaks where the old primary listened: its agent may be missing, while it lives. One that ends has the time to do so.
pub(super) fn old_speaks_job(old: &Old, time: Duration) -> Result<Job<'static, Found>> {
    let programs = PathBuf::from(catalog::bin_directory()?);
    let (host, port, own_port) = (old.host.clone(), old.port, catalog::own_port()?);
    let (begin, end) = (Instant::now(), Instant::now() + time);
    let ask = move |cancel: &Cancel| {
        // to pg_isready, a name that cannot be looked up is a silent server
        addresses::demand_told(&host, cancel)?;
        let place = addresses::whereabouts(&host, cancel)?;
        // an address that this server has taken over; here the directory itself is looked at
        if port == own_port && place.is_here || host.is_empty() {
            return Ok(Found::OldSpeaks(false));
        }
        if begin.elapsed() > time / 2 {
            let message = format!("looking up host name \"{host}\" took too long to ask a server there");
            return Err(Error::new(Kind::NotAsked, message)
                .hint("Have that name in /etc/hosts, or name the host by its address."));
        }
        // the name as well: it may be a directory of sockets, or a link-local address, which is one only with its network
        let mut hosts = vec![host.clone()];
        hosts.extend(place.addresses().map(|address| address.to_string()));
        loop {
            let ready = ready::ask_at_all(&programs, &hosts, port, end, cancel)?;
            if ready != Ready::Rejects || Instant::now() + PAUSE >= end || cancel.is_tripped() {
                return Ok(Found::OldSpeaks(ready != Ready::Silent));
            }
            std::thread::sleep(PAUSE);
        }
    };
    // it keeps to its time itself
    Ok(Job { name: old.name(), time: time + ON_THE_WAY, work: Box::new(ask) })
}

pub(super) fn node_job(node: &OtherNode, settings: &Settings, time: Duration) -> Result<Job<'static, Found>> {
    let way = Way::to(&node.host, &node.directory, settings)?;
    let host = node.host.clone();
    let describe = move |cancel: &Cancel| {
        let mut session = match addresses::demand_told(&host, cancel).and_then(|()| way.look(cancel)) {
            Err(error) if !is_dead(&error) => return Ok(Found::Closed(error)),
            session => session?,
        };
        match session.describe() {
            // where none runs, as in a directory that is being rebuilt, there is nothing to know
            Err(error) if runs(&session) => Ok(Found::Closed(error)),
            described => Ok(Found::Node(Box::new(described?))),
        }
    };
    Ok(Job { name: node.name(), time, work: Box::new(describe) })
}

/// Whether an error may come from a host that has died. A connection that came about and was closed was closed by something that lives.
fn is_dead(error: &Error) -> bool {
    matches!(error.kind, Kind::Unreachable | Kind::Canceled)
}

/// Whether a server runs in the directory, or may do so.
pub(super) fn runs(session: &Session) -> bool {
    session.target().running.is_some() || session.target().doubts.server.is_some()
}

/// What a node's own upstream is, asked by its host over the node's own connection string. Fails only if the host is silent: one that
/// was reached and does not tell, or not in time, may know of a primary.
pub(super) fn upstream_of(
    node: &OtherNode,
    settings: &Settings,
    full: Duration,
    time: Duration,
) -> Result<Job<'static, Found>> {
    let way = Way::to(&node.host, &node.directory, settings)?;
    let name = node.name();
    let ask = move |cancel: &Cancel| {
        let mut session = parallel::within(ANSWER, &name, cancel, |cancel| way.look(cancel))?;
        Ok(Found::UpstreamOf(match session.upstream(time) {
            Ok(told) => told.map(|told| unless_hurried(told, full, time)),
            Err(error) => Some(untold(error)),
        }))
    };
    Ok(Job {
        name: format!("the server that {} follows", node.name()),
        // the way there has a time of its own: that of a dead server is used up
        time: ANSWER + time + ON_THE_WAY,
        work: Box::new(ask),
    })
}

pub(super) fn upstream_job(
    system_identifier: u64,
    full: Duration,
    time: Duration,
) -> Result<Option<Job<'static, Found>>> {
    let Some(conninfo) = catalog::setting("primary_conninfo")?.filter(|conninfo| !conninfo.is_empty()) else {
        return Ok(None);
    };
    let (programs, directory) =
        (PathBuf::from(catalog::bin_directory()?), PathBuf::from(catalog::data_directory()?));
    // the walreceiver has the same
    let environment: Vec<_> = std::env::vars_os().collect();
    let ask = move |cancel: &Cancel| {
        let upstream = Upstream {
            bin_directory: &programs,
            data_directory: &directory,
            conninfo: &conninfo,
            environment: &environment,
            system_identifier,
        };
        Ok(Found::Upstream(unless_hurried(upstream.ask(time, cancel)?, full, time)))
    };
    // it keeps to its time itself
    let time = time + ON_THE_WAY;
    Ok(Some(Job { name: "the server that this standby follows".to_owned(), time, work: Box::new(ask) }))
}

pub(super) fn at_once(jobs: Vec<Job<'_, Found>>) -> Result<Vec<Result<Found>>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let cancel = Cancel::new();
    threads::wait(&cancel, &mut || Ok(()), || Ok(parallel::ask(jobs, &cancel)))
}

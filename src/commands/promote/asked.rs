//! What the old primary, the other nodes and the server that this standby follows say, all asked at once.

use std::path::PathBuf;
use std::time::Duration;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::upstream::{self, Answer};
use pgpool_recovery_core::preflight::promote::Node;
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::sys::parallel::{self, Job};
use pgpool_recovery_core::wire::protocol::describe::Description;

use super::{Clock, Old};
use crate::pg::catalog;
use crate::pg::threads::{self, DropAside};
use crate::preflight::reach::Way;
use crate::settings::{OtherNode, Settings};

/// How long each may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// What was said.
pub(super) struct Asked {
    /// A session with the host of the old primary, if one is named.
    pub(super) old: Option<Result<DropAside<Session>>>,
    /// The nodes, without the old primary.
    pub(super) nodes: Vec<Node>,
    /// What the server that this standby follows is, if it follows one.
    pub(super) upstream: Option<Result<Answer>>,
}

/// One answer.
enum Found {
    Old(Box<DropAside<Session>>),
    Node(Box<Description>),
    Upstream(Answer),
}

impl Asked {
    pub(super) fn ask(old: Option<&Old>, settings: &Settings, clock: &Clock) -> Result<Self> {
        let system_identifier = catalog::primary()?.system_identifier;
        let mut jobs = Vec::new();
        if let Some(old) = old {
            let way = Way::to(&old.host, &old.directory, settings)?;
            jobs.push(Job {
                name: old.name(),
                work: Box::new(move |cancel| way.look(cancel).map(|session| Found::Old(Box::new(session)))),
            });
        }
        let asks_upstream = upstream_job(system_identifier)?.map(|job| jobs.push(job)).is_some();
        let nodes = others(old, &settings.nodes);
        for node in &nodes {
            jobs.push(node_job(node, settings)?);
        }
        let mut answers = at_once(jobs, clock)?.into_iter();
        let unexpected = || Error::new(Kind::Internal, "an answer to another question");
        let mut next = || answers.next().unwrap_or_else(|| Err(unexpected()));
        let old = old.map(|_| match next() {
            Ok(Found::Old(session)) => Ok(*session),
            Ok(_) => Err(unexpected()),
            Err(error) => Err(error),
        });
        let upstream = asks_upstream.then(|| match next() {
            Ok(Found::Upstream(answer)) => Ok(answer),
            Ok(_) => Err(unexpected()),
            Err(error) => Err(error),
        });
        let nodes = nodes.iter().map(|node| Node { name: node.name(), found: described(next()) }).collect();
        Ok(Self { old, nodes, upstream })
    }

    /// Asks those nodes again that had an answer.
    pub(super) fn ask_nodes_again(&mut self, settings: &Settings, clock: &Clock) -> Result<()> {
        let named: Vec<(&mut Node, &OtherNode)> = self
            .nodes
            .iter_mut()
            .filter(|node| node.found.is_ok())
            .filter_map(|node| {
                let other = settings.nodes.iter().find(|other| other.name() == node.name)?;
                Some((node, other))
            })
            .collect();
        let jobs = named.iter().map(|(_, other)| node_job(other, settings)).collect::<Result<_>>()?;
        for ((node, _), answer) in named.into_iter().zip(at_once(jobs, clock)?) {
            node.found = described(answer);
        }
        Ok(())
    }

    pub(super) const fn upstream_is_primary(&self) -> bool {
        matches!(self.upstream, Some(Ok(Answer::Primary(_))))
    }

    /// After a primary was stopped: was it the one?
    pub(super) fn ask_upstream_again(&mut self, system_identifier: u64, clock: &Clock) -> Result<()> {
        let job = upstream_job(system_identifier)?;
        self.upstream = at_once(job.into_iter().collect(), clock)?.pop().map(|answer| match answer? {
            Found::Upstream(answer) => Ok(answer),
            _ => Err(Error::new(Kind::Internal, "an answer to another question")),
        });
        Ok(())
    }
}

/// The nodes that are not the old primary.
fn others(old: Option<&Old>, nodes: &[OtherNode]) -> Vec<OtherNode> {
    nodes.iter().filter(|node| !old.is_some_and(|old| old.is(node))).cloned().collect()
}

impl Old {
    /// Whether a node is this one.
    pub(super) fn is(&self, node: &OtherNode) -> bool {
        self.host == node.host && (self.directory == node.directory || self.port == node.port)
    }
}

fn node_job(node: &OtherNode, settings: &Settings) -> Result<Job<'static, Found>> {
    let way = Way::to(&node.host, &node.directory, settings)?;
    let describe = move |cancel: &Cancel| {
        let description = way.look(cancel)?.describe()?;
        Ok(Found::Node(Box::new(description)))
    };
    Ok(Job { name: node.name(), work: Box::new(describe) })
}

fn described(answer: Result<Found>) -> Result<Description> {
    match answer? {
        Found::Node(description) => Ok(*description),
        _ => Err(Error::new(Kind::Internal, "an answer to another question")),
    }
}

fn upstream_job(system_identifier: u64) -> Result<Option<Job<'static, Found>>> {
    let Some(conninfo) = catalog::setting("primary_conninfo")?.filter(|conninfo| !conninfo.is_empty()) else {
        return Ok(None);
    };
    let programs = PathBuf::from(catalog::bin_directory()?);
    let ask = move |cancel: &Cancel| {
        upstream::ask(&programs, &conninfo, system_identifier, cancel).map(Found::Upstream)
    };
    Ok(Some(Job { name: "the server that this standby follows".to_owned(), work: Box::new(ask) }))
}

fn at_once(jobs: Vec<Job<'_, Found>>, clock: &Clock) -> Result<Vec<Result<Found>>> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let (time, cancel) = (ANSWER.min(clock.left()), Cancel::new());
    threads::wait(&cancel, &mut || Ok(()), || Ok(parallel::ask(jobs, time, &cancel)))
}

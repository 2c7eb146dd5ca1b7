//! `pgpool-recovery-agent may-start`: asks the agents of the other nodes whether one of them has replaced this one.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::host::may_start::{Answer, Own, not_to_be_started};
use pgpool_recovery_core::host::policy::{Cluster, Node, Policy};
use pgpool_recovery_core::sender::Session;
use pgpool_recovery_core::sys::cancel::Cancel;
use pgpool_recovery_core::wire::link::Connector;
use pgpool_recovery_core::wire::link::dial::AgentConnector;
use pgpool_recovery_core::wire::protocol::message::{Purpose, TargetInfo};
use pgpool_recovery_core::wire::secret::Secret;
use tracing::{info, warn};

use crate::config::Config;

/// How long all nodes together have for their answers.
const LIMIT: Duration = Duration::from_secs(5);

/// How old an answer may be when the server is started, and how long nodes have to repeat theirs.
const FRESH: Duration = Duration::from_secs(1);

/// What came of asking a node.
struct Asked {
    node: Node,
    place: String,
    found: Result<Box<TargetInfo>>,
    at: Instant,
}

/// Fails if the server in the directory must not be started.
pub(crate) fn demand(config: Config, directory: &Path) -> Result<()> {
    let cluster = Policy::Listed(config.clusters).cluster(directory)?;
    let own = Own::look(&cluster.data_directory)?;
    own.demand_unmarked()?;
    let shown = cluster.data_directory.display();
    if own.is_standby() {
        info!("\"{shown}\" is a standby's: it may be started");
        return Ok(());
    }
    if cluster.nodes.is_empty() {
        warn!("\"{shown}\" may be started, but agent.toml lists no nodes that could be asked");
        return Ok(());
    }
    let (mut answered, mut silent) = (0, 0);
    let mut early = Vec::new();
    let asked = ask(&config.secret_file, &cluster, &cluster.nodes, LIMIT);
    for Asked { node, place, found, at } in asked {
        if found.is_ok() && at.elapsed() > FRESH {
            early.push(node);
        }
        match found.map(|found| own.judge(&place, &found)) {
            Ok(answer) => match answer? {
                Answer::Itself => {}
                Answer::Good => answered += 1,
                Answer::Noted(note) => {
                    answered += 1;
                    warn!("{note}");
                }
                Answer::Unknown(why) => {
                    silent += 1;
                    warn!("{place} does not tell whether it has replaced \"{shown}\": {why}");
                }
            },
            Err(error) => {
                silent += 1;
                warn!("{place} was not heard: {error}");
            }
        }
    }
    // while the others were waited for, one of them may have been promoted
    for Asked { place, found, .. } in ask(&config.secret_file, &cluster, &early, FRESH) {
        match found.map(|found| own.judge(&place, &found)) {
            Ok(answer) => drop(answer?),
            Err(error) => warn!("{place} was not heard a second time: {error}"),
        }
    }
    // and its promotion may have fenced this one
    Own::look(&cluster.data_directory)?.demand_unmarked()?;
    conclude(&cluster, &own, answered, silent)
}

/// No node that was heard forbids it. Were enough heard?
fn conclude(cluster: &Cluster, own: &Own, answered: usize, silent: usize) -> Result<()> {
    let shown = cluster.data_directory.display();
    let timeline = own.timeline();
    if answered == 0 && silent > 0 {
        if !cluster.start_alone {
            let why = format!("none of the other {silent} nodes was heard, and start_alone is off");
            return Err(not_to_be_started(&cluster.data_directory, &why).hint(
                "Start the agents of the other nodes first; or, if this is the right primary, set start_alone = true.",
            ));
        }
        warn!(
            "\"{shown}\" may be started on timeline {timeline}, but none of the other {silent} nodes was heard: if one was \
             promoted meanwhile, there will be two primaries"
        );
        return Ok(());
    }
    info!(
        "\"{shown}\" may be started: no node that was heard ({answered}) has a later timeline than {timeline}"
    );
    Ok(())
}

/// What the nodes have, in the order in which they answer. The one whose answer is late has none.
fn ask(secret_file: &Path, cluster: &Cluster, nodes: &[Node], limit: Duration) -> Vec<Asked> {
    let end = Instant::now() + limit;
    let secret = Secret::read(secret_file);
    let (send, answers) = channel();
    let mut waiting = Vec::new();
    let mut asked = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        let place = format!("the agent at {}:{}", node.host, node.port);
        let cancel = Cancel::new();
        let ask = match &secret {
            Ok(secret) => asker(node, secret.clone(), cluster, cancel.clone()),
            Err(error) => Err(error.clone()),
        };
        let answer = |place, found| Asked { node: node.clone(), place, found, at: Instant::now() };
        let ask = match ask {
            Ok(ask) => ask,
            Err(error) => {
                asked.push(answer(place, Err(error)));
                continue;
            }
        };
        let send = send.clone();
        // not waited for: a name service may hang
        let started = std::thread::Builder::new().spawn(move || {
            // the one who asks may have given up
            let _ = send.send((number, ask()));
        });
        match started {
            Ok(_) => waiting.push((number, place, cancel)),
            Err(error) => asked.push(answer(place, Err(Error::no_thread(&error)))),
        }
    }
    collect(&answers, waiting, end, limit, |number, place, found| {
        asked.push(Asked { node: nodes[number].clone(), place, found, at: Instant::now() });
    });
    asked
}

fn collect(
    answers: &Receiver<(usize, Result<Box<TargetInfo>>)>,
    mut waiting: Vec<(usize, String, Cancel)>,
    end: Instant,
    limit: Duration,
    mut take: impl FnMut(usize, String, Result<Box<TargetInfo>>),
) {
    while !waiting.is_empty() {
        let Ok((number, found)) = answers.recv_timeout(end.saturating_duration_since(Instant::now())) else {
            break;
        };
        if let Some(place) = waiting.iter().position(|(waits, ..)| *waits == number) {
            let (_, place, _) = waiting.swap_remove(place);
            take(number, place, found);
        }
    }
    for (number, place, cancel) in waiting {
        cancel.trip();
        let message = format!("no answer within {} s", limit.as_secs());
        take(number, place, Err(Error::new(Kind::Unreachable, message)));
    }
}

/// What looks at a node's directory through its agent.
fn asker(
    node: &Node,
    secret: Secret,
    cluster: &Cluster,
    cancel: Cancel,
) -> Result<impl FnOnce() -> Result<Box<TargetInfo>> + Send + 'static> {
    let connector: Arc<dyn Connector> =
        Arc::new(AgentConnector::new(&node.host, node.port, secret, Arc::default())?);
    let directory = node.data_directory.clone().unwrap_or_else(|| cluster.data_directory.clone());
    Ok(move || {
        let session =
            Session::open(connector, &directory, Purpose::Look, Vec::new(), Arc::default(), &cancel)?;
        Ok(Box::new(session.target().clone()))
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn nodes_are_asked_side_by_side_and_not_for_longer_than_the_limit() {
        let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("bind")).collect();
        let nodes = listeners.iter().map(|listener| Node {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().expect("address").port(),
            data_directory: None,
        });
        let cluster = Cluster { nodes: nodes.collect(), ..Cluster::new("/d".into(), "/b".into()) };
        let directory = tempfile::tempdir().expect("temporary directory");
        let secret = directory.path().join("secret");
        Secret::random().expect("secret").write(&secret).expect("write");
        let started = Instant::now();
        let asked = ask(&secret, &cluster, &cluster.nodes, Duration::from_secs(1));
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
        assert_eq!(asked.len(), 3);
        for Asked { place, found, .. } in asked {
            let error = found.expect_err("nothing answers");
            assert!(place.contains("127.0.0.1:") && error.message.contains("within 1 s"), "{place} {error}");
        }
        let asked = ask(&directory.path().join("none"), &cluster, &cluster.nodes, Duration::from_secs(1));
        assert!(asked.iter().all(|asked| asked.found.is_err()) && asked.len() == 3, "no secret, no answer");
    }
}

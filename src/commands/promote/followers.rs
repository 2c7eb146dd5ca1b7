//! The nodes that are to follow the new primary: their slots, and what becomes of them. Nothing here is an error of the
//! promotion, which has happened.

use std::time::Duration;

use pgdata::wal::Lsn;
use pgpool_recovery_core::error::{Error, Kind, Result};
use pgpool_recovery_core::replication::naming;
use serde_json::{Value, json};

use super::Old;
use crate::commands::clock::{Clock, LOOK};
use crate::commands::follow::{self, Told};
use crate::pg::raised::caught;
use crate::pg::slot::{self, Slot};
use crate::pg::{catalog, log, threads};
use crate::preflight::facts::names;
use crate::run::Run;
use crate::settings::request::Request;
use crate::settings::{OtherNode, Settings};

/// What a node has at least, whatever the others have used up.
const LEAST: Duration = Duration::from_secs(1);

/// A node on its way.
enum Follower<'a> {
    Done(Result<Value>),
    Waits(Box<Told>, Run<'a>),
}

/// Makes the slots of the nodes at once, before a checkpoint removes the WAL that they need, if they need it from `begin` on: a
/// primary of some time makes them as each node is told. Then tells one node after the other to follow, and waits for all
/// together. Those that are `fenced` get no slot, which nothing would ever use.
pub(super) fn lead(
    settings: &Settings,
    old: Option<&Old>,
    (silent, fenced): (&[&OtherNode], &[&OtherNode]),
    begin: Option<Lsn>,
    clock: &Clock,
) -> Vec<Value> {
    let slot = |node| match begin {
        Some(begin) if !fenced.contains(&node) => caught(|| make_slot(node, settings, begin)),
        _ => Ok(()),
    };
    let slots: Vec<Result<()>> = settings.nodes.iter().map(slot).collect();
    let mut nodes: Vec<(&OtherNode, Result<()>)> = settings.nodes.iter().zip(slots).collect();
    // one that is started takes longest, and one that was silent may stay so
    nodes.sort_by_key(|(node, _)| (silent.contains(node), old.is_some_and(|old| old.is(node))));
    let mut followers = Vec::new();
    for (node, slot) in nodes {
        let time = if silent.contains(&node) { LEAST } else { clock.left().max(LEAST) };
        let mut run = Run::within(time);
        let rejoins = old.is_some_and(|old| old.is(node));
        let tell = || follow::tell(request(node), of(node, settings), rejoins, &mut run);
        let told = slot.and_then(|()| caught(tell));
        followers.push((
            node,
            match told {
                Ok(Ok(report)) => Follower::Done(Ok(report)),
                Ok(Err(told)) => Follower::Waits(Box::new(told), run),
                Err(error) => Follower::Done(Err(error)),
            },
        ));
    }
    await_all(&mut followers, clock);
    // in the order in which they were named
    let reports = settings.nodes.iter().filter_map(|node| {
        let at = followers.iter().position(|(other, _)| *other == node)?;
        match followers.swap_remove(at).1 {
            Follower::Done(result) => Some(told(node, result)),
            Follower::Waits(..) => None,
        }
    });
    reports.collect()
}

/// Waits until each node streams, or the time is over.
fn await_all(followers: &mut [(&OtherNode, Follower<'_>)], clock: &Clock) {
    loop {
        let is_over = clock.left().is_zero();
        let mut waits = false;
        for (_, follower) in &mut *followers {
            let Follower::Waits(told, run) = follower else { continue };
            let result = match caught(|| told.look(run)) {
                Ok(Ok(report)) => Ok(report),
                // its run may be over as well
                Ok(Err(why)) if is_over => Err(told.given_up(&why, &mut Run::within(LEAST))),
                Ok(Err(_)) => {
                    waits = true;
                    continue;
                }
                Err(error) => Err(error),
            };
            *follower = Follower::Done(result);
        }
        if !waits {
            return;
        }
        threads::pause(LOOK);
    }
}

fn request(node: &OtherNode) -> Request {
    Request {
        dest_host: node.host.clone(),
        dest_dir: node.directory.clone(),
        dest_port: Some(node.port),
        node_id: node.id,
        ..Request::default()
    }
}

/// The settings of a call for one node.
fn of(node: &OtherNode, settings: &Settings) -> Settings {
    Settings { node_id: node.id, dest_port: Some(node.port), nodes: Vec::new(), ..settings.clone() }
}

/// Refuses templates that make no names for the nodes. After the promotion no node would be led.
pub(super) fn demand_names(settings: &Settings) -> Result<()> {
    for node in &settings.nodes {
        let (_, slot_name) = names(settings, named(node))?;
        if !slot_name.is_empty() {
            slot::validate(&slot_name)?;
        }
    }
    Ok(())
}

/// A node, as templates refer to it.
fn named(node: &OtherNode) -> naming::Node<'_> {
    naming::Node { host: &node.host, id: node.id, port: Some(node.port) }
}

/// Makes the slot that a first stage or a follow would use for the node. One that a standby uses already is as good.
fn make_slot(node: &OtherNode, settings: &Settings, begin: Lsn) -> Result<()> {
    let (_, name) = names(settings, named(node))?;
    if name.is_empty() {
        return Ok(());
    }
    match catalog::slot(&name)? {
        Some(found) if found.slot_type != "physical" => Err(slot::wrong_type(&name, &found.slot_type)),
        Some(found) if found.active_pid.is_some() => Ok(()),
        _ => Slot::reserve(&name, begin)?.keep(),
    }
}

/// What the report says of a node.
fn told(node: &OtherNode, result: Result<Value>) -> Value {
    let mut told = json!({ "node_id": node.id, "host": node.host, "port": node.port });
    match result {
        Ok(result) => {
            if let (Some(told), Value::Object(more)) = (told.as_object_mut(), result) {
                told.extend(more);
            }
        }
        Err(Error { kind, message, detail, hint }) => {
            log::warning(&format!("{} does not follow this server: {message}", node.name()));
            told["error"] = message.into();
            told["sqlstate"] = Kind::sqlstate(kind).into();
            told["detail"] = detail.into();
            told["hint"] = hint.into();
        }
    }
    told
}

//! A control link: the steps of one run, in their order.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

use super::incoming::{self, PERMISSIONS, Puts};
use super::judged::{self, Judged};
use super::run::Run;
use super::settle::settle;
use super::{Receiver, clone, finish, obstacles, room, unexpected};
use crate::host::neighbours::{Neighbours, Wanted};
use crate::host::policy::{Cluster, Policy, resolve};
use crate::host::{inspect, launch, login, places, readiness, running, walreceiver};

use crate::compare::digest::{DigestKey, random_bytes};
use crate::data_directory::Target;
use crate::error::{Error, Kind, Result};
use crate::manifest::path::RelPath;
use crate::manifest::path::overlap;
use crate::manifest::plan::{Directory, File};
use crate::sys::cancel::Cancel;
use crate::sys::hexadecimal;
use crate::wire::link::Link;
use crate::wire::link::control::Control;
use crate::wire::protocol::message::{self, Purpose, Reply, Request, Terms};
use crate::wire::protocol::status::State;
use crate::wire::protocol::{PUT, REPLY, REQUEST};

/// Most files and directories of a plan: a bound on memory, far beyond any real cluster.
const MAX_PLAN: usize = 50_000_000;

/// How long the data links of an ended run may take to notice.
const STREAMS_END: Duration = Duration::from_secs(10);

/// Serves a control link to its end.
pub(super) fn serve(
    receiver: &Receiver,
    link: Link,
    cancel: &Cancel,
    directory: PathBuf,
    purpose: Purpose,
    keep: Vec<RelPath>,
) -> Result<()> {
    let peer = link.peer;
    let place = peer.map_or_else(|| "the primary".to_owned(), |peer| format!("the primary at {peer}"));
    let control = Control::new(link, cancel.clone(), place)?;
    let mut session = Session {
        receiver,
        control,
        cancel: cancel.clone(),
        token: hexadecimal::encode(&random_bytes()?),
        cluster: None,
        peer,
        keep,
        judged: None,
        directories: Vec::new(),
        files: Vec::new(),
        terms: None,
        puts: Puts::default(),
        stage: Stage::Looked,
    };
    let opened = session.open(&directory, purpose, peer).and_then(|found| session.answer(&found));
    let served = opened.and_then(|()| session.serve());
    if let Err(error) = &served {
        session.fail(error);
    }
    served
}

struct Session<'a> {
    receiver: &'a Receiver,
    control: Control,
    cancel: Cancel,
    token: String,
    cluster: Option<Cluster>,
    peer: Option<IpAddr>,
    keep: Vec<RelPath>,
    /// The directory as the sender was told of it.
    judged: Option<Judged>,
    directories: Vec<Directory>,
    files: Vec<File>,
    terms: Option<Terms>,
    puts: Puts,
    stage: Stage,
}

enum Stage {
    /// Nothing is locked.
    Looked,
    /// A plan was made for a view of the target, which nothing can change.
    Viewed(Box<Target>),
    /// What differs is being counted.
    Surveyed(Arc<Run>),
    /// The target is locked, nothing has changed.
    Locked(Box<Target>),
    /// The target is being rewritten.
    Begun(Arc<Run>),
    /// Data is complete, WAL and the last files are awaited.
    Settled(Arc<Run>),
}

impl Session<'_> {
    fn serve(&mut self) -> Result<()> {
        while let Some((kind, body)) = self.next()? {
            match kind {
                REQUEST => match message::decode(&body)? {
                    Request::Plan { directories, files } => self.plan(directories, files)?,
                    request => {
                        let reply = self.handle(request)?;
                        self.answer(&reply)?;
                    }
                },
                PUT => {
                    let (Stage::Settled(_), Some(judged)) = (&self.stage, &self.judged) else {
                        return Err(out_of_order("settled data"));
                    };
                    self.puts.add(&body, judged.kept())?;
                }
                other => return Err(unexpected(other)),
            }
        }
        match &self.stage {
            Stage::Looked | Stage::Viewed(_) | Stage::Surveyed(_) | Stage::Locked(_) => Ok(()),
            Stage::Begun(_) | Stage::Settled(_) => {
                Err(Error::new(Kind::Canceled, "the primary gave up the recovery")
                    .detail("The directory is not complete and cannot be started."))
            }
        }
    }

    /// The next frame. Where nothing is being changed a peer may just leave.
    fn next(&self) -> Result<Option<(u8, Vec<u8>)>> {
        match (self.control.receive(), &self.stage) {
            (received, Stage::Begun(_) | Stage::Settled(_)) => received,
            (Err(error), _) if error.kind == Kind::ConnectionLost => Ok(None),
            (received, _) => received,
        }
    }

    fn open(&mut self, directory: &Path, purpose: Purpose, peer: Option<IpAddr>) -> Result<Reply> {
        let cluster = self.receiver.policy().cluster(directory)?;
        let target = match purpose {
            Purpose::Look => None,
            Purpose::Recover => Some(self.target(&cluster, Target::open)?),
        };
        let look = target.as_ref().and_then(Target::look);
        let look = look.as_deref().unwrap_or(&cluster.data_directory);
        // before anything is told, so that what changes meanwhile is seen when the run begins
        let judged = Judged::look(look, &self.keep);
        let mut found =
            inspect::inspect_opened(&cluster, target.as_ref(), &self.keep, &self.token, peer, &self.cancel)?;
        if let (Some(path), Some(identity)) = (found.wal_directory.clone(), found.wal_identity) {
            let listed = self.receiver.policy().beside(&cluster);
            let wanted = [Wanted { path, identity, within: None }];
            let unused = Neighbours::new(found.identity, &listed).demand_unused(&wanted);
            found.doubts.wal = found.doubts.wal.take().or(unused.err());
        }
        let mut judged = judged?;
        if let Some(target) = target {
            if target.was_made() {
                found.content = message::Content::Missing;
            }
            self.stage = Stage::Locked(Box::new(target));
        } else {
            found.recovery = self.receiver.ledger.account(&cluster.data_directory).running;
        }
        // with what the kept configuration needs
        let needed: Vec<RelPath> =
            found.kept.iter().filter(|path| !self.keep.contains(path)).cloned().collect();
        judged.also_keeps(&needed);
        self.judged = Some(judged);
        self.keep.extend(needed);
        self.cluster = Some(cluster);
        Ok(Reply::Target(Box::new(found)))
    }

    /// The directory, opened by `open`, and its pg_wal, where that is a link.
    fn target(&self, cluster: &Cluster, open: impl FnOnce(&Path) -> Result<Target>) -> Result<Target> {
        let mut target = open(&cluster.data_directory)?;
        if let Some(wal) = target.follow_wal()? {
            self.receiver.policy().check_outside(cluster, &wal)?;
        }
        Ok(target)
    }

    fn plan(&mut self, mut directories: Vec<Directory>, mut files: Vec<File>) -> Result<()> {
        let is_wal = match &self.stage {
            Stage::Looked | Stage::Locked(_) if self.terms.is_none() => false,
            Stage::Settled(_) => true,
            _ => return Err(out_of_order("settled data, or a directory where nothing has begun")),
        };
        let kept = self.judged.as_ref().map(Judged::kept).unwrap_or_default();
        let paths = directories.iter().map(|directory| (&directory.path, true));
        for (path, is_directory) in paths.chain(files.iter().map(|file| (&file.path, false))) {
            if is_wal && !path.as_str().starts_with("pg_wal/") {
                return Err(out_of_order("WAL"));
            }
            incoming::check_planned(path, is_directory, kept)?;
        }
        let modes = directories.iter_mut().map(|directory| &mut directory.mode);
        modes.chain(files.iter_mut().map(|file| &mut file.mode)).for_each(|mode| *mode &= PERMISSIONS);
        self.directories.extend(directories);
        self.files.extend(files);
        if self.directories.len() + self.files.len() > MAX_PLAN {
            return Err(Error::new(Kind::ProtocolViolation, format!("plan of more than {MAX_PLAN} files")));
        }
        Ok(())
    }

    fn handle(&mut self, request: Request) -> Result<Reply> {
        let cluster = self.cluster.clone().ok_or_else(|| out_of_order("a directory"))?;
        match request {
            Request::TestReplication { following, system_identifier } => {
                // a running server has its own login: a peer that asks for another may be after the password only
                let login = running::server(&cluster.data_directory).and_then(|running| match running {
                    Some(process) => Err(running::refusal(&cluster.data_directory, process)),
                    None => login::test_replication(&cluster, &following, system_identifier, &self.cancel),
                });
                self.tell(login.map(|warnings| Reply::LoggedIn { warnings }))
            }
            Request::TestPort { port, addresses } => {
                // worth knowing, but no reason for anybody to end here
                Ok(readiness::test_port(port, &addresses, &self.cancel)
                    .map_or_else(Reply::Error, |()| Reply::Ok))
            }
            Request::PlanEnd(terms) => self.plan_end(&cluster, terms),
            Request::Begin { marker, digest_key } => {
                let Stage::Locked(target) = std::mem::replace(&mut self.stage, Stage::Looked) else {
                    return Err(out_of_order("a locked directory"));
                };
                // the sender was told when it opened; whatever it made of that, a running server is safe
                if let Some(process) = running::server(&cluster.data_directory)? {
                    return Err(running::refusal(&cluster.data_directory, process));
                }
                self.demand_as_judged(&cluster, &target)?;
                let digest_key = key(&digest_key)?;
                let files = std::mem::take(&mut self.files);
                let trusts_cache = inspect::was_shut_down(&cluster.data_directory);
                let record = self.receiver.ledger.begin(&cluster.data_directory, self.peer, &files);
                let run = Run::new(*target, digest_key, self.cancel.clone(), files, trusts_cache, record)?;
                let run = Arc::new(run);
                self.stage = Stage::Begun(Arc::clone(&run));
                info!(directory = %cluster.data_directory.display(), system_identifier = marker.system_identifier,
                    files = run.slots().len(), "recovery begins: the directory cannot be started until it ends");
                self.begin(&run, &marker)?;
                self.receiver.runs().insert(self.token.clone(), run);
                Ok(Reply::Ok)
            }
            Request::Survey { digest_key } => {
                let Stage::Viewed(target) = std::mem::replace(&mut self.stage, Stage::Looked) else {
                    return Err(out_of_order("a plan for a directory that was opened to look"));
                };
                let files = std::mem::take(&mut self.files);
                let record = self.receiver.ledger.unlisted(&files);
                let run = Run::survey(*target, key(&digest_key)?, self.cancel.clone(), files, record);
                let run = Arc::new(run);
                self.stage = Stage::Surveyed(Arc::clone(&run));
                self.receiver.runs().insert(self.token.clone(), run);
                Ok(Reply::Ok)
            }
            Request::Clone => {
                let Stage::Begun(run) = &self.stage else {
                    return Err(out_of_order("a run that has begun"));
                };
                let cloned = clone::clone(run, self.receiver.policy().origin()?)?;
                Ok(Reply::Cloned { files: rows(&cloned) })
            }
            Request::Settle => {
                let (Stage::Begun(run) | Stage::Surveyed(run), Some(terms)) = (&self.stage, &self.terms)
                else {
                    return Err(out_of_order("data"));
                };
                run.record.enter(State::Wal);
                let settled = settle(run, &self.directories, &self.keep, terms)?;
                if !run.is_survey() {
                    info!(directory = %cluster.data_directory.display(), changed = settled.changed,
                        removed = settled.removed, "all data is there");
                    self.stage = Stage::Settled(Arc::clone(run));
                }
                self.directories.clear();
                Ok(Reply::Settled {
                    removed: settled.removed,
                    changed: settled.changed,
                    warnings: settled.warnings,
                })
            }
            Request::WalEnd => {
                let Stage::Settled(run) = &self.stage else {
                    return Err(out_of_order("settled data"));
                };
                for directory in self.directories.drain(..) {
                    run.target.make_directory(&directory.path, directory.mode)?;
                }
                run.extend(std::mem::take(&mut self.files));
                Ok(Reply::Ok)
            }
            Request::Finish => {
                let Stage::Settled(run) = &self.stage else {
                    return Err(out_of_order("settled data"));
                };
                run.record.enter(State::Durable);
                let warnings = finish::finish(run, &cluster, self.puts.take())?;
                run.record.succeed();
                info!(directory = %cluster.data_directory.display(), "recovery ends: the directory is complete and durable");
                self.finished();
                Ok(Reply::Durable { warnings })
            }
            Request::Start { timeout } => {
                let timeout = Duration::from_secs(timeout.into());
                let launched = launch::start(&cluster, timeout, &self.cancel)?;
                info!(directory = %cluster.data_directory.display(), launched, "the server accepts connections");
                Ok(Reply::Started { launched })
            }
            Request::Walreceiver => {
                let directory = &cluster.data_directory;
                let (found, startup) = (walreceiver::find(directory), walreceiver::startup(directory));
                Ok(Reply::Walreceiver { found, startup })
            }
            Request::Leave => match &self.stage {
                Stage::Begun(_) | Stage::Settled(_) => {
                    Err(out_of_order("a directory where nothing has begun"))
                }
                Stage::Looked | Stage::Viewed(_) | Stage::Surveyed(_) | Stage::Locked(_) => {
                    self.stage = Stage::Looked;
                    Ok(Reply::Ok)
                }
            },
            Request::Log => Ok(Reply::Log { lines: launch::log_tail(&cluster) }),
            Request::Open { .. } | Request::Attach { .. } | Request::Status | Request::Plan { .. } => {
                Err(out_of_order("another step"))
            }
        }
    }

    /// The answer to a question. A bad one ends a recovery, but not the conversation of who only looks.
    fn tell(&self, answer: Result<Reply>) -> Result<Reply> {
        match answer {
            Err(error) if matches!(self.stage, Stage::Looked) => Ok(Reply::Error(error)),
            answer => answer,
        }
    }

    /// Opens where the tablespaces go and asks every file system whether it has room. Nothing changes
    /// but for directories that are removed again if the run does not begin.
    fn plan_end(&mut self, cluster: &Cluster, terms: Terms) -> Result<Reply> {
        if matches!(self.stage, Stage::Looked) {
            self.stage = Stage::Viewed(Box::new(self.target(cluster, Target::view)?));
        }
        let (Stage::Locked(target) | Stage::Viewed(target)) = &mut self.stage else {
            return Err(out_of_order("a directory where nothing has begun"));
        };
        let mut apart = vec![cluster.data_directory.clone()];
        apart.extend(target.others()?.into_iter().map(|other| other.path));
        for tablespace in &terms.tablespaces {
            let location = Path::new(&tablespace.target);
            let resolved = resolve(location);
            if let Some(other) = apart.iter().find(|other| overlap(other, &resolved)) {
                return Err(Error::new(
                    Kind::TargetRefused,
                    format!("tablespace directory \"{}\" overlaps \"{}\"", location.display(), other.display()),
                )
                .detail("The data directory, pg_wal and every tablespace of the standby need directories of their own.")
                .hint("Correct tablespace_mapping."));
            }
            places::demand_outside_clusters(&resolved)?;
            apart.push(resolved);
            self.receiver.policy().check_outside(cluster, location)?;
            let content = location.join(&terms.tablespace_version_directory);
            if !places::is_ours(target, tablespace)? && places::is_used(&content)? {
                return Err(Error::new(
                    Kind::TargetRefused,
                    format!("tablespace directory \"{}\" is in use", content.display()),
                )
                .detail(format!(
                    "Tablespace {} would be written there, but the target does not use it now.",
                    tablespace.oid
                ))
                .hint(
                    "Map the tablespace to another directory with tablespace_mapping, or empty this one.",
                ));
            }
            target.add_root(&places::link(tablespace)?, location)?;
        }
        let oids: Vec<u32> = terms.tablespaces.iter().map(|tablespace| tablespace.oid).collect();
        let directories = self.directories.iter().map(|directory| &directory.path);
        for path in directories.chain(self.files.iter().map(|file| &file.path)) {
            incoming::check_tablespace(path, &oids, &terms.tablespace_version_directory)?;
        }
        demand_own(&self.receiver.policy(), cluster, target, &terms)?;
        let found = obstacles::search(target, &self.directories, &self.files, &self.keep, &terms)?;
        let space = room::check(target, &self.files, &terms, &found).err();
        let locations = target.identities()?;
        let refusal = space.as_ref().or(found.obstacle.as_ref());
        if let (Stage::Locked(_), Some(refusal)) = (&self.stage, refusal) {
            return Err(refusal.clone());
        }
        self.terms = Some(terms);
        Ok(Reply::Planned { locations, space, obstacle: found.obstacle })
    }

    /// The directory is still what the sender judged, and so are those beside it.
    fn demand_as_judged(&self, cluster: &Cluster, target: &Target) -> Result<()> {
        let (Some(judged), Some(terms)) = (&self.judged, &self.terms) else {
            return Err(out_of_order("a plan"));
        };
        let directory = &cluster.data_directory;
        let look = target.look();
        judged.demand_same(look.as_deref().unwrap_or(directory), directory, &self.keep)?;
        let mut roots = vec![directory.clone()];
        roots.extend(target.wal()?.map(|_| directory.join("pg_wal")));
        roots.extend(terms.tablespaces.iter().map(|tablespace| PathBuf::from(&tablespace.target)));
        judged::demand_roots(target, &roots)
    }

    fn begin(&self, run: &Run, marker: &message::Marker) -> Result<()> {
        let terms = self.terms.as_ref().ok_or_else(|| out_of_order("a plan"))?;
        let tablespaces = terms
            .tablespaces
            .iter()
            .map(|tablespace| (tablespace.oid.to_string(), tablespace.target.clone()));
        finish::invalidate(run, &message::Marker { tablespaces: tablespaces.collect(), ..marker.clone() })?;
        rustix::fs::fchmod(run.target.root(), rustix::fs::Mode::from_raw_mode(terms.mode & 0o750))
            .map_err(Error::on("set the mode of the data directory"))?;
        // links first: what lies in a tablespace is known to be this target's by them
        let (links, others): (Vec<&Directory>, Vec<&Directory>) =
            self.directories.iter().partition(|directory| directory.path.as_str() == "pg_tblspc");
        for directory in links {
            run.target.make_directory(&directory.path, directory.mode)?;
        }
        for tablespace in &terms.tablespaces {
            run.target.link(&places::link(tablespace)?, &tablespace.target)?;
        }
        for directory in others {
            run.target.make_directory(&directory.path, directory.mode)?;
        }
        Ok(())
    }

    fn answer(&self, reply: &Reply) -> Result<()> {
        self.control.send(REPLY, &[&message::encode(reply)?])
    }

    /// Tells the sender why the session ends.
    fn fail(&mut self, error: &Error) {
        if matches!(self.stage, Stage::Locked(_)) {
            // once the refusal is known, nothing is left of it
            self.stage = Stage::Looked;
        }
        if let Stage::Begun(run) | Stage::Settled(run) = &self.stage {
            run.record.fail(error);
        }
        // the link may be what failed
        if self.answer(&Reply::Error(error.clone())).is_ok() {
            // the answer must reach the sender before the link closes; it closes its end then
            while let Ok(Some((kind, body))) = self.control.receive() {
                // a sender that asks on is told the same, or it would wait for ever
                let is_question =
                    kind == REQUEST && !matches!(message::decode(&body), Ok(Request::Plan { .. }));
                if is_question && self.answer(&Reply::Error(error.clone())).is_err() {
                    break;
                }
            }
        }
    }

    /// Releases a complete target before the final reply, so that the caller can start the server at once.
    fn finished(&mut self) {
        self.receiver.runs().remove(&self.token);
        self.stage = Stage::Looked;
    }
}

impl Drop for Session<'_> {
    /// Ends what is left of the run and releases the target, so that the next run can lock it.
    fn drop(&mut self) {
        self.receiver.runs().remove(&self.token);
        let stage = std::mem::replace(&mut self.stage, Stage::Looked);
        if let Stage::Begun(run) | Stage::Settled(run) | Stage::Surveyed(run) = stage {
            if Arc::strong_count(&run) > 1 {
                self.cancel.trip();
            }
            let deadline = Instant::now() + STREAMS_END;
            while Arc::strong_count(&run) > 1 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}

/// Refuses what the directories outside the data directory turned out to be once they were opened.
fn demand_own(policy: &Policy, cluster: &Cluster, target: &Target, terms: &Terms) -> Result<()> {
    let mut wanted = Vec::new();
    for other in target.others()? {
        policy.check_outside(cluster, &other.path)?;
        let within = other.is_tablespace.then(|| terms.tablespace_version_directory.clone());
        wanted.push(Wanted { path: other.path, identity: other.identity, within });
    }
    // without it the target's own links are taken for another's
    let own = target.look().and_then(|look| Some(identity(&std::fs::metadata(look).ok()?)));
    let listed = policy.beside(cluster);
    Neighbours::new(own, &listed).demand_unused(&wanted)
}

fn identity(found: &std::fs::Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// First and last position of each row of `true`.
fn rows(flags: &[bool]) -> Vec<(u32, u32)> {
    let mut rows: Vec<(u32, u32)> = Vec::new();
    for (position, _) in (0..).zip(flags).filter(|(_, flag)| **flag) {
        match rows.last_mut() {
            Some((_, last)) if *last + 1 == position => *last = position,
            _ => rows.push((position, position)),
        }
    }
    rows
}

fn key(digits: &str) -> Result<DigestKey> {
    hexadecimal::decode(digits.as_bytes())
        .map(DigestKey::from_bytes)
        .ok_or_else(|| Error::new(Kind::ProtocolViolation, "invalid digest key"))
}

fn out_of_order(wanted: &str) -> Error {
    Error::new(Kind::ProtocolViolation, format!("message out of order: it needs {wanted} first"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_row() {
        assert_eq!(rows(&[true, true, false, true, false]), [(0, 1), (3, 3)]);
        assert_eq!(rows(&[false]), []);
    }
}

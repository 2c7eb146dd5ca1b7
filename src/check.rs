//! `pgpool_recovery_check`: every pre-flight question and its answer, nothing changed.

use std::path::Path;
use std::sync::Arc;

use pgpool_recovery_core::cancel::Cancel;
use pgpool_recovery_core::error::{Error, Result};
use pgpool_recovery_core::judge::Finding;
use pgpool_recovery_core::protocol::message::Purpose;
use pgpool_recovery_core::sender::Session;

use crate::pg::threads;
use crate::preflight::{self, Situation};
use crate::request::Request;
use crate::settings::Settings;

/// One question and its answer.
pub(crate) struct CheckRow {
    pub(crate) step: String,
    pub(crate) ok: bool,
    pub(crate) detail: String,
    pub(crate) hint: Option<String>,
}

impl From<Finding> for CheckRow {
    fn from(Finding { step, answer }: Finding) -> Self {
        match answer {
            Ok(detail) => Self { step: step.to_owned(), ok: true, detail, hint: None },
            Err(Error { message, detail, hint, .. }) => {
                let detail = detail.map_or_else(|| message.clone(), |detail| format!("{message}: {detail}"));
                Self { step: step.to_owned(), ok: false, detail, hint }
            }
        }
    }
}

/// Asks everything; a question that makes others unanswerable ends the list.
pub(crate) fn check(request: Request, settings: Settings) -> Result<Vec<CheckRow>> {
    let mut rows = Vec::new();
    ask(request, settings, &mut rows)?;
    Ok(rows)
}

fn ask(request: Request, settings: Settings, rows: &mut Vec<CheckRow>) -> Result<()> {
    let cancel = Cancel::new();
    let tick = &mut || Ok(());
    let mut add = |step, answer| rows.push(Finding { step, answer }.into());

    let (host, transport) = (request.dest_host.clone(), settings.transport);
    let is_local = match threads::wait(&cancel, tick, || preflight::is_local(&host, transport, &cancel)) {
        Ok(is_local) => is_local,
        Err(error) => {
            add("target_host", Err(error));
            return Ok(());
        }
    };
    let situation = match Situation::gather(request, settings, is_local) {
        Ok(situation) => situation,
        Err(error) => {
            add("names", Err(error));
            return Ok(());
        }
    };
    for Finding { step, answer } in situation.primary_findings()? {
        add(step, answer);
    }
    let open = || {
        let connector = situation.connector(Arc::default())?;
        let directory = Path::new(&situation.request.dest_dir);
        Session::open(connector, directory, Purpose::Look, situation.keep()?, Arc::default(), &cancel)
    };
    let mut session = match threads::wait(&cancel, tick, open) {
        Ok(session) => session,
        Err(error) => {
            add("target_reachable", Err(error));
            return Ok(());
        }
    };
    let target = session.target().clone();
    add("target_reachable", Ok(format!("\"{}\", {}", target.directory.display(), situation.transport())));
    for Finding { step, answer } in situation.target_findings(&target) {
        add(step, answer);
    }
    let conninfo = situation.following(&target).conninfo();
    let login = || session.test_replication(&conninfo, situation.primary.system_identifier);
    let login = threads::wait(&cancel, tick, login);
    add("replication_login", login.map(|()| conninfo));
    Ok(())
}

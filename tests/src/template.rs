//! One initdb for many clusters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tempfile::TempDir;

use crate::{account, process, scratch};

/// A data directory as initdb leaves it. It is removed with the last cluster that was copied from it.
#[derive(Debug)]
pub(crate) struct Template {
    directory: TempDir,
}

/// By the arguments of initdb.
static TEMPLATES: Mutex<BTreeMap<Vec<String>, Weak<Template>>> = Mutex::new(BTreeMap::new());

impl Template {
    /// The one for these arguments; `initdb` makes it where there is none.
    pub(crate) fn of(arguments: &[String], initdb: impl FnOnce(&Path)) -> Arc<Self> {
        // The others wait for the one that makes it.
        let mut templates = TEMPLATES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(template) = templates.get(arguments).and_then(Weak::upgrade) {
            return template;
        }
        let directory = tempfile::Builder::new().prefix("ppr-template-").tempdir_in(scratch::parent());
        let template = Arc::new(Self { directory: directory.expect("a new directory") });
        account::give(template.directory.path());
        initdb(&template.data());
        templates.insert(arguments.to_vec(), Arc::downgrade(&template));
        template
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Makes a data directory like it, with the same system identifier.
    pub(crate) fn copy_to(&self, directory: &Path) {
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]).arg(self.data()).arg(directory);
        process::run(copy).ok();
    }
}

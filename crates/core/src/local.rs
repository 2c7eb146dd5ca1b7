//! A target on the primary's own host: the receiver in the sender's process, no agent, no network.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Error, Result};
use crate::host::policy::{Policy, Reach};
use crate::receiver::Receiver;
use crate::sys::cancel::Cancel;
use crate::sys::lock::lock;
use crate::wire::link::{Connector, Link, pipe};

/// Connects to a receiver in this process. Dropping it waits for the receiver's threads.
pub struct LocalConnector {
    receiver: Arc<Receiver>,
    /// Closes every link at the end.
    end: Cancel,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl LocalConnector {
    /// A receiver that starts servers with the programs in `bin_directory`, clones files of the primary's data
    /// directory `origin` where it can, and writes within `reach`. It starts none if `orphans_go_to_primary`.
    pub fn new(bin_directory: PathBuf, origin: PathBuf, reach: Reach, orphans_go_to_primary: bool) -> Self {
        let policy = Policy::Local { bin_directory, origin, reach, orphans_go_to_primary };
        let receiver = Arc::new(Receiver::new(policy));
        Self { receiver, end: Cancel::new(), threads: Mutex::default() }
    }
}

impl Connector for LocalConnector {
    fn connect(&self, cancel: &Cancel) -> Result<Link> {
        // the receiver's end has a switch of its own: like an agent it notices a cancel by the link
        let far_cancel = Cancel::new();
        let (near, far) = pipe::pair(&far_cancel);
        let close = far_cancel.clone();
        cancel.on_trip(Box::new(move || close.trip()));
        let close = far_cancel.clone();
        self.end.on_trip(Box::new(move || close.trip()));
        let receiver = Arc::clone(&self.receiver);
        let thread = std::thread::Builder::new()
            .name("local-receiver".to_owned())
            .spawn(move || {
                // the sender learns every error over the link
                let _ = receiver.serve(far, &far_cancel);
            })
            .map_err(|error| Error::no_thread(&error))?;
        lock(&self.threads).push(thread);
        Ok(near)
    }

    fn place(&self) -> String {
        "the local receiver".to_owned()
    }

    fn is_remote(&self) -> bool {
        false
    }
}

impl Drop for LocalConnector {
    fn drop(&mut self) {
        self.end.trip();
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            let _ = thread.join();
        }
    }
}

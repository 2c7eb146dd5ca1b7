//! What is at the places of the plan's files.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Conversation;
use crate::error::Result;
use crate::receiver::parallel::for_each;
use crate::receiver::run::Run;

/// Looks at all of them and tells their sizes.
pub(super) fn answer(conversation: &Conversation<'_>, run: &Run) -> Result<()> {
    let planned_files = run.planned_files();
    let sizes: Vec<AtomicU64> = planned_files.iter().map(|_| AtomicU64::new(u64::MAX)).collect();
    for_each(run, &planned_files, |number, planned| {
        if let Some(size) = run.look(planned)? {
            sizes[number].store(size, Ordering::Relaxed);
        }
        Ok(())
    })?;
    let bytes: Vec<u8> = sizes.iter().flat_map(|size| size.load(Ordering::Relaxed).to_le_bytes()).collect();
    conversation.send_blob(&bytes)
}

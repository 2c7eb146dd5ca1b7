//! What is at the places of the plan's files.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Conversation;
use crate::error::Result;
use crate::receiver::parallel::for_each;
use crate::receiver::run::Run;

/// Files that are looked at before their sizes are sent.
const PART: usize = 1 << 16;

/// Looks at all of them and tells their sizes.
pub(super) fn answer(conversation: &Conversation<'_>, run: &Run) -> Result<()> {
    let planned_files = run.planned_files();
    for first in (0..planned_files.len()).step_by(PART) {
        let numbers = first..planned_files.len().min(first + PART);
        let sizes: Vec<AtomicU64> = numbers.clone().map(|_| AtomicU64::new(u64::MAX)).collect();
        for_each(run, numbers, |number| {
            if let Some(size) = run.look(&planned_files.file(number))? {
                sizes[number - first].store(size, Ordering::Relaxed);
            }
            Ok(())
        })?;
        let bytes: Vec<u8> =
            sizes.iter().flat_map(|size| size.load(Ordering::Relaxed).to_le_bytes()).collect();
        conversation.send_blob(&bytes)?;
    }
    Ok(())
}

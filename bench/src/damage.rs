//! A standby's files made to differ from the primary's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use pgpool_recovery_e2e::compare::PAGE;
use pgpool_recovery_e2e::rng::Rng;

use crate::interrupt::{Outcome, failed};
use crate::stage::Stage;
use crate::tree;

/// Changes a stopped standby: other pages in each round, the same for every contender.
pub(crate) fn standby(stage: &Stage, one_in: u64, round: u32) -> Outcome<u64> {
    let changed = pages(stage.target.directory(), one_in, u64::from(round));
    changed.or_else(|error| failed(format!("the standby could not be changed: {error}")))
}

/// Changes some bytes in exactly one of `one_in` pages of the relations, chosen by `seed`, and gives their number.
fn pages(directory: &Path, one_in: u64, seed: u64) -> io::Result<u64> {
    let files = tree::relations(directory)?;
    let mut left: u64 = files.values().map(|size| size / PAGE as u64).sum();
    let wanted = left / one_in;
    let mut missing = wanted;
    let mut random = Rng::new(seed);
    let mut page = vec![0; 64];
    for (name, size) in &files {
        let mut file = None;
        for number in 0..size / PAGE as u64 {
            // Each page with the probability that brings the number out exactly.
            if random.number(left) < missing {
                let file = match &mut file {
                    Some(file) => file,
                    none => none.insert(File::options().read(true).write(true).open(directory.join(name))?),
                };
                let at = number * PAGE as u64 + 1024 + random.number(4096);
                file.read_exact_at(&mut page, at)?;
                for byte in &mut page {
                    *byte ^= 0x5a;
                }
                file.write_all_at(&page, at)?;
                missing -= 1;
            }
            left -= 1;
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_so_many_pages_differ() {
        let root = tempfile::tempdir().expect("a directory");
        for name in ["base/1", "global"] {
            std::fs::create_dir_all(root.path().join(name)).expect("a directory");
        }
        let path = root.path().join("base/1/10");
        std::fs::write(&path, vec![0; 1000 * PAGE]).expect("a file");
        assert_eq!(pages(root.path(), 10, 1).expect("damage"), 100);
        let bytes = std::fs::read(&path).expect("a file");
        assert_eq!(bytes.chunks(PAGE).filter(|page| page.iter().any(|byte| *byte != 0)).count(), 100);
    }
}

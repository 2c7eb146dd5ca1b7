//! The delta: with the runs written and its size set, the target has what the primary has.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgpool_recovery_core::compare::delta::differing;
use pgpool_recovery_core::compare::digest::PAGE;

/// Few bytes describe many: each stands for so many of its kind, and lengths need not be whole pages.
fn content(recipe: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = recipe.iter().flat_map(|&byte| [byte & 3; PAGE / 2 + 1]).collect();
    bytes.truncate(40 * PAGE);
    bytes
}

fuzz_target!(|data: &[u8]| {
    let Some((&at, recipes)) = data.split_first() else { return };
    let (ours, theirs) = recipes.split_at(usize::from(at) % (recipes.len() + 1));
    let (ours, mut theirs) = (content(ours), content(theirs));
    let mut runs = Vec::new();
    let equal = |page: usize| {
        let page = page * PAGE..((page + 1) * PAGE).min(theirs.len());
        ours.get(page.clone()) == theirs.get(page)
    };
    differing(0, &ours, theirs.len().min(ours.len()), equal, &mut runs);
    theirs.resize(theirs.len().max(ours.len()), 0);
    for run in runs {
        let range = run.offset as usize..run.offset as usize + run.length as usize;
        theirs[range.clone()].copy_from_slice(&ours[range]);
    }
    theirs.truncate(ours.len());
    assert!(ours == theirs);
});

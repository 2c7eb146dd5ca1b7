//! Does the standby sort text as the primary does?
//!
//! An index on text is in the order of the library that compared its keys: the C library or ICU, whose orders change from
//! version to version. A standby has the primary's indexes. With another version of the library it searches them in another order,
//! and misses rows; promoted, it puts new keys beside the old ones in that order, and a unique index may have a key twice.

use std::fmt;

use crate::error::{Error, Kind};
use crate::preflight::Finding;
use crate::sys::libraries::Libraries;

/// The step of the check that this is.
const STEP: &str = "collation";

/// Most databases that are named.
const MOST: usize = 10;

/// What compares text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Library {
    Glibc,
    Icu,
}

impl Library {
    fn of(self, libraries: &Libraries) -> Option<&str> {
        match self {
            Self::Glibc => libraries.glibc.as_deref(),
            Self::Icu => libraries.icu.as_deref(),
        }
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Glibc => "glibc",
            Self::Icu => "ICU",
        })
    }
}

/// A database of the primary's, and its default collation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// `pg_database.datlocprovider`: `c` (of the C library; all before PostgreSQL 15), `i` (ICU), `b` (built in).
    pub provider: String,
    /// `pg_database.datcollate`
    pub collate: String,
    /// The version that it was made with or last refreshed to: `pg_database.datcollversion` of PostgreSQL 15 and later.
    pub recorded: Option<String>,
    /// The version that the primary has: `pg_database_collation_actual_version()` of PostgreSQL 15 and later.
    pub actual: Option<String>,
}

impl Database {
    /// What its default collation depends on; `None`: the same everywhere.
    fn library(&self) -> Option<Library> {
        match self.provider.as_str() {
            "i" => Some(Library::Icu),
            // those that PostgreSQL gives no version (get_collation_actual_version_libc in pg_locale_libc.c): they are in the
            // order of the bytes
            "c" => {
                let collate = self.collate.to_ascii_lowercase();
                (!matches!(collate.as_str(), "c" | "posix") && !collate.starts_with("c."))
                    .then_some(Library::Glibc)
            }
            _ => None,
        }
    }
}

/// Whether the libraries of a primary and of its target, and what the databases were made with, are the same. `target`: `None` of an
/// agent that does not tell.
pub fn finding(primary: &Libraries, target: Option<&Libraries>, databases: &[Database]) -> Finding {
    let (mut good, mut problems) = (Vec::new(), Vec::new());
    for library in [Library::Glibc, Library::Icu] {
        let users = databases.iter().filter(|database| database.library() == Some(library));
        let Some(names) = names(users) else { continue };
        match (library.of(primary), target.and_then(|target| library.of(target))) {
            (Some(ours), Some(theirs)) if ours == theirs => {
                good.push(format!("{library} {ours} on both sides sorts the text of {names}"));
            }
            (Some(ours), Some(theirs)) => problems.push(differing(library, (ours, theirs), &names)),
            (ours, theirs) => problems.push(unknown(library, (ours, theirs), target.is_some(), &names)),
        }
    }
    problems.extend(databases.iter().filter_map(outdated).take(MOST));
    if good.is_empty() {
        good.push("the default collation of no database depends on a library".to_owned());
    }
    Finding::advice_of(STEP, good.join("; "), problems)
}

fn differing(library: Library, (ours, theirs): (&str, &str), names: &str) -> Error {
    Error::new(Kind::WrongState, format!("{library} is {ours} here and {theirs} on the target's host"))
        .detail(format!(
            "It sorts the text of {names}. Where the two sort differently, queries on the standby miss rows that an index of this \
             primary has in another place, and after a promotion such an index is damaged further. Columns and indexes with a collation of \
             their own were not looked at."
        ))
        .hint("Install the same release of the operating system on both hosts, or use such a standby only to move to the other release: after its promotion, REINDEX all indexes on text, and ALTER DATABASE ... REFRESH COLLATION VERSION (PostgreSQL 15 and later).")
}

fn unknown(
    library: Library,
    (ours, theirs): (Option<&str>, Option<&str>),
    does_tell: bool,
    names: &str,
) -> Error {
    let shown = |version: Option<&str>| version.unwrap_or("not known").to_owned();
    let error = Error::new(
        Kind::WrongState,
        format!("{library} is {} here and {} on the target's host", shown(ours), shown(theirs)),
    )
    .detail(format!(
        "It sorts the text of {names}. Whether it does so on the standby as here cannot be told."
    ));
    if does_tell {
        error.hint(
            "Compare the versions by hand: \"ldd --version\", and \"ldd\" of the server's program for ICU.",
        )
    } else {
        error.hint("Install the same version of the agent as of the extension: this one does not tell the versions of its host.")
    }
}

/// A database whose indexes were made with another version than the primary has now.
fn outdated(database: &Database) -> Option<Error> {
    let (recorded, actual) = database.recorded.as_deref().zip(database.actual.as_deref())?;
    (recorded != actual).then(|| {
        let name = &database.name;
        Error::new(Kind::WrongState, format!("database \"{name}\" was made with collation version {recorded}, and this primary has {actual}"))
            .detail("Indexes on text that were not rebuilt since may be damaged here already, and are copied as they are.")
            .hint("In each such database of the primary, REINDEX all indexes on text, and then ALTER DATABASE ... REFRESH COLLATION VERSION.")
    })
}

/// Their names, as a message has them; `None`: there are none.
fn names<'a>(databases: impl Iterator<Item = &'a Database>) -> Option<String> {
    let names: Vec<String> = databases.map(|database| format!("\"{}\"", database.name)).collect();
    let shown = names.iter().take(MOST).map(String::as_str).collect::<Vec<_>>().join(", ");
    let noun = if names.len() == 1 { "database" } else { "databases" };
    match names.len() {
        0 => None,
        1..=MOST => Some(format!("{noun} {shown}")),
        more => Some(format!("{noun} {shown} and {} more", more - MOST)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn database(name: &str, provider: &str, collate: &str) -> Database {
        Database {
            name: name.to_owned(),
            provider: provider.to_owned(),
            collate: collate.to_owned(),
            recorded: None,
            actual: None,
        }
    }

    fn libraries(glibc: &str, icu: &str) -> Libraries {
        let version = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Libraries { glibc: version(glibc), icu: version(icu) }
    }

    fn databases() -> [Database; 5] {
        [
            database("postgres", "c", "en_US.UTF-8"),
            database("bytes", "c", "C"),
            database("utf8", "c", "C.UTF-8"),
            database("icu", "i", "C"),
            database("built in", "b", "en_US.UTF-8"),
        ]
    }

    fn told(target: Option<&Libraries>, databases: &[Database]) -> String {
        let finding = finding(&libraries("2.36", "72"), target, databases);
        assert!(finding.is_advice);
        let error = finding.answer.expect_err("different");
        format!("{}\n{}\n{}", error.message, error.detail.expect("whose"), error.hint.expect("what to do"))
    }

    #[test]
    fn the_same_libraries_are_good() {
        let same = libraries("2.36", "72");
        let answer = finding(&same, Some(&same), &databases()).answer.expect("the same");
        let expected = "glibc 2.36 on both sides sorts the text of database \"postgres\"; ICU 72 on both sides sorts the text of database \"icu\"";
        assert_eq!(answer, expected);
    }

    #[test]
    fn what_no_database_uses_does_not_matter() {
        let bytes = [database("a", "c", "POSIX"), database("b", "c", "c.utf8"), database("c", "b", "C")];
        for target in [Some(libraries("2.41", "76")), Some(Libraries::default()), None] {
            let answer = finding(&libraries("2.36", "72"), target.as_ref(), &bytes).answer;
            assert_eq!(answer, Ok("the default collation of no database depends on a library".to_owned()));
        }
    }

    #[test]
    fn each_library_that_differs_is_told_with_its_databases() {
        let glibc = told(Some(&libraries("2.41", "72")), &databases());
        assert!(glibc.starts_with("glibc is 2.36 here and 2.41 on the target's host\n"), "{glibc}");
        assert!(
            glibc.contains("the text of database \"postgres\".") && !glibc.contains("\"icu\""),
            "{glibc}"
        );
        let icu = told(Some(&libraries("2.36", "76")), &databases());
        assert!(icu.starts_with("ICU is 72 here and 76 on the target's host\n"), "{icu}");
        assert!(icu.contains("the text of database \"icu\".") && !icu.contains("\"postgres\""), "{icu}");
        let both = told(Some(&libraries("2.41", "76")), &databases());
        assert!(both.starts_with("glibc is 2.36 here and 2.41 on the target's host; ICU is 72"), "{both}");
    }

    #[test]
    fn what_is_not_known_is_no_pass() {
        let silent = told(None, &databases());
        assert!(
            silent.starts_with(
                "glibc is 2.36 here and not known on the target's host; ICU is 72 here and not known"
            ),
            "{silent}"
        );
        assert!(silent.contains("the same version of the agent"), "{silent}");
        let partly = told(Some(&libraries("2.36", "")), &databases());
        assert!(partly.starts_with("ICU is 72 here and not known") && partly.contains("by hand"), "{partly}");
        let primary = finding(&Libraries::default(), Some(&libraries("2.36", "72")), &databases());
        assert!(
            primary
                .answer
                .is_err_and(|error| error.message.starts_with("glibc is not known here and 2.36 on"))
        );
    }

    #[test]
    fn what_the_primary_has_not_rebuilt_is_told() {
        let made_with = |recorded: Option<&str>| Database {
            recorded: recorded.map(str::to_owned),
            actual: Some("2.36".to_owned()),
            ..database("old", "c", "de_DE.UTF-8")
        };
        let told = told(Some(&libraries("2.36", "72")), &[made_with(Some("2.28"))]);
        assert!(
            told.starts_with(
                "database \"old\" was made with collation version 2.28, and this primary has 2.36\n"
            ),
            "{told}"
        );
        for good in [Some("2.36"), None] {
            let same = libraries("2.36", "72");
            assert!(finding(&same, Some(&same), &[made_with(good)]).answer.is_ok(), "{good:?}");
        }
    }

    #[test]
    fn many_databases_are_counted() {
        let many: Vec<Database> = (0..13).map(|n| database(&format!("d{n}"), "c", "fr_FR")).collect();
        let told = told(Some(&libraries("2.41", "72")), &many);
        assert!(told.contains("databases \"d0\", ") && told.contains("\"d9\" and 3 more."), "{told}");
    }

    proptest! {
        #[test]
        fn only_equal_versions_are_good(ours in "2\\.[0-9]{1,2}", theirs in "2\\.[0-9]{1,2}", collate in "[a-z]{2}_[A-Z]{2}(\\.UTF-8)?") {
            let databases = [database("x", "c", &collate)];
            let found = finding(&libraries(&ours, ""), Some(&libraries(&theirs, "")), &databases);
            prop_assert_eq!(found.answer.is_ok(), ours == theirs);
        }
    }
}

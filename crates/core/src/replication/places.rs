//! Settings that say where files of one server are. A standby that gets its primary's configuration has places of its own.

use std::path::Path;

use pgdata::configuration::{Reading, What, is_named};

/// Files that a running server writes and removes outside its data directory, with the value that is neutral and the last
/// version that has the setting. A second server on the host would remove or replace those of the first.
const WRITTEN: [(&str, &str, u32); 2] =
    [("external_pid_file", "", u32::MAX), ("stats_temp_directory", "pg_stat_tmp", 14)];

/// Files that a server reads when it starts, with their names in its data directory and the first version that has the setting.
/// On another host those of the primary are missing, and on its own host the standby would follow what is meant for the primary.
const READ: [(&str, &str, u32); 3] =
    [("hba_file", "pg_hba.conf", 0), ("ident_file", "pg_ident.conf", 0), ("hosts_file", "pg_hosts.conf", 19)];

/// Whether this setting names such a place.
pub(super) fn is_place(name: &[u8]) -> bool {
    let written = WRITTEN.iter().map(|(place, ..)| *place);
    let read = READ.iter().map(|(place, ..)| *place);
    let mut places = ["data_directory", "config_file"].into_iter().chain(read).chain(written);
    places.any(|place| is_named(name, place))
}

/// The lines that take back what the files included by a primary's configuration say about places, for a standby in
/// `directory`. `configuration`: the primary's, read from the file `main`, in which such settings are left out.
pub fn own_places(configuration: &Reading, main: &Path, major: u32, directory: &Path) -> String {
    let is_set = |place: &str| {
        configuration.items.iter().any(|item| {
            *item.file != *main && matches!(&item.what, What::Setting { name, .. } if is_named(name, place))
        })
    };
    let written = WRITTEN.iter().filter(|(_, _, until)| major <= *until);
    let written = written.map(|(place, neutral, _)| (*place, (*neutral).to_owned()));
    // a relative path would start where the server is started
    let read = READ.iter().filter(|(_, _, from)| major >= *from);
    let read = read.map(|(place, name, _)| (*place, directory.join(name).display().to_string()));
    let known = written.chain(read).filter(|(place, _)| is_set(place));
    known.map(|(place, value)| format!("{place} = {}\n", quoted(&value))).collect()
}

/// A value in a configuration file (guc-file.l).
pub(super) fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::standby::{adopted_configuration, without_recovery_settings};

    #[test]
    fn places_of_the_primary_are_not_the_standbys() {
        let top = tempfile::tempdir().expect("temporary directory");
        let main = top.path().join("postgresql.conf");
        let text = b"stats_temp_directory = '/run/x'\nexternal_pid_file = '/run/y'\nhba_file = '/x'\ninclude 'more.conf'\n";
        std::fs::write(&main, text).expect("write");
        std::fs::write(top.path().join("more.conf"), "work_mem = '1MB'\n").expect("write");
        let places = |major| own_places(&Reading::of(&main, None), &main, major, Path::new("/stand'by"));
        assert_eq!(places(14), "", "lines of the main file are left out");
        let more = "External_Pid_File '/run/y'\nstats_temp_directory = '/run/x'\n";
        std::fs::write(top.path().join("more.conf"), more).expect("write");
        assert_eq!(places(14), "external_pid_file = ''\nstats_temp_directory = 'pg_stat_tmp'\n");
        assert_eq!(places(15), "external_pid_file = ''\n", "the other one is unknown there");
        let adopted = adopted_configuration(text, None, &places(15), "/m.conf");
        let expected = b"include 'more.conf'\nexternal_pid_file = ''\ninclude_if_exists = '/m.conf'\n";
        assert_eq!(adopted, expected);
        let more = "hba_file = '/primary/hba'\nIdent_File '/primary/ident'\n";
        std::fs::write(top.path().join("more.conf"), more).expect("write");
        let own = "hba_file = '/stand''by/pg_hba.conf'\nident_file = '/stand''by/pg_ident.conf'\n";
        assert_eq!(places(15), own, "those of its own data directory");
        std::fs::write(top.path().join("more.conf"), "hosts_file = '/primary/hosts'\n").expect("write");
        assert_eq!(places(18), "", "unknown there");
        assert_eq!(places(19), "hosts_file = '/stand''by/pg_hosts.conf'\n");
        let altered = b"hba_file = '/primary/hba'\nIdent_File = '/primary/ident'\nexternal_pid_file = '/run/y'\nwork_mem = '1MB'\n";
        assert_eq!(without_recovery_settings(altered, &[]), b"work_mem = '1MB'\n", "of ALTER SYSTEM, too");
    }
}

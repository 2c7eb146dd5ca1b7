//! Which directory the server's configuration leads to: in the server's own words.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pgdata::configuration::{Item, Reading, What};

use super::policy::{Cluster, resolve};
use super::{inspect, launch};
use crate::error::{Error, Kind, Result};
use crate::manifest::exclude::{MYRECOVERY_CONF, POSTGRESQL_CONF};
use crate::replication::recovery_settings::{self, Place};
use crate::sys::FileId;
use crate::sys::cancel::Cancel;
use crate::sys::process;

/// How long the server's program may take to read its configuration.
const DEADLINE: Duration = Duration::from_secs(10);

/// The directory that the server would use instead of the cluster's: `data_directory` in its configuration, or in
/// a file that this includes, leads there. `None`: it would use the right one.
///
/// `postgres -C` reads the configuration as a start does and prints a value; it works whether the server runs or
/// not, and looks at nothing else in the data directory.
pub(crate) fn elsewhere(cluster: &Cluster, cancel: &Cancel) -> Result<Option<PathBuf>> {
    demand_known(cluster)?;
    // An absent directory cannot be given: the root stands for it, and is what comes back if nothing is configured.
    let stand_in = Path::new("/");
    let base = if cluster.data_directory.is_dir() { &cluster.data_directory } else { stand_in };
    let found = PathBuf::from(read(cluster, base, "data_directory", |text| text.starts_with('/'), cancel)?);
    let is_right = same(&found, base) || same(&found, &cluster.data_directory);
    Ok((!is_right).then_some(found))
}

/// What the server's configuration says of a setting.
pub(super) fn value(cluster: &Cluster, setting: &str, cancel: &Cancel) -> Result<String> {
    demand_known(cluster)?;
    read(cluster, &cluster.data_directory, setting, |_| true, cancel)
}

/// Has the server's program print a setting as it would be in a directory.
fn read(
    cluster: &Cluster,
    directory: &Path,
    setting: &str,
    is_valid: fn(&str) -> bool,
    cancel: &Cancel,
) -> Result<String> {
    let mut command = process::command(&cluster.bin_directory.join("postgres"), ["-C", setting, "-D"]);
    command.arg(directory);
    if let Some(file) = &cluster.config_file {
        command.arg("-c").arg(format!("config_file={}", file.display()));
    }
    let outcome = process::run(command, DEADLINE, cancel)?;
    let value = outcome.stdout.trim();
    if outcome.status.success() && is_valid(value) {
        return Ok(value.to_owned());
    }
    let said = outcome.said();
    let cause = launch::cause(&said).map_or_else(String::new, |cause| format!(": {cause}"));
    Err(Error::new(Kind::StartFailed, format!("the server cannot read its configuration{cause}"))
        .detail(format!(
            "\"postgres -C {setting}\" for \"{}\" {} and said:\n{said}",
            cluster.data_directory.display(),
            outcome.describe()
        ))
        .hint("Correct the configuration file."))
}

/// Refuses a cluster that a command of the operator's starts with a configuration that is not in its data directory, if
/// nothing says where it is: what that configuration says about recovery is not known, and it does not read
/// myrecovery.conf.
pub(crate) fn demand_known(cluster: &Cluster) -> Result<()> {
    let directory = &cluster.data_directory;
    let has = |name: &str| match fs::symlink_metadata(directory.join(name)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::at("stat file", directory.join(name), &error)),
    };
    let is_known = cluster.start_command.is_none() || cluster.config_file.is_some();
    if is_known || !has("PG_VERSION")? || has(POSTGRESQL_CONF)? {
        return Ok(());
    }
    let message =
        format!("it is not known which configuration the server in \"{}\" has", directory.display());
    Err(Error::new(Kind::TargetRefused, message)
        .detail("Its data directory has no postgresql.conf, and agent.toml names a start_command, but no config_file.")
        .hint("Name the server's postgresql.conf as config_file in agent.toml."))
}

/// Refuses to start a server as a standby that would end its recovery by itself and become a second primary. What a
/// recovery checked and wrote may have been replaced since, by a tool that manages configurations for instance.
pub(super) fn demand_no_end(cluster: &Cluster) -> Result<()> {
    let directory = &cluster.data_directory;
    // the content of myrecovery.conf counts where it is read, and only there
    let main = Reading::of(&inspect::main_configuration(cluster), None);
    let auto = inspect::auto_configuration(directory);
    let Some(item) = recovery_settings::end(&main, &auto, directory) else {
        // what cannot be read may end it, unless myrecovery.conf is read after that
        let is_taken_back = recovery_settings::reads_last(&inspect::configuration(cluster));
        let mut unread = main.items.iter().filter(|_| !is_taken_back).chain(&auto.items);
        return unread.try_for_each(demand_read);
    };
    let name = match &item.what {
        What::Setting { name, .. } => String::from_utf8_lossy(name).to_ascii_lowercase(),
        _ => String::new(),
    };
    let message = format!("the server in \"{}\" would end its recovery by itself", directory.display());
    Err(Error::new(Kind::StartFailed, message)
        .detail(format!("{name} is set in {}, and nothing that is read later takes it back.", Place::of(item)))
        .hint(format!(
            "Remove it there. If {MYRECOVERY_CONF} is not read last any more, run the recovery again; it sends only what \
             still differs."
        )))
}

/// Refuses what of a configuration could not be read although the server may read it.
fn demand_read(item: &Item) -> Result<()> {
    let (What::Problem(why) | What::Skipped(why)) = &item.what else { return Ok(()) };
    let message = "cannot tell whether the server would end its recovery by itself";
    Err(Error::new(Kind::StartFailed, message).detail(format!("{}: {why}.", Place::of(item))).hint(
        "Correct the configuration there, or run the recovery again; it sends only what still differs.",
    ))
}

/// The refusal of a configuration that leads elsewhere.
pub fn refusal(kind: Kind, directory: &Path, elsewhere: &Path) -> Error {
    Error::new(kind, format!("the configuration of \"{}\" belongs to another directory", directory.display()))
        .detail(format!(
            "A server started with it would use data_directory \"{}\", and not this directory.",
            elsewhere.display()
        ))
        .hint(
            "Remove data_directory from postgresql.conf and the files that it includes, or correct it; with an agent see \
             config_file in agent.toml, too.",
        )
}

fn same(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => FileId::from(&one) == FileId::from(&other),
        _ => resolve(one) == resolve(other),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A directory with a program `postgres` that runs this script.
    pub(crate) fn programs(script: &str) -> tempfile::TempDir {
        let top = tempfile::tempdir().expect("temporary directory");
        process::tests::script(&top.path().join("postgres"), script);
        top
    }

    fn found(script: &str, directory: &Path, config_file: Option<&Path>) -> Result<Option<PathBuf>> {
        let programs = programs(script);
        let cluster = Cluster {
            config_file: config_file.map(Path::to_owned),
            ..Cluster::new(directory.to_owned(), programs.path().to_owned())
        };
        elsewhere(&cluster, &Cancel::new())
    }

    #[test]
    fn a_configuration_of_another_directory_is_recognised() {
        let top = tempfile::tempdir().expect("temporary directory");
        let data = top.path().join("data");
        // "postgres -C data_directory -D DIRECTORY"
        let unset = "echo words >&2; echo \"$4\"";
        assert_eq!(found(unset, &data, None), Ok(None), "it is not there yet");
        fs::create_dir(&data).expect("make");
        std::os::unix::fs::symlink(&data, top.path().join("link")).expect("link");
        assert_eq!(found(unset, &data, None), Ok(None));
        let by_link = format!("echo '{}/link'", top.path().display());
        assert_eq!(found(&by_link, &data, None), Ok(None), "another name of the directory");
        assert_eq!(found("echo /tmp", &data, None), Ok(Some("/tmp".into())));
        // what Debian's configuration says of a directory that is not there yet
        let missing = top.path().join("missing");
        let says = format!("echo '{}'", missing.display());
        assert_eq!(found(&says, &missing, Some(Path::new("/etc/x.conf"))), Ok(None));
        let file = "test \"$6\" = config_file=/etc/x.conf && echo \"$4\"";
        assert_eq!(found(file, &data, Some(Path::new("/etc/x.conf"))), Ok(None));
    }

    #[test]
    fn a_start_command_that_brings_a_configuration_of_its_own_must_name_it() {
        let data = tempfile::tempdir().expect("temporary directory");
        let cluster = Cluster {
            start_command: Some(vec!["start".to_owned()]),
            ..Cluster::new(data.path().to_owned(), "/nowhere".into())
        };
        assert_eq!(demand_known(&cluster), Ok(()), "there is no cluster yet");
        fs::write(data.path().join("PG_VERSION"), "15\n").expect("write");
        let error = demand_known(&cluster).expect_err("Debian's layout");
        assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("config_file")), "{error:?}");
        let named = Cluster {
            config_file: Some("/etc/postgresql/15/main/postgresql.conf".into()),
            ..cluster.clone()
        };
        assert_eq!(demand_known(&named), Ok(()));
        assert_eq!(
            demand_known(&Cluster { start_command: None, ..cluster.clone() }),
            Ok(()),
            "pg_ctl uses the directory"
        );
        fs::write(data.path().join("postgresql.conf"), "").expect("write");
        assert_eq!(demand_known(&cluster), Ok(()));
    }

    #[test]
    fn a_server_that_would_promote_itself_is_not_started() {
        let data = tempfile::tempdir().expect("temporary directory");
        let put = |name: &str, text: &str| fs::write(data.path().join(name), text).expect("write");
        let cluster = Cluster::new(data.path().to_owned(), "/nowhere".into());
        let asked = || demand_no_end(&cluster);
        assert_eq!(asked(), Ok(()), "no configuration at all is for the server to tell");
        put("myrecovery.conf", "recovery_target = ''\npromote_trigger_file = ''\n");
        let leftover = "# x\nRecovery_Target = 'immediate'\nrecovery_target_action = 'promote'\n";
        put("postgresql.conf", &format!("{leftover}include_if_exists = 'myrecovery.conf'\n"));
        assert_eq!(asked(), Ok(()), "it is taken back");
        // what a tool made of it after the recovery
        put("postgresql.conf", leftover);
        let error = asked().expect_err("a second primary");
        assert_eq!(error.kind, Kind::StartFailed);
        let detail = error.detail.expect("a detail");
        assert!(
            detail.contains("recovery_target is set") && detail.contains("postgresql.conf\" line 2"),
            "{detail}"
        );
        put("postgresql.conf", "include_if_exists = 'myrecovery.conf'\n");
        for (auto, is_refused) in [
            ("recovery_target_time = '2025-03-03'", true),
            ("promote_trigger_file = 'trigger'", false),
            ("recovery_target_timeline = 'current'\nrecovery_target_action = 'promote'", false),
        ] {
            put("postgresql.auto.conf", auto);
            assert_eq!(asked().is_err(), is_refused, "{auto}");
        }
        std::os::unix::fs::symlink("loop.conf", data.path().join("loop.conf")).expect("link");
        put("postgresql.auto.conf", "");
        put("postgresql.conf", "include_if_exists 'loop.conf'\ninclude_if_exists = 'myrecovery.conf'\n");
        assert_eq!(asked(), Ok(()), "whatever it says is taken back");
        put("postgresql.conf", "include_if_exists 'loop.conf'\n");
        let error = asked().expect_err("it may say anything");
        assert!(error.message.starts_with("cannot tell"), "{error}");
        put("postgresql.conf", "include_if_exists = 'myrecovery.conf'\n");
        put("trigger", "");
        put("postgresql.auto.conf", "promote_trigger_file = 'trigger'\n");
        assert!(asked().is_err(), "it is there");
    }

    #[test]
    fn what_cannot_be_told_is_an_error() {
        let data = tempfile::tempdir().expect("temporary directory");
        let error = found("echo 'syntax error in file' >&2; exit 2", data.path(), None).expect_err("failed");
        assert!(error.detail.is_some_and(|detail| detail.contains("syntax error")));
        let faulty =
            "echo 'LOG:  bad value' >&2; echo 'FATAL:  configuration file \"f\" contains errors' >&2; exit 1";
        let error = found(faulty, data.path(), None).expect_err("failed");
        assert!(error.message.ends_with("its configuration: bad value"), "{error}");
        assert!(found("true", data.path(), None).is_err(), "no answer");
    }
}

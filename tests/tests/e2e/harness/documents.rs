//! What the documents say: that their commands are run by something, their files are read by what they are
//! for, and the functions, settings and options they name exist.
//!
//! The operator's guide is followed word by word by `make guide`, which boots hosts for it. Here is what
//! can be known of it without them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use pgpool_recovery_e2e::document::{self, Block, project};
use pgpool_recovery_e2e::{Cluster, Scratch, agent, error_table, server};

const GUIDE: &str = "operators-guide.md";

/// Every document's blocks, with "file:line" for messages.
fn blocks() -> Vec<(String, Block)> {
    let mut all = Vec::new();
    for (path, text) in document::all() {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        all.extend(
            document::blocks(&text).into_iter().map(|block| (format!("{name}:{}", block.line), block)),
        );
    }
    assert!(all.len() > 100, "the documents have {} blocks only", all.len());
    all
}

fn in_guide(place: &str) -> bool {
    place.starts_with(GUIDE)
}

fn assert_no_complaints(complaints: &[String]) {
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn every_command_is_run_by_something() {
    let makefile = fs::read_to_string(project().join("Makefile")).expect("Makefile");
    let complaints: Vec<String> = blocks()
        .iter()
        .filter(|(_, block)| !block.is("host") && !block.is("output") && !block.is("shown"))
        .filter(|(_, block)| matches!(block.language.as_str(), "sh" | "bash" | "console"))
        .flat_map(|(place, block)| {
            let by =
                block.get("by").map(|by| fs::read_to_string(project().join(by)).expect("the file of by="));
            let makefile = &makefile;
            block
                .text
                .lines()
                .filter(move |line| !is_run(line, by.as_deref(), makefile))
                .map(move |line| format!("{place}: nothing runs \"{line}\""))
        })
        .collect();
    assert_no_complaints(&complaints);
}

/// Whether a test or script has the line, or it is a target of the Makefile or a script of ours.
fn is_run(line: &str, by: Option<&str>, makefile: &str) -> bool {
    let command = line.split(" # ").next().unwrap_or_default().trim();
    let command = command.strip_prefix("sudo -u postgres ").unwrap_or(command);
    if command.is_empty() || command.starts_with('#') {
        return true;
    }
    if let Some(by) = by {
        return by.contains(command);
    }
    let mut words = command.split_whitespace();
    match (words.next(), words.next()) {
        (Some("make"), Some(target)) => makefile.contains(&format!("\n{target}: ")),
        (Some(script), _) => script.starts_with("scripts/") && project().join(script).is_file(),
        _ => false,
    }
}

#[test]
fn the_guide_says_where_and_as_whom() {
    let mut complaints = Vec::new();
    let mut before: Option<Block> = None;
    for (place, block) in blocks().into_iter().filter(|(place, _)| in_guide(place)) {
        let said = block.introduction.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut say = |what: &str| complaints.push(format!("{place}: {what}"));
        if block.is("output") {
            if !before.as_ref().is_some_and(|before| before.is("host") && before.get("path").is_none()) {
                say("this is shown by no command");
            }
        } else if block.hosts().next().is_none() {
            say("this is done on no host");
        }
        for host in block.hosts() {
            if !said.contains(&format!("`{host}`")) {
                say(&format!("the text before it does not say `{host}`"));
            }
        }
        if let Some(path) = block.get("path") {
            if !said.contains(&format!("`{path}`")) {
                say(&format!("the text before it does not say `{path}`"));
            }
            if block.is("append") != said.contains("to the end of") {
                say("only \"to the end of\" means append");
            }
        }
        if block.is("host") && !said.to_lowercase().contains(&format!("as {}", block.user())) {
            say(&format!("the text before it does not say \"as {}\"", block.user()));
        }
        if block.language == "sql" && !said.contains("psql") {
            say("the text before it does not say psql");
        }
        if block.get("db").is_some_and(|database| !said.contains(database)) {
            say("the text before it does not name the database");
        }
        if block.is("until")
            && !said.to_lowercase().contains("after some seconds")
            && !said.contains("journal")
        {
            say("it is repeated, and the text before it does not say \"after some seconds\"");
        }
        before = Some(block);
    }
    assert_no_complaints(&complaints);
}

#[test]
fn links_lead_somewhere() {
    let mut complaints = Vec::new();
    for (path, text) in document::all() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            let outside = file.is_empty() || file.contains("://");
            if !outside && !path.parent().expect("a directory").join(file).exists() {
                complaints.push(format!("{}: {link} does not exist", path.display()));
            }
        }
    }
    assert_no_complaints(&complaints);
}

#[test]
fn the_agents_example_is_the_guides_and_can_be_read() {
    let example = fs::read_to_string(project().join("packaging/agent.toml")).expect("agent.toml");
    // the guide allows a stop before it shows the file
    let allowed = example
        .replace("\n# allow_stop = false\n", "\nallow_stop = true\n")
        .replace("\n# stop_command = ", "\nstop_command = ");
    let bare: Vec<&str> =
        allowed.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()).collect();
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    let mut read = 0;
    for (place, block) in blocks().into_iter().filter(|(_, block)| block.language == "toml") {
        // what the guide adds belongs to the example's last section
        let is_added = block.is("append");
        if in_guide(&place) && !is_added {
            assert_eq!(block.text.lines().collect::<Vec<_>>(), bare, "{place}");
        }
        let before = if is_added { bare.join("\n") + "\n" } else { String::new() };
        let config = format!("secret_file = \"{}\"\n{before}{}", secret.display(), block.text);
        let file = scratch.write("agent.toml", &config, 0o600);
        let said = agent::check(&file);
        assert!(said.status.success(), "{place}: {}", said.stderr);
        read += 1;
    }
    assert!(read > 0, "no document shows agent.toml");
    // what is commented out is the default, or an example that can be used
    let all = ["listen", "tablespace_roots", "nodes", "start_alone"]
        .iter()
        .fold(example, |text, key| text.replace(&format!("\n# {key} = "), &format!("\n{key} = ")));
    let config =
        all.replace("# secret_file = \"/etc/pgpool-recovery/secret\"", &format!("secret_file = {secret:?}"));
    assert_ne!(all, config, "the example has a secret_file");
    let said = agent::check(&scratch.write("agent.toml", &config, 0o600));
    assert!(said.status.success(), "{}", said.stderr);
}

#[test]
fn the_example_of_the_rpm_packages_has_every_key_and_can_be_read() {
    let read = |path: &str| fs::read_to_string(project().join(path)).expect("an example");
    let ours = read("packaging/rpm/agent.toml");
    let keys = |text: &str| -> BTreeSet<String> {
        text.lines()
            .filter_map(|line| line.trim_start_matches("# ").split_once(" = "))
            .map(|(key, _)| key.to_owned())
            .filter(|key| key.chars().all(|character| character.is_ascii_lowercase() || character == '_'))
            .collect()
    };
    assert_eq!(keys(&ours), keys(&read("packaging/agent.toml")));
    let scratch = Scratch::new();
    let secret = agent::secret(&scratch, "secret");
    // PGDG's server is not here, and every key is to be read
    let all =
        ours.replace("/usr/pgsql-15/bin", &server::programs().display().to_string()).replace("\n# ", "\n#");
    let config = keys(&ours)
        .iter()
        .fold(all, |text, key| text.replace(&format!("\n#{key} = "), &format!("\n{key} = ")));
    let config = config.replace("/etc/pgpool-recovery/secret\"\n", &format!("{}\"\n", secret.display()));
    let said = agent::check(&scratch.write("agent.toml", &config, 0o600));
    assert!(said.status.success(), "{}", said.stderr);
}

/// The statements of a block: without a prompt, cut at the semicolons that end them.
fn statements(block: &Block) -> Vec<String> {
    let mut statements = vec![String::new()];
    for line in block.text.lines() {
        let line = line.strip_prefix("postgres=# ").unwrap_or(line);
        if line.trim_start().starts_with("--") || line.starts_with('\\') {
            continue;
        }
        let last = statements.last_mut().expect("never empty");
        last.push_str(line);
        last.push('\n');
        if line.trim_end().ends_with(';') {
            statements.push(String::new());
        }
    }
    statements.retain(|statement| !statement.trim().is_empty());
    statements
}

#[test]
fn sql_settings_functions_and_options_exist() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let mut client = primary.connect();
    // the settings are there once the library is
    client.batch_execute("LOAD 'pgpool_recovery'").expect("the extension");
    let mut complaints = Vec::new();

    let mut names = |sql: &str| -> BTreeSet<String> {
        client.query(sql, &[]).expect("names").iter().map(|row| row.get(0)).collect()
    };
    let settings = names("SELECT name FROM pg_settings");
    let functions = names("SELECT proname::text FROM pg_proc");
    for (path, text) in document::all() {
        let place = path.file_name().expect("a file").to_string_lossy().into_owned();
        for name in words_after(&text, "pgpool_recovery.") {
            // files of that name: pgpool_recovery.control, pgpool_recovery.incomplete, pgpool_recovery.fenced, ...
            let file = matches!(name.as_str(), "control" | "incomplete" | "fenced" | "second_stage" | "so");
            if !file && !settings.contains(&format!("pgpool_recovery.{name}")) {
                complaints.push(format!("{place}: there is no setting pgpool_recovery.{name}"));
            }
        }
        for name in called(&text) {
            if !functions.contains(&name) {
                complaints.push(format!("{place}: there is no function {name}"));
            }
        }
        for options in text.split("'{").skip(1).filter_map(|rest| rest.split("}'").next()) {
            let json = format!("{{{options}}}");
            // a relative directory is refused as well, by another row: nothing is looked at
            let sql = "SELECT string_agg(detail, ' ') FROM \
                       pgpool_recovery_check('localhost', 'relative', 5432, ($1::text)::jsonb) WHERE NOT ok";
            match client.query_one(sql, &[&json]) {
                Ok(row) => {
                    let said: Option<String> = row.get(0);
                    let said = said.unwrap_or_default();
                    if said.contains("option") {
                        complaints.push(format!("{place}: {json}: {said}"));
                    }
                }
                Err(error) => complaints.push(format!("{place}: {json}: {error:?}")),
            }
        }
    }

    let mut parsed = 0;
    for (place, block) in blocks().iter().filter(|(_, block)| block.language == "sql") {
        for statement in statements(block) {
            let bare = statement.trim().trim_end_matches(';');
            let sql = if bare.to_uppercase().starts_with("SELECT") {
                format!("PREPARE statement AS {bare}; DEALLOCATE statement")
            } else {
                // read, not run
                format!("DO $document$ BEGIN RETURN; {bare}; END $document$")
            };
            if let Err(error) = client.batch_execute(&sql) {
                complaints.push(format!("{place}: {bare}: {error:?}"));
            }
            parsed += 1;
        }
    }
    assert!(parsed > 10, "the documents have {parsed} statements only");
    assert_no_complaints(&complaints);
}

/// The word that follows each `start` in `text`.
fn words_after<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = String> + 'a {
    let part =
        |character: &char| character.is_ascii_lowercase() || *character == '_' || character.is_ascii_digit();
    text.split(start)
        .skip(1)
        .map(move |rest| rest.chars().take_while(part).collect::<String>())
        .filter(|word| !word.is_empty())
}

/// Our functions that are called somewhere in `text`: `pgpool_...(`.
fn called(text: &str) -> BTreeSet<String> {
    words_after(text, "pgpool_")
        .map(|word| format!("pgpool_{word}"))
        .filter(|name| text.contains(&format!("{name}(")))
        .collect()
}

#[test]
fn files_of_the_guide_hold_settings_that_exist() {
    let scratch = Scratch::new();
    let primary = Cluster::primary(&scratch);
    let mut client = primary.connect();
    client.batch_execute("LOAD 'pgpool_recovery'").expect("the extension");
    let sample = Path::new("/usr/share/pgpool2/pgpool.conf");
    let pgpool = fs::read_to_string(sample).expect("the package pgpool2 is installed");
    let mut complaints = Vec::new();
    let mut seen = 0;
    for (place, block) in blocks().iter().filter(|(_, block)| block.language == "ini") {
        for line in block.text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{place}: {line}"));
            let (name, value) = (name.trim(), value.trim());
            let is_pgpools = block.get("path").is_none_or(|path| path.contains("pgpool.conf"));
            if is_pgpools {
                // the sample has nodes 0 and 1
                let known = name.trim_end_matches(|digit: char| digit.is_ascii_digit());
                let has = |name: &str| pgpool.lines().any(|line| starts_setting(line, name));
                if !has(name) && !has(&format!("{known}0")) {
                    complaints.push(format!("{place}: Pgpool-II has no {name}"));
                }
            } else if client.batch_execute(&format!("SET {name} = {}", quoted(value))).is_err() {
                // what cannot be set in a session is asked for its name only
                let found = client.query_opt("SELECT context FROM pg_settings WHERE name = $1", &[&name]);
                let context: Option<String> = found.expect("a query").map(|row| row.get(0));
                if !context.is_some_and(|context| matches!(context.as_str(), "postmaster" | "sighup")) {
                    complaints.push(format!("{place}: PostgreSQL does not take {line}"));
                }
            }
            seen += 1;
        }
    }
    assert!(seen > 30, "the documents show {seen} settings only");
    assert_no_complaints(&complaints);
}

fn starts_setting(line: &str, name: &str) -> bool {
    let line = line.trim_start_matches('#');
    line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with('='))
}

fn quoted(value: &str) -> String {
    if value.starts_with('\'') { value.to_owned() } else { format!("'{value}'") }
}

#[test]
fn the_table_of_errors_is_that_of_the_sources() {
    let written = fs::read_to_string(project().join("docs/errors.md")).expect("docs/errors.md");
    let made = error_table::document();
    let missing: Vec<&str> = made.lines().filter(|line| !written.contains(*line)).collect();
    let stale: Vec<&str> = written.lines().filter(|line| !made.contains(*line)).collect();
    assert!(
        made == written,
        "regenerate docs/errors.md (see its head)\nmissing: {missing:#?}\nstale: {stale:#?}"
    );
    assert!(made.lines().filter(|line| line.starts_with("| ")).count() > 100, "{made}");
}

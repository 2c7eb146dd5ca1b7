use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let made = Self(tempfile::tempdir().expect("temporary directory"));
        for (name, text) in files {
            made.put(name, text.as_bytes());
        }
        made
    }

    fn put(&self, name: &str, text: &[u8]) {
        let path = self.at(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("make");
        fs::write(path, text).expect("write");
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self) -> Reading {
        Reading::of(&self.at("postgresql.conf"), Some(&self.at("data/mark.conf")))
    }

    /// What was read, as text: `file:line what`.
    fn shown(&self) -> Vec<String> {
        let shown = |item: &Item| {
            let file = item.file.strip_prefix(self.0.path()).expect("in the directory").display();
            let what = match &item.what {
                What::Setting { name, value } => {
                    format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
                }
                What::Mark => "MARK".to_owned(),
                What::Missing(path) => format!("MISSING {}", path.file_name().expect("name").display()),
                What::Skipped(problem) => format!("SKIPPED {problem}"),
                What::Problem(problem) => format!("PROBLEM {problem}"),
            };
            format!("{file}:{} {what}", item.line)
        };
        self.read().items.iter().map(shown).collect()
    }
}

#[test]
fn included_files_are_read_where_they_are_included() {
    let files = Files::new(&[
        ("postgresql.conf", "# c\na = 1\nInclude 'sub/one.conf'\ninclude_dir = 'conf.d'\na = 4\n"),
        ("sub/one.conf", "include_if_exists = 'two.conf'\ninclude_if_exists = '../nothing.conf'\nb = 2"),
        ("sub/two.conf", "a = 'zwei'\n"),
        ("conf.d/b.conf", "c = b\n"),
        ("conf.d/a.conf", "c = a\n"),
        ("conf.d/.hidden.conf", "c = hidden\n"),
        ("conf.d/c.conf~", "c = backup\n"),
        ("conf.d/directory.conf/x", ""),
        ("conf.d/.conf", "c = short\n"),
    ]);
    let expected = [
        "postgresql.conf:2 a=1",
        "sub/two.conf:1 a=zwei",
        "sub/one.conf:3 b=2",
        "conf.d/a.conf:1 c=a",
        "conf.d/b.conf:1 c=b",
        "postgresql.conf:5 a=4",
    ];
    assert_eq!(files.shown(), expected);
    let reading = files.read();
    assert_eq!(reading.value("A"), Some(&b"4"[..]));
    assert_eq!(reading.value("c"), Some(&b"b"[..]));
    assert_eq!(reading.value("d"), None);
    assert!(
        reading.files.contains(&files.at("nothing.conf")),
        "it belongs to the configuration: {reading:?}"
    );
    assert_eq!(reading.directories, [files.at("conf.d")]);
}

#[test]
fn the_marked_file_is_found_by_whatever_path() {
    let files = Files::new(&[("data/mark.conf", "a = marked\n"), ("data/one.conf", "include 'mark.conf'\n")]);
    symlink(files.at("data"), files.at("link")).expect("link");
    for include in ["include 'data/mark.conf'", "include_if_exists 'link/mark.conf'", "include data/one.conf"]
    {
        files.put("postgresql.conf", format!("{include}\nb = 1\n").as_bytes());
        let shown = files.shown();
        assert!(shown.len() == 2 && shown[0].ends_with("MARK"), "{include}: {shown:?}");
    }
    files.put("postgresql.conf", b"include_if_exists 'mark.conf'\n#include data/mark.conf\n");
    assert_eq!(files.shown(), [""; 0], "another one, and a comment");
}

#[test]
fn what_keeps_a_server_from_starting_is_told_by_file_and_line() {
    let files = Files::new(&[
        (
            "postgresql.conf",
            "a = \ninclude 'none.conf'\ninclude_dir 'none.d'\ninclude ''\ninclude postgresql.conf",
        ),
        ("sub/x.conf", ""),
    ]);
    let expected = [
        "postgresql.conf:1 PROBLEM syntax error",
        "postgresql.conf:2 MISSING none.conf",
        "postgresql.conf:3 MISSING none.d",
        "postgresql.conf:4 PROBLEM the name of a file to include is empty",
        "postgresql.conf:5 PROBLEM syntax error",
    ];
    assert_eq!(files.shown(), expected);
    files.put("postgresql.conf", b"include 'postgresql.conf'\ninclude 'sub'\ninclude_dir 'dangling'\n");
    fs::create_dir(files.at("dangling")).expect("make");
    symlink("nowhere", files.at("dangling/x.conf")).expect("link");
    let shown = files.shown();
    assert!(shown.len() == 3 && shown.iter().all(|line| line.contains("PROBLEM")), "{shown:?}");
    assert!(shown[0].contains("includes itself") && shown[1].contains("not a regular file"), "{shown:?}");
}

#[test]
fn what_the_server_skips_or_finds_empty_keeps_it_from_nothing() {
    // what a closed file is to an ordinary user, and a link that leads to itself to root as well
    let files = Files::new(&[("postgresql.conf", "include_if_exists 'loop.conf'\ninclude_dir 'd'\na = 1\n")]);
    symlink("loop.conf", files.at("loop.conf")).expect("link");
    fs::create_dir(files.at("d")).expect("make");
    symlink("/dev/null", files.at("d/masked.conf")).expect("link");
    let shown = files.shown();
    assert!(shown.len() == 2 && shown[0].starts_with("postgresql.conf:1 SKIPPED"), "{shown:?}");
    assert_eq!(shown[1], "postgresql.conf:3 a=1");
    assert!(files.read().files.contains(&files.at("loop.conf")), "it belongs to the configuration");

    files.put("postgresql.conf", b"include 'loop.conf'\n");
    assert!(files.shown()[0].contains("PROBLEM"), "without it there is no start");
    fs::create_dir(files.at("directory")).expect("make");
    files.put("postgresql.conf", b"include_if_exists 'directory'\ninclude '/dev/zero'\n");
    let shown = files.shown();
    assert!(shown.len() == 2 && shown.iter().all(|line| line.contains("PROBLEM")), "it opens: {shown:?}");
}

#[test]
fn a_parent_directory_behind_a_link_is_not_guessed() {
    let files = Files::new(&[
        ("postgresql.conf", "include_if_exists 'link/../x.conf'\n"),
        ("elsewhere/here/y", ""),
        ("elsewhere/x.conf", "a = 1\n"),
    ]);
    symlink(files.at("elsewhere/here"), files.at("link")).expect("link");
    let shown = files.shown();
    assert!(shown.len() == 1 && shown[0].contains("different files"), "{shown:?}");
}

#[test]
fn files_that_include_each_other_come_to_an_end() {
    let both = "a = 1\ninclude 'a.conf'\ninclude 'b.conf'\n";
    let files = Files::new(&[("postgresql.conf", "include 'a.conf'\n"), ("a.conf", both), ("b.conf", both)]);
    let reading = files.read();
    assert!(
        reading
            .items
            .iter()
            .any(|item| matches!(&item.what, What::Problem(text) if text.contains("levels deep")))
    );
    assert!(reading.files.len() <= MAX_FILES + 1, "{}", reading.files.len());
}

#[test]
fn a_configuration_without_end_is_not_read_to_its_end() {
    let files = Files::new(&[]);
    files.put("postgresql.conf", "a = 1\n".repeat(MAX_ITEMS + 10).as_bytes());
    let reading = files.read();
    assert_eq!(reading.items.len(), MAX_ITEMS + 1);
    assert!(matches!(&reading.items[MAX_ITEMS].what, What::Problem(text) if text.contains("settings")));
    fs::File::create(files.at("postgresql.conf")).and_then(|file| file.set_len(MAX_BYTES + 1)).expect("make");
    let shown = files.shown();
    assert!(shown.len() == 1 && shown[0].contains("larger than"), "{shown:?}");
}

#[test]
fn lines_are_dropped_by_what_they_set_and_bytes_stay_as_they_are() {
    let text = b"# gr\xfcn\nPort=1\n port '2' # gr\xfcn\nx = 'p\xfcort'\nport = \nport = 3";
    let left = without(text, |name, _| is_named(name, "port"));
    assert_eq!(left, b"# gr\xfcn\nx = 'p\xfcort'\nport = \n");
    assert_eq!(without(text, |_, _| false), text);
}

proptest! {
    #[test]
    fn any_files_are_read(texts in prop::collection::vec("((a|include|include_if_exists|include_dir) ?=? ?('(0|1|2|d|.|\\.\\./x)'|0|#)?[\n ]){0,8}", 3)) {
        let files = Files::new(&[("d/x.conf", "a = 1\n")]);
        for (number, text) in texts.iter().enumerate() {
            files.put(&number.to_string(), text.as_bytes());
        }
        let reading = Reading::of(&files.at("0"), None);
        prop_assert!(reading.files.len() <= MAX_FILES + 1);
        prop_assert!(reading.items.len() <= MAX_ITEMS + 1);
    }
}

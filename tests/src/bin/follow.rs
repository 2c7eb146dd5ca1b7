//! Does what a guide says: runs its blocks in their order, until one fails or shows something else.
//!
//! `follow GUIDE ON [LINE]`, from that line on where `ON HOST USER` runs the script on its standard input on that host as that user.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use pgpool_recovery_e2e::document::{self, Block};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (guide, on, first) = match arguments.as_slice() {
        [guide, on] => (guide, on, 0),
        [guide, on, line] => (guide, on, line.parse().expect("a line's number")),
        _ => {
            eprintln!("usage: follow GUIDE ON [LINE]");
            return ExitCode::from(2);
        }
    };
    let text = std::fs::read_to_string(guide).unwrap_or_else(|error| panic!("{guide}: {error}"));
    let follower = Follower { guide: guide.into(), on: on.into() };
    let blocks: Vec<Block> =
        document::blocks(&text).into_iter().filter(|block| block.line >= first).collect();
    match follower.follow(&blocks) {
        Ok(followed) => {
            println!("\n{guide}: {followed} blocks done as written, with the results it shows");
            ExitCode::SUCCESS
        }
        Err(wrong) => {
            println!("\n{wrong}");
            ExitCode::FAILURE
        }
    }
}

struct Follower {
    guide: PathBuf,
    on: PathBuf,
}

/// What a script did.
struct Outcome {
    succeeded: bool,
    shown: String,
}

impl Follower {
    fn follow(&self, blocks: &[Block]) -> Result<usize, String> {
        let start = Instant::now();
        let mut followed = 0;
        let mut heading = "";
        std::thread::scope(|scope| {
            let mut beside = None;
            for (index, block) in blocks.iter().enumerate() {
                if block.is("output") || block.is("shown") {
                    continue;
                }
                if block.heading != heading {
                    heading = &block.heading;
                    println!("\n== {heading} ({} s) ==", start.elapsed().as_secs());
                }
                let expected = blocks.get(index + 1).filter(|next| next.is("output"));
                let running = scope.spawn(move || self.block(block, expected));
                followed += 1 + usize::from(expected.is_some());
                if block.is("background") {
                    beside = Some(running);
                    continue;
                }
                for running in [Some(running), beside.take()].into_iter().flatten() {
                    running.join().expect("a block")?;
                }
            }
            Ok(followed)
        })
    }

    /// On all its hosts at once, as different people might.
    fn block(&self, block: &Block, expected: Option<&Block>) -> Result<(), String> {
        let script = &script(block).map_err(|why| self.wrong(block, &why))?;
        std::thread::scope(|scope| {
            let hosts: Vec<_> = block
                .hosts()
                .map(|host| scope.spawn(move || self.run(block, host, script, expected)))
                .collect();
            hosts.into_iter().try_for_each(|host| host.join().expect("a host"))
        })
    }

    fn run(&self, block: &Block, host: &str, script: &str, expected: Option<&Block>) -> Result<(), String> {
        let patience = block.get("until").and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
        let deadline = Instant::now() + Duration::from_secs(patience);
        loop {
            let outcome = self.on(host, block.user(), script);
            let agrees = expected.is_none_or(|output| document::agrees(&output.text, &outcome.shown));
            let as_meant = outcome.succeeded != block.is("fails");
            if as_meant && agrees {
                let (user, line, text) = (block.user(), block.line, block.text.trim_end());
                println!("\n[{host} as {user}, line {line}]\n{text}\n{}", outcome.shown.trim_end());
                return Ok(());
            }
            if Instant::now() >= deadline {
                let why = if as_meant { "it shows something else" } else { "it fails" };
                let why = if block.is("fails") && !as_meant { "it does not fail" } else { why };
                let said =
                    expected.map(|output| format!("\nThe guide shows:\n{}", output.text)).unwrap_or_default();
                return Err(self.wrong(block, &format!("{why} on {host}:\n{}{said}", outcome.shown)));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn on(&self, host: &str, user: &str, script: &str) -> Outcome {
        let mut child = Command::new(&self.on)
            .args([host, user])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.on.display()));
        let mut stdin = child.stdin.take().expect("a pipe");
        // both outputs in the order in which a terminal has them; who asks for input gets none
        let script = format!("{{\n{script}\n}} </dev/null 2>&1\n");
        stdin.write_all(script.as_bytes()).expect("the script is read");
        drop(stdin);
        let output = child.wait_with_output().expect("our own child");
        Outcome {
            succeeded: output.status.success(),
            shown: String::from_utf8_lossy(&output.stdout).into_owned(),
        }
    }

    fn wrong(&self, block: &Block, why: &str) -> String {
        format!("{}:{}: {why}", self.guide.display(), block.line)
    }
}

/// What a reader does with a block.
fn script(block: &Block) -> Result<String, String> {
    if block.hosts().next().is_none() {
        return Err("the block names no host".to_owned());
    }
    // a word that the text does not hold ends a text for the shell
    const END: &str = "end_of_this_block";
    if let Some(path) = block.get("path") {
        if !Path::new(path).is_absolute() {
            return Err(format!("{path} is not an absolute path"));
        }
        let into = if block.is("append") { ">>" } else { ">" };
        return Ok(format!("cat {into}{path} <<'{END}'\n{}{END}", block.text));
    }
    match block.language.as_str() {
        "sh" => Ok(block.text.clone()),
        "sql" => {
            let database = block.get("db").unwrap_or("postgres");
            Ok(format!("psql -X -v ON_ERROR_STOP=1 -d {database} <<'{END}'\n{}{END}", block.text))
        }
        other => Err(format!("unknown node \"{other}\"")),
    }
}

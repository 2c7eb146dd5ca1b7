//! docs/errors.md, made from the sources: every error the extension, the engine and the agent can raise.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use pgpool_recovery_core::error::Kind;
use syn::visit::Visit;
use syn::{Expr, ExprCall, ExprMethodCall, File, Item, ItemFn, ItemMod, Lit};

use crate::document::project;

/// Where errors are raised.
const SOURCES: [&str; 4] = ["src", "crates/core/src", "crates/pgdata/src", "crates/agent/src"];

/// What goes before the table.
const HEAD: &str = "# Errors

Every error of the extension, its engine and the agent, by SQLSTATE. Made from the sources by
`cargo run --package pgpool-recovery-e2e --bin error-table > docs/errors.md`; a test compares. `<...>` stands for what the
error fills in. An agent's errors reach the primary as they are. `pgpool_remote_start` repeats the error of a first stage
that failed, with `first stage failed: ` before it and its SQLSTATE; Pgpool-II's log shows the same as a NOTICE.
[Troubleshooting](troubleshooting.md) starts from what an operator sees.
";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    message: String,
    detail: String,
    hint: String,
}

impl Row {
    fn is_bare(&self) -> bool {
        self.detail.is_empty() && self.hint.is_empty()
    }
}

/// The document.
pub fn document() -> String {
    let kinds = kinds();
    let mut found = Found::default();
    let files: Vec<File> = sources().iter().map(|path| parse(path)).collect();
    found.shared_makers =
        only_of_their_name(files.iter().flat_map(|file| file.items.iter().filter_map(maker)));
    for file in &files {
        found.read(file);
    }
    let mut text = HEAD.to_owned();
    let mut sections: BTreeMap<&str, (Vec<&str>, BTreeSet<Row>)> = BTreeMap::new();
    for (kind, (sqlstate, meaning)) in &kinds {
        let (meanings, rows) = sections.entry(sqlstate).or_default();
        meanings.push(meaning);
        rows.extend(Found::told(found.rows.remove(kind).unwrap_or_default()));
    }
    assert!(found.rows.is_empty(), "kinds without a SQLSTATE: {:?}", found.rows.keys());
    for (sqlstate, (meanings, rows)) in sections {
        text += &format!("\n## {sqlstate}\n\n{}\n", meanings.join(" "));
        if sqlstate == "58030" {
            text += &format!("\n{}\n", system_errors(&found.system));
        }
        if !rows.is_empty() {
            text += "\n| message | DETAIL | what to do (HINT) |\n|---|---|---|\n";
        }
        for Row { message, detail, hint } in rows {
            text += &format!("| {message} | {detail} | {hint} |\n");
        }
    }
    text
}

fn system_errors(actions: &BTreeSet<String>) -> String {
    let listed: Vec<String> =
        actions.iter().map(|action| format!("- could not {action}: <system error>")).collect();
    format!(
        "What the operating system refused, with its own words. Some causes have an SQLSTATE of their own, as in \
         PostgreSQL: a missing file 58P01, a missing permission 42501 (DETAIL names owner, mode and user), a read-only \
         file system 42501, a full disk 53100, too many open files 53000, no memory 53200. The file named lies on the \
         host whose log has the line.\n\n{}",
        listed.join("\n")
    )
}

/// The SQLSTATE and the meaning of each kind, as the core documents them.
fn kinds() -> BTreeMap<String, (String, String)> {
    let file = parse(&project().join("crates/core/src/error.rs"));
    let kind = file.items.into_iter().find_map(|item| match item {
        Item::Enum(item) if item.ident == "Kind" => Some(item),
        _ => None,
    });
    let variants = kind.expect("enum Kind").variants.into_iter().map(|variant| {
        let text = variant.attrs.iter().find_map(|attribute| {
            match &attribute.meta.require_name_value().ok()?.value {
                Expr::Lit(literal) => string(&literal.lit),
                _ => None,
            }
        });
        let meaning = text.expect("a meaning").trim().to_owned();
        let name = variant.ident.to_string();
        let kind: Kind = serde_json::from_value(snake_case(&name).into()).expect("a kind");
        (name, (kind.sqlstate().to_owned(), meaning))
    });
    variants.collect()
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for character in name.chars() {
        if character.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    snake
}

fn sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories: Vec<PathBuf> = SOURCES.iter().map(|source| project().join(source)).collect();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.ends_with("tests.rs")
            {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn parse(path: &Path) -> File {
    syn::parse_file(&fs::read_to_string(path).expect("a source")).expect("Rust")
}

/// Makers that another file may use: those whose name means one thing.
fn only_of_their_name(makers: impl Iterator<Item = (String, Maker)>) -> HashMap<String, Maker> {
    let mut by_name: HashMap<String, Vec<Maker>> = HashMap::new();
    for (name, maker) in makers {
        by_name.entry(name).or_default().push(maker);
    }
    by_name
        .into_iter()
        .filter_map(|(name, mut all)| Some((name, all.pop().filter(|_| all.is_empty())?)))
        .collect()
}

/// What a function that passes its argument on as an error's message adds to it.
#[derive(Clone)]
struct Maker {
    kind: String,
    detail: Option<String>,
    hint: Option<String>,
}

/// What the sources raise.
#[derive(Default)]
struct Found {
    rows: HashMap<String, BTreeSet<Row>>,
    system: BTreeSet<String>,
    /// Functions of the file that make an error of one kind with a message of the caller's.
    makers: HashMap<String, Maker>,
    /// The same of all files.
    shared_makers: HashMap<String, Maker>,
    /// Texts that have a name first.
    texts: HashMap<String, String>,
    /// Closures that make one error, to which more is said later: kind and message.
    closures: HashMap<String, (String, String)>,
}

impl Found {
    fn read(&mut self, file: &File) {
        self.makers = file.items.iter().filter_map(maker).collect();
        self.visit_file(file);
    }

    /// A text that is written here, or a few lines above.
    fn text(&self, expression: &Expr) -> Option<String> {
        let named = || match expression {
            Expr::Path(path) => self.texts.get(&path.path.get_ident()?.to_string()).cloned(),
            _ => None,
        };
        text(expression).or_else(named)
    }

    fn add(&mut self, base: &ExprCall, detail: Option<String>, hint: Option<String>) {
        let Some(name) = called(base) else { return };
        if let (true, Some((kind, message))) = (base.args.is_empty(), self.closures.get(&name).cloned()) {
            return self.put(kind, message, detail, hint);
        }
        match (name.as_str(), base.args.first(), base.args.get(1)) {
            ("Error::new" | "Self::new", Some(kind), Some(message)) => {
                if let (Some(kind), Some(message)) = (kind_of(kind), self.text(message)) {
                    self.put(kind, message, detail, hint);
                }
            }
            ("Error::io" | "Error::on", Some(action), _) => self.system.extend(text(action)),
            ("Error::at" | "Error::on_path", Some(verb), _) => {
                self.system.extend(text(verb).map(|verb| format!("{verb} \"&lt;path&gt;\"")));
            }
            (name, Some(message), _) => {
                let maker = self.makers.get(name).or_else(|| self.shared_makers.get(name)).cloned();
                if let (Some(maker), Some(message)) = (maker, self.text(message)) {
                    self.put(maker.kind, message, detail.or(maker.detail), hint.or(maker.hint));
                }
            }
            _ => {}
        }
    }

    /// Rows of which nothing more is said are left out where another one says more.
    fn told(rows: BTreeSet<Row>) -> impl Iterator<Item = Row> {
        let more: BTreeSet<String> =
            rows.iter().filter(|row| !row.is_bare()).map(|row| row.message.clone()).collect();
        rows.into_iter().filter(move |row| !row.is_bare() || !more.contains(&row.message))
    }

    fn put(&mut self, kind: String, message: String, detail: Option<String>, hint: Option<String>) {
        let row = Row { message, detail: detail.unwrap_or_default(), hint: hint.unwrap_or_default() };
        self.rows.entry(kind).or_default().insert(row);
    }
}

impl<'ast> Visit<'ast> for Found {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if item.ident != "tests" {
            syn::visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast ItemFn) {
        self.texts.clear();
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if let (syn::Pat::Ident(name), Some(init)) = (&local.pat, &local.init)
            && let Some(text) = text(&init.expr)
        {
            self.texts.insert(name.ident.to_string(), text);
        }
        if let (syn::Pat::Ident(name), Some(init)) = (&local.pat, &local.init)
            && let Expr::Closure(closure) = &*init.expr
            && let Some(made) = made_by(&closure.body)
        {
            self.closures.insert(name.ident.to_string(), made);
        }
        syn::visit::visit_local(self, local);
    }

    fn visit_expr_method_call(&mut self, call: &'ast ExprMethodCall) {
        let (mut detail, mut hint) = (None, None);
        let mut receiver = call;
        loop {
            let said = receiver.args.first().and_then(|said| self.text(said));
            match receiver.method.to_string().as_str() {
                "detail" => detail = said.or(Some("(varies)".to_owned())),
                "hint" => hint = said.or(Some("(varies)".to_owned())),
                _ => {}
            }
            match &*receiver.receiver {
                Expr::MethodCall(next) => receiver = next,
                Expr::Call(base) if detail.is_some() || hint.is_some() => {
                    self.add(base, detail, hint);
                    // arguments may make errors, too
                    base.args.iter().for_each(|argument| self.visit_expr(argument));
                    break;
                }
                _ => {
                    syn::visit::visit_expr_method_call(self, call);
                    return;
                }
            }
        }
        call.args.iter().for_each(|argument| self.visit_expr(argument));
    }

    fn visit_expr_call(&mut self, call: &'ast ExprCall) {
        self.add(call, None, None);
        syn::visit::visit_expr_call(self, call);
    }
}

/// A function that passes its argument on as the message of an error.
fn maker(item: &Item) -> Option<(String, Maker)> {
    let Item::Fn(ItemFn { sig, block, .. }) = item else { return None };
    let [syn::Stmt::Expr(made, None)] = block.stmts.as_slice() else { return None };
    let (mut detail, mut hint, mut made) = (None, None, made);
    while let Expr::MethodCall(call) = made {
        let said = call.args.first().and_then(text);
        match call.method.to_string().as_str() {
            "detail" => detail = said,
            "hint" => hint = said,
            _ => return None,
        }
        made = &call.receiver;
    }
    let Expr::Call(call) = made else { return None };
    let passes = matches!(call.args.get(1), Some(Expr::Path(_)));
    let kind = kind_of(call.args.first()?)?;
    (called(call)? == "Error::new" && passes).then(|| (sig.ident.to_string(), Maker { kind, detail, hint }))
}

/// The kind and the message of an expression that makes an error.
fn made_by(expression: &Expr) -> Option<(String, String)> {
    match expression {
        Expr::Call(call) if called(call)? == "Error::new" => {
            Some((kind_of(call.args.first()?)?, text(call.args.get(1)?)?))
        }
        Expr::Block(block) => match block.block.stmts.as_slice() {
            [syn::Stmt::Expr(last, None)] => made_by(last),
            _ => None,
        },
        _ => None,
    }
}

fn called(call: &ExprCall) -> Option<String> {
    let Expr::Path(path) = &*call.func else { return None };
    let names: Vec<String> = path.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
    Some(names.join("::"))
}

fn kind_of(expression: &Expr) -> Option<String> {
    let Expr::Path(path) = expression else { return None };
    let last = path.path.segments.last()?.ident.to_string();
    (path.path.segments.len() == 2).then_some(last)
}

/// The text of a literal or of a formatting macro, fit for a cell of a table.
fn text(expression: &Expr) -> Option<String> {
    let raw = match expression {
        Expr::Lit(literal) => string(&literal.lit)?,
        Expr::Macro(formatted) => {
            let tokens = formatted.mac.tokens.clone().into_iter().next()?;
            string(&syn::parse_str::<Lit>(&tokens.to_string()).ok()?)?
        }
        Expr::Reference(inner) => return text(&inner.expr),
        _ => return None,
    };
    Some(filled(&raw).replace('|', "\\|").replace('\n', " "))
}

/// With `<name>` where something is filled in.
fn filled(format: &str) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('{') {
        out += before;
        if let Some(literal) = after.strip_prefix('{') {
            out.push('{');
            rest = literal;
            continue;
        }
        let (inside, after) = after.split_once('}').unwrap_or((after, ""));
        let name = inside.split(':').next().unwrap_or_default();
        out += &format!("&lt;{}&gt;", if name.is_empty() { "..." } else { name });
        rest = after;
    }
    (out + rest).replace("}}", "}")
}

fn string(literal: &Lit) -> Option<String> {
    match literal {
        Lit::Str(text) => Some(text.value()),
        _ => None,
    }
}

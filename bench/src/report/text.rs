//! Tables for people: plain text, or Markdown.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Row, Table};

/// A table with its title and the facts about its data.
pub(crate) fn table(table: &Table, markdown: bool) -> String {
    let mut text = if markdown { format!("### {}\n\n", table.work) } else { format!("\n{}\n", table.work) };
    if let Some(reason) = &table.skipped {
        writeln!(text, "not run: {reason}").expect("a String takes it");
        return text;
    }
    let facts: Vec<String> =
        table.facts.iter().map(|(name, value)| format!("{name} {}", plain(value))).collect();
    if !facts.is_empty() {
        writeln!(text, "{}{}", facts.join(", "), if markdown { "\n" } else { "" })
            .expect("a String takes it");
    }
    let mut figures: Vec<&str> = Vec::new();
    for sample in table.rows.iter().flat_map(|row| &row.samples) {
        for (name, _) in &sample.figures {
            if !figures.contains(&name.as_str()) {
                figures.push(name);
            }
        }
    }
    // nobody has looked at the memory of hosts that are elsewhere
    let has_memory = table.rows.iter().any(|row| row.memory().is_some_and(|memory| memory != (0, 0)));
    let mut heads = vec!["contender", "median s", "min", "max", "ratio", "wire MB"];
    if has_memory {
        heads.extend(["MiB primary", "MiB standby"]);
    }
    heads.extend(&figures);
    let mut lines = vec![heads.into_iter().map(str::to_owned).collect::<Vec<String>>()];
    lines.extend(table.rows.iter().map(|row| line(table, row, has_memory, &figures)));
    text += &grid(&lines, 1, markdown);
    for row in &table.rows {
        if let Some(note) = &row.note {
            writeln!(text, "{}{}: {note}", if markdown { "\n" } else { "" }, row.contender)
                .expect("a String takes it");
        }
    }
    text
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn line(table: &Table, row: &Row, has_memory: bool, figures: &[&str]) -> Vec<String> {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let mut cells = vec![row.contender.clone()];
    if let Some(reason) = &row.skipped {
        cells.push(reason.clone());
        cells.resize(if has_memory { 8 } else { 6 } + figures.len(), "-".to_owned());
        return cells;
    }
    let memory = row.memory();
    let mebibytes = |kib: u64| kib as f64 / 1024.0;
    cells.extend([
        number(row.seconds(), 2),
        number(row.range().map(|range| range.0), 2),
        number(row.range().map(|range| range.1), 2),
        number(table.ratio(row), 2),
        number(row.wire().map(|bytes| bytes / 1e6), 1),
    ]);
    if has_memory {
        cells.extend([
            number(memory.map(|memory| mebibytes(memory.0)), 0),
            number(memory.map(|memory| mebibytes(memory.1)), 0),
        ]);
    }
    cells.extend(figures.iter().map(|name| number(row.figure(name), 1)));
    cells
}

/// Lines of cells in columns; the first line is the head, so many columns are text, the others numbers.
pub(crate) fn grid(lines: &[Vec<String>], texts: usize, markdown: bool) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < texts { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        let cells: Vec<String> = cells.collect();
        if markdown {
            writeln!(text, "| {} |", cells.join(" | ")).expect("a String takes it");
            if number == 0 {
                let rule = widths.iter().enumerate().map(|(column, width)| {
                    if column < texts { "-".repeat(*width) } else { "-".repeat(width - 1) + ":" }
                });
                writeln!(text, "| {} |", rule.collect::<Vec<_>>().join(" | ")).expect("a String takes it");
            }
        } else {
            writeln!(text, "  {}", cells.join("  ").trim_end()).expect("a String takes it");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::grid;

    #[test]
    fn columns_line_up() {
        let lines = [["a", "bb"], ["ccc", "d"]].map(|line| line.map(str::to_owned).to_vec());
        assert_eq!(grid(&lines, 1, false), "  a    bb\n  ccc   d\n");
        assert_eq!(grid(&lines, 1, true), "| a   | bb |\n| --- | -: |\n| ccc |  d |\n");
    }
}

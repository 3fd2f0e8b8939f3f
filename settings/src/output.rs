//! The answer of a command, for a person or for a program.

use std::io::{IsTerminal, Write};
use std::iter;

use serde_json::Value;

use crate::failure::Failure;

/// Number of steps between two lines of [`progress`].
const STEP: u64 = 50_000;

/// Number of spaces between two columns.
const GAP: usize = 3;

#[derive(Debug)]
pub struct Answer {
    /// The text for a person.
    pub text: String,
    /// The document for `--json`. `null`: nothing is printed.
    pub json: Value,
    /// Whether the exit code is 0.
    pub is_good: bool,
    /// The reason for another exit code.
    pub failure: Option<Failure>,
    /// Printed to standard error.
    pub warnings: Vec<String>,
}

impl Answer {
    /// A successful answer.
    pub fn new(text: impl Into<String>, json: Value) -> Self {
        Self { text: text.into(), json, is_good: true, failure: None, warnings: Vec::new() }
    }

    /// A successful answer that prints nothing.
    pub fn silent() -> Self {
        Self::new("", Value::Null)
    }

    /// The same answer with a failure.
    pub fn but(self, failure: Failure) -> Self {
        Self { is_good: false, failure: Some(failure), ..self }
    }
}

/// Tells a person at a terminal how far a long command is, after each 50,000 steps.
pub fn progress(step: u64, line: impl FnOnce() -> String) {
    if step.is_multiple_of(STEP) && std::io::stderr().is_terminal() {
        // Progress is a courtesy, so a failure to print it does not matter.
        let _ = writeln!(std::io::stderr(), "apexmcp: {}", line());
    }
}

/// A table with headings. Without any row, the text `empty`.
pub fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]], empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let all: Vec<[&str; N]> =
        std::iter::once(headings).chain(rows.iter().map(|row| row.each_ref().map(String::as_str))).collect();
    let mut widths = [0; N];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[&str; N]| {
        let mut line = String::new();
        let mut gap = 0;
        for (cell, width) in row.iter().zip(widths) {
            line.extend(iter::repeat_n(' ', gap));
            line.push_str(cell);
            // Without the padding of the standard library, which panics beyond 65,535 characters.
            gap = width.saturating_sub(cell.chars().count()).saturating_add(GAP);
        }
        line.truncate(line.trim_end().len());
        line
    };
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_even_with_very_long_cells() {
        let long = "x".repeat(70_000);
        let rows =
            [["a".to_owned(), long.clone(), "b".to_owned()], ["\u{e4}\u{e4}\u{e4}".to_owned(), String::new(), String::new()]];
        let text = table(["ID", "NAME", "END"], &rows, "none");
        let lines: Vec<&str> = text.lines().collect();
        let heading = format!("ID    NAME{}   END", " ".repeat(70_000 - 4));
        assert_eq!(lines, [heading, format!("a     {long}   b"), "\u{e4}\u{e4}\u{e4}".to_owned()]);
        assert_eq!(table(["ID"], &[], "none"), "none");
    }
}

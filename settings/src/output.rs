//! What a command answers: to a person, or to a program.

use std::iter;

use serde_json::Value;

use crate::failure::Failure;

/// Between two columns.
const GAP: usize = 3;

/// An answer in both forms.
#[derive(Debug)]
pub struct Answer {
    /// For a person.
    pub text: String,
    /// For a program.
    pub json: Value,
    /// Whether what was asked for is as it should be.
    pub is_good: bool,
    /// What is to be mended, or what went wrong after it was done.
    pub failure: Option<Failure>,
    /// What whoever asked should know besides.
    pub warnings: Vec<String>,
}

impl Answer {
    /// A good one.
    pub fn new(text: impl Into<String>, json: Value) -> Self {
        Self { text: text.into(), json, is_good: true, failure: None, warnings: Vec::new() }
    }

    /// A good one to which nothing is to be said.
    pub fn silent() -> Self {
        Self::new("", Value::Null)
    }

    /// This one, which is to be read, and something that is to be mended.
    pub fn but(self, failure: Failure) -> Self {
        Self { is_good: false, failure: Some(failure), ..self }
    }
}

/// Rows below their headings, in columns; without any row, what `empty` says.
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
            // By hand: the standard library's padding panics beyond 65,535 characters.
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
    fn cells_stand_below_each_other_however_long_they_are() {
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

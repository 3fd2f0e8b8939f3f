//! What a command answers: to a person, or to a program.

use serde_json::Value;

use crate::failure::Failure;

/// An answer in both forms.
#[derive(Debug)]
pub struct Answer {
    /// For a person.
    pub text: String,
    /// For a program.
    pub json: Value,
    /// Whether what was asked for is as it should be.
    pub is_good: bool,
    /// What went wrong after it was done.
    pub failure: Option<Failure>,
}

impl Answer {
    /// A good one.
    pub fn new(text: impl Into<String>, json: Value) -> Self {
        Self { text: text.into(), json, is_good: true, failure: None }
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
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("   ").trim_end().to_owned()
    };
    all.iter().map(line).collect::<Vec<_>>().join("\n")
}

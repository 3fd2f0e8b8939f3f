//! Why a command did not do what it was asked to.

use std::fmt;

/// One line for the operator: what is wrong, and what to do next.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    /// With this line.
    pub fn new(line: impl Into<String>) -> Self {
        Self(line.into())
    }

    /// A closure for `map_err` that says what was being done when the error came.
    pub fn during<E: fmt::Display>(what: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self(format!("{what}: {error}"))
    }
}

impl fmt::Display for Failure {
    /// The line as one line, whatever it quotes.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = self.0.lines().map(str::trim).filter(|part| !part.is_empty());
        formatter.write_str(parts.next().unwrap_or("failed"))?;
        parts.try_for_each(|part| write!(formatter, "; {part}"))
    }
}

impl std::error::Error for Failure {}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy) => Self::new("the database is busy with another change: try again"),
            Some(rusqlite::ErrorCode::NotADatabase) => Self::new(
                "this is not a database of apexmcp, or it is damaged: name another with --db, or restore it from a copy",
            ),
            Some(rusqlite::ErrorCode::DiskFull) => Self::new("the disk is full: nothing was changed"),
            _ => Self(format!("database: {error}")),
        }
    }
}

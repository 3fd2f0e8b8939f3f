//! The log of the server.

use std::io::Write;

use crate::failure::visible;

/// Writes a line to standard error, where services log. A failure to write does not stop the server.
pub(crate) fn log(line: impl std::fmt::Display) {
    // A line may quote what an identity provider says. A control character in it could forge a line of its own.
    let line: String = line.to_string().chars().flat_map(visible).collect();
    let _ = writeln!(std::io::stderr(), "apexmcp serve: {line}");
}

//! The log of the server.

use std::io::Write;

/// Writes a line to standard error, where services log. A failure to write does not stop the server.
pub(crate) fn log(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "apexmcp serve: {line}");
}

//! Reads YAML. An error never quotes the text, which may contain a private key.

use serde_json::Value;
use serde_saphyr::Error;

/// All documents of `text`.
///
/// # Errors
/// If `text` is not YAML. The error has the kind and the line of the mistake.
pub(crate) fn read(text: &str) -> Result<Vec<Value>, String> {
    serde_saphyr::from_multiple(text).map_err(|error| describe(&error))
}

/// The one document of `text`.
///
/// # Errors
/// As for [`read`].
pub(crate) fn read_one(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|error| describe(&error))
}

fn describe(error: &Error) -> String {
    let error = error.without_snippet();
    let at = error.location().map(|at| format!(" at line {}, column {}", at.line(), at.column())).unwrap_or_default();
    let what = match error {
        // Only the messages of the scanner are used, because they never quote the text. Other messages may.
        Error::ExternalMessage { msg, .. } => msg.as_str(),
        Error::DuplicateMappingKey { .. } => "a name is repeated",
        Error::UnknownAnchor { .. } => "an alias has no anchor",
        Error::Budget { .. } => "the text is too long or nested too deeply",
        _ => "the text cannot be parsed",
    };
    format!("{what}{at}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_do_not_quote_the_text() {
        for (text, what) in [
            ("a: SECRET\nSECRET\nb: 1\n", "line"),
            ("a: \"SECRET\n", "line"),
            ("SECRET: 1\nSECRET: 2\n", "repeated at line 2"),
            ("a: *SECRET\n", "anchor"),
            ("a: !SECRET b\n", ""),
            ("a: !!int SECRET\n", ""),
            ("a: !!SECRET b\n", ""),
            ("%TAG ! SECRET\n---\na: !SECRET!b c\n", ""),
            ("a: [SECRET\n", "line"),
            ("? {SECRET: 1}\n: 2\n", ""),
        ] {
            for error in [read(text).err(), read_one(text).err()].into_iter().flatten() {
                assert!(!error.contains("SECRET") && error.contains(what), "{text}: {error}");
            }
            assert!(what.is_empty() || read(text).is_err(), "{text}");
        }
    }
}

//! YAML as operators write it.

use serde_json::Value;
use serde_saphyr::Error;

/// All documents of `text`.
///
/// # Errors
/// Where it is no YAML: what is wrong, and at which line, never what stands there. It may be a private key.
pub(crate) fn read(text: &str) -> Result<Vec<Value>, String> {
    serde_saphyr::from_multiple(text).map_err(|error| describe(&error))
}

/// The one document of `text`.
///
/// # Errors
/// As of [`read`].
pub(crate) fn read_one(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|error| describe(&error))
}

fn describe(error: &Error) -> String {
    let error = error.without_snippet();
    let at = error.location().map(|at| format!(" at line {}, column {}", at.line(), at.column())).unwrap_or_default();
    let what = match error {
        // The scanner's, which tells of the form alone. What others say may quote.
        Error::ExternalMessage { msg, .. } => msg.as_str(),
        Error::DuplicateMappingKey { .. } => "a name stands twice",
        Error::UnknownAnchor { .. } => "an alias of something that has no anchor",
        Error::Budget { .. } => "it is longer, or deeper, than is read",
        _ => "something that cannot be read",
    };
    format!("{what}{at}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_a_text_is_not_quoted() {
        for (text, what) in [
            ("a: SECRET\nSECRET\nb: 1\n", "line"),
            ("a: \"SECRET\n", "line"),
            ("SECRET: 1\nSECRET: 2\n", "stands twice at line 2"),
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

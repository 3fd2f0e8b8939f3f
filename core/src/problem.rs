//! The problems of a document that an operator wrote. All of them are reported at once, each with its JSON path.

use std::fmt::{self, Write};

use serde::de::DeserializeOwned;
use serde_ignored::Path;
use serde_path_to_error::Segment;

use crate::names::is_plain;

/// One problem of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The JSON path, such as `policy.inline.orgs.acme-corp.api_keys[0].sha256`. `.` is the document itself.
    pub path: String,
    /// What is wrong, and what is expected. It never contains a value that could be secret.
    pub message: String,
}

/// Prints one line, even if names in the path or the message contain line breaks.
impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        format!("{}: {}", self.path, self.message).chars().try_for_each(|character| match is_plain(character) {
            true => formatter.write_char(character),
            false => write!(formatter, "{}", character.escape_unicode()),
        })
    }
}

/// Collects problems in the order in which they are found.
#[derive(Debug, Default)]
pub struct Problems {
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Problems {
    /// Adds an error. A document with an error is refused.
    pub fn add(&mut self, path: impl fmt::Display, message: impl fmt::Display) {
        self.errors.push(Problem { path: path.to_string(), message: message.to_string() });
    }

    /// Adds a warning about a setting that does not do what it seems to do.
    pub fn warn(&mut self, path: impl fmt::Display, message: impl fmt::Display) {
        self.warnings.push(Problem { path: path.to_string(), message: message.to_string() });
    }

    /// Returns `value`. Adds an error at `path` if it is `None`.
    pub fn required<T>(&mut self, path: impl fmt::Display, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.add(path, "is required");
        }
        value
    }

    /// Returns the value of `result`, or adds its error at `path`.
    pub fn checked<T>(&mut self, path: impl fmt::Display, result: Result<T, impl fmt::Display>) -> Option<T> {
        result.map_err(|message| self.add(path, message)).ok()
    }

    /// Returns `value` and the warnings if there was no error.
    ///
    /// # Errors
    /// All errors, in the order in which they were found.
    pub fn conclude<T>(self, value: Option<T>) -> Result<(T, Vec<Problem>), Vec<Problem>> {
        match value {
            Some(value) if self.errors.is_empty() => Ok((value, self.warnings)),
            _ => Err(self.errors),
        }
    }
}

/// Reads `json` as a `T`, and adds an error for each unknown field. Returns `None` if `json` is not JSON, or a value has
/// a wrong type.
pub fn read<T: DeserializeOwned>(json: &[u8], problems: &mut Problems) -> Option<T> {
    let mut track = serde_path_to_error::Track::new();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let tracking = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    let mut unknown = Vec::new();
    let read = serde_ignored::deserialize(tracking, |path| unknown.push(render(&path)));
    for path in unknown {
        problems.add(path, "unknown field");
    }
    let value = read
        .map_err(|error| {
            let path = track.path();
            let is_known = path.iter().next().is_some_and(|segment| !matches!(segment, Segment::Unknown));
            problems.add(if is_known { path.to_string() } else { ".".to_owned() }, without_values(&error));
        })
        .ok()?;
    deserializer.end().map_err(|error| problems.add(".", error)).ok()?;
    Some(value)
}

/// The text of `error` without the value that it quotes: a key in a wrong place must not get into the log.
fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.split_once(", expected ") {
        Some((_, expected)) => format!("has a wrong type or value, expected {expected}"),
        None if error.is_data() && !text.starts_with("duplicate") => "is not a valid value here".to_owned(),
        None => text,
    }
}

fn render(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", render(parent)),
        Path::Map { parent: Path::Root, key } => key.clone(),
        Path::Map { parent, key } => format!("{}.{key}", render(parent)),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => render(parent),
    }
}

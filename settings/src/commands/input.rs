//! Files that a command reads.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use apexmcp_core::policy::publication::MAX_DOCUMENT_LENGTH;
use serde_json::Value;

use crate::failure::{Failure, Reason};

/// Reads a file, or standard input for `-`. The limit is the length of the longest policy that gateways accept.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let (name, mut input): (_, Box<dyn Read>) = if file == Path::new("-") {
        ("standard input".to_owned(), Box::new(io::stdin()))
    } else {
        let name = file.display().to_string();
        let file = fs::File::open(file).map_err(unreadable(&name))?;
        (name, Box::new(file))
    };
    let limit = MAX_DOCUMENT_LENGTH.saturating_add(1).try_into().unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    input.by_ref().take(limit).read_to_end(&mut bytes).map_err(unreadable(&name))?;
    if bytes.len() > MAX_DOCUMENT_LENGTH {
        return Err(Failure::new(
            Reason::FileInvalid,
            format!("{name} is longer than {MAX_DOCUMENT_LENGTH} bytes, which is the longest policy that gateways accept"),
        ));
    }
    Ok(bytes)
}

fn unreadable(name: &str) -> impl FnOnce(io::Error) -> Failure {
    Failure::during(Reason::FileUnreadable, format!("{name} cannot be read"))
}

pub(super) fn read_json(file: &Path) -> Result<Value, Failure> {
    serde_json::from_slice(&read(file)?)
        .map_err(Failure::during(Reason::FileInvalid, format_args!("{} is not JSON", file.display())))
}

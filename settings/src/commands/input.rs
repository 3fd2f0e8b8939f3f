//! Files that a command reads.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use apexmcp_core::policy::publication::MAX_DOCUMENT_LENGTH;
use serde_json::Value;

use crate::failure::{Failure, Reason};

/// Maximum length of a file with many records, in bytes. A million keys have about 150 MB.
const MAX_IMPORT_LENGTH: usize = 1 << 30;

/// Reads a file, or standard input for `-`. The limit is the length of the longest document that gateways accept.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    read_up_to(MAX_DOCUMENT_LENGTH, file)
}

/// Reads a file with many records: a policy to import, or what `apply` declares.
pub(super) fn read_import(file: &Path) -> Result<Vec<u8>, Failure> {
    read_up_to(MAX_IMPORT_LENGTH, file)
}

fn read_up_to(length: usize, file: &Path) -> Result<Vec<u8>, Failure> {
    let (name, mut input): (_, Box<dyn Read>) = if file == Path::new("-") {
        ("standard input".to_owned(), Box::new(io::stdin()))
    } else {
        let name = file.display().to_string();
        let file = fs::File::open(file).map_err(unreadable(&name))?;
        (name, Box::new(file))
    };
    let limit = length.saturating_add(1).try_into().unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    input.by_ref().take(limit).read_to_end(&mut bytes).map_err(unreadable(&name))?;
    if bytes.len() > length {
        return Err(Failure::new(
            Reason::FileInvalid,
            format!("{name} is longer than {length} bytes, which is the most that this command reads"),
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

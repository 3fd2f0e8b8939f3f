//! The documents of this repository: the book in `docs/`, and the Markdown files in the root folder.
//!
//! [`build`] turns `docs/` into web pages. [`Document`] reads a Markdown file for the tests of the documents.

mod build;
mod document;

use std::path::PathBuf;

pub use build::build;
pub use document::{Block, Document};

/// The root folder of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

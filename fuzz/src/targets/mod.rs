//! The fuzz targets.

pub mod admission;
pub mod claims;
pub mod config;
pub mod credential;
pub mod jwk_set;
pub mod jws;
pub mod list;
pub mod message;
pub mod path;
pub mod policy;
pub mod token_form;

/// Checks one input. Returns whether the product accepted the input. If it refuses all inputs of a corpus, the target
/// tests nothing.
pub type Target = fn(&[u8]) -> bool;

/// All targets, by the names of their corpora.
pub const ALL: [(&str, Target); 11] = [
    ("admission", admission::check),
    ("claims", claims::check),
    ("config", config::check),
    ("credential", credential::check),
    ("jwk_set", jwk_set::check),
    ("jws", jws::check),
    ("list", list::check),
    ("message", message::check),
    ("path", path::check),
    ("policy", policy::check),
    ("token_form", token_form::check),
];

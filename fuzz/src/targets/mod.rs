//! The targets.

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

/// A target. It tells whether the input was taken, and not refused: where none is, nothing was tried.
pub type Target = fn(&[u8]) -> bool;

/// All of them, by the names of their corpora.
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

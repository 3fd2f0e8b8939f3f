//! The records in the database, one file per kind: how they are created, found and ended.

pub mod admin_token;
pub mod api_key;
pub mod audit;
mod checks;
pub mod client;
pub mod import;
pub mod limits;
pub mod member;
pub mod org;
pub mod provider;
pub mod revocation;
pub mod session;
pub mod signing_key;

//! The decisions of the ApexMCP gateway's authentication.
//!
//! This crate has no clock, no I/O and no Envoy. Time, headers and fetched documents are arguments, and a
//! [`host::Host`] provides cryptography, randomness and shared memory. So native tests reach every decision.
//!
//! The steps of a request: [`request`] holds its head. [`path`] (or [`route`]) finds its organization. [`origin`] checks
//! whether its web page may call. [`credential`] finds its one credential, and [`gateway`] judges that credential with
//! [`policy`], [`jose`] and [`jwks`]. [`exchange`] turns the judgement, or the wait for it, into a step for the shell.
//! [`denial`] words every refusal.

// Only crates of this workspace use this crate. The lint would ask for a comment on each field and variant, also where the
// name says everything ("It.").
#![allow(missing_docs)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects, clippy::string_slice))]

pub mod api_key;
pub mod budget;
pub mod config;
pub mod credential;
pub mod denial;
pub mod exchange;
pub mod fetch_slots;
pub mod gateway;
pub mod host;
pub mod jose;
pub mod json;
pub mod jwks;
pub mod limits;
pub mod mcp;
pub mod names;
pub mod oauth;
pub mod origin;
pub mod path;
pub mod policy;
pub mod principal;
pub mod problem;
pub mod reason;
pub mod request;
pub mod route;
pub mod scope;
pub mod serialized_map;
pub mod time;
pub mod token_cache;
pub mod url;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

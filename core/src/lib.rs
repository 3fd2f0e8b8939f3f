//! The decisions of the ApexMCP gateway's authentication.
//!
//! This crate has no clock, no I/O and no Envoy. Time, headers and fetched documents are arguments, and a
//! [`host::Host`] provides cryptography, randomness and shared memory. So native tests reach every decision.
//!
//! The steps of a request: [`request`] has its headers. [`path`] (or [`route`]) finds its organization. [`origin`] checks
//! whether its web page may call. [`credential`] finds its one credential, and [`gateway`] judges this credential with
//! [`policy`], [`jose`] and [`jwks`]. [`exchange`] turns the result, or the wait for it, into a step for the shell.
//! [`denial`] writes every refusal.

// The lint asks for a comment on each public field and variant. Only crates of this workspace use this crate, and most
// names are clear without one.
#![allow(missing_docs)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects, clippy::string_slice))]

pub mod access_token;
pub mod api_key;
pub mod body_holding;
pub mod budget;
pub mod callout;
pub mod config;
pub mod credential;
pub mod deadline;
pub mod denial;
pub mod exchange;
pub mod gateway;
pub mod host;
pub mod jose;
pub mod json;
pub mod jwks;
pub mod limits;
pub mod mcp;
pub mod names;
pub mod oauth;
pub mod oauth_client;
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
pub mod signing_key;
pub mod time;
pub mod token_cache;
pub mod unproven;
pub mod url;
pub mod usage;

#[cfg(test)]
mod documents;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

//! Authentication of the ApexMCP gateway, as a proxy-wasm HTTP filter for Envoy.
//!
//! The crate is a pure core with a thin shell. The core decides and never asks: time, headers, fetched documents and
//! signature checks are arguments. The shell, compiled for wasm32 alone, maps Envoy's callbacks to it.
//!
//! The steps of a request: [`request`] holds its head. [`path`] (or [`route`]) finds its organization. [`origin`] checks
//! whether its web page may call. [`credential`] finds its one credential, and [`gateway`] judges that by [`policy`],
//! [`jose`] and [`jwks`]. [`exchange`] turns the judgement, or the wait for it, into a step that the shell can do. [`denial`] words every refusal.

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
pub mod request;
pub mod route;
pub mod scope;
pub mod serialized_map;
pub mod time;
pub mod token_cache;
pub mod url;

#[cfg(target_arch = "wasm32")]
mod shell;
#[cfg(test)]
mod testing;

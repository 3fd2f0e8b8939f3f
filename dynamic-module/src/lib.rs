//! Authentication of the ApexMCP gateway, as a dynamic module of Envoy: a native HTTP filter.
//!
//! This crate is the border to Envoy's C ABI. It maps the callbacks and functions of Envoy to the crate `apexmcp-shell`, as
//! the wasm module does, and holds nothing of a decision. What the wasm module keeps in Envoy's shared data is memory of the
//! process here (`shared.rs`). All calls to other services belong to the main thread (`main_thread.rs`). Workers
//! (`worker.rs`) are woken by the thread of `ticker.rs`.

mod abi;
mod config;
mod counters;
mod crypto;
mod envoy;
mod grpc;
mod hooks;
mod logger;
mod main_thread;
#[cfg(test)]
mod mock;
mod pin;
mod shared;
#[cfg(test)]
mod tests;
mod ticker;
mod worker;

//! Tests that run the built program.
#![allow(
    unreachable_pub,
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test that panics has found something"
)]

mod api;
mod apply;
mod commands;
mod console;
mod crowd;
mod document;
mod documents;
mod encryption;
mod import;
mod killed;
mod postgres;
mod serve;
mod support;
mod usage;

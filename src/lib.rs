//! Authentication of the ApexMCP gateway, as a proxy-wasm HTTP filter for Envoy.
//!
//! This crate is the shell: it maps Envoy's callbacks and hostcalls to the crate `apexmcp-core`, which makes every decision.
//! Only Envoy can run the crate, so it is empty on every target except wasm32.

#![cfg(target_arch = "wasm32")]
#![allow(missing_docs)] // The only public items are the exports of the SDK's macro.

mod direct;
mod envoy;
mod hostcalls;
mod http;
mod log_level;
mod metrics;
mod root;

use proxy_wasm::traits::RootContext;
use proxy_wasm::types::LogLevel;

proxy_wasm::main! {{
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|id| -> Box<dyn RootContext> { Box::new(root::Root::new(id)) });
}}

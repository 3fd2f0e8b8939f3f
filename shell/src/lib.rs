//! The part of the shell that both modules share: it maps the callbacks of Envoy to the core, and carries out the core's
//! steps. [`Envoy`] is what each module provides: the hostcalls of its ABI.
//!
//! This crate decides nothing. Every decision is in the core.

// The lint asks for a comment on each public field and variant. Only crates of this workspace use this crate, and most
// names are clear without one.
#![allow(missing_docs)]

mod envoy;
mod fetcher;
mod metrics;
mod plugin;
mod stream;

pub use envoy::{Call, Envoy, FILTER_STATE};
pub use fetcher::{Answer, Fetcher};
pub use metrics::{Family, Metric};
pub use plugin::Plugin;
pub use stream::{Action, Stream};

//! MCP messages, as far as a credential for single connectors makes it necessary to read them.
//!
//! Behind the joined endpoint the connector stands inside the JSON-RPC body. [`message`] reads that as strictly as any
//! reader behind might, [`method`] says what each method reaches, [`address`] which connector a name or URI means,
//! [`list`] and [`reply`] take what the credential does not cover out of what comes back, [`sse`] splits event streams.

pub mod address;
pub mod headers;
pub mod list;
pub mod message;
pub mod method;
pub mod reply;
pub mod sse;

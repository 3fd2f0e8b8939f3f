//! Reads MCP messages, for credentials that cover only some connectors.
//!
//! One endpoint serves all connectors of an organization, and the JSON-RPC body names the connector. [`message`] reads
//! the body as strictly as any server behind the gateway could. [`method`] says what each method reaches, and [`address`]
//! which connector a name or URI means. [`call`] tells access logs what a request calls. [`headers`] compares the headers
//! that repeat parts of the body. [`list`] and [`reply`] remove the entries that the credential does not cover from
//! responses. [`sse`] splits event streams.

pub mod address;
pub mod call;
pub mod headers;
pub mod list;
pub mod message;
pub mod method;
pub mod reply;
pub mod sse;

//! The gateway as an OAuth 2 authorization server for client credentials (RFC 6749 §4.4), and its discovery documents.

pub mod attempts;
pub mod discovery;
pub mod replay;
pub mod token_endpoint;

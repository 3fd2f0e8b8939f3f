//! Parses a request body as JSON-RPC messages, so strictly that no other reader can find another connector in it.
//!
//! JSON leaves some cases to its readers, and they differ (RFC 8259 §4). Envoy's own MCP filter tells `mcp_router` the
//! connector. Up to Envoy 1.39 it reads members by their paths: `"x.name"` is another spelling of `"name"` to it, and an
//! object with an empty name adds no level to a path. Besides, `mcp_router` removes the connector's prefix from a name
//! and shortens `content-length` by its length. If escapes in the name hide the prefix, it still shortens
//! `content-length`. The filter refuses what could be read in two ways:
//!
//! - a duplicate member, at any depth,
//! - a member with an empty name, at any depth,
//! - a suspicious name of a member in the objects that select the connector: the message, its `params` and its `ref`. It
//!   contains a `.`, is not ASCII, or differs from a selecting name only in letter case, because some readers ignore
//!   case,
//! - an escape inside a name, a URI, or the id of a response. Each of these may name a connector.
//!
//! All readers agree about an escape anywhere else, so it is accepted. PHP's `json_encode` escapes each `/`, so real
//! clients send `tools\/call`.

use std::collections::BTreeSet;

use serde::de::DeserializeSeed;
use serde_json::Value;

use self::reader::{AMBIGUITIES, BodySeed, ESCAPED, Params, Parts};
use super::address;
use super::method::{self, Mirrored, Reach};
use crate::names::ConnectorId;
use crate::scope::{Scope, ScopeSet};

mod reader;

/// Maximum length of a body in bytes. `envoy/envoy.yaml` sets the same limit for Envoy's MCP filter.
pub const MAX_LENGTH: usize = 1 << 20;

/// The reason why a body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageError {
    /// The body is not UTF-8, not JSON, incomplete, or followed by other text.
    NotJson,
    /// The body is JSON, but not a message of JSON-RPC 2.0, or it lacks the parameter that names its target.
    NotJsonRpc,
    /// Two readers could read the body differently: see the module. The text says why to the client.
    Ambiguous(&'static str),
}

impl MessageError {
    /// A sentence for the client.
    pub fn description(self) -> &'static str {
        match self {
            Self::NotJson => "The body is not JSON.",
            Self::NotJsonRpc => "The body is not a JSON-RPC 2.0 message, or it lacks the parameter that names its target.",
            Self::Ambiguous(description) => description,
        }
    }
}

/// What one message addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing that a scope protects.
    Nothing,
    /// The lists of all connectors.
    Lists,
    Connector(ConnectorId),
    /// Something that only the scope for all connectors covers.
    Untied,
}

/// One JSON-RPC message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub target: Target,
    /// `None` for a response.
    pub method: Option<Box<str>>,
    /// The member that the header `Mcp-Name` may repeat. The specification names it for each method.
    pub name: Option<Box<str>>,
    /// Null if the message has no `id`.
    pub id: Value,
}

/// A body: one message, or a batch (JSON-RPC 2.0 §6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// There is at least one.
    pub messages: Vec<Message>,
    /// Whether the body is an array.
    pub is_batch: bool,
}

impl Body {
    /// Parses `bytes`. `separator` is `gateway.connector_separator`.
    ///
    /// # Errors
    /// See [`MessageError`].
    pub fn parse(bytes: &[u8], separator: &str) -> Result<Self, MessageError> {
        let text = std::str::from_utf8(bytes).map_err(|_| MessageError::NotJson)?;
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let read = BodySeed.deserialize(&mut deserializer).and_then(|read| deserializer.end().map(|()| read));
        let (parts, is_batch) = read.map_err(|error| explain(&error))?;
        let messages = parts.into_iter().map(|parts| parts.message(separator)).collect::<Result<Vec<_>, _>>()?;
        if messages.is_empty() { Err(MessageError::NotJsonRpc) } else { Ok(Self { messages, is_batch }) }
    }

    /// Whether the response contains lists.
    pub fn asks_for_lists(&self) -> bool {
        self.messages.iter().any(|message| message.target == Target::Lists)
    }

    /// The `id` of an answer to the whole body: that of a single message, or null for a batch.
    pub fn id(&self) -> Value {
        match self.messages.as_slice() {
            [message] if !self.is_batch => message.id.clone(),
            _ => Value::Null,
        }
    }

    /// The smallest single scope that covers all messages. `None` if `held` covers them already.
    pub fn lacks(&self, held: &ScopeSet) -> Option<Scope> {
        let needed = |message: &Message| match &message.target {
            Target::Nothing | Target::Lists => None,
            Target::Connector(connector) => Some(Scope::Connector(connector.clone())),
            Target::Untied => Some(Scope::AllConnectors),
        };
        let needed: BTreeSet<Scope> = self.messages.iter().filter_map(needed).collect();
        if needed.iter().all(|scope| held.covers(scope)) {
            return None;
        }
        let mut needed = needed.into_iter();
        match (needed.next(), needed.next()) {
            (Some(only), None) => Some(only),
            _ => Some(Scope::AllConnectors),
        }
    }
}

/// Finds the text of a visitor's error again, because serde_json wraps it into an error of its own.
fn explain(error: &serde_json::Error) -> MessageError {
    if !error.is_data() {
        return MessageError::NotJson;
    }
    let text = error.to_string();
    let ambiguity = AMBIGUITIES.into_iter().find(|words| text.starts_with(words));
    ambiguity.map_or(MessageError::NotJsonRpc, MessageError::Ambiguous)
}

impl Parts<'_> {
    fn message(self, separator: &str) -> Result<Message, MessageError> {
        // Only the id of a response selects a connector.
        if self.is_response && self.id.is_escaped {
            return Err(MessageError::Ambiguous(ESCAPED));
        }
        self.checked(separator).ok_or(MessageError::NotJsonRpc)
    }

    fn checked(self, separator: &str) -> Option<Message> {
        if !self.is_version_2 {
            return None;
        }
        let by_name = |name: &str| address::of_name(name, separator);
        let connector = |connector: Option<ConnectorId>| connector.map_or(Target::Untied, Target::Connector);
        let target = match (self.method.as_deref(), self.is_response) {
            (Some(_), true) | (None, false) => return None,
            // `mcp_router` writes the connector into the id of a server's request, and reads it from the id of the
            // client's response.
            (None, true) => self.id.value.as_str().and_then(by_name).map_or(Target::Nothing, Target::Connector),
            (Some(method), false) => match method::reach_of(method) {
                Reach::Nothing => Target::Nothing,
                Reach::List => Target::Lists,
                Reach::Untied => Target::Untied,
                Reach::Name => connector(by_name(self.params.name?)),
                Reach::Uri => connector(address::of_uri(self.params.uri?)),
                Reach::Reference => {
                    let reference = self.params.reference.as_ref()?;
                    match reference.kind.as_deref()? {
                        "ref/prompt" => connector(by_name(reference.name?)),
                        "ref/resource" => connector(address::of_uri(reference.uri?)),
                        _ => Target::Untied,
                    }
                }
            },
        };
        let name = self.method.as_deref().and_then(|method| self.params.mirrored(method));
        Some(Message { target, method: self.method.map(Into::into), name: name.map(Into::into), id: self.id.value })
    }
}

impl Params<'_> {
    /// The member that the header `Mcp-Name` repeats in a message of `method`.
    fn mirrored(&self, method: &str) -> Option<&str> {
        match method::name_of(method) {
            Mirrored::Name => self.name,
            Mirrored::Uri => self.uri,
            Mirrored::TaskId => self.task_id.as_deref(),
            Mirrored::Reference => self.reference.as_ref().and_then(|reference| reference.name.or(reference.uri)),
            Mirrored::Nothing => None,
        }
    }
}

#[cfg(test)]
mod tests;

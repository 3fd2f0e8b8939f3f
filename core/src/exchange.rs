//! One request, from its head to its end, as states that consume themselves.
//!
//! [`begin`] decides on the head. The shell carries out the returned [`Step`]. A request that waits is a [`Pending`], which
//! [`HeldRequests`] keeps by the id of its stream. The shell passes each [`Event`] to [`Pending::handle`] and carries out the
//! next step. When a stream ends, the shell only drops the value. [`Flow`] decides how far Envoy may forward the request.
//!
//! No state keeps the head or the body: Envoy keeps them while the stream is paused, and a state reads them again through
//! [`RequestReader`]. Each state has a [`Hold`](crate::budget::Hold) of the worker's budget for the bytes that Envoy keeps.
//!
//! The files in which a request may wait, each with one state:
//!
//! - `start.rs`: for the first policy
//! - `resource.rs`: for a key set
//! - `message.rs`: for its MCP message
//! - `count.rs`: for the rate limit service
//! - `form.rs`: for the form of the token endpoint
//! - `refusal.rs`: for the rest of a request that is refused

mod count;
mod form;
mod forward;
mod gate;
mod held;
mod message;
mod page;
mod pending;
mod refusal;
mod resource;
mod start;

pub use count::is_readable;
pub use forward::{ACCEPT_ENCODING, Edits, Forward, Record};
pub use gate::{Flow, Passage, Response};
pub use held::{Held, HeldRequests};
pub use page::sharing;
pub use pending::{BodyProgress, Context, Event, Pending, Question, RequestReader, ServiceOutcome, Step};
pub use refusal::{not_edited, unreadable};
pub use start::{begin, start};

#[cfg(test)]
mod tests;

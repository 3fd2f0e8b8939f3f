//! One stream: its callbacks. The core decides what each callback does.

use std::cell::RefCell;
use std::rc::Rc;

use apexmcp_core::exchange::{self, BodyProgress, Flow, Response};
use apexmcp_core::limits::standing::{RATE_LIMIT, RATE_LIMIT_POLICY};
use apexmcp_core::mcp::reply::ListReply;

use crate::envoy::Envoy;
use crate::plugin::Plugin;

/// What Envoy does after a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Continue,
    /// Hold what the callback is about, and buffer it.
    Pause,
}

impl From<bool> for Action {
    fn from(passes: bool) -> Self {
        if passes { Self::Continue } else { Self::Pause }
    }
}

/// A stream. Dropping it ends the wait of its request.
///
/// All methods borrow it shared, because Envoy may call a callback of the stream within a hostcall of another callback.
pub struct Stream<E: Envoy> {
    id: u32,
    plugin: Rc<Plugin<E>>,
    flow: Rc<Flow>,
    reply: RefCell<Option<Replaced>>,
}

/// A response body that does not pass unchanged.
enum Replaced {
    /// Its lists are cut.
    Lists(ListReply),
    /// This text passes instead, once.
    By(Vec<u8>),
}

impl Replaced {
    fn pass(&mut self, chunk: &[u8], is_last: bool) -> Vec<u8> {
        match self {
            Self::Lists(reply) => reply.push(chunk, is_last),
            Self::By(body) => std::mem::take(body),
        }
    }
}

impl<E: Envoy> Stream<E> {
    /// The stream with Envoy's or the module's number `id`.
    pub fn new(id: u32, plugin: Rc<Plugin<E>>) -> Self {
        plugin.serves_requests.set(true);
        Self { id, plugin, flow: Rc::default(), reply: RefCell::default() }
    }

    /// A part of the body arrived. `body` is needed only if the request waits.
    fn body_arrived(&self, body: impl FnOnce() -> BodyProgress) -> Action {
        if !self.flow.lets_body_pass() {
            let body = body();
            self.flow.body_arrived(body, self.plugin.gateway.borrow().as_ref().map(|gateway| &gateway.bodies));
            self.plugin.read_body(self.id, body);
        }
        self.flow.lets_body_pass().into()
    }

    /// See [`Plugin::answered`].
    pub fn answered(&self, call: u32, grpc_status: u32, size: usize, message: impl FnOnce(usize) -> Vec<u8>) {
        self.plugin.answered(call, grpc_status, size, message);
    }

    /// The head of the request came.
    pub fn request_headers(&self, end_of_stream: bool) -> Action {
        let step = self.plugin.start(&self.flow);
        self.plugin.apply(step, self.id, &self.flow);
        if end_of_stream && !self.flow.lets_body_pass() {
            self.body_arrived(|| self.flow.ended());
        }
        self.flow.lets_head_pass().into()
    }

    /// A part of the request body came. `size` reads how many bytes are there with it. Most bodies pass unread.
    pub fn request_body(&self, size: impl FnOnce() -> usize, end_of_stream: bool) -> Action {
        self.body_arrived(|| BodyProgress { length: size(), is_whole: end_of_stream })
    }

    /// The trailers of the request came.
    pub fn request_trailers(&self, count: usize) -> Action {
        if self.flow.edits_trailers(count) && !self.plugin.strip_trailers() {
            log::error!("the request's trailers could not be edited");
            // A held request would be answered again.
            self.plugin.forget(self.id);
            self.plugin.answer(&self.flow, exchange::not_edited());
            return Action::Pause;
        }
        self.body_arrived(|| self.flow.ended())
    }

    /// The head of the response came.
    pub fn response_headers(&self) {
        let envoy = &self.plugin.envoy;
        if let Some(standing) = self.flow.take_standing() {
            envoy.add_response_header(RATE_LIMIT_POLICY, &standing.policy());
            envoy.add_response_header(RATE_LIMIT, &standing.state());
        }
        if let Some(sharing) = self.flow.take_sharing() {
            // This also runs for Envoy's own replies.
            for (name, value) in envoy.response_headers().iter().flat_map(|headers| sharing.changes(headers)) {
                match value {
                    Some(value) => envoy.set_response_header(name, &value),
                    None => envoy.remove_response_header(name),
                }
            }
        }
        let reply = match self.flow.begin_response() {
            Response::Passes => return,
            Response::Lists(lists) => self.plugin.cut(lists).map(Replaced::Lists),
            Response::Early => self.plugin.answered_early(self.id).map(Replaced::By),
        };
        if reply.is_some() {
            // The body that passes has another length, and is not compressed.
            envoy.remove_response_header("content-length");
            envoy.remove_response_header("content-encoding");
        }
        self.reply.replace(reply);
    }

    /// A chunk of the response body came. `size` reads its length. Most bodies pass unread.
    pub fn response_body(&self, size: impl FnOnce() -> usize, end_of_stream: bool) -> Action {
        if let Some(reply) = self.reply.borrow_mut().as_mut() {
            let (envoy, size) = (&self.plugin.envoy, size());
            let passed = reply.pass(&envoy.response_chunk(size), end_of_stream);
            if !envoy.replace_response_chunk(size, &passed) {
                log::error!("a list could not be cut; it is held back");
                return Action::Pause;
            }
        }
        Action::Continue
    }
}

impl<E: Envoy> Drop for Stream<E> {
    fn drop(&mut self) {
        self.plugin.forget(self.id);
    }
}

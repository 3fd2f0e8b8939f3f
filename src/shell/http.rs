//! One stream: its callbacks, and the steps of its exchange.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use super::envoy::Envoy;
use super::hostcalls;
use super::metrics::Metrics;
use crate::denial::{Denial, Reason};
use crate::exchange::{self, ACCEPT_ENCODING, AwaitingBody, AwaitingKeySet, AwaitingMessage, Forward, MessageStep, Record, Step};
use crate::gateway::{Findings, Gateway};
use crate::mcp::reply::{ListReply, ListRequest, ResponseHead};
use crate::oauth::token_endpoint::TokenError;
use crate::principal::{ATTRIBUTES, Principal};
use crate::route::{RouteInvalid, RouteSettings};
use crate::time::UnixTime;

/// The namespace of this filter in a route's `filter_metadata`.
const METADATA_NAMESPACE: &str = "apexmcp";

/// Filter state of [`ATTRIBUTES`], for access logs and RBAC as `wasm.<name>`.
const FILTER_STATE: [&str; ATTRIBUTES.len()] =
    ["apexmcp_org", "apexmcp_principal", "apexmcp_subject", "apexmcp_method", "apexmcp_scope"];

/// What a root context and its streams share. Borrows end before a hostcall that may call back.
#[derive(Default)]
pub(super) struct Plugin {
    /// `None` until a configuration was accepted.
    pub(super) gateway: RefCell<Option<Gateway>>,
    pub(super) envoy: Envoy,
    pub(super) metrics: RefCell<Metrics>,
    held: RefCell<HashMap<u32, Held>>,
}

/// A stream whose request is held, and what for.
struct Held {
    flow: Rc<Flow>,
    awaiting: Awaiting,
}

enum Awaiting {
    KeySet(AwaitingKeySet),
    Body(AwaitingBody),
    Message(AwaitingMessage),
}

impl Awaiting {
    /// As much of the body as is read, where one is awaited.
    fn max_body(&self) -> Option<usize> {
        match self {
            Self::KeySet(_) => None,
            Self::Body(_) => Some(exchange::MAX_BODY_READ),
            Self::Message(_) => Some(exchange::MAX_MESSAGE_READ),
        }
    }
}

/// What of a stream's request may go on. With `allow_on_headers_stop_iteration`, a body let through would take its
/// paused head along; and a head let through takes what has come of the body along.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Gate {
    /// Nothing.
    #[default]
    Closed,
    /// The head. The body waits to be read.
    Head,
    /// All of it.
    Open,
}

/// A stream, as far as callbacks of its own and of the root context need to know of each other.
#[derive(Default)]
struct Flow {
    gate: Cell<Gate>,
    /// How much of the body has come and is paused.
    body_length: Cell<usize>,
    body_is_whole: Cell<bool>,
    /// How the response is to be cut, before it begins.
    lists: RefCell<Option<ListRequest>>,
}

impl Flow {
    fn head_action(&self) -> Action {
        if self.gate.get() == Gate::Closed { Action::Pause } else { Action::Continue }
    }

    fn body_action(&self) -> Action {
        if self.gate.get() == Gate::Open { Action::Continue } else { Action::Pause }
    }
}

pub(super) struct Stream {
    id: u32,
    plugin: Rc<Plugin>,
    flow: Rc<Flow>,
    reply: Option<ListReply>,
}

impl Stream {
    pub(super) fn new(id: u32, plugin: Rc<Plugin>) -> Self {
        Self { id, plugin, flow: Rc::default(), reply: None }
    }

    fn body_arrived(&self, length: usize, is_whole: bool) {
        self.flow.body_length.set(length);
        self.flow.body_is_whole.set(is_whole);
        self.plugin.read_body(self.id);
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _num_headers: usize, end_of_stream: bool) -> Action {
        let step = self.plugin.start();
        self.plugin.apply(step, self.id, &self.flow);
        if end_of_stream {
            self.body_arrived(0, true);
        }
        self.flow.head_action()
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.body_arrived(size, end_of_stream);
        self.flow.body_action()
    }

    fn on_http_request_trailers(&mut self, _num_trailers: usize) -> Action {
        self.body_arrived(self.flow.body_length.get(), true);
        self.flow.body_action()
    }

    fn on_http_response_headers(&mut self, _num_headers: usize, _end_of_stream: bool) -> Action {
        if let Some(request) = self.flow.lists.take() {
            let [status, content_type, content_encoding] =
                [":status", "content-type", "content-encoding"].map(hostcalls::response_header);
            let status = std::str::from_utf8(&status).ok().and_then(|status| status.parse().ok()).unwrap_or_default();
            let head = ResponseHead { status, content_type: &content_type, content_encoding: &content_encoding };
            self.reply = request.begin(head);
            if self.reply.is_some() {
                // What passes has another length, and is not compressed.
                hostcalls::remove_response_header("content-length");
                hostcalls::remove_response_header("content-encoding");
            }
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if let Some(reply) = &mut self.reply {
            let passed = reply.push(&hostcalls::response_chunk(size), end_of_stream);
            if !hostcalls::replace_response_chunk(size, &passed) {
                log::error!("a list could not be cut; it is held back");
                return Action::Pause;
            }
        }
        Action::Continue
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.plugin.held.borrow_mut().remove(&self.id);
    }
}

impl Plugin {
    fn start(&self) -> Step {
        let mut gateway = self.gateway.borrow_mut();
        let (Some(gateway), Some(head)) = (gateway.as_mut(), hostcalls::request_head()) else {
            let refused = Reason::PolicyUnavailable;
            let record = Record::Resource { refused: Some(refused), findings: Findings::default() };
            return Step::Reply(Denial::from(refused).reply(None), record);
        };
        let route = if gateway.config.gateway.route_metadata { route_settings() } else { Ok(RouteSettings::default()) };
        match route {
            Ok(route) => exchange::start(gateway, head, route, hostcalls::now(), &self.envoy),
            Err(RouteInvalid) => exchange::refuse_invalid_route(gateway, &head),
        }
    }

    /// Does what `step` says to the current stream.
    fn apply(&self, step: Step, id: u32, flow: &Rc<Flow>) {
        match step {
            Step::Pass => flow.gate.set(Gate::Open),
            Step::Await(exchange) => self.hold(id, flow, Awaiting::KeySet(exchange)),
            Step::ReadBody(exchange) => self.hold(id, flow, Awaiting::Body(exchange)),
            Step::Reply(reply, record) => {
                self.note(&record);
                hostcalls::send_local_reply(&reply);
            }
            Step::Forward(forward, record) => {
                if self.edit(&forward) {
                    self.note(&record);
                    flow.gate.set(Gate::Open);
                }
            }
            Step::Inspect(forward, exchange) => {
                if self.edit(&forward) {
                    identify(exchange.principal());
                    // A head that was held while its body came can go on with that alone.
                    if flow.body_length.get() == 0 {
                        flow.gate.set(Gate::Head);
                    }
                    self.hold(id, flow, Awaiting::Message(exchange));
                }
            }
        }
    }

    /// Does what `step` says to the current stream, whose body was held.
    fn apply_to_body(&self, step: MessageStep, flow: &Flow) {
        match step {
            MessageStep::Admit(lists, record) => {
                self.note(&record);
                flow.lists.replace(lists);
                flow.gate.set(Gate::Open);
            }
            MessageStep::Reply(reply, record) => {
                self.note(&record);
                hostcalls::send_local_reply(&reply);
            }
        }
    }

    fn hold(&self, id: u32, flow: &Rc<Flow>, awaiting: Awaiting) {
        self.held.borrow_mut().insert(id, Held { flow: Rc::clone(flow), awaiting });
    }

    /// Edits the request's headers. Where the host did not, the request is answered, and the result is false.
    fn edit(&self, forward: &Forward) -> bool {
        let is_edited = self.gateway.borrow().as_ref().is_some_and(|gateway| {
            let removed = forward.remove.iter().all(|name| hostcalls::remove_request_header(name));
            let plain = !forward.accept_identity || hostcalls::add_request_header(ACCEPT_ENCODING, "identity");
            let added = forward.principal.iter().all(|principal| {
                let names = gateway.config.forward.identity_headers.iter();
                names.zip(principal.attributes()).all(|(name, value)| hostcalls::add_request_header(name, value))
            });
            removed && plain && added
        });
        if !is_edited {
            log::error!("the request's headers could not be edited");
            hostcalls::send_local_reply(&Denial::from(Reason::PolicyUnavailable).reply(None));
        }
        is_edited
    }

    /// Counts a decided request and hands what is known of it to access logs.
    fn note(&self, record: &Record) {
        self.metrics.borrow_mut().decided(record);
        hostcalls::set_filter_state("apexmcp_reason", record.reason());
        if let Record::Resource { findings: Findings { principal: Some(principal), .. }, .. } = record {
            identify(principal);
        }
    }

    /// Goes on with the current stream where it is held for its body, and enough of that has come.
    fn read_body(&self, id: u32) {
        let mut held = self.held.borrow_mut();
        let is_enough = |held: &Held| {
            let flow = &held.flow;
            held.awaiting.max_body().is_some_and(|max| flow.body_is_whole.get() || flow.body_length.get() >= max)
        };
        if !held.get(&id).is_some_and(is_enough) {
            return;
        }
        let Some(Held { flow, awaiting }) = held.remove(&id) else { return };
        drop(held);
        let body = hostcalls::request_body(awaiting.max_body().unwrap_or_default());
        let mut gateway = self.gateway.borrow_mut();
        let Some(gateway_now) = gateway.as_mut() else { return };
        match awaiting {
            Awaiting::KeySet(_) => {}
            Awaiting::Body(exchange) => {
                let step = exchange.proceed(&body, gateway_now, hostcalls::now(), &self.envoy);
                drop(gateway);
                self.apply(step, id, &flow);
            }
            Awaiting::Message(exchange) => {
                let step = exchange.proceed(&body, gateway_now);
                drop(gateway);
                self.apply_to_body(step, &flow);
            }
        }
    }

    /// Decides the held streams for which something happened. Leaves one of them the current context.
    pub(super) fn wake(&self, now: UnixTime) {
        for (id, Held { flow, awaiting }) in self.take_ready(now) {
            if !hostcalls::enter(id) {
                continue;
            }
            let step = match (awaiting, self.gateway.borrow_mut().as_mut()) {
                (Awaiting::KeySet(exchange), Some(gateway)) => exchange.proceed(gateway, now, &self.envoy),
                (Awaiting::Body(exchange), _) => {
                    log::warn!("a body did not arrive in time; the filter needs allow_on_headers_stop_iteration to read bodies");
                    exchange.give_up(TokenError::BodyTimeout)
                }
                (Awaiting::Message(_), _) | (Awaiting::KeySet(_), None) => continue,
            };
            self.apply(step, id, &flow);
            self.read_body(id);
            if matches!(flow.head_action(), Action::Continue) {
                hostcalls::resume_request();
            }
        }
    }

    fn take_ready(&self, now: UnixTime) -> Vec<(u32, Held)> {
        let gateway = self.gateway.borrow();
        let Some(gateway) = gateway.as_ref() else { return Vec::new() };
        let is_ready = |_: &u32, held: &mut Held| match &held.awaiting {
            Awaiting::KeySet(exchange) => exchange.is_ready(gateway, now),
            Awaiting::Body(exchange) => exchange.is_overdue(now),
            Awaiting::Message(_) => false,
        };
        self.held.borrow_mut().extract_if(is_ready).collect()
    }
}

/// Hands who the current stream's request is from to access logs and to the filters behind.
fn identify(principal: &Principal) {
    for (name, value) in FILTER_STATE.iter().zip(principal.attributes()) {
        hostcalls::set_filter_state(name, value);
    }
}

/// What the current stream's route says of itself.
fn route_settings() -> Result<RouteSettings, RouteInvalid> {
    hostcalls::route_metadata(METADATA_NAMESPACE)
        .map_or_else(|| Ok(RouteSettings::default()), |map| RouteSettings::from_serialized_map(&map))
}

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
use crate::exchange::{self, AwaitingBody, AwaitingKeySet, Forward, Record, Step};
use crate::gateway::{Findings, Gateway};
use crate::oauth::token_endpoint::TokenError;
use crate::principal::ATTRIBUTES;
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
    gate: Gate,
    awaiting: Awaiting,
}

enum Awaiting {
    KeySet(AwaitingKeySet),
    Body(AwaitingBody),
}

impl Awaiting {
    fn is_ready_with_body(&self, length: usize, is_whole: bool) -> bool {
        matches!(self, Self::Body(_)) && (is_whole || length >= exchange::MAX_BODY_READ)
    }
}

/// Whether a stream's body may go on. It is closed until the request was admitted: with
/// `allow_on_headers_stop_iteration`, a body let through would take its paused head along.
#[derive(Clone, Default)]
struct Gate(Rc<Cell<bool>>);

impl Gate {
    fn open(&self) {
        self.0.set(true);
    }

    fn action(&self) -> Action {
        if self.0.get() { Action::Continue } else { Action::Pause }
    }
}

pub(super) struct Stream {
    id: u32,
    plugin: Rc<Plugin>,
    gate: Gate,
}

impl Stream {
    pub(super) fn new(id: u32, plugin: Rc<Plugin>) -> Self {
        Self { id, plugin, gate: Gate::default() }
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _num_headers: usize, end_of_stream: bool) -> Action {
        let step = self.plugin.start();
        self.plugin.apply(step, self.id, &self.gate);
        if end_of_stream {
            self.plugin.body_arrived(self.id, 0, true);
        }
        self.gate.action()
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.plugin.body_arrived(self.id, size, end_of_stream);
        self.gate.action()
    }

    fn on_http_request_trailers(&mut self, _num_trailers: usize) -> Action {
        self.plugin.body_arrived(self.id, 0, true);
        self.gate.action()
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
    fn apply(&self, step: Step, id: u32, gate: &Gate) {
        match step {
            Step::Pass => gate.open(),
            Step::Await(exchange) => self.hold(id, gate, Awaiting::KeySet(exchange)),
            Step::ReadBody(exchange) => self.hold(id, gate, Awaiting::Body(exchange)),
            Step::Reply(reply, record) => {
                self.note(&record);
                hostcalls::send_local_reply(&reply);
            }
            Step::Forward(forward, record) => {
                if self.edit(&forward) {
                    self.note(&record);
                    gate.open();
                } else {
                    log::error!("the request's headers could not be edited");
                    hostcalls::send_local_reply(&Denial::from(Reason::PolicyUnavailable).reply(None));
                }
            }
        }
    }

    fn hold(&self, id: u32, gate: &Gate, awaiting: Awaiting) {
        self.held.borrow_mut().insert(id, Held { gate: gate.clone(), awaiting });
    }

    /// Edits the request's headers; false where the host did not, and the request must not go on.
    fn edit(&self, forward: &Forward) -> bool {
        let gateway = self.gateway.borrow();
        let Some(gateway) = gateway.as_ref() else { return false };
        let removed = forward.remove.iter().all(|name| hostcalls::remove_request_header(name));
        let added = forward.principal.iter().all(|principal| {
            let names = gateway.config.forward.identity_headers.iter();
            names.zip(principal.attributes()).all(|(name, value)| hostcalls::add_request_header(name, value))
        });
        removed && added
    }

    /// Counts a decided request and hands what is known of it to access logs.
    fn note(&self, record: &Record) {
        self.metrics.borrow_mut().decided(record);
        hostcalls::set_filter_state("apexmcp_reason", record.reason());
        if let Record::Resource { findings: Findings { principal: Some(principal), .. }, .. } = record {
            for (name, value) in FILTER_STATE.iter().zip(principal.attributes()) {
                hostcalls::set_filter_state(name, value);
            }
        }
    }

    /// Goes on with the current stream where it is held for its body, and enough of that has come.
    fn body_arrived(&self, id: u32, length: usize, is_whole: bool) {
        let mut held = self.held.borrow_mut();
        if !held.get(&id).is_some_and(|held| held.awaiting.is_ready_with_body(length, is_whole)) {
            return;
        }
        let Some(Held { gate, awaiting: Awaiting::Body(exchange) }) = held.remove(&id) else { return };
        drop(held);
        let body = hostcalls::request_body(exchange::MAX_BODY_READ);
        let step = match self.gateway.borrow_mut().as_mut() {
            Some(gateway) => exchange.proceed(&body, gateway, hostcalls::now(), &self.envoy),
            None => return,
        };
        self.apply(step, id, &gate);
    }

    /// Decides the held streams for which something happened. Leaves one of them the current context.
    pub(super) fn wake(&self, now: UnixTime) {
        for (id, Held { gate, awaiting }) in self.take_ready(now) {
            if !hostcalls::enter(id) {
                continue;
            }
            let step = match (awaiting, self.gateway.borrow_mut().as_mut()) {
                (Awaiting::KeySet(exchange), Some(gateway)) => exchange.proceed(gateway, now, &self.envoy),
                (Awaiting::Body(exchange), _) => {
                    log::warn!("a body did not arrive in time; the filter needs allow_on_headers_stop_iteration to read bodies");
                    exchange.give_up(TokenError::BodyTimeout)
                }
                (Awaiting::KeySet(_), None) => return,
            };
            self.apply(step, id, &gate);
            if matches!(gate.action(), Action::Continue) {
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
        };
        self.held.borrow_mut().extract_if(is_ready).collect()
    }
}

/// What the current stream's route says of itself.
fn route_settings() -> Result<RouteSettings, RouteInvalid> {
    hostcalls::route_metadata(METADATA_NAMESPACE)
        .map_or_else(|| Ok(RouteSettings::default()), |map| RouteSettings::from_serialized_map(&map))
}

//! One stream: its callbacks, and the steps of its exchange. The core decides what each callback does.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use crate::envoy::Envoy;
use crate::hostcalls;
use crate::metrics::Metrics;
use apexmcp_core::denial::Denial;
use apexmcp_core::exchange::{
    self, ACCEPT_ENCODING, BodyProgress, Edits, Event, Flow, Held, HeldRequests, Pending, Question, Record, RequestReader,
    Response, Step,
};
use apexmcp_core::gateway::Gateway;
use apexmcp_core::limits::service;
use apexmcp_core::limits::standing::{RATE_LIMIT, RATE_LIMIT_POLICY};
use apexmcp_core::mcp::reply::{CACHE_CONTROL, ListReply, ListRequest, ResponseHead, private_cache_control};
use apexmcp_core::principal::{ATTRIBUTES, Principal};
use apexmcp_core::request::{CONNECTION, RequestHead};
use apexmcp_core::route::{RouteInvalid, RouteSettings};
use apexmcp_core::serialized_map::SerializedMap;
use apexmcp_core::time::UnixTime;

/// The namespace of this filter in a route's `filter_metadata`.
const METADATA_NAMESPACE: &str = "apexmcp";

/// Filter state of [`ATTRIBUTES`], for access logs and RBAC as `wasm.<name>`.
const FILTER_STATE: [&str; ATTRIBUTES.len()] =
    ["apexmcp_org", "apexmcp_principal", "apexmcp_subject", "apexmcp_method", "apexmcp_scope"];

/// What a root context and its streams share. Borrows end before a hostcall that may call back.
#[derive(Default)]
pub(crate) struct Plugin {
    /// `None` until a configuration was accepted.
    pub(crate) gateway: RefCell<Option<Gateway>>,
    pub(crate) envoy: Envoy,
    pub(crate) metrics: RefCell<Metrics>,
    held: RefCell<HeldRequests>,
    /// The id of the root context.
    pub(crate) root_id: Cell<u32>,
    /// Whether this thread has served a request.
    pub(crate) serves_requests: Cell<bool>,
}

pub(crate) struct Stream {
    id: u32,
    plugin: Rc<Plugin>,
    flow: Rc<Flow>,
    reply: Option<Replaced>,
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

/// The request of the current stream, as the core reads it.
#[derive(Default)]
struct CurrentRequest {
    /// The time of the callback, if it read the clock already. Each reading is a hostcall.
    now: Option<UnixTime>,
}

impl RequestReader for CurrentRequest {
    fn head(&self) -> Option<RequestHead> {
        hostcalls::request_head()
    }

    fn body(&self, max: usize) -> Vec<u8> {
        hostcalls::request_body(max)
    }

    fn now(&self) -> UnixTime {
        self.now.unwrap_or_else(hostcalls::now)
    }
}

impl Stream {
    pub(crate) fn new(id: u32, plugin: Rc<Plugin>) -> Self {
        plugin.serves_requests.set(true);
        Self { id, plugin, flow: Rc::default(), reply: None }
    }

    fn body_arrived(&self, body: BodyProgress) {
        self.flow.body_arrived(body, self.plugin.gateway.borrow().as_ref().map(|gateway| &gateway.bodies));
        self.plugin.read_body(self.id, body);
        self.plugin.answer_given_up(self.id);
    }

    fn head_action(&self) -> Action {
        if self.flow.lets_head_pass() { Action::Continue } else { Action::Pause }
    }

    fn body_action(&self) -> Action {
        if self.flow.lets_body_pass() { Action::Continue } else { Action::Pause }
    }
}

impl Context for Stream {
    fn on_grpc_call_response(&mut self, token: u32, status: u32, size: usize) {
        self.plugin.counted(token, status, size);
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _num_headers: usize, end_of_stream: bool) -> Action {
        let step = self.plugin.start(&self.flow);
        self.plugin.apply(step, self.id, &self.flow);
        if end_of_stream {
            self.body_arrived(self.flow.ended());
        } else {
            self.plugin.answer_given_up(self.id);
        }
        self.head_action()
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.body_arrived(BodyProgress { length: size, is_whole: end_of_stream });
        self.body_action()
    }

    fn on_http_request_trailers(&mut self, num_trailers: usize) -> Action {
        if self.flow.edits_trailers(num_trailers) && !self.plugin.strip_trailers() {
            log::error!("the request's trailers could not be edited");
            self.flow.answer();
            hostcalls::send_local_reply(&exchange::not_edited());
            return Action::Pause;
        }
        self.body_arrived(self.flow.ended());
        self.body_action()
    }

    fn on_http_response_headers(&mut self, _num_headers: usize, _end_of_stream: bool) -> Action {
        if let Some(standing) = self.flow.take_standing() {
            hostcalls::add_response_header(RATE_LIMIT_POLICY, &standing.policy());
            hostcalls::add_response_header(RATE_LIMIT, &standing.state());
        }
        if let Some(sharing) = self.flow.take_sharing() {
            // This also runs for Envoy's and the filter's own replies.
            for (name, value) in hostcalls::response_headers().iter().flat_map(|headers| sharing.changes(headers)) {
                match value {
                    Some(value) => hostcalls::set_response_header(name, &value),
                    None => hostcalls::remove_response_header(name),
                }
            }
        }
        self.reply = match self.flow.begin_response() {
            Response::Passes => return Action::Continue,
            Response::Lists(lists) => self.plugin.cut(lists).map(Replaced::Lists),
            Response::Early => self.plugin.answered_early(self.id).map(Replaced::By),
        };
        if self.reply.is_some() {
            // The body that passes has another length, and is not compressed.
            hostcalls::remove_response_header("content-length");
            hostcalls::remove_response_header("content-encoding");
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if let Some(reply) = &mut self.reply {
            let passed = reply.pass(&hostcalls::response_chunk(size), end_of_stream);
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
        self.plugin.held.borrow_mut().remove(self.id);
    }
}

impl Plugin {
    fn start(&self, flow: &Flow) -> Step {
        let mut gateway = self.gateway.borrow_mut();
        let (Some(gateway), Some(head)) = (gateway.as_mut(), hostcalls::request_head()) else {
            return exchange::unreadable();
        };
        flow.share(exchange::sharing(gateway, &head));
        exchange::begin(gateway, head, route_settings, hostcalls::now(), &self.envoy)
    }

    /// Carries out `step` for the current stream.
    #[inline(never)] // Six callbacks use it, and the module must stay small.
    fn apply(&self, step: Step, id: u32, flow: &Rc<Flow>) {
        match step {
            Step::Pass => flow.pass(),
            Step::Reply(reply, record) => {
                self.note(&record);
                flow.answer();
                hostcalls::send_local_reply(&reply);
            }
            Step::Forward(forward, record) => {
                if self.edit(&forward.edits) {
                    self.note(&record);
                    flow.forward(forward.lists, forward.standing);
                }
            }
            Step::Wait(pending) => self.hold(pending, id, flow),
            Step::EditAndWait(edits, pending) => {
                if self.edit(&edits) {
                    edits.principal.as_deref().map(identify);
                    self.hold(pending, id, flow);
                }
            }
            Step::Ask(edits, question, pending) => {
                if self.edit(&edits) {
                    let event = Event::Asked { stream: id, call: self.ask(&question, id) };
                    self.handle(pending, event, &CurrentRequest::default(), id, flow);
                }
            }
            Step::EarlyResponse(_, record) => self.note(&record),
        }
    }

    /// Lets `pending` handle an event, and carries out the step.
    #[inline(never)]
    fn handle(&self, pending: Pending, event: Event<'_>, request: &CurrentRequest, id: u32, flow: &Rc<Flow>) {
        if let Some(step) = self.decide(pending, event, request) {
            self.apply(step, id, flow);
        }
    }

    /// Lets `pending` handle an event. Without a gateway, no request is held.
    #[inline(never)]
    fn decide(&self, pending: Pending, event: Event<'_>, request: &CurrentRequest) -> Option<Step> {
        let mut gateway = self.gateway.borrow_mut();
        let mut context = exchange::Context::new(gateway.as_mut()?, &self.envoy, request);
        let step = pending.handle(event, &mut context);
        if let Some(outcome) = context.service_outcome {
            self.metrics.borrow_mut().counted(outcome);
        }
        if let Some(warning) = context.warning {
            log::warn!("{warning}");
        }
        Some(step)
    }

    fn hold(&self, pending: Pending, id: u32, flow: &Rc<Flow>) {
        let ended = match self.gateway.borrow().as_ref() {
            Some(gateway) => self.held.borrow_mut().insert(id, flow, pending, gateway),
            None => None,
        };
        if let Some((pending, event)) = ended {
            self.handle(pending, event, &CurrentRequest::default(), id, flow);
        }
    }

    /// Sends a question to the rate limit service, and returns the number of the call. The root context sends it: Envoy drops
    /// the call of a stream when the stream ends.
    fn ask(&self, question: &Question, id: u32) -> Option<u32> {
        let Question { upstream, timeout, message } = question;
        hostcalls::enter(self.root_id.get());
        let call = hostcalls::call_grpc(upstream, service::SERVICE, service::METHOD, message, *timeout);
        hostcalls::enter(id);
        call
    }

    /// The call to the rate limit service ended.
    pub(crate) fn counted(&self, call: u32, status: u32, size: usize) {
        let message = exchange::is_readable(status, size).then(|| hostcalls::grpc_response(size));
        let taken = match self.gateway.borrow_mut().as_mut() {
            Some(gateway) => self.held.borrow_mut().take_answered(call, message.is_some(), gateway),
            None => None,
        };
        let Some((id, Held { flow, pending })) = taken else { return };
        if hostcalls::enter(id) {
            let before = flow.passage();
            let event = Event::Answered { call, message: message.as_deref() };
            self.handle(pending, event, &CurrentRequest::default(), id, &flow);
            resume(&flow, before);
        }
    }

    /// Begins to cut a response. Without a gateway, no request was admitted.
    fn cut(&self, lists: ListRequest) -> Option<ListReply> {
        let status = response_status();
        let [content_type, content_encoding] = ["content-type", "content-encoding"].map(hostcalls::response_header);
        if let Some(value) = private_cache_control(&hostcalls::response_header(CACHE_CONTROL)) {
            hostcalls::set_response_header(CACHE_CONTROL, &value);
        }
        let head = ResponseHead { status, content_type: &content_type, content_encoding: &content_encoding };
        let gateway = self.gateway.borrow();
        lists.begin(head, &gateway.as_ref()?.budget)
    }

    /// Edits the request's headers. If the host did not edit them, the request is answered, and the result is false.
    fn edit(&self, edits: &Edits) -> bool {
        let is_edited = self.gateway.borrow().as_ref().is_some_and(|gateway| {
            let removed = edits.remove.iter().all(|name| hostcalls::remove_request_header(name));
            let plain = !edits.accept_identity || hostcalls::add_request_header(ACCEPT_ENCODING, "identity");
            let upgraded = !edits.is_upgrade_only || hostcalls::add_request_header(CONNECTION, "upgrade");
            let added = edits.principal.iter().all(|principal| {
                let names = gateway.config.forward.identity_headers.iter();
                names.zip(principal.attributes()).all(|(name, value)| hostcalls::add_request_header(name, value))
            });
            removed && plain && upgraded && added
        });
        if !is_edited {
            log::error!("the request's headers could not be edited");
            hostcalls::send_local_reply(&exchange::not_edited());
        }
        is_edited
    }

    /// Removes forged names from the current stream's trailers. The result is false if the host did not remove them.
    fn strip_trailers(&self) -> bool {
        self.gateway.borrow().as_ref().zip(hostcalls::request_trailers()).is_some_and(|(gateway, trailers)| {
            trailers.forged(&gateway.config.forward.header_prefix).all(hostcalls::remove_request_trailer)
        })
    }

    /// Tells log and metrics which policy is in force in this thread.
    pub(crate) fn note_version(&self, version: &str) {
        log::info!("policy version {version:?} is in force");
        self.metrics.borrow_mut().policy_in_force(version);
    }

    /// Counts a decided request, and gives access logs the reason and the principal.
    fn note(&self, record: &Record) {
        self.metrics.borrow_mut().decided(record);
        hostcalls::set_filter_state("apexmcp_reason", record.reason());
        let Record::Resource { refused, findings } = record else { return };
        if let Some(details) = refused.as_ref().and_then(Denial::details) {
            log::debug!("refused a request with {}: {details}", record.reason());
        }
        if let Some(principal) = &findings.principal {
            identify(principal);
        }
        if let Some(note) = &findings.note {
            log::info!("{note}");
        }
    }

    /// The response began before the current stream's request was decided. Returns the body that replaces its body.
    fn answered_early(&self, id: u32) -> Option<Vec<u8>> {
        let event = Event::AnsweredEarly { status: response_status() };
        let held = match self.gateway.borrow().as_ref() {
            Some(gateway) => self.held.borrow_mut().take(id, &event, gateway)?,
            None => return None,
        };
        let Some(Step::EarlyResponse(reply, record)) = self.decide(held.pending, event, &CurrentRequest::default()) else {
            return None;
        };
        self.note(&record);
        let reply = reply?;
        hostcalls::set_response_header(":status", &reply.status.to_string());
        for (name, value) in &reply.headers {
            hostcalls::set_response_header(name, value);
        }
        Some(reply.body.into_bytes())
    }

    /// Goes on with the current stream if the part of the body that has arrived ends its wait.
    fn read_body(&self, id: u32, body: BodyProgress) {
        let held = match self.gateway.borrow().as_ref() {
            Some(gateway) => self.held.borrow_mut().body_arrived(id, body, gateway),
            None => None,
        };
        if let Some(Held { flow, pending }) = held {
            self.handle(pending, Event::BodyArrived(body), &CurrentRequest::default(), id, &flow);
        }
    }

    /// Decides the held requests that are ready at `now`. Leaves one of their streams the current context.
    pub(crate) fn wake(&self, now: UnixTime) {
        let released = match self.gateway.borrow_mut().as_mut() {
            Some(gateway) => {
                gateway.questions.look(now);
                self.held.borrow().heads_to_release(&gateway.bodies)
            }
            None => return,
        };
        for (id, flow) in released {
            if hostcalls::enter(id) {
                flow.release_head();
                hostcalls::resume_request();
            }
        }
        // A response that begins as soon as its head is released has ended the wait of its request.
        let ready = match self.gateway.borrow().as_ref() {
            Some(gateway) => self.held.borrow_mut().take_ready(now, gateway),
            None => return,
        };
        self.decide_all(ready, now);
    }

    /// Answers the requests that were given up to make room for the request of stream `current`.
    fn answer_given_up(&self, current: u32) {
        let given_up = match self.gateway.borrow().as_ref() {
            Some(gateway) => self.held.borrow_mut().take_given_up(gateway),
            None => return,
        };
        if !given_up.is_empty() {
            self.decide_all(given_up, hostcalls::now());
            hostcalls::enter(current);
        }
    }

    /// Decides requests that were held. Afterwards one of their streams is the current context.
    fn decide_all(&self, ready: Vec<(u32, Held)>, now: UnixTime) {
        let request = CurrentRequest { now: Some(now) };
        for (id, Held { flow, pending }) in ready {
            if hostcalls::enter(id) {
                let before = flow.passage();
                self.handle(pending, Event::Tick { now }, &request, id, &flow);
                // The request may wait for a body that arrived already.
                self.read_body(id, flow.body());
                resume(&flow, before);
            }
        }
    }
}

/// Lets the current stream go on as far as it may now and could not `before`.
fn resume(flow: &Flow, before: exchange::Passage) {
    if flow.must_resume(before) {
        hostcalls::resume_request();
    }
}

/// The status of the current stream's response. Zero if there is none.
fn response_status() -> u16 {
    let status = hostcalls::response_header(":status");
    std::str::from_utf8(&status).ok().and_then(|status| status.parse().ok()).unwrap_or_default()
}

/// Tells access logs and the filters behind this one the principal of the current stream's request.
fn identify(principal: &Principal) {
    for (name, value) in FILTER_STATE.iter().zip(principal.attributes()) {
        hostcalls::set_filter_state(name, value);
    }
}

/// The settings in the metadata of the current stream's route.
fn route_settings() -> Result<RouteSettings, RouteInvalid> {
    match hostcalls::route_metadata(METADATA_NAMESPACE) {
        Ok(None) => Ok(RouteSettings::default()),
        Ok(Some(map)) => RouteSettings::from_members(SerializedMap::parse(map).ok_or(RouteInvalid)?.iter()),
        Err(_) => Err(RouteInvalid),
    }
}

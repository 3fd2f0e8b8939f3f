//! One stream: its callbacks, and the steps of its exchange.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use crate::envoy::Envoy;
use crate::hostcalls;
use crate::metrics::Metrics;
use apexmcp_core::budget::Hold;
use apexmcp_core::config::LimitStore;
use apexmcp_core::denial::Denial;
use apexmcp_core::exchange::{
    self, ACCEPT_ENCODING, AwaitingBody, AwaitingCount, AwaitingKeySet, AwaitingMessage, AwaitingPolicy, AwaitingRest, Edits,
    Record, ServiceAnswer, Step,
};
use apexmcp_core::gateway::{Findings, Gateway};
use apexmcp_core::limits::service::{self, OpenQuestions};
use apexmcp_core::limits::standing::{RATE_LIMIT, RATE_LIMIT_POLICY, Standing};
use apexmcp_core::mcp::reply::{CACHE_CONTROL, ListReply, ListRequest, ResponseHead, private_cache_control};
use apexmcp_core::origin::Sharing;
use apexmcp_core::principal::{ATTRIBUTES, Principal};
use apexmcp_core::reason::Reason;
use apexmcp_core::request::CONNECTION;
use apexmcp_core::route::{RouteInvalid, RouteSettings};
use apexmcp_core::serialized_map::SerializedMap;
use apexmcp_core::time::UnixTime;

/// The namespace of this filter in a route's `filter_metadata`.
const METADATA_NAMESPACE: &str = "apexmcp";

/// So many held requests are decided in one callback: each may verify signatures, and others wait meanwhile.
const MAX_WOKEN: usize = 64;

/// Maximum number of given-up requests that are answered in the callback of another request.
const MAX_GIVEN_UP_ANSWERED: usize = 8;

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
    held: RefCell<HashMap<u32, Held>>,
    /// The open questions to the rate limit service.
    questions: RefCell<OpenQuestions>,
    /// The root context.
    pub(crate) root_id: Cell<u32>,
    /// Whether this thread has served a request.
    pub(crate) serves_requests: Cell<bool>,
    /// Whether a body arrived while its head was held. It shows that Envoy does not hold bodies.
    has_seen_body: Cell<bool>,
}

/// A stream whose request is held, and what for.
struct Held {
    flow: Rc<Flow>,
    awaiting: Awaiting,
}

enum Awaiting {
    Policy(AwaitingPolicy),
    KeySet(AwaitingKeySet),
    Body(AwaitingBody),
    Message(AwaitingMessage),
    Rest(AwaitingRest),
    /// The answer comes under this number.
    Count(AwaitingCount, u32),
}

impl Awaiting {
    /// The place of this request in the worker's budget.
    fn hold(&self) -> &Hold {
        match self {
            Self::Policy(exchange) => exchange.hold(),
            Self::KeySet(exchange) => exchange.hold(),
            Self::Body(exchange) => exchange.hold(),
            Self::Message(exchange) => exchange.hold(),
            Self::Rest(exchange) => exchange.hold(),
            Self::Count(exchange, _) => exchange.hold(),
        }
    }

    /// As much of the body as is waited for, where one is awaited.
    fn max_body(&self) -> Option<usize> {
        match self {
            Self::Policy(_) | Self::KeySet(_) | Self::Count(..) => None,
            Self::Body(_) => Some(exchange::MAX_BODY_READ),
            Self::Message(_) => Some(exchange::MAX_MESSAGE_READ),
            // All, which is not read.
            Self::Rest(_) => Some(usize::MAX),
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
    /// Whether the request is none of this filter's.
    passes: Cell<bool>,
    /// How the response is to be cut, before it begins.
    lists: RefCell<Option<ListRequest>>,
    /// Whether this filter gave the response.
    is_answered: Cell<bool>,
    /// What the response tells of the limits.
    standing: Cell<Option<Box<Standing>>>,
    /// The web pages that may read the response, if a browser sent the request for a page.
    sharing: Cell<Option<Sharing>>,
}

impl Flow {
    fn head_action(&self) -> Action {
        if self.gate.get() == Gate::Closed { Action::Pause } else { Action::Continue }
    }

    /// Lets the current stream, whose it is, go on as far as it may now and could not before.
    fn resume(&self, before: Gate) {
        // Where a part of the body has come, the callback of the next part lets go of all: Envoy up to 1.38 loses that part
        // where it was let go of before. (A client that waits for an answer before it sends the rest waits longer.)
        let goes_with_the_next = self.gate.get() == Gate::Open && self.body_length.get() > 0 && !self.body_is_whole.get();
        if self.gate.get() != before && !goes_with_the_next {
            hostcalls::resume_request();
        }
    }

    fn body_action(&self) -> Action {
        if self.gate.get() == Gate::Open { Action::Continue } else { Action::Pause }
    }
}

pub(crate) struct Stream {
    id: u32,
    plugin: Rc<Plugin>,
    flow: Rc<Flow>,
    reply: Option<Replaced>,
}

/// A response whose body is not passed as it comes.
enum Replaced {
    /// It is cut.
    Lists(ListReply),
    /// This passes in its place, once.
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

impl Stream {
    pub(crate) fn new(id: u32, plugin: Rc<Plugin>) -> Self {
        plugin.serves_requests.set(true);
        Self { id, plugin, flow: Rc::default(), reply: None }
    }

    fn body_arrived(&self, length: usize, is_whole: bool) {
        if length > 0 && self.flow.gate.get() == Gate::Closed {
            self.plugin.has_seen_body.set(true);
        }
        self.flow.body_length.set(length);
        self.flow.body_is_whole.set(is_whole);
        self.plugin.read_body(self.id, length);
        self.plugin.answer_given_up(self.id);
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
            self.body_arrived(0, true);
        } else {
            self.plugin.answer_given_up(self.id);
        }
        self.flow.head_action()
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.body_arrived(size, end_of_stream);
        self.flow.body_action()
    }

    fn on_http_request_trailers(&mut self, num_trailers: usize) -> Action {
        // Here, and not where the request is decided: only now can they be edited.
        let are_edited = num_trailers > 0 && !self.flow.passes.get() && !self.flow.is_answered.get();
        if are_edited && !self.plugin.strip_trailers() {
            log::error!("the request's trailers could not be edited");
            self.flow.is_answered.set(true);
            hostcalls::send_local_reply(&Denial::from(Reason::PolicyUnavailable).reply(None));
            return Action::Pause;
        }
        self.body_arrived(self.flow.body_length.get(), true);
        self.flow.body_action()
    }

    fn on_http_response_headers(&mut self, _num_headers: usize, _end_of_stream: bool) -> Action {
        if let Some(standing) = self.flow.standing.take() {
            hostcalls::add_response_header(RATE_LIMIT_POLICY, &standing.policy());
            hostcalls::add_response_header(RATE_LIMIT, &standing.state());
        }
        if let Some(sharing) = self.flow.sharing.take() {
            // This also runs for Envoy's and the filter's own replies.
            for (name, value) in hostcalls::response_headers().iter().flat_map(|headers| sharing.changes(headers)) {
                match value {
                    Some(value) => hostcalls::set_response_header(name, &value),
                    None => hostcalls::remove_response_header(name),
                }
            }
        }
        let lists = self.flow.lists.take();
        let is_early = self.flow.gate.get() == Gate::Head && !self.flow.is_answered.get();
        if lists.is_none() && !is_early {
            return Action::Continue;
        }
        let [status, content_type, content_encoding] =
            [":status", "content-type", "content-encoding"].map(hostcalls::response_header);
        let status = std::str::from_utf8(&status).ok().and_then(|status| status.parse().ok()).unwrap_or_default();
        if lists.is_some()
            && let Some(value) = private_cache_control(&hostcalls::response_header(CACHE_CONTROL))
        {
            hostcalls::set_response_header(CACHE_CONTROL, &value);
        }
        let head = ResponseHead { status, content_type: &content_type, content_encoding: &content_encoding };
        self.reply = match lists {
            Some(lists) => self.plugin.cut(lists, head).map(Replaced::Lists),
            None => self.plugin.answered_early(self.id, status).map(Replaced::By),
        };
        if self.reply.is_some() {
            // What passes has another length, and is not compressed.
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
        let mut held = self.plugin.held.borrow_mut();
        // Most streams end while nothing is held, and then there is nothing to hash for.
        if !held.is_empty() {
            held.remove(&self.id);
        }
    }
}

impl Plugin {
    fn start(&self, flow: &Flow) -> Step {
        let mut gateway = self.gateway.borrow_mut();
        let (Some(gateway), Some(head)) = (gateway.as_mut(), hostcalls::request_head()) else {
            return headless();
        };
        flow.sharing.set(exchange::sharing(gateway, &head));
        let route = if gateway.config.gateway.route_metadata { route_settings() } else { Ok(RouteSettings::default()) };
        match route {
            Ok(route) => exchange::start(gateway, head, route, hostcalls::now(), &self.envoy),
            Err(RouteInvalid) => exchange::refuse_invalid_route(gateway, &head, &self.envoy),
        }
    }

    /// Does what `step` says to the current stream.
    fn apply(&self, step: Step, id: u32, flow: &Rc<Flow>) {
        match step {
            Step::Pass => {
                flow.passes.set(true);
                flow.sharing.take();
                flow.gate.set(Gate::Open);
            }
            Step::AwaitPolicy(exchange) => self.hold(id, flow, Awaiting::Policy(exchange)),
            Step::Await(exchange) => self.hold(id, flow, Awaiting::KeySet(exchange)),
            Step::ReadBody(exchange) => self.hold(id, flow, Awaiting::Body(exchange)),
            Step::ReplyAfterRest(exchange) => {
                if flow.body_is_whole.get() || self.host_holds_bodies() == Some(true) {
                    self.apply(exchange.proceed(), id, flow);
                } else {
                    self.hold(id, flow, Awaiting::Rest(exchange));
                }
            }
            Step::Reply(reply, record) => {
                self.note(&record);
                flow.is_answered.set(true);
                hostcalls::send_local_reply(&reply);
            }
            Step::Forward(forward, record) => {
                if self.edit(&forward.edits) {
                    self.note(&record);
                    flow.lists.replace(forward.lists);
                    flow.standing.set(forward.standing);
                    flow.gate.set(Gate::Open);
                }
            }
            Step::Count(edits, question, exchange) => {
                if self.edit(&edits) {
                    self.ask(&question, exchange, id, flow);
                }
            }
            Step::Inspect(edits, exchange) => {
                if self.edit(&edits) {
                    identify(exchange.principal());
                    if self.host_holds_bodies() == Some(true) && flow.body_length.get() == 0 {
                        flow.gate.set(Gate::Head);
                    }
                    self.hold(id, flow, Awaiting::Message(exchange));
                }
            }
        }
    }

    /// Whether Envoy holds the body of a request while its head is held. `None` if this is unknown. The operator may set it.
    /// Otherwise a body that arrives while its head is held shows that Envoy does not. The absence of a body proves nothing:
    /// a slow client looks the same.
    fn host_holds_bodies(&self) -> Option<bool> {
        let configured = self.gateway.borrow().as_ref().and_then(|gateway| gateway.config.gateway.host_holds_bodies);
        configured.or(self.has_seen_body.get().then_some(false))
    }

    /// Asks the rate limit service. From the root context: what a stream asks for is lost with it.
    fn ask(&self, question: &[u8], exchange: AwaitingCount, id: u32, flow: &Rc<Flow>) {
        let service = self.gateway.borrow().as_ref().and_then(|gateway| match &gateway.config.limits {
            LimitStore::RateLimitService(service) => Some((service.cluster.clone(), service.timeout)),
            LimitStore::Local => None,
        });
        hostcalls::enter(self.root_id.get());
        let asked = service.and_then(|(cluster, timeout)| {
            let token = hostcalls::call_grpc(&cluster, service::SERVICE, service::METHOD, question, timeout)?;
            Some((token, timeout))
        });
        hostcalls::enter(id);
        match asked {
            Some((token, timeout)) => {
                self.questions.borrow_mut().ask(token, id, Rc::clone(exchange.hold()), timeout);
                self.hold(id, flow, Awaiting::Count(exchange, token));
            }
            None => {
                let is_there = self.questions.borrow().is_service_there();
                let answer = if is_there { ServiceAnswer::Overflow } else { ServiceAnswer::None };
                self.go_on(exchange, answer, id, flow);
            }
        }
    }

    /// The rate limit service answered, or will not any more.
    pub(crate) fn counted(&self, token: u32, status: u32, size: usize) {
        let answer = (status == 0 && size <= service::MAX_ANSWER_LENGTH).then(|| hostcalls::grpc_response(size));
        let asked_for = self.questions.borrow_mut().end(token, answer.is_some());
        // A question may already count as ended when Envoy reports its timeout.
        let waits = |held: &Held| matches!(held.awaiting, Awaiting::Count(_, its) if its == token);
        let waiting = || self.held.borrow().iter().find_map(|(id, held)| waits(held).then_some(*id));
        let Some(id) = asked_for.or_else(waiting) else { return };
        let Some(Held { flow, awaiting: Awaiting::Count(exchange, _) }) = self.take_held(id, waits) else { return };
        if hostcalls::enter(id) {
            let before = flow.gate.get();
            self.go_on(exchange, answer.as_deref().map_or(ServiceAnswer::None, ServiceAnswer::Message), id, &flow);
            flow.resume(before);
        }
    }

    /// Removes the held stream with this id, if `is_wanted` is true for it.
    fn take_held(&self, id: u32, is_wanted: impl Fn(&Held) -> bool) -> Option<Held> {
        let mut held = self.held.borrow_mut();
        let is_there = held.get(&id).is_some_and(is_wanted);
        is_there.then(|| held.remove(&id)).flatten()
    }

    fn go_on(&self, exchange: AwaitingCount, answer: ServiceAnswer<'_>, id: u32, flow: &Rc<Flow>) {
        let gateway = self.gateway.borrow();
        let Some((step, outcome)) = gateway.as_ref().map(|gateway| exchange.proceed(answer, gateway, &self.envoy)) else {
            return;
        };
        drop(gateway);
        self.metrics.borrow_mut().counted(outcome);
        self.apply(step, id, flow);
    }

    fn hold(&self, id: u32, flow: &Rc<Flow>, awaiting: Awaiting) {
        // A body may have come while the request waited for something else. The question to the rate limit service counts it.
        if !matches!(awaiting, Awaiting::Count(..)) {
            awaiting.hold().set_body(flow.body_length.get());
        }
        self.held.borrow_mut().insert(id, Held { flow: Rc::clone(flow), awaiting });
    }

    /// Begins to cut a response. Without a gateway, no request was admitted.
    fn cut(&self, lists: ListRequest, head: ResponseHead<'_>) -> Option<ListReply> {
        let gateway = self.gateway.borrow();
        lists.begin(head, &gateway.as_ref()?.budget)
    }

    /// Edits the request's headers. Where the host did not, the request is answered, and the result is false.
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
            hostcalls::send_local_reply(&Denial::from(Reason::PolicyUnavailable).reply(None));
        }
        is_edited
    }

    /// Removes from the current stream's trailers what they must not assert; false where the host did not.
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

    /// Counts a decided request and hands what is known of it to access logs.
    fn note(&self, record: &Record) {
        self.metrics.borrow_mut().decided(record);
        hostcalls::set_filter_state("apexmcp_reason", record.reason());
        let Record::Resource { findings, .. } = record else { return };
        if let Some(principal) = &findings.principal {
            identify(principal);
        }
        if let Some(note) = &findings.note {
            log::info!("{note}");
        }
    }

    /// Something behind answers the current stream's request, of which it has the head alone.
    fn answered_early(&self, id: u32, status: u16) -> Option<Vec<u8>> {
        let held = self.held.borrow_mut().remove(&id)?;
        let gateway = self.gateway.borrow();
        let gateway_now = gateway.as_ref()?;
        let (reply, record) = match held.awaiting {
            Awaiting::Message(exchange) => exchange.answered_early(status, gateway_now, &self.envoy),
            Awaiting::Count(exchange, _) => exchange.answered_early(status, gateway_now, &self.envoy),
            Awaiting::Policy(_) | Awaiting::KeySet(_) | Awaiting::Body(_) | Awaiting::Rest(_) => return None,
        };
        drop(gateway);
        self.note(&record);
        let reply = reply?;
        hostcalls::set_response_header(":status", &reply.status.to_string());
        for (name, value) in &reply.headers {
            hostcalls::set_response_header(name, value);
        }
        Some(reply.body.into_bytes())
    }

    /// Goes on with the current stream if it is held for its body and enough of the body has come. `length` is the number of
    /// bytes that have come.
    fn read_body(&self, id: u32, length: usize) {
        let mut held = self.held.borrow_mut();
        let is_enough = |held: &Held| {
            let flow = &held.flow;
            if length > 0 && flow.gate.get() != Gate::Open {
                held.awaiting.hold().set_body(length);
            }
            held.awaiting.max_body().is_some_and(|max| flow.body_is_whole.get() || length >= max)
        };
        if !held.get(&id).is_some_and(is_enough) {
            return;
        }
        let Some(Held { flow, awaiting }) = held.remove(&id) else { return };
        drop(held);
        let mut gateway = self.gateway.borrow_mut();
        let Some(gateway_now) = gateway.as_mut() else { return };
        let step = match awaiting {
            Awaiting::Body(exchange) => match hostcalls::request_head() {
                Some(head) => {
                    let body = hostcalls::request_body(exchange::MAX_BODY_READ);
                    exchange.proceed(&head, &body, gateway_now, hostcalls::now(), &self.envoy)
                }
                None => headless(),
            },
            Awaiting::Message(exchange) => {
                let body = hostcalls::request_body(exchange::MAX_MESSAGE_READ);
                exchange.proceed(&body, gateway_now, hostcalls::now(), &self.envoy)
            }
            Awaiting::Rest(exchange) => exchange.proceed(),
            Awaiting::Policy(_) | Awaiting::KeySet(_) | Awaiting::Count(..) => return,
        };
        drop(gateway);
        self.apply(step, id, &flow);
    }

    /// Releases heads whose bodies do not arrive, while it is unknown whether Envoy holds bodies too. Each head is released
    /// for itself: a slow client must not change how the requests of others are held.
    fn release_heads(&self) {
        if self.host_holds_bodies().is_some() {
            return;
        }
        let held = self.held.borrow();
        let waits = |held: &Held| {
            let flow = &held.flow;
            matches!(held.awaiting, Awaiting::Message(_)) && flow.gate.get() == Gate::Closed && flow.body_length.get() == 0
        };
        let waiting: Vec<(u32, Rc<Flow>)> =
            held.iter().filter(|(_, held)| waits(held)).map(|(id, held)| (*id, Rc::clone(&held.flow))).collect();
        drop(held);
        for (id, flow) in waiting {
            if hostcalls::enter(id) {
                flow.gate.set(Gate::Head);
                hostcalls::resume_request();
            }
        }
    }

    /// Decides the held streams for which something happened. Leaves one of them the current context.
    pub(crate) fn wake(&self, now: UnixTime) {
        self.questions.borrow_mut().look(now);
        self.release_heads();
        self.decide(self.take_ready(now), now);
    }

    /// Answers the requests that were given up to make room for the request of stream `current`. The next tick would be too
    /// late: if heads arrive faster than ticks answer, the budget would have no room for a prompt client.
    fn answer_given_up(&self, current: u32) {
        let has_given_up = self.gateway.borrow().as_ref().is_some_and(|gateway| gateway.budget.has_given_up());
        if has_given_up {
            self.decide(self.take_given_up(MAX_GIVEN_UP_ANSWERED), hostcalls::now());
            hostcalls::enter(current);
        }
    }

    /// Decides held requests. Afterwards one of their streams is the current context.
    fn decide(&self, ready: Vec<(u32, Held)>, now: UnixTime) {
        for (id, Held { flow, awaiting }) in ready {
            if !hostcalls::enter(id) {
                continue;
            }
            let before = flow.gate.get();
            let is_given_up = awaiting.hold().is_given_up();
            let may_hold_bodies = self.host_holds_bodies() != Some(false);
            let step = match (awaiting, self.gateway.borrow_mut().as_mut()) {
                (Awaiting::Policy(exchange), Some(gateway)) => {
                    hostcalls::request_head().map_or_else(headless, |head| exchange.proceed(head, gateway, now, &self.envoy))
                }
                (Awaiting::KeySet(exchange), Some(gateway)) => {
                    hostcalls::request_head().map_or_else(headless, |head| exchange.proceed(head, gateway, now, &self.envoy))
                }
                (Awaiting::Body(exchange), _) => {
                    if may_hold_bodies && !is_given_up {
                        log::warn!(
                            "a body did not arrive in time; the filter needs allow_on_headers_stop_iteration to read bodies"
                        );
                    }
                    exchange.give_up()
                }
                (Awaiting::Rest(exchange), _) => exchange.proceed(),
                (Awaiting::Message(exchange), Some(gateway)) => exchange.give_up(gateway, &self.envoy),
                (Awaiting::Count(exchange, _), Some(gateway)) => {
                    let answer = if is_given_up { ServiceAnswer::Overflow } else { ServiceAnswer::None };
                    let (step, outcome) = exchange.proceed(answer, gateway, &self.envoy);
                    self.metrics.borrow_mut().counted(outcome);
                    step
                }
                (Awaiting::Policy(_) | Awaiting::KeySet(_) | Awaiting::Message(_) | Awaiting::Count(..), None) => continue,
            };
            self.apply(step, id, &flow);
            self.read_body(id, flow.body_length.get());
            flow.resume(before);
        }
    }

    fn take_given_up(&self, most: usize) -> Vec<(u32, Held)> {
        self.held.borrow_mut().extract_if(|_, held| held.awaiting.hold().is_given_up()).take(most).collect()
    }

    fn take_ready(&self, now: UnixTime) -> Vec<(u32, Held)> {
        let gateway = self.gateway.borrow();
        let Some(gateway) = gateway.as_ref() else { return Vec::new() };
        let is_ready = |held: &mut Held| match &mut held.awaiting {
            Awaiting::Policy(exchange) => exchange.is_ready(gateway, now),
            Awaiting::KeySet(exchange) => exchange.is_ready(gateway, now),
            Awaiting::Body(exchange) => exchange.is_overdue(now),
            Awaiting::Rest(exchange) => exchange.is_overdue(now),
            // Envoy may not tell of its end: the module may have been in another stream's callback when it asked.
            Awaiting::Count(_, token) => !self.questions.borrow().is_open(*token),
            // Only those that were given up are decided here.
            Awaiting::Message(_) => false,
        };
        // If several local replies are sent in one callback, Envoy nests their callbacks. Some hundreds exceed V8's stack.
        let mut ready = self.take_given_up(MAX_WOKEN);
        let room = MAX_WOKEN.saturating_sub(ready.len());
        ready.extend(self.held.borrow_mut().extract_if(|_, held| is_ready(held)).take(room));
        ready
    }
}

/// The refusal of a request whose head cannot be read, or that arrived without a configuration.
fn headless() -> Step {
    let refused = Reason::PolicyUnavailable;
    let record = Record::Resource { refused: Some(refused), findings: Findings::default() };
    Step::Reply(Denial::from(refused).reply(None), record)
}

/// Hands who the current stream's request is from to access logs and to the filters behind.
fn identify(principal: &Principal) {
    for (name, value) in FILTER_STATE.iter().zip(principal.attributes()) {
        hostcalls::set_filter_state(name, value);
    }
}

/// What the current stream's route says of itself.
fn route_settings() -> Result<RouteSettings, RouteInvalid> {
    match hostcalls::route_metadata(METADATA_NAMESPACE) {
        Ok(None) => Ok(RouteSettings::default()),
        Ok(Some(map)) => RouteSettings::from_members(SerializedMap::parse(map).ok_or(RouteInvalid)?.iter()),
        Err(_) => Err(RouteInvalid),
    }
}

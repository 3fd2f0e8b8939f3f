//! What the streams of one thread share, and how the steps of the core are carried out.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use apexmcp_core::config::Config;
use apexmcp_core::denial::{Denial, LocalReply};
use apexmcp_core::exchange::{
    self, ACCEPT_ENCODING, BodyProgress, Context, Edits, Event, Flow, Held, HeldRequests, Passage, Pending, Record,
    RequestReader, Step,
};
use apexmcp_core::gateway::{Findings, Gateway};
use apexmcp_core::mcp::reply::{CACHE_CONTROL, ListReply, ListRequest, ResponseHead, private_cache_control};
use apexmcp_core::policy::service::SettingsToken;
use apexmcp_core::principal::Principal;
use apexmcp_core::reason::Reason;
use apexmcp_core::request::{CONNECTION, RequestHead};
use apexmcp_core::serialized_map::SerializedMap;
use apexmcp_core::time::UnixTime;
use apexmcp_core::usage::counts::Counts;

use crate::envoy::Envoy;
use crate::metrics::{self, Metric};

/// What the streams of one thread share. Borrows end before a hostcall that may call back.
pub struct Plugin<E: Envoy> {
    /// `None` until a configuration was accepted.
    pub(crate) gateway: RefCell<Option<Gateway>>,
    pub envoy: E,
    held: RefCell<HeldRequests>,
    /// Whether this thread has served a request.
    pub(crate) serves_requests: Cell<bool>,
    /// What this thread counted since the last report. With the native module, the main thread reports for all.
    pub usage: Arc<Mutex<Counts>>,
    /// The time of the last request. Counts need only the minute, and reading the clock is a hostcall.
    pub(crate) counted_at: Cell<UnixTime>,
}

/// The request of the current stream, as the core reads it.
struct CurrentRequest<'e, E> {
    envoy: &'e E,
    /// The time of the callback, if it read the clock already. Each reading is a hostcall.
    now: Option<UnixTime>,
}

impl<E: Envoy> RequestReader for CurrentRequest<'_, E> {
    fn head(&self) -> Option<RequestHead> {
        self.envoy.request_head()
    }

    fn body(&self, max: usize) -> Vec<u8> {
        self.envoy.request_body(max)
    }

    fn now(&self) -> UnixTime {
        self.now.unwrap_or_else(|| self.envoy.now())
    }
}

impl<E: Envoy> Plugin<E> {
    /// A plugin without a configuration.
    pub fn new(envoy: E) -> Self {
        Self {
            gateway: RefCell::default(),
            envoy,
            held: RefCell::default(),
            serves_requests: Cell::default(),
            usage: Arc::default(),
            counted_at: Cell::default(),
        }
    }

    /// Puts a configuration into force. If it has problems, logs them, and returns false: the earlier one stays.
    pub fn configure(&self, configuration: &[u8]) -> bool {
        match Config::parse(configuration, &|name| std::env::var(name).ok()) {
            Ok((mut config, policy)) => {
                if let Some(SettingsToken::Sds(secret)) = config.remote.as_ref().and_then(|remote| remote.token.as_ref())
                    && let Err(problem) = self.envoy.follow_secret(secret)
                {
                    log::error!("invalid configuration: policy.remote.token_sds: {problem}");
                    return false;
                }
                config.gateway.host_holds_bodies = E::HOLDS_BODIES.or(config.gateway.host_holds_bodies);
                match &config.remote {
                    None => self.note_version(&policy.version),
                    Some(remote) => log::info!("the policy comes from cluster {:?}", remote.cluster),
                }
                for warning in &config.warnings {
                    log::warn!("{warning}");
                }
                self.gateway.replace(Some(Gateway::new(config, policy)));
                true
            }
            Err(problems) => {
                for problem in problems {
                    log::error!("invalid configuration: {problem}");
                }
                false
            }
        }
    }

    pub(crate) fn start(&self, flow: &Flow) -> Step {
        let mut gateway = self.gateway.borrow_mut();
        let (Some(gateway), Some(head)) = (gateway.as_mut(), self.envoy.request_head()) else {
            return exchange::unreadable();
        };
        flow.share(exchange::sharing(gateway, &head));
        let now = self.envoy.now();
        self.counted_at.set(now);
        exchange::begin(gateway, head, || self.envoy.route_settings(), now, &self.envoy)
    }

    /// Carries out `step` for the current stream.
    #[inline(never)] // Six callbacks use it, and the module must stay small.
    pub(crate) fn apply(&self, step: Step, id: u32, flow: &Rc<Flow>) {
        match step {
            Step::Pass => flow.pass(),
            Step::Reply(reply, record) => {
                self.note(&record);
                self.answer(flow, reply);
            }
            Step::Forward(forward, record) => {
                if self.edit(&forward.edits, flow) {
                    self.note(&record);
                    flow.forward(forward.lists, forward.standing);
                }
            }
            Step::Wait(pending) => self.hold(pending, id, flow),
            Step::EditAndWait(edits, pending) => {
                if self.edit(&edits, flow) {
                    if let Some(principal) = &edits.principal {
                        self.identify(principal);
                    }
                    self.hold(pending, id, flow);
                }
            }
            Step::Ask(edits, question, pending) => {
                if self.edit(&edits, flow) {
                    let event = Event::Asked { stream: id, call: self.envoy.ask(&question, id) };
                    self.handle(pending, event, None, id, flow);
                }
            }
            Step::EarlyResponse(_, record) => self.note(&record),
        }
    }

    /// Sends a reply to the current stream.
    pub(crate) fn answer(&self, flow: &Flow, mut reply: LocalReply) {
        flow.answer();
        if !E::SEES_OWN_REPLIES
            && let Some(sharing) = flow.take_sharing()
            && let Some(headers) = SerializedMap::of(&reply.headers)
        {
            for (changed, value) in sharing.changes(&headers) {
                reply.headers.retain(|(name, _)| *name != changed);
                reply.headers.extend(value.map(|value| (changed, value)));
            }
        }
        self.envoy.send_local_reply(&reply);
    }

    /// Lets `pending` handle an event, and carries out the step.
    #[inline(never)]
    fn handle(&self, pending: Pending, event: Event<'_>, now: Option<UnixTime>, id: u32, flow: &Rc<Flow>) {
        if let Some(step) = self.decide(pending, event, now) {
            self.apply(step, id, flow);
        }
    }

    /// Lets `pending` handle an event. Without a gateway, no request is held.
    #[inline(never)]
    fn decide(&self, pending: Pending, event: Event<'_>, now: Option<UnixTime>) -> Option<Step> {
        let request = CurrentRequest { envoy: &self.envoy, now };
        let mut gateway = self.gateway.borrow_mut();
        let mut context = Context::new(gateway.as_mut()?, &self.envoy, &request);
        let step = pending.handle(event, &mut context);
        if let Some(outcome) = context.service_outcome {
            self.envoy.count(Metric::RateLimitService(outcome));
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
            self.handle(pending, event, None, id, flow);
        }
    }

    /// The stream of any held request.
    pub fn any_held(&self) -> Option<u32> {
        self.held.borrow().any()
    }

    /// Drops the request of a stream that ended.
    pub fn forget(&self, id: u32) {
        self.held.borrow_mut().remove(id);
    }

    /// The call to the rate limit service ended. `message` reads the answer with the given length, if the call brought one.
    pub fn answered(&self, call: u32, grpc_status: u32, size: usize, message: impl FnOnce(usize) -> Vec<u8>) {
        let message = exchange::is_readable(grpc_status, size).then(|| message(size));
        let taken = match self.gateway.borrow_mut().as_mut() {
            Some(gateway) => self.held.borrow_mut().take_answered(call, message.is_some(), gateway),
            None => None,
        };
        let Some((id, Held { flow, pending })) = taken else { return };
        if self.envoy.enter(id) {
            let before = flow.passage();
            let event = Event::Answered { call, message: message.as_deref() };
            self.handle(pending, event, None, id, &flow);
            self.resume(&flow, before);
        }
    }

    /// Begins to cut a response. Without a gateway, no request was admitted.
    pub(crate) fn cut(&self, lists: ListRequest) -> Option<ListReply> {
        let status = self.response_status();
        let [content_type, content_encoding] = ["content-type", "content-encoding"].map(|name| self.envoy.response_header(name));
        if let Some(value) = private_cache_control(&self.envoy.response_header(CACHE_CONTROL)) {
            self.envoy.set_response_header(CACHE_CONTROL, &value);
        }
        let head = ResponseHead { status, content_type: &content_type, content_encoding: &content_encoding };
        let gateway = self.gateway.borrow();
        lists.begin(head, &gateway.as_ref()?.budget)
    }

    /// Edits the request's headers. If Envoy did not edit them, the request is answered, and the result is false.
    fn edit(&self, edits: &Edits, flow: &Flow) -> bool {
        let envoy = &self.envoy;
        let is_edited = self.gateway.borrow().as_ref().is_some_and(|gateway| {
            let removed = edits.remove.iter().all(|name| envoy.remove_request_header(name));
            let plain = !edits.accept_identity || envoy.add_request_header(ACCEPT_ENCODING, "identity");
            let upgraded = !edits.is_upgrade_only || envoy.add_request_header(CONNECTION, "upgrade");
            let added = edits.principal.iter().all(|principal| {
                let mut headers = gateway.config.forward.headers.iter();
                headers.all(|(attribute, name)| envoy.add_request_header(name, principal.attribute(*attribute)))
            });
            removed && plain && upgraded && added
        });
        if !is_edited {
            log::error!("the request's headers could not be edited");
            self.answer(flow, exchange::not_edited());
        }
        is_edited
    }

    /// Removes forged names from the current stream's trailers. The result is false if Envoy did not remove them.
    pub(crate) fn strip_trailers(&self) -> bool {
        self.gateway.borrow().as_ref().zip(self.envoy.request_trailers()).is_some_and(|(gateway, trailers)| {
            let mut forged = trailers.forged(&gateway.config.forward.header_prefix);
            forged.all(|name| self.envoy.remove_request_trailer(name))
        })
    }

    /// Tells log and metrics which policy is in force in this thread.
    pub(crate) fn note_version(&self, version: &str) {
        log::info!("policy version {version:?} is in force");
        metrics::policy_in_force(version, &self.envoy);
    }

    /// Counts a decided request, and gives access logs the reason and the principal.
    fn note(&self, record: &Record) {
        metrics::decided(record, &self.envoy);
        self.envoy.set_filter_state("wasm.apexmcp_reason", record.reason());
        let Record::Resource { refused, findings } = record else { return };
        if let Some(details) = refused.as_ref().and_then(Denial::details) {
            log::debug!("refused a request with {}: {details}", record.reason());
        }
        if let Some(principal) = findings.principal.as_ref().filter(|_| !findings.is_identified) {
            self.identify(principal);
        }
        self.count(refused.as_ref().map(Denial::reason), findings);
        if let (Some(call), Some(gateway)) = (&findings.call, self.gateway.borrow().as_ref()) {
            let parts = gateway.config.forward.call.iter().map(|part| (part.filter_state(), call.part(*part)));
            parts.filter(|(_, text)| !text.is_empty()).for_each(|(name, text)| self.envoy.set_filter_state(name, text));
        }
        if let Some(note) = &findings.note {
            log::info!("{note}");
        }
    }

    /// Counts a decided request for the reports of usage.
    fn count(&self, refused: Option<Reason>, findings: &Findings) {
        let gateway = self.gateway.borrow();
        let Some(gateway) = gateway.as_ref().filter(|gateway| gateway.reports_usage()) else { return };
        let (mut counts, now) = (self.counts(), self.counted_at.get());
        match (&findings.principal, refused, &findings.org) {
            (Some(principal), refused, _) => counts.of_principal(principal, refused, now),
            (None, Some(reason), Some(org)) if gateway.policy.org(org, &self.envoy).is_some() => counts.of_org(org, reason, now),
            _ => {}
        }
    }

    /// What this thread counted. A panic of another thread leaves it usable.
    pub(crate) fn counts(&self) -> MutexGuard<'_, Counts> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells access logs and the filters behind this one the principal of the current stream's request.
    fn identify(&self, principal: &Principal) {
        if let Some(gateway) = self.gateway.borrow().as_ref() {
            self.envoy.identify(principal, &gateway.config.forward.filter_state);
        }
    }

    /// The response began before the current stream's request was decided. Returns the body that replaces its body.
    pub(crate) fn answered_early(&self, id: u32) -> Option<Vec<u8>> {
        let event = Event::AnsweredEarly { status: self.response_status() };
        let held = match self.gateway.borrow().as_ref() {
            Some(gateway) => self.held.borrow_mut().take(id, &event, gateway)?,
            None => return None,
        };
        let Some(Step::EarlyResponse(reply, record)) = self.decide(held.pending, event, None) else {
            return None;
        };
        self.note(&record);
        let reply = reply?;
        self.envoy.set_response_header(":status", &reply.status.to_string());
        for (name, value) in &reply.headers {
            self.envoy.set_response_header(name, value);
        }
        Some(reply.body.into_bytes())
    }

    /// Goes on with the current stream if the part of the body that has arrived ends its wait.
    pub(crate) fn read_body(&self, id: u32, body: BodyProgress) {
        let held = match self.gateway.borrow().as_ref() {
            Some(gateway) => self.held.borrow_mut().body_arrived(id, body, gateway),
            None => None,
        };
        if let Some(Held { flow, pending }) = held {
            self.handle(pending, Event::BodyArrived(body), None, id, &flow);
        }
    }

    /// Decides the held requests that are ready at `now`. Leaves one of their streams the current one.
    pub fn wake(&self, now: UnixTime) {
        let released = match self.gateway.borrow_mut().as_mut() {
            Some(gateway) => {
                gateway.questions.look(now);
                self.held.borrow().heads_to_release(&gateway.bodies)
            }
            None => return,
        };
        for (id, flow) in released {
            if self.envoy.enter(id) {
                flow.release_head();
                self.envoy.resume_request();
            }
        }
        // A response that begins as soon as its head is released has ended the wait of its request.
        let ready = match self.gateway.borrow().as_ref() {
            Some(gateway) => self.held.borrow_mut().take_ready(now, gateway),
            None => return,
        };
        self.decide_all(ready, now);
    }

    /// Answers requests that were given up to make room for others. Call it before the first callback of a new stream: the
    /// result of a callback in which a request of another stream is answered counts for nothing, because Envoy's wasm host
    /// then always stops the stream of the callback. Leaves the current stream undefined.
    pub fn answer_given_up(&self) {
        let given_up = match self.gateway.borrow().as_ref() {
            Some(gateway) => self.held.borrow_mut().take_given_up(gateway),
            None => return,
        };
        if !given_up.is_empty() {
            self.decide_all(given_up, self.envoy.now());
        }
    }

    /// Decides requests that were held. Afterwards one of their streams is the current one.
    fn decide_all(&self, ready: Vec<(u32, Held)>, now: UnixTime) {
        for (id, Held { flow, pending }) in ready {
            if self.envoy.enter(id) {
                let before = flow.passage();
                self.handle(pending, Event::Tick { now }, Some(now), id, &flow);
                // The request may wait for a body that arrived already.
                self.read_body(id, flow.body());
                self.resume(&flow, before);
            }
        }
    }

    /// Lets the current stream go on as far as it may now and could not `before`.
    fn resume(&self, flow: &Flow, before: Passage) {
        if flow.must_resume(before) {
            self.envoy.resume_request();
        }
    }

    /// The status of the current stream's response. Zero if there is none.
    fn response_status(&self) -> u16 {
        let status = self.envoy.response_header(":status");
        std::str::from_utf8(&status).ok().and_then(|status| status.parse().ok()).unwrap_or_default()
    }
}

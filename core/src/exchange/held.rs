//! The requests that a worker holds, and which of them an event concerns.

use std::rc::Rc;

use rustc_hash::FxHashMap;

use super::gate::{Flow, Passage};
use super::pending::{BodyProgress, Event, Pending};
use crate::body_holding::BodyHolding;
use crate::gateway::Gateway;
use crate::time::UnixTime;

/// Maximum number of held requests that are decided in one callback. Each one may verify signatures, and new requests wait
/// meanwhile. Envoy nests the callbacks of their local replies, and some hundreds of them exceed V8's stack.
const MAX_WOKEN: usize = 64;

/// Maximum number of given-up requests that are answered when another request begins.
const MAX_GIVEN_UP_ANSWERED: usize = 8;

/// A stream with a held request.
#[derive(Debug)]
pub struct Held {
    /// The stream.
    pub flow: Rc<Flow>,
    /// What the request waits for.
    pub pending: Pending,
}

/// The requests that a worker holds, by the id of their stream.
#[derive(Debug, Default)]
pub struct HeldRequests(FxHashMap<u32, Held>);

impl HeldRequests {
    /// Holds a request. If the request need not wait, it is returned with the event that ended its wait.
    pub fn insert(
        &mut self,
        stream: u32,
        flow: &Rc<Flow>,
        mut pending: Pending,
        gateway: &Gateway,
    ) -> Option<(Pending, Event<'static>)> {
        let event = Event::Held { body: flow.body(), host_holds_bodies: gateway.bodies.known() };
        if pending.is_ended_by(&event, gateway) {
            return Some((pending, event));
        }
        if pending.lets_head_go() {
            flow.begin_message(&gateway.bodies);
        }
        // A part of the body may have arrived while the request waited for something else.
        if pending.charges_earlier_body() {
            pending.hold().set_body(flow.body().length);
        }
        self.0.insert(stream, Held { flow: Rc::clone(flow), pending });
        None
    }

    /// The stream of any held request.
    pub fn any(&self) -> Option<u32> {
        self.0.keys().next().copied()
    }

    /// Drops the request of a stream that ended.
    pub fn remove(&mut self, stream: u32) {
        // When most streams end, no request is held. Then the map need not compute a hash.
        if !self.0.is_empty() {
            self.0.remove(&stream);
        }
    }

    /// Charges the part of the body that has arrived. Returns the request if this part ends its wait.
    pub fn body_arrived(&mut self, stream: u32, body: BodyProgress, gateway: &Gateway) -> Option<Held> {
        let held = self.0.get(&stream)?;
        if body.length > 0 && held.flow.passage() != Passage::Open {
            held.pending.hold().set_body(body.length);
        }
        self.take(stream, &Event::BodyArrived(body), gateway)
    }

    /// The request of this stream, if `event` ends its wait.
    pub fn take(&mut self, stream: u32, event: &Event<'_>, gateway: &Gateway) -> Option<Held> {
        let is_ended = self.0.get_mut(&stream)?.pending.is_ended_by(event, gateway);
        is_ended.then(|| self.0.remove(&stream)).flatten()
    }

    /// The stream and the request for which the call `call` to the rate limit service was made, when the call ends.
    pub fn take_answered(&mut self, call: u32, is_answered: bool, gateway: &mut Gateway) -> Option<(u32, Held)> {
        let event = Event::Answered { call, message: None };
        let asked_for = gateway.questions.end(call, is_answered);
        // If its timeout is over, a question counts as ended before Envoy reports it.
        let mut waiting = || self.0.iter_mut().find_map(|(id, held)| held.pending.is_ended_by(&event, gateway).then_some(*id));
        let stream = asked_for.or_else(&mut waiting)?;
        Some((stream, self.take(stream, &event, gateway)?))
    }

    /// The requests whose wait ended by `now`, those that were given up first.
    pub fn take_ready(&mut self, now: UnixTime, gateway: &Gateway) -> Vec<(u32, Held)> {
        let mut ready = self.take_ended(MAX_WOKEN, &Event::GivenUp, gateway);
        let room = MAX_WOKEN.saturating_sub(ready.len());
        ready.append(&mut self.take_ended(room, &Event::Tick { now }, gateway));
        ready
    }

    /// Requests that were given up to make room for others, to be answered when a request begins. The next tick would be too
    /// late: if heads arrive faster than ticks answer, the budget would have no room for a prompt client.
    pub fn take_given_up(&mut self, gateway: &Gateway) -> Vec<(u32, Held)> {
        if !gateway.budget.has_given_up() {
            return Vec::new();
        }
        self.take_ended(MAX_GIVEN_UP_ANSWERED, &Event::GivenUp, gateway)
    }

    fn take_ended(&mut self, max: usize, event: &Event<'_>, gateway: &Gateway) -> Vec<(u32, Held)> {
        self.0.extract_if(|_, held| held.pending.is_ended_by(event, gateway)).take(max).collect()
    }

    /// The requests whose heads go on without their bodies, while it is unknown whether Envoy holds bodies. Each head is
    /// released for itself: a slow client must not change how the requests of others are held.
    pub fn heads_to_release(&self, bodies: &BodyHolding) -> Vec<(u32, Rc<Flow>)> {
        if bodies.known().is_some() {
            return Vec::new();
        }
        let waits = |held: &Held| held.pending.lets_head_go() && held.flow.is_without_body();
        self.0.iter().filter(|(_, held)| waits(held)).map(|(id, held)| (*id, Rc::clone(&held.flow))).collect()
    }
}

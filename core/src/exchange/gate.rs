//! How far a request may go on in Envoy, and what happens to its response.
//!
//! Envoy's callbacks may come while a request is held. With `allow_on_headers_stop_iteration`, a part of the body that is
//! let through takes the held head along. A head that is let through takes along the part of the body that has arrived.

use std::cell::{Cell, RefCell};

use super::pending::BodyProgress;
use crate::body_holding::BodyHolding;
use crate::limits::standing::Standing;
use crate::mcp::reply::ListRequest;
use crate::origin::Sharing;

/// The part of a request that may go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passage {
    /// Nothing.
    #[default]
    Closed,
    /// The head. The body waits to be read.
    Head,
    /// The whole request.
    Open,
}

/// One stream, as far as its callbacks and those of the root context share it.
///
/// The fields are cells, because a callback of a stream may come within a hostcall of another callback.
#[derive(Debug, Default)]
pub struct Flow {
    passage: Cell<Passage>,
    body: Cell<BodyProgress>,
    /// Whether the request is not for this filter.
    is_foreign: Cell<bool>,
    /// Whether this filter sent the response.
    is_answered: Cell<bool>,
    /// How the response is cut, until the response begins.
    lists: RefCell<Option<ListRequest>>,
    /// The limits that the response states.
    standing: RefCell<Option<Box<Standing>>>,
    /// The web pages that may read the response, if a browser sent the request for a page.
    sharing: RefCell<Option<Sharing>>,
}

impl Flow {
    /// Sets the web pages that may read the response.
    pub fn share(&self, sharing: Option<Sharing>) {
        self.sharing.replace(sharing);
    }

    /// Lets the request pass unchanged.
    pub fn pass(&self) {
        self.is_foreign.set(true);
        self.sharing.take();
        self.passage.set(Passage::Open);
    }

    /// Lets the request pass to a connector.
    pub fn forward(&self, lists: Option<ListRequest>, standing: Option<Box<Standing>>) {
        self.lists.replace(lists);
        self.standing.replace(standing);
        self.passage.set(Passage::Open);
    }

    /// The filter sends the response.
    pub fn answer(&self) {
        self.is_answered.set(true);
    }

    /// The part of the request that may go on.
    pub fn passage(&self) -> Passage {
        self.passage.get()
    }

    /// The part of the body that has arrived, and is paused.
    pub fn body(&self) -> BodyProgress {
        self.body.get()
    }

    /// A part of the body arrived. It may show that Envoy does not hold bodies.
    pub fn body_arrived(&self, body: BodyProgress, bodies: Option<&BodyHolding>) {
        if let Some(bodies) = bodies.filter(|_| body.length > 0 && self.passage.get() == Passage::Closed) {
            bodies.body_arrived_before_head_went_on();
        }
        self.body.set(body);
    }

    /// The request ends after the part of the body that has arrived.
    pub fn ended(&self) -> BodyProgress {
        BodyProgress { is_whole: true, ..self.body.get() }
    }

    /// The request's head may go on before its message is judged. If Envoy is known to hold bodies, the head goes on at once.
    pub(super) fn begin_message(&self, bodies: &BodyHolding) {
        if bodies.known() == Some(true) && self.body.get().length == 0 {
            self.passage.set(Passage::Head);
        }
    }

    /// Whether the head waits, and no part of the body has arrived.
    pub(super) fn is_without_body(&self) -> bool {
        self.passage.get() == Passage::Closed && self.body.get().length == 0
    }

    /// Lets the head go on without the body.
    pub fn release_head(&self) {
        self.passage.set(Passage::Head);
    }

    /// Whether the callback for the head lets it go on.
    pub fn lets_head_pass(&self) -> bool {
        self.passage.get() != Passage::Closed
    }

    /// Whether the callbacks for the body and the trailers let them go on.
    pub fn lets_body_pass(&self) -> bool {
        self.passage.get() == Passage::Open
    }

    /// Whether the shell must resume the stream outside its own callback, where `before` was the passage before a decision.
    ///
    /// If a part of the body has arrived and more is to come, the callback of the next part lets everything go on: Envoy up to
    /// 1.38 loses the arrived part if the stream is resumed before. A client that waits for an answer before it sends the rest
    /// waits longer.
    pub fn must_resume(&self, before: Passage) -> bool {
        let body = self.body.get();
        let goes_with_next_part = self.lets_body_pass() && body.length > 0 && !body.is_whole;
        self.passage.get() != before && !goes_with_next_part
    }

    /// Whether the trailers of the request must be edited. They can be edited only in their own callback.
    pub fn edits_trailers(&self, count: usize) -> bool {
        count > 0 && !self.is_foreign.get() && !self.is_answered.get()
    }

    /// The limits that the response states. `None` after the first call.
    pub fn take_standing(&self) -> Option<Box<Standing>> {
        self.standing.take()
    }

    /// The web pages that may read the response. `None` after the first call.
    pub fn take_sharing(&self) -> Option<Sharing> {
        self.sharing.take()
    }

    /// What to do with the body of the response.
    pub fn begin_response(&self) -> Response {
        match self.lists.take() {
            Some(lists) => Response::Lists(lists),
            None if self.passage.get() == Passage::Head && !self.is_answered.get() => Response::Early,
            None => Response::Passes,
        }
    }
}

/// What to do with the body of a response.
#[derive(Debug)]
pub enum Response {
    /// It passes.
    Passes,
    /// The lists in it are cut.
    Lists(ListRequest),
    /// It began before the request was decided: see [`super::Event::AnsweredEarly`].
    Early,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::OrgName;

    fn body(length: usize, is_whole: bool) -> BodyProgress {
        BodyProgress { length, is_whole }
    }

    #[test]
    fn only_a_body_that_arrives_before_its_head_goes_on_shows_that_envoy_does_not_hold_bodies() {
        let bodies = BodyHolding::new(None);
        let flow = Flow::default();
        flow.body_arrived(body(0, true), Some(&bodies));
        assert_eq!(bodies.known(), None, "a request without a body shows nothing");
        flow.release_head();
        flow.body_arrived(body(1, false), Some(&bodies));
        assert_eq!(bodies.known(), None, "Envoy sends the body after its head");
        Flow::default().body_arrived(body(1, false), Some(&bodies));
        assert_eq!(bodies.known(), Some(false));
    }

    #[test]
    fn each_passage_lets_its_part_of_the_request_pass() {
        let flow = Flow::default();
        assert_eq!((flow.lets_head_pass(), flow.lets_body_pass()), (false, false));
        flow.release_head();
        assert_eq!((flow.lets_head_pass(), flow.lets_body_pass()), (true, false));
        flow.forward(None, None);
        assert_eq!((flow.lets_head_pass(), flow.lets_body_pass()), (true, true));
    }

    #[test]
    fn a_message_lets_its_head_go_at_once_only_if_envoy_holds_bodies_and_none_arrived() {
        for (configured, length, expected) in [
            (Some(true), 0, Passage::Head),
            (Some(true), 1, Passage::Closed),
            (Some(false), 0, Passage::Closed),
            (None, 0, Passage::Closed),
        ] {
            let (flow, bodies) = (Flow::default(), BodyHolding::new(configured));
            flow.body_arrived(body(length, false), Some(&bodies));
            flow.begin_message(&bodies);
            assert_eq!(flow.passage(), expected, "{configured:?} {length}");
        }
    }

    #[test]
    fn a_stream_is_resumed_if_it_may_go_farther_and_no_next_part_does_it() {
        for (before, after, arrived, expected) in [
            (Passage::Closed, Passage::Closed, body(0, false), false),
            (Passage::Closed, Passage::Head, body(0, false), true),
            (Passage::Closed, Passage::Head, body(1, false), true),
            (Passage::Closed, Passage::Open, body(0, false), true),
            (Passage::Closed, Passage::Open, body(1, false), false),
            (Passage::Closed, Passage::Open, body(1, true), true),
            (Passage::Head, Passage::Head, body(1, true), false),
            (Passage::Head, Passage::Open, body(1, true), true),
            (Passage::Head, Passage::Open, body(1, false), false),
            (Passage::Open, Passage::Open, body(1, true), false),
        ] {
            let flow = Flow::default();
            flow.body_arrived(arrived, None);
            flow.passage.set(after);
            assert_eq!(flow.must_resume(before), expected, "{before:?} {after:?} {arrived:?}");
        }
    }

    #[test]
    fn trailers_of_foreign_and_answered_requests_stay() {
        let flow = Flow::default();
        assert!(flow.edits_trailers(1) && !flow.edits_trailers(0));
        flow.forward(None, None);
        assert!(flow.edits_trailers(1));
        flow.answer();
        assert!(!flow.edits_trailers(1));
        let foreign = Flow::default();
        foreign.share(Some(Sharing::Public));
        foreign.pass();
        assert!(!foreign.edits_trailers(1) && foreign.lets_body_pass());
        assert_eq!(foreign.take_sharing(), None, "the response stays as it is");
    }

    #[test]
    fn a_response_is_cut_once_and_an_early_one_is_detected() {
        let flow = Flow::default();
        assert!(matches!(flow.begin_response(), Response::Passes));
        flow.release_head();
        assert!(matches!(flow.begin_response(), Response::Early));
        flow.answer();
        assert!(matches!(flow.begin_response(), Response::Passes), "the filter's own response");
        let flow = Flow::default();
        flow.share(Some(Sharing::Public));
        flow.forward(Some(ListRequest::of_whole(OrgName::parse("a").unwrap())), None);
        assert!(matches!(flow.begin_response(), Response::Lists(_)));
        assert!(matches!(flow.begin_response(), Response::Passes));
        assert_eq!((flow.take_sharing(), flow.take_sharing()), (Some(Sharing::Public), None));
    }

    #[test]
    fn trailers_end_the_body_that_arrived() {
        let flow = Flow::default();
        flow.body_arrived(body(7, false), None);
        assert_eq!(flow.ended(), body(7, true));
    }
}

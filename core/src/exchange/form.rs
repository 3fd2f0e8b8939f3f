//! A request to the token endpoint waits for its form.

use std::time::Duration;

use super::forward::Record;
use super::pending::{Context, Event, Pending, State, Step};
use super::refusal::unreadable;
use crate::budget::{Account, Hold, Waits};
use crate::deadline::Deadline;
use crate::denial::LocalReply;
use crate::gateway::Gateway;
use crate::oauth::discovery::Endpoint;
use crate::oauth::token_endpoint::{MAX_BODY_LENGTH, TokenError};
use crate::reason::OK;
use crate::request::RequestHead;
use crate::time::UnixTime;

/// Maximum time until the form has arrived. A form is short.
const FORM_TIMEOUT: Duration = Duration::from_secs(10);

/// Read limit: one byte over the accepted length, so that longer forms are detected.
pub(super) const MAX_FORM_READ: usize = MAX_BODY_LENGTH + 1;

/// A request to the token endpoint whose form is incomplete.
#[derive(Debug)]
struct AwaitingForm {
    deadline: Deadline,
    hold: Hold,
}

pub(super) fn wait(gateway: &Gateway, head: &RequestHead, now: UnixTime) -> Step {
    match gateway.budget.hold(Account::TokenEndpoint, Waits::ForClient, head.length()) {
        Some(hold) => Step::Wait(Pending::new(AwaitingForm { deadline: Deadline::after(FORM_TIMEOUT, now), hold })),
        None => reply(Err(TokenError::Overloaded)),
    }
}

impl State for AwaitingForm {
    fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Without `allow_on_headers_stop_iteration`, only the deadline ends the wait: Envoy holds the body together with the
    /// head, and no body arrives.
    fn is_ended_by(&mut self, event: &Event<'_>, _gateway: &Gateway) -> bool {
        match *event {
            Event::BodyArrived(body) => body.is_enough(MAX_FORM_READ),
            Event::Tick { now } => self.deadline.has_passed(FORM_TIMEOUT, now),
            _ => false,
        }
    }

    fn handle(self: Box<Self>, event: Event<'_>, context: &mut Context<'_>) -> Step {
        let request = context.request;
        match event {
            Event::BodyArrived(_) => match request.head() {
                Some(head) => {
                    let body = request.body(MAX_FORM_READ);
                    reply(context.gateway.issue_token(&head, &body, request.now(), context.host))
                }
                None => unreadable(),
            },
            Event::GivenUp => reply(Err(TokenError::Overloaded)),
            _ => {
                if context.gateway.bodies.known() != Some(false) {
                    context.warning =
                        Some("a body did not arrive in time; the filter needs allow_on_headers_stop_iteration to read bodies");
                }
                reply(Err(TokenError::BodyTimeout))
            }
        }
    }
}

fn reply(issued: Result<LocalReply, TokenError>) -> Step {
    let (reply, outcome) = match issued {
        Ok(reply) => (reply, OK),
        Err(error) => (error.reply(), error.word()),
    };
    Step::Reply(reply, Record::Endpoint { endpoint: Endpoint::Token.word(), outcome })
}

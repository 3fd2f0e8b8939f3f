//! A request to the joined endpoint of an org whose message decides. It waits until its body is whole.

use std::rc::Rc;

use super::count::Admitted;
use super::forward::Forward;
use super::pending::{Context, Event, State, Step};
use super::refusal::Size;
use crate::budget::Hold;
use crate::config::Mode;
use crate::denial::Denial;
use crate::gateway::{Findings, Gateway};
use crate::mcp::call::Call;
use crate::mcp::headers::MirrorHeaders;
use crate::mcp::list::Permitted;
use crate::mcp::message::{Body, MAX_LENGTH};
use crate::mcp::reply::ListRequest;
use crate::path::Resource;
use crate::principal::Principal;
use crate::reason::Reason;
use crate::request::RequestHead;

/// Read limit: one byte over the accepted length, so that longer messages are detected.
pub(super) const MAX_MESSAGE_READ: usize = MAX_LENGTH + 1;

/// The content of a request to the joined endpoint.
pub(super) enum Content {
    /// A message, which decides on the request.
    Message,
    /// The filter reads no body: the request ends a session.
    Nothing,
}

/// Checks by the head whether the filter can read the message of the request.
pub(super) fn check_head(head: &RequestHead) -> Result<Content, Reason> {
    match head.method() {
        b"POST" => {}
        b"DELETE" => return Ok(Content::Nothing),
        _ => return Err(Reason::MethodNotAllowed),
    }
    let mut codings = head.values("content-encoding");
    if !head.is_json() || codings.any(|coding| !coding.eq_ignore_ascii_case(b"identity")) {
        return Err(Reason::MediaTypeUnsupported);
    }
    Ok(Content::Message)
}

/// A request with a known principal whose message is incomplete.
pub(super) struct AwaitingMessage {
    pub(super) resource: Resource,
    pub(super) mode: Mode,
    pub(super) mirror: MirrorHeaders,
    pub(super) principal: Rc<Principal>,
    /// The shell tells access logs the principal when it edits the head.
    pub(super) findings: Findings,
    pub(super) hold: Hold,
}

impl AwaitingMessage {
    /// The request after its headers were edited. The next state may hold it again.
    fn into_admitted(self, lists: Option<ListRequest>) -> Admitted {
        let Self { resource, mode, principal, findings, hold, .. } = self;
        Admitted {
            size: Size::whole(hold.bytes()),
            resource,
            mode,
            principal,
            forward: Forward { lists, ..Forward::default() },
            findings,
        }
    }

    /// Checks whether the scopes cover the message. Returns the lists that the message requests, if there are any.
    fn judge(&mut self, bytes: &[u8], gateway: &Gateway) -> Result<Option<ListRequest>, Denial> {
        if bytes.len() > MAX_LENGTH {
            return Err(Reason::MessageTooLong.into());
        }
        let separator = &gateway.config.gateway.connector_separator;
        let body =
            Body::parse(bytes, separator).map_err(|error| Denial::MessageMalformed { description: error.description() })?;
        self.findings.call = self.findings.call.take().map(|_| Call::of_body(&body));
        // The scope is checked first: a client without the scope must learn this, even if the message has other faults.
        let scopes = self.principal.scopes();
        if let Some(needed) = body.lacks(scopes) {
            return Err(Denial::ScopeInsufficient { needed, has_unread_grant: false });
        }
        if !self.mirror.agree_with(&body) {
            return Err(Denial::HeaderMismatch { request_id: body.id() });
        }
        let permitted = || Permitted { scopes: scopes.clone(), separator: separator.clone() };
        Ok(body.asks_for_lists().then(|| ListRequest::new(self.resource.org.clone(), permitted(), body.id())))
    }
}

impl State for AwaitingMessage {
    fn hold(&self) -> &Hold {
        &self.hold
    }

    fn is_ended_by(&mut self, event: &Event<'_>, _gateway: &Gateway) -> bool {
        match *event {
            Event::BodyArrived(body) => body.is_enough(MAX_MESSAGE_READ),
            Event::AnsweredEarly { .. } => true,
            _ => false,
        }
    }

    fn handle(mut self: Box<Self>, event: Event<'_>, context: &mut Context<'_>) -> Step {
        let Context { gateway, host, request, .. } = context;
        match event {
            Event::BodyArrived(_) => {
                let mode = self.mode;
                match self.judge(&request.body(MAX_MESSAGE_READ), gateway) {
                    Ok(lists) => {
                        let lists = lists.filter(|_| mode == Mode::Enforce);
                        self.into_admitted(lists).count(gateway, request.now(), *host)
                    }
                    Err(denial) => self.into_admitted(None).refuse(gateway, denial, *host),
                }
            }
            Event::AnsweredEarly { status } => self.into_admitted(None).answered_early(status, gateway, *host),
            _ => self.into_admitted(None).refuse(gateway, Reason::Overloaded.into(), *host),
        }
    }

    /// Without `allow_on_headers_stop_iteration`, Envoy holds the body until the head goes on.
    fn lets_head_go(&self) -> bool {
        true
    }
}

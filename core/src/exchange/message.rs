//! A request to the joined endpoint whose message decides: it is held until its body is whole.

use std::rc::Rc;

use super::count::Admitted;
use super::refusal::Size;
use super::{Forward, Record, Request, Step};
use crate::budget::Hold;
use crate::config::Mode;
use crate::denial::{Denial, LocalReply};
use crate::gateway::{Findings, Gateway};
use crate::host::Host;
use crate::mcp::headers::MirrorHeaders;
use crate::mcp::list::Permitted;
use crate::mcp::message::{Body, MAX_LENGTH};
use crate::mcp::reply::ListRequest;
use crate::path::Resource;
use crate::principal::Principal;
use crate::reason::Reason;
use crate::request::RequestHead;
use crate::time::UnixTime;

/// As much of a body is read: one byte more than is accepted, by which the longer ones are known.
pub const MAX_MESSAGE_READ: usize = MAX_LENGTH + 1;

/// What comes after a head.
pub(super) enum Content {
    /// A message that decides.
    Message,
    /// Nothing that is read: a session ends.
    Nothing,
}

/// Whether a message may come after `head`, in a form that is read.
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

/// A request whose principal is known, and whose message is still to come.
#[derive(Debug)]
pub struct AwaitingMessage {
    resource: Resource,
    mode: Mode,
    mirror: MirrorHeaders,
    principal: Rc<Principal>,
    findings: Findings,
    hold: Hold,
}

impl AwaitingMessage {
    pub(super) fn new(request: Request, principal: Rc<Principal>, findings: Findings, hold: Hold) -> Self {
        let Request { head, resource, mode } = request;
        // Access logs learn of the principal as its headers go on, not once more at the end.
        let findings = Findings { principal: None, ..findings };
        Self { resource, mode, mirror: MirrorHeaders::of(&head), principal, findings, hold }
    }

    /// Whose request it is.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The place of this request in the worker's budget.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Refuses the request, because its hold was given up.
    pub fn give_up(self, gateway: &Gateway, host: &dyn Host) -> Step {
        self.into_admitted(None).refuse(gateway, &Reason::Overloaded.into(), host)
    }

    /// Decides on the whole body, or on its first [`MAX_MESSAGE_READ`] bytes.
    pub fn proceed(self, body: &[u8], gateway: &Gateway, now: UnixTime, host: &dyn Host) -> Step {
        let mode = self.mode;
        match self.judge(body, gateway) {
            Ok(lists) => self.into_admitted(lists.filter(|_| mode == Mode::Enforce)).count(gateway, now, host),
            Err(denial) => self.into_admitted(None).refuse(gateway, &denial, host),
        }
    }

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

    /// Something behind answers with this status before the message was decided on.
    pub fn answered_early(self, status: u16, gateway: &Gateway, host: &dyn Host) -> (Option<LocalReply>, Record) {
        self.into_admitted(None).answered_early(status, gateway, host)
    }

    fn judge(&self, bytes: &[u8], gateway: &Gateway) -> Result<Option<ListRequest>, Denial> {
        if bytes.len() > MAX_LENGTH {
            return Err(Reason::MessageTooLong.into());
        }
        let separator = &gateway.config.gateway.connector_separator;
        let body = Body::parse(bytes, separator)
            .map_err(|error| Denial { description: Some(error.description()), ..Reason::MessageMalformed.into() })?;
        // The scope is checked first: a client without the scope must learn this, even if the message has other faults.
        let scopes = self.principal.scopes();
        if let Some(needed) = body.lacks(scopes) {
            return Err(Denial { needed: Some(needed), ..Reason::ScopeInsufficient.into() });
        }
        if !self.mirror.agree_with(&body) {
            return Err(Denial { request_id: body.id(), ..Reason::HeaderMismatch.into() });
        }
        let permitted = || Permitted { scopes: scopes.clone(), separator: separator.clone() };
        Ok(body.asks_for_lists().then(|| ListRequest::new(self.resource.org.clone(), permitted(), body.id())))
    }
}

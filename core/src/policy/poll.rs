//! One thread of an Envoy asks the Settings service for changes of the policy. The threads agree on it by a record in
//! shared data that they change by compare-and-swap. [`Poller`] is the part of one thread.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::remote::{MAX_DOCUMENT_LENGTH, Publication};
use super::service::RemoteSettings;
use crate::callout;
use crate::deadline::{Backoff, Lease};
use crate::host::{Host, Update};
use crate::json::is_json;
use crate::problem::Problem;
use crate::time::UnixTime;

/// Pauses after failed requests.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(10) };
/// Time until a claim that is not renewed ends: its thread has died, or its Envoy was reconfigured.
const LEASE: Duration = Duration::from_secs(3);
/// Interval at which a thread renews its claim while its request is under way.
const RENEWAL: Duration = Duration::from_secs(1);
/// Lease of a thread that works on a document. It cannot renew its claim meanwhile.
const WORK: Duration = Duration::from_secs(60);
/// Time for which a thread that serves requests leaves a due request to Envoy's main thread, because parsing takes long.
const PATIENCE: Duration = Duration::from_millis(500);
/// Maximum number of problems of one document that are logged. The first ones show what is wrong.
const MAX_PROBLEMS: usize = 20;

/// A thread's part in asking for the policy.
#[derive(Debug)]
pub struct Poller {
    /// The version of this module. Another version may accept a document that this one refused.
    judge: &'static str,
    request: Option<Request>,
}

/// A request that is due. The thread has claimed it.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// The `ETag` of the known document, for `If-None-Match`.
    pub etag: Option<String>,
    started_at: UnixTime,
}

/// A request that is under way.
#[derive(Debug)]
pub struct Request {
    judge: &'static str,
    /// The number that Envoy gave to the call.
    call: u32,
    started_at: UnixTime,
    /// Whether the request has `If-None-Match`.
    is_conditional: bool,
    renew_at: UnixTime,
}

/// What the shell does after the head of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Report the outcome.
    Report(Outcome),
    /// Read the document, publish it, and call [`Request::published`].
    Publish,
}

/// What the shell reports about a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The label of the metric that counts requests. `None` if the request does not count.
    pub counted: Option<&'static str>,
    /// Whether the Settings service confirmed that the policy in force is current.
    pub is_confirmed: bool,
    /// Lines for the operator's log.
    pub log: Vec<LogLine>,
}

/// A line for the operator's log, with its level.
#[derive(Debug, PartialEq, Eq)]
pub enum LogLine {
    /// Level info.
    Info(String),
    /// Level warn.
    Warning(String),
    /// Level error.
    Error(String),
}

impl Poller {
    /// A thread that has asked for nothing yet. `judge` is the version of its module.
    pub fn new(judge: &'static str) -> Self {
        Self { judge, request: None }
    }

    /// Renews the claim of the request under way, or claims the next request if it is due and no other thread has claimed it.
    ///
    /// `serves_requests` says whether this thread has served a request. Envoy's main thread serves none.
    pub fn tick(&mut self, now: UnixTime, serves_requests: bool, settings: &RemoteSettings, host: &dyn Host) -> Option<Due> {
        if let Some(request) = &mut self.request {
            if !request.renew_at.is_ahead(now, RENEWAL) {
                request.renew_at = now.plus(RENEWAL);
                let started_at = request.started_at;
                change(settings, host, |poll| poll.renew(started_at, now));
            }
            return None;
        }
        let mut claimed = None;
        let is_claimed = change(settings, host, |poll| {
            claimed = poll.claim(now, serves_requests, settings);
            claimed.clone()
        });
        let claimed = claimed.filter(|_| is_claimed)?;
        Some(Due { etag: claimed.etag(self.judge).map(str::to_owned), started_at: claimed.started_at })
    }

    /// The request was sent under the number `call`.
    pub fn sent(&mut self, due: &Due, call: u32, now: UnixTime) {
        self.request = Some(Request {
            judge: self.judge,
            call,
            started_at: due.started_at,
            is_conditional: due.etag.is_some(),
            renew_at: now.plus(RENEWAL),
        });
    }

    /// Envoy did not send the request.
    pub fn not_sent(due: &Due, problem: &str, now: UnixTime, settings: &RemoteSettings, host: &dyn Host) -> Outcome {
        failed(due.started_at, problem, now, settings, host)
    }

    /// The request that was sent under the number `call`, if there is one. It is no longer under way.
    pub fn take(&mut self, call: u32) -> Option<Request> {
        self.request.take_if(|request| request.call == call)
    }

    /// This thread ends. Another thread need not wait until the claim ends.
    pub fn release(&mut self, settings: &RemoteSettings, host: &dyn Host) {
        if let Some(request) = self.request.take() {
            change(settings, host, |poll| poll.release(request.started_at));
        }
    }
}

impl Request {
    /// Decides on the head of the answer. `status` is `None` if the connection failed.
    pub fn answered(
        &self,
        status: Option<u16>,
        body_length: usize,
        serves_requests: bool,
        now: UnixTime,
        settings: &RemoteSettings,
        host: &dyn Host,
    ) -> Next {
        let started_at = self.started_at;
        let fails = |problem: &str| Next::Report(failed(started_at, problem, now, settings, host));
        match status {
            Some(304) if self.is_conditional => Next::Report(self.succeeded(&Answer::NotModified, now, settings, host)),
            // A thread that serves requests leaves a document to another thread, if there may be one.
            Some(200) if serves_requests && change(settings, host, |poll| poll.give_way(started_at, now)) => {
                Next::Report(Outcome::default())
            }
            Some(200) if body_length > MAX_DOCUMENT_LENGTH => fails("the document is too long"),
            // Another thread may have asked since, and have a newer document. Two threads must not publish at once.
            Some(200) if change(settings, host, |poll| poll.work(started_at, now)) => Next::Publish,
            Some(200) => {
                let line = LogLine::Warning("a policy came too late, and is asked for again".to_owned());
                Next::Report(Outcome { log: vec![line], ..Outcome::default() })
            }
            Some(status) => fails(&callout::unexpected(status)),
            None => fails("the connection failed, or the document is longer than Envoy takes"),
        }
    }

    /// The document with this `etag` was published, or refused.
    pub fn published(
        &self,
        etag: Option<String>,
        document: &[u8],
        published: &Result<Publication, Vec<Problem>>,
        now: UnixTime,
        settings: &RemoteSettings,
        host: &dyn Host,
    ) -> Outcome {
        let (answer, log) = match published {
            Ok(publication) => {
                let (version, length) = (publication.version(), document.len());
                let line = format!("policy version {version:?} came, {length} bytes, and is published");
                let warnings = publication.warnings().iter().map(|warning| LogLine::Warning(warning.to_string()));
                (Answer::Taken(etag), [LogLine::Info(line)].into_iter().chain(warnings).collect())
            }
            Err(problems) => {
                let line = |problem: &Problem| LogLine::Error(format!("invalid policy: {problem}"));
                // The same document would be refused again, so the thread waits for another one. A document that is not JSON
                // was broken on the way, and is fetched again.
                let answer = Answer::Refused(etag.filter(|_| is_json(document)));
                (answer, problems.iter().take(MAX_PROBLEMS).map(line).collect())
            }
        };
        Outcome { log, ..self.succeeded(&answer, now, settings, host) }
    }

    fn succeeded(&self, answer: &Answer, now: UnixTime, settings: &RemoteSettings, host: &dyn Host) -> Outcome {
        let mut is_refused = false;
        let is_recorded = change(settings, host, |poll| {
            let poll = poll.succeeded(self.started_at, answer.clone(), self.judge, now, settings)?;
            is_refused = poll.is_refused;
            Some(poll)
        });
        let counted = match answer {
            Answer::NotModified => "not_modified",
            Answer::Taken(_) => "success",
            Answer::Refused(_) => "invalid",
        };
        Outcome { counted: Some(counted), is_confirmed: is_recorded && !is_refused, log: Vec::new() }
    }
}

fn failed(started_at: UnixTime, problem: &str, now: UnixTime, settings: &RemoteSettings, host: &dyn Host) -> Outcome {
    change(settings, host, |poll| poll.failed(started_at, now));
    let line = LogLine::Warning(format!("the policy could not be fetched: {problem}"));
    Outcome { counted: Some("failure"), is_confirmed: false, log: vec![line] }
}

/// Changes the shared record, and returns whether it changed. A change of `None` leaves it.
fn change(settings: &RemoteSettings, host: &dyn Host, mut change: impl FnMut(Poll) -> Option<Poll>) -> bool {
    let change = &mut |bytes: &[u8]| change(Poll::from_bytes(bytes)).map(|poll| poll.to_bytes());
    host.update(&settings.place().name("poll"), change) == Update::Changed
}

/// The result of a request for the policy.
#[derive(Clone, Debug)]
enum Answer {
    /// The known document is still current.
    NotModified,
    /// A document with this `ETag` was published.
    Taken(Option<String>),
    /// A document with this `ETag` was refused.
    Refused(Option<String>),
}

/// The record about requests for the policy that all threads share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)] // An older module may have written it.
struct Poll {
    etag: Option<String>,
    /// The version of the module that judged the document of `etag`.
    judged_by: String,
    is_refused: bool,
    started_at: UnixTime,
    #[serde(rename = "claimed_until")]
    claim: Lease,
    next_at: UnixTime,
    failures: u32,
    /// Whether a thread that serves requests left a document to another thread. That thread asks again.
    has_given_way: bool,
}

impl Poll {
    /// Reads the record. The result is a new record if `bytes` cannot be read.
    fn from_bytes(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    fn to_bytes(&self) -> Vec<u8> {
        // The types here always serialize.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The `ETag` of the last document, unless another version of the module refused that document.
    fn etag(&self, judged_by: &str) -> Option<&str> {
        self.etag.as_deref().filter(|_| !self.is_refused || self.judged_by == judged_by)
    }

    /// The record with a claim of this thread, if a request is due and no other thread has claimed it.
    fn claim(&self, now: UnixTime, serves_requests: bool, settings: &RemoteSettings) -> Option<Self> {
        let patience = if serves_requests { PATIENCE } else { Duration::ZERO };
        let longest = settings.interval.max(BACKOFF.longest).saturating_add(patience);
        if self.claim.is_held(WORK, now) || self.next_at.plus(patience).is_ahead(now, longest) {
            return None;
        }
        Some(Self { started_at: now, claim: Lease::new(LEASE, now), ..self.clone() })
    }

    /// Renews the claim of the request that began at `started_at`. `None` if another request has begun since.
    fn renew(&self, started_at: UnixTime, now: UnixTime) -> Option<Self> {
        self.hold(started_at, Lease::new(LEASE, now))
    }

    /// Extends the claim for the work on a document.
    fn work(&self, started_at: UnixTime, now: UnixTime) -> Option<Self> {
        self.hold(started_at, Lease::new(WORK, now))
    }

    /// Ends the claim of a thread that ends.
    fn release(&self, started_at: UnixTime) -> Option<Self> {
        self.hold(started_at, Lease::FREE)
    }

    fn hold(&self, started_at: UnixTime, claim: Lease) -> Option<Self> {
        (self.started_at == started_at).then(|| Self { claim, ..self.clone() })
    }

    /// Leaves a document to a thread that serves no requests. `None` if that happened once already.
    fn give_way(&self, started_at: UnixTime, now: UnixTime) -> Option<Self> {
        self.hold(started_at, Lease::FREE).filter(|_| !self.has_given_way).map(|poll| Self {
            next_at: now,
            has_given_way: true,
            ..poll
        })
    }

    /// Records an answer. The next request is due at once if the answer has a new document, or if the service waited for one.
    fn succeeded(
        &self,
        started_at: UnixTime,
        answer: Answer,
        judged_by: &str,
        now: UnixTime,
        settings: &RemoteSettings,
    ) -> Option<Self> {
        let poll = self.hold(started_at, Lease::FREE)?;
        let (etag, is_refused, is_new) = match answer {
            Answer::NotModified => (poll.etag, poll.is_refused, false),
            Answer::Taken(etag) => (etag.clone(), false, etag.is_some() && etag != poll.etag),
            Answer::Refused(etag) => (etag.clone(), true, etag.is_some() && etag != poll.etag),
        };
        let next_at = if is_new { now } else { started_at.plus(settings.interval).max(now) };
        Some(Self { etag, judged_by: judged_by.to_owned(), is_refused, next_at, failures: 0, has_given_way: false, ..poll })
    }

    /// Records that there was no usable answer. The policy in force stays.
    fn failed(&self, started_at: UnixTime, now: UnixTime) -> Option<Self> {
        let failures = self.failures.saturating_add(1);
        self.hold(started_at, Lease::FREE).map(|poll| Self { next_at: now.plus(BACKOFF.pause(self.failures)), failures, ..poll })
    }
}

#[cfg(test)]
mod tests;

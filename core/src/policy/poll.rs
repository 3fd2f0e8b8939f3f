//! One thread of an Envoy asks the Settings service for changes of the policy. The threads agree on it by a record in
//! shared data that they change by compare-and-swap. [`Poller`] is the part of one thread.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::page::{self, Page};
use super::parts::Sum;
use super::publication::{MAX_DOCUMENT_LENGTH, Publication};
use super::remote::PartReader;
use super::service::RemoteSettings;
use super::store::Transfer;
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
/// Length up to which a thread that serves requests works on an answer itself. It takes about a millisecond.
const SHORT: usize = 16 << 10;
/// Maximum number of problems of one document that are logged. The first ones show what is wrong.
const MAX_PROBLEMS: usize = 20;

/// A thread's part in asking for the policy.
#[derive(Debug)]
pub struct Poller {
    /// The version of this module. Another version may accept a document that this one refused.
    judge: &'static str,
    request: Option<Request>,
    transfer: Option<OpenTransfer>,
}

/// A transfer of which some pages have arrived.
#[derive(Debug)]
struct OpenTransfer {
    transfer: Transfer,
    /// The state after the last page.
    next: String,
    /// When the request for the last page began. It tells whether another thread has taken a page since.
    at: UnixTime,
}

/// A request that is due. The thread has claimed it.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// The `ETag` of the known document, for `If-None-Match`.
    pub etag: Option<String>,
    /// Whether the service is asked to wait for a change.
    pub may_wait: bool,
    /// The random id of this Envoy. The Settings service can then tell gateways with the same address apart.
    pub gateway: String,
    started_at: UnixTime,
}

/// A request that is under way.
#[derive(Debug)]
pub struct Request {
    judge: &'static str,
    /// The number that Envoy gave to the call.
    call: u32,
    started_at: UnixTime,
    /// The value of `If-None-Match`.
    etag: Option<String>,
    renew_at: UnixTime,
}

/// What the shell does after the head of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Report the outcome.
    Report(Outcome),
    /// Read the answer, and call [`Poller::publish`].
    Publish,
}

/// A policy, or a part of one, as the Settings service sends it.
#[derive(Debug)]
pub struct Received<'a> {
    /// The header `ETag`.
    pub etag: Option<String>,
    /// The header `Content-Type`.
    pub content_type: Option<String>,
    /// The body.
    pub body: &'a [u8],
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
        Self { judge, request: None, transfer: None }
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
            claimed = poll.claim(now, serves_requests, settings).map(|poll| poll.named(host));
            claimed.clone()
        });
        let claimed = claimed.filter(|_| is_claimed)?;
        // If another thread has taken a page since, this thread does not know all names that arrived.
        self.transfer.take_if(|transfer| transfer.at != claimed.page_at);
        let (etag, may_wait) = match &self.transfer {
            Some(transfer) => (Some(quoted(&transfer.next)), false),
            None => (claimed.etag(self.judge).map(str::to_owned), true),
        };
        Some(Due { may_wait: may_wait && etag.is_some(), etag, gateway: claimed.gateway, started_at: claimed.started_at })
    }

    /// The request was sent under the number `call`.
    pub fn sent(&mut self, due: &Due, call: u32, now: UnixTime) {
        self.request = Some(Request {
            judge: self.judge,
            call,
            started_at: due.started_at,
            etag: due.etag.clone(),
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

    /// Publishes what `request` received: a whole document, or a page.
    pub fn publish(
        &mut self,
        request: &Request,
        received: Received<'_>,
        reader: &PartReader,
        now: UnixTime,
        settings: &RemoteSettings,
        host: &dyn Host,
    ) -> Outcome {
        let is_page = received.content_type.is_some_and(|kind| kind.starts_with(page::CONTENT_TYPE));
        if is_page {
            return self.take_page(request, received.body, reader, now, settings, host);
        }
        self.transfer = None;
        let published = Publication::of(received.body, &reader.clusters, &reader.separator);
        if let Ok(publication) = &published {
            publication.publish(&settings.place(), host);
        }
        request.published(received.etag, received.body, &published, now, settings, host)
    }

    /// Takes one page.
    fn take_page(
        &mut self,
        request: &Request,
        body: &[u8],
        reader: &PartReader,
        now: UnixTime,
        settings: &RemoteSettings,
        host: &dyn Host,
    ) -> Outcome {
        let transfer = self.transfer.take();
        let refused = |problems: Vec<String>| {
            let lines =
                problems.into_iter().take(MAX_PROBLEMS).map(|problem| LogLine::Error(format!("invalid policy: {problem}")));
            // The next answer brings these parts again, perhaps corrected.
            change(settings, host, |poll| poll.failed(request.started_at, now));
            Outcome { counted: Some("invalid"), is_confirmed: false, log: lines.collect() }
        };
        let page: Page<'_> = match serde_json::from_slice(body) {
            Ok(page) => page,
            Err(error) => return refused(vec![error.to_string()]),
        };
        let parts = || page.parts.0.iter().map(|(name, text)| (name.as_str(), text.map(RawValue::get)));
        let mut log = Vec::new();
        let mut problems = Vec::new();
        for (name, text) in parts() {
            match reader.check(name, text.unwrap_or_default()) {
                _ if text.is_none() => {}
                Ok(notes) => {
                    log.extend(notes.warnings.iter().chain(&notes.conflicts).map(|note| LogLine::Warning(note.to_string())));
                }
                Err(found) => problems.extend(found.iter().map(Problem::to_string)),
            }
        }
        if !problems.is_empty() {
            return refused(problems);
        }
        let place = &settings.place();
        let is_continued = page.since.is_some() && page.since.as_deref().map(quoted) == request.etag;
        let known = known_sum(settings, host);
        let transfer = match (transfer, known) {
            (Some(transfer), _) if is_continued && request.etag == Some(quoted(&transfer.next)) => Some(transfer.transfer),
            (_, Some(sum)) if is_continued => Some(Transfer::from(sum, place, host)),
            _ => page.since.is_none().then(|| Transfer::from_nothing(place, host)),
        };
        let Some(mut transfer) = transfer else {
            let line = format!("the page continues the state {:?}, which this gateway does not have", page.since);
            log.push(LogLine::Error(line));
            return Outcome { log, ..request.succeeded(&Answer::Wrong { is_whole: true }, now, settings, host) };
        };
        transfer.write(parts(), place, host);
        let answer = if page.is_last {
            let is_whole = transfer.is_whole();
            let sum = transfer.finish(&page.version, place, host);
            let line = format!("policy version {:?} came, {} parts in {} bytes", page.version, page.parts.0.len(), body.len());
            log.insert(0, LogLine::Info(line));
            if page.sum.as_deref().is_none_or(|expected| Sum::parse(expected) == Some(sum)) {
                Answer::Taken { etag: Some(quoted(&page.next)), sum: Some(sum) }
            } else {
                // The parts that came are in force. Only those that did not come may be wrong.
                log.push(LogLine::Error(
                    "the parts of the policy do not have the sum that Settings names: all are fetched again".to_owned(),
                ));
                Answer::Wrong { is_whole }
            }
        } else {
            self.transfer = Some(OpenTransfer { transfer, next: page.next.into_owned(), at: request.started_at });
            Answer::Page
        };
        Outcome { log, ..request.succeeded(&answer, now, settings, host) }
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
            Some(304) if self.etag.is_some() => Next::Report(self.succeeded(&Answer::NotModified, now, settings, host)),
            // A thread that serves requests leaves a document to another thread, if there may be one.
            Some(200)
                if serves_requests && body_length > SHORT && change(settings, host, |poll| poll.give_way(started_at, now)) =>
            {
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
    fn published(
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
                (Answer::Taken { etag, sum: None }, [LogLine::Info(line)].into_iter().chain(warnings).collect())
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
            Answer::Taken { .. } | Answer::Page => "success",
            Answer::Wrong { .. } => "failure",
            Answer::Refused(_) => "invalid",
        };
        let is_current = matches!(answer, Answer::NotModified | Answer::Taken { .. } | Answer::Refused(_));
        Outcome { counted: Some(counted), is_confirmed: is_recorded && is_current && !is_refused, log: Vec::new() }
    }
}

fn failed(started_at: UnixTime, problem: &str, now: UnixTime, settings: &RemoteSettings, host: &dyn Host) -> Outcome {
    change(settings, host, |poll| poll.failed(started_at, now));
    let line = LogLine::Warning(format!("the policy could not be fetched: {problem}"));
    Outcome { counted: Some("failure"), is_confirmed: false, log: vec![line] }
}

/// The sum of all parts of the policy in force, if they came in pages.
fn known_sum(settings: &RemoteSettings, host: &dyn Host) -> Option<Sum> {
    let record = host.shared(&settings.place().name("poll"))?;
    Sum::parse(&Poll::from_bytes(&record.bytes).sum?)
}

/// A state as an `ETag` (RFC 9110 §8.8.3).
fn quoted(state: &str) -> String {
    format!("\"{state}\"")
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
    /// A document with this `ETag` was published, or the last page, after which the parts have this sum.
    Taken { etag: Option<String>, sum: Option<Sum> },
    /// A page came, and further ones follow.
    Page,
    /// The last page came, but the parts are wrong.
    Wrong { is_whole: bool },
    /// A document with this `ETag` was refused.
    Refused(Option<String>),
}

/// The record about requests for the policy that all threads share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)] // An older module may have written it.
struct Poll {
    /// The random id of this Envoy, from its first request on.
    gateway: String,
    etag: Option<String>,
    /// The sum of all parts, if they came in pages.
    sum: Option<String>,
    /// When the request for the last page began, if further pages follow.
    page_at: UnixTime,
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

    /// The record with an id of this Envoy.
    fn named(self, host: &dyn Host) -> Self {
        if !self.gateway.is_empty() {
            return self;
        }
        let [first, second, third, fourth, ..] = host.random().unwrap_or_default();
        Self { gateway: format!("{:08x}", u32::from_be_bytes([first, second, third, fourth])), ..self }
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
        let page_at = if matches!(answer, Answer::Page) { started_at } else { UnixTime::default() };
        let has_all_wrong = matches!(answer, Answer::Wrong { is_whole: true });
        let (etag, sum, is_refused, is_new) = match answer {
            Answer::NotModified => (poll.etag, poll.sum, poll.is_refused, false),
            Answer::Page => (poll.etag, poll.sum, poll.is_refused, true),
            Answer::Taken { etag, sum } => {
                let is_new = etag.is_some() && etag != poll.etag;
                (etag, sum.map(|sum| sum.to_string()), false, is_new)
            }
            Answer::Wrong { is_whole } => (None, None, false, !is_whole),
            Answer::Refused(etag) => (etag.clone(), None, true, etag.is_some() && etag != poll.etag),
        };
        let next_at = if is_new { now } else { started_at.plus(settings.interval).max(now) };
        // If even all parts of the service have another sum than it names, asking again at once will hardly help.
        let (next_at, failures) = match has_all_wrong {
            true => (now.plus(BACKOFF.longest), self.failures),
            false => (next_at, 0),
        };
        Some(Self {
            etag,
            sum,
            page_at,
            judged_by: judged_by.to_owned(),
            is_refused,
            next_at,
            failures,
            has_given_way: false,
            ..poll
        })
    }

    /// Records that there was no usable answer. The policy in force stays.
    fn failed(&self, started_at: UnixTime, now: UnixTime) -> Option<Self> {
        let failures = self.failures.saturating_add(1);
        self.hold(started_at, Lease::FREE).map(|poll| Self { next_at: now.plus(BACKOFF.pause(self.failures)), failures, ..poll })
    }
}

#[cfg(test)]
mod tests;

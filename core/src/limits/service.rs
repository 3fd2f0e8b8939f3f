//! Counting by the rate limit service of a fleet: `ShouldRateLimit` of `envoy.service.ratelimit.v3.RateLimitService`. The
//! filter sends one call for each request, with every limit as an override. So the service need not know any organization.

use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use rustc_hash::FxHashMap;

use super::local::Exceeded;
use super::standing::{Standing, Window};
use super::subject::{Kind, Subject, Subjects, Unit};
use crate::budget::Hold;
use crate::time::UnixTime;

/// The full name of the gRPC service.
pub const SERVICE: &str = "envoy.service.ratelimit.v3.RateLimitService";
/// The gRPC method.
pub const METHOD: &str = "ShouldRateLimit";

/// Maximum length of an answer, in bytes. A longer one counts as no answer. The state of a handful of limits takes less than
/// 1 KiB, and the worker has to read it.
pub const MAX_ANSWER_LENGTH: usize = 64 * 1024;

/// Maximum length of a cluster's name in bytes, so that the length of the message around it has one byte without the highest
/// bit.
const MAX_CLUSTER_LENGTH: usize = 125;
/// Maximum length of the tag and the length of a field, in bytes.
const MAX_KEY_LENGTH: usize = 11;

const OK: i32 = 1;
const OVER_LIMIT: i32 = 2;
/// `envoy.type.v3.RateLimitUnit`
const MONTH: i32 = 5;

/// Time after its last answer during which the service counts as available.
const PRESENCE: Duration = Duration::from_secs(1);
/// Time after its timeout at which a question ends for this worker. The worker reads the clock only every 20 ms.
const MARGIN: Duration = Duration::from_millis(50);

/// The questions of a worker that the service has not answered yet.
#[derive(Debug, Default)]
pub struct OpenQuestions {
    /// Questions by the number that Envoy gives to the call.
    open: FxHashMap<u32, Question>,
    has_answered: bool,
    answered_at: Option<UnixTime>,
    looked_at: UnixTime,
}

#[derive(Debug)]
struct Question {
    stream: u32,
    _hold: Rc<Hold>,
    timeout: Duration,
    /// Set at the first look at the clock after the question.
    ends_at: Option<UnixTime>,
}

impl OpenQuestions {
    /// Records a question for this stream, which the service has to answer within `timeout`.
    pub fn ask(&mut self, number: u32, stream: u32, hold: Rc<Hold>, timeout: Duration) {
        let timeout = timeout.saturating_add(MARGIN);
        let question = Question { stream, _hold: hold, timeout, ends_at: None };
        self.open.insert(number, question);
    }

    /// Ends a question, answered or not. Returns the stream for which it was asked.
    pub fn end(&mut self, number: u32, is_answered: bool) -> Option<u32> {
        self.has_answered |= is_answered;
        self.open.remove(&number).map(|question| question.stream)
    }

    /// Whether the question of this number is open.
    pub fn is_open(&self, number: u32) -> bool {
        self.open.contains_key(&number)
    }

    /// Updates the clock. An answer since the last call counts as an answer at this moment. Questions end when their timeout
    /// is over: if the stream of a question has ended, the SDK does not report the end of the question.
    pub fn look(&mut self, now: UnixTime) {
        self.looked_at = now;
        if std::mem::take(&mut self.has_answered) {
            self.answered_at = Some(now);
        }
        self.open.retain(|_, question| {
            // The clock may have been set back.
            let latest = now.plus(question.timeout);
            let ends_at = question.ends_at.map_or(latest, |ends_at| ends_at.min(latest));
            question.ends_at = Some(ends_at);
            now < ends_at
        });
    }

    /// Whether the service is available: it has answered within a second, or a question is open.
    ///
    /// Envoy reports a cluster without hosts and a full circuit breaker in the same way. A burst of requests fills the
    /// circuit breaker, and `on_error: allow` must not admit this burst.
    pub fn is_service_there(&self) -> bool {
        let is_recent = |answered_at: UnixTime| answered_at.plus(PRESENCE).is_ahead(self.looked_at, PRESENCE);
        !self.open.is_empty() || self.has_answered || self.answered_at.is_some_and(is_recent)
    }
}

/// The part of `envoy.config.core.v3.GrpcService` that names a cluster. Envoy also accepts a plain name, but it tries to read
/// the name as this message, and a name that happens to be one could end Envoy.
#[derive(Clone, PartialEq, Message)]
struct GrpcService {
    #[prost(message, optional, tag = "1")]
    envoy_grpc: Option<EnvoyGrpc>,
}

#[derive(Clone, PartialEq, Message)]
struct EnvoyGrpc {
    #[prost(string, tag = "1")]
    cluster_name: String,
}

/// A serialized `GrpcService` for this cluster. `None` if the name has more than 125 bytes: a module passes the message as
/// text to Envoy, so no byte may have its highest bit set, and the length of a longer name would.
pub fn upstream(cluster: &str) -> Option<Rc<str>> {
    let service = GrpcService { envoy_grpc: Some(EnvoyGrpc { cluster_name: cluster.to_owned() }) };
    let is_short = cluster.len() <= MAX_CLUSTER_LENGTH;
    is_short.then(|| String::from_utf8(service.encode_to_vec()).ok().map(Rc::from)).flatten()
}

/// `envoy.service.ratelimit.v3.RateLimitRequest`
#[derive(Clone, PartialEq, Message)]
struct RateLimitRequest {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(message, repeated, tag = "2")]
    descriptors: Vec<Descriptor>,
    #[prost(uint32, tag = "3")]
    hits_addend: u32,
}

/// `envoy.extensions.common.ratelimit.v3.RateLimitDescriptor`
#[derive(Clone, PartialEq, Message)]
struct Descriptor {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Entry>,
    #[prost(message, optional, tag = "2")]
    limit: Option<Override>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Override {
    #[prost(uint32, tag = "1")]
    requests_per_unit: u32,
    #[prost(int32, tag = "2")]
    unit: i32,
}

/// `envoy.service.ratelimit.v3.RateLimitResponse`
#[derive(Clone, PartialEq, Message)]
struct RateLimitResponse {
    #[prost(int32, tag = "1")]
    overall_code: i32,
    #[prost(message, repeated, tag = "2")]
    statuses: Vec<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(uint32, tag = "3")]
    limit_remaining: u32,
    #[prost(message, optional, tag = "4")]
    duration_until_reset: Option<prost_types::Duration>,
}

/// One limit that is asked about.
struct Limit<'a> {
    subject: &'a Subject,
    kind: Kind,
    requests: NonZeroU32,
    unit: i32,
    length: Option<Duration>,
}

/// All limits of `subjects`, in the order in which they are asked about.
fn limits(subjects: &Subjects) -> impl Iterator<Item = Limit<'_>> {
    subjects.iter().flat_map(|subject| {
        let rate = subject.rate.map(|rate| Limit {
            subject,
            kind: Kind::Rate,
            requests: rate.requests,
            unit: number_of(rate.per),
            length: Some(rate.per.duration()),
        });
        let month =
            subject.monthly_quota.map(|requests| Limit { subject, kind: Kind::Month, requests, unit: MONTH, length: None });
        rate.into_iter().chain(month)
    })
}

const fn number_of(unit: Unit) -> i32 {
    match unit {
        Unit::Second => 1,
        Unit::Minute => 2,
        Unit::Hour => 3,
        Unit::Day => 4,
    }
}

/// The question whether one request more is within the limits of `subjects`.
pub fn request(domain: &str, subjects: &Subjects) -> Vec<u8> {
    let descriptor = |limit: Limit<'_>| {
        let entry = |key: &str, value: &str| Entry { key: key.to_owned(), value: value.to_owned() };
        let kind = match limit.kind {
            Kind::Rate => "rate",
            Kind::Month => "month",
        };
        Descriptor {
            entries: vec![entry("subject", &limit.subject.name), entry("limit", kind)],
            limit: Some(Override { requests_per_unit: limit.requests.get(), unit: limit.unit }),
        }
    };
    let descriptors = subjects.descriptors(|| {
        let descriptors = limits(subjects).map(descriptor).collect();
        RateLimitRequest { domain: String::new(), descriptors, hits_addend: 1 }.encode_to_vec()
    });
    // Serialized messages that follow one another are one message with the fields of all of them.
    let mut message = Vec::with_capacity(descriptors.len().saturating_add(domain.len()).saturating_add(MAX_KEY_LENGTH));
    encode_key(1, WireType::LengthDelimited, &mut message);
    encode_varint(domain.len().try_into().unwrap_or(u64::MAX), &mut message);
    message.extend_from_slice(domain.as_bytes());
    message.extend_from_slice(descriptors);
    message
}

/// What the service answers to [`request`]; `None` where that is no answer to it.
pub fn read(response: &[u8], subjects: &Subjects) -> Option<Result<Standing, Exceeded>> {
    let response = RateLimitResponse::decode(response).ok()?;
    let (mut standing, mut exceeded) = (Standing::default(), None::<(Kind, Duration)>);
    for (limit, status) in limits(subjects).zip(&response.statuses) {
        let resets_in = status.duration_until_reset.and_then(|duration| Duration::try_from(duration).ok()).unwrap_or_default();
        let window = Window {
            quota: limit.requests.get().into(),
            length: limit.length,
            remaining: status.limit_remaining.into(),
            resets_in,
        };
        standing = standing.and(match limit.kind {
            Kind::Rate => Standing { rate: Some(window), month: None },
            Kind::Month => Standing { rate: None, month: Some(window) },
        });
        // The longest wait of those that are exceeded: before that, it would be refused again.
        if status.code == OVER_LIMIT && exceeded.is_none_or(|(_, wait)| wait < resets_in) {
            exceeded = Some((limit.kind, resets_in));
        }
    }
    match response.overall_code {
        OK => Some(Ok(standing)),
        OVER_LIMIT => {
            // A service may say which limits there are, or only that one of them is exceeded.
            let (kind, retry_after) = exceeded.unwrap_or((Kind::Rate, Duration::from_secs(1)));
            let standing = standing.told().unwrap_or_else(|| Standing::refused_for(subjects.iter(), retry_after));
            Some(Err(Exceeded { kind, retry_after, standing }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Account, Budget, Waits};
    use crate::limits::Rate;
    use std::rc::Rc;

    fn subjects() -> Subjects {
        let count = |count| NonZeroU32::new(count).unwrap();
        let rate = Rate { requests: count(600), per: Unit::Minute, burst: count(60) };
        let key = Subject { name: "key/acme/k1".into(), rate: Some(Rate { requests: count(10), ..rate }), monthly_quota: None };
        let org = Subject { name: "org/acme".into(), rate: Some(rate), monthly_quota: Some(count(1000)) };
        Subjects::new([Rc::new(key), Rc::new(org)])
    }

    fn status(code: i32, limit_remaining: u32, seconds: i64) -> Status {
        Status { code, limit_remaining, duration_until_reset: Some(prost_types::Duration { seconds, nanos: 0 }) }
    }

    fn at(millis: u64) -> UnixTime {
        UnixTime::from_secs(1_800_000_000).plus(Duration::from_millis(millis))
    }

    fn hold(budget: &Budget) -> Rc<Hold> {
        Rc::new(budget.hold(Account::Refused, Waits::ForOthers, 0).unwrap())
    }

    #[test]
    fn the_service_is_there_for_a_second_after_its_last_answer() {
        let budget = Budget::default();
        let mut questions = OpenQuestions::default();
        assert!(!questions.is_service_there(), "before the first look");
        questions.look(at(0));
        assert!(!questions.is_service_there());
        questions.ask(7, 1, hold(&budget), Duration::from_secs(1));
        assert!(questions.is_service_there(), "it is asked");
        assert_eq!((questions.end(7, true), questions.end(7, true)), (Some(1), None));
        assert!(questions.is_service_there(), "before the next look");
        questions.look(at(20));
        questions.look(at(1_019));
        assert!(questions.is_service_there());
        questions.look(at(1_020));
        assert!(!questions.is_service_there());
        questions.end(8, true);
        questions.look(at(5_000));
        questions.look(at(0));
        assert!(!questions.is_service_there(), "the clock was put back");
    }

    #[test]
    fn a_question_before_the_first_look_at_the_clock_stays_open() {
        let budget = Budget::default();
        let mut questions = OpenQuestions::default();
        questions.ask(7, 1, hold(&budget), Duration::from_millis(100));
        questions.look(at(0));
        questions.look(at(149));
        assert!(questions.is_open(7));
        questions.look(at(150));
        assert!(!questions.is_open(7));
    }

    #[test]
    fn a_question_ends_with_its_timeout() {
        let (budget, timeout) = (Budget::default(), Duration::from_millis(100));
        let mut questions = OpenQuestions::default();
        questions.look(at(0));
        let its = hold(&budget);
        questions.ask(7, 1, Rc::clone(&its), timeout);
        assert!(questions.is_open(7));
        questions.look(at(0));
        questions.look(at(149));
        assert_eq!(Rc::strong_count(&its), 2, "it is open");
        questions.look(at(150));
        assert!(!questions.is_open(7));
        assert_eq!((Rc::strong_count(&its), questions.end(7, true)), (1, None));
        questions.ask(8, 1, Rc::clone(&its), timeout);
        questions.look(at(150));
        questions.look(at(0));
        questions.look(at(150));
        assert_eq!(Rc::strong_count(&its), 1, "the clock was put back");
    }

    #[test]
    fn every_limit_is_asked_about_with_its_override() {
        let asked = RateLimitRequest::decode(request("apexmcp", &subjects()).as_slice()).unwrap();
        assert_eq!((asked.domain.as_str(), asked.hits_addend), ("apexmcp", 1));
        let asked: Vec<_> = asked
            .descriptors
            .iter()
            .map(|descriptor| {
                let entries: Vec<_> = descriptor.entries.iter().map(|entry| format!("{}={}", entry.key, entry.value)).collect();
                let limit = descriptor.limit.as_ref().unwrap();
                (entries.join(" "), limit.requests_per_unit, limit.unit)
            })
            .collect();
        let expected = [
            ("subject=key/acme/k1 limit=rate", 10, 2),
            ("subject=org/acme limit=rate", 600, 2),
            ("subject=org/acme limit=month", 1000, 5),
        ];
        assert_eq!(asked, expected.map(|(entries, requests, unit)| (entries.to_owned(), requests, unit)));
    }

    #[test]
    fn answers_are_read() {
        let read = |overall_code, statuses: Vec<Status>| {
            super::read(&RateLimitResponse { overall_code, statuses }.encode_to_vec(), &subjects())
        };
        let standing = read(OK, vec![status(OK, 9, 30), status(OK, 5, 40), status(OK, 999, 1_000)]).unwrap().unwrap();
        assert_eq!(standing.policy(), r#""rate";q=600;w=60, "month";q=1000"#);
        assert_eq!(standing.state(), r#""rate";r=5;t=40, "month";r=999;t=1000"#);
        let exceeded =
            |statuses| read(OVER_LIMIT, statuses).unwrap().map_err(|exceeded| (exceeded.kind, exceeded.retry_after.as_secs()));
        assert_eq!(exceeded(vec![status(OVER_LIMIT, 0, 30), status(OK, 5, 40), status(OK, 9, 50)]), Err((Kind::Rate, 30)));
        assert_eq!(
            exceeded(vec![status(OVER_LIMIT, 0, 30), status(OK, 5, 40), status(OVER_LIMIT, 0, 50)]),
            Err((Kind::Month, 50))
        );
        assert_eq!(exceeded(vec![]), Err((Kind::Rate, 1)));
        let standing = read(OVER_LIMIT, vec![]).unwrap().unwrap_err().standing;
        assert_eq!((standing.policy().as_str(), standing.state().as_str()), (r#""rate";q=10;w=60"#, r#""rate";r=0;t=1"#));
        assert_eq!(read(0, vec![]), None);
        assert_eq!(super::read(b"\xff", &subjects()), None);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = super::read(&bytes, &subjects());
        }
    }
}

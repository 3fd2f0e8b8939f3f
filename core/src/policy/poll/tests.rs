use super::*;
use crate::testing::MemoryHost;

fn settings() -> RemoteSettings {
    RemoteSettings {
        usage: None,
        cluster: "settings".into(),
        authority: "settings".into(),
        path: "/v1/policy".into(),
        timeout: Duration::from_secs(5),
        interval: Duration::from_secs(2),
        long_poll: Duration::from_secs(30),
        token: None,
    }
}

const JUDGE: &str = "this one";

fn succeeded(claimed: &Poll, answer: Answer, millis: u64) -> Poll {
    claimed.succeeded(claimed.started_at, answer, JUDGE, at(millis), &settings()).unwrap()
}

fn taken(etag: Option<String>) -> Answer {
    Answer::Taken { etag, sum: None }
}

fn at(millis: u64) -> UnixTime {
    UnixTime::from_secs(1_000_000).plus(Duration::from_millis(millis))
}

#[test]
fn one_thread_asks_and_the_main_thread_is_first() {
    let claimed = Poll::default().claim(at(0), false, &settings()).unwrap();
    assert_eq!(claimed.claim(at(2_999), false, &settings()), None);
    assert!(claimed.claim(at(3_000), false, &settings()).is_some(), "a thread that died loses its claim");
    let answered = succeeded(&claimed, taken(Some("\"1\"".into())), 100);
    assert_eq!(answered.claim(at(599), true, &settings()), None);
    assert!(answered.claim(at(100), false, &settings()).is_some());
    assert!(answered.claim(at(600), true, &settings()).is_some());
}

#[test]
fn a_claim_holds_while_it_is_renewed_and_no_longer() {
    let claimed = Poll::default().claim(at(0), false, &settings()).unwrap();
    let renewed = claimed.renew(claimed.started_at, at(2_000)).unwrap();
    assert_eq!(renewed.claim(at(4_999), false, &settings()), None);
    let working = renewed.work(claimed.started_at, at(3_000)).unwrap();
    assert_eq!(working.claim(at(62_999), false, &settings()), None, "a large document takes its time");
    let released = renewed.release(claimed.started_at).unwrap();
    let other = released.claim(at(3_000), false, &settings()).unwrap();
    let late = claimed.started_at;
    assert_eq!((other.renew(late, at(3_001)), other.work(late, at(3_001)), other.release(late)), (None, None, None));
    // A late result of the first thread does not end the claim of the other one, and does not replace its result.
    assert_eq!((other.failed(late, at(3_001)), other.give_way(late, at(3_001))), (None, None));
    assert_eq!(other.succeeded(late, taken(Some("\"old\"".into())), JUDGE, at(3_001), &settings()), None);
}

#[test]
fn the_next_request_follows_at_once_only_after_a_new_document() {
    let known = Poll { etag: Some("\"1\"".into()), judged_by: JUDGE.into(), ..Poll::default() };
    let claimed = known.claim(at(0), false, &settings()).unwrap();
    let next_at = |answer, now| succeeded(&claimed, answer, now).next_at;
    for answer in [taken, Answer::Refused] {
        assert_eq!(next_at(answer(Some("\"2\"".into())), 100), at(100));
        assert_eq!(next_at(answer(Some("\"1\"".into())), 100), at(2_000));
        assert_eq!(next_at(answer(None), 100), at(2_000), "a service without ETag");
    }
    assert_eq!(next_at(Answer::NotModified, 100), at(2_000), "a service that does not wait");
    assert_eq!(next_at(Answer::NotModified, 30_000), at(30_000));
    assert_eq!(succeeded(&claimed, Answer::NotModified, 100).etag(JUDGE), Some("\"1\""));
}

#[test]
fn a_document_that_one_version_refused_is_fetched_again_by_another() {
    let claimed = Poll::default().claim(at(0), false, &settings()).unwrap();
    let refused = succeeded(&claimed, Answer::Refused(Some("\"1\"".into())), 100);
    assert!(refused.is_refused);
    assert_eq!((refused.etag(JUDGE), refused.etag("another")), (Some("\"1\""), None));
    let claimed = refused.claim(at(100), false, &settings()).unwrap();
    assert!(succeeded(&claimed, Answer::NotModified, 200).is_refused, "the policy in force is not confirmed");
    let taken = succeeded(&claimed, taken(Some("\"1\"".into())), 200);
    assert_eq!((taken.is_refused, taken.etag("another")), (false, Some("\"1\"")), "every version accepts it");
}

#[test]
fn a_thread_that_serves_requests_leaves_a_document_to_others_once() {
    let claimed = Poll::default().claim(at(0), false, &settings()).unwrap();
    let given = claimed.give_way(at(0), at(100)).unwrap();
    assert!(given.claim(at(100), false, &settings()).is_some());
    assert_eq!(given.claim(at(599), true, &settings()), None);
    let again = given.claim(at(600), true, &settings()).unwrap();
    assert_eq!(again.give_way(at(600), at(700)), None, "there is no other one");
    let done = succeeded(&again, taken(Some("\"1\"".into())), 700);
    assert!(done.give_way(at(600), at(800)).is_some());
}

#[test]
fn a_clock_that_is_put_back_holds_nothing_up() {
    let ahead = at(3_600_000);
    let claimed = Poll::default().claim(ahead, false, &settings()).unwrap();
    assert!(claimed.claim(at(0), false, &settings()).is_some());
    let failed = claimed.failed(ahead, ahead).unwrap();
    assert!(failed.claim(at(0), true, &settings()).is_some());
    let succeeded = succeeded(&claimed, Answer::NotModified, 3_600_000);
    assert!(succeeded.claim(at(0), true, &settings()).is_some());
}

#[test]
fn failures_back_off() {
    let mut poll = Poll::default();
    for seconds in [1, 2, 4, 8, 10, 10] {
        poll = poll.failed(UnixTime::default(), at(0)).unwrap();
        assert_eq!(poll.next_at, at(0).plus(Duration::from_secs(seconds)));
    }
    assert_eq!(succeeded(&poll, Answer::NotModified, 0).failures, 0);
}

/// The shared memory and the pollers of two threads.
fn threads() -> (MemoryHost, Poller, Poller) {
    (MemoryHost::default(), Poller::new(JUDGE), Poller::new(JUDGE))
}

#[test]
fn a_thread_that_claimed_a_request_keeps_the_others_away_until_it_ends() {
    let (host, mut first, mut second) = threads();
    let due = first.tick(at(0), false, &settings(), &host).unwrap();
    assert_eq!((&due.etag, second.tick(at(1), false, &settings(), &host)), (&None, None));
    first.sent(&due, 7, at(0));
    for millis in [999, 1_000, 2_000, 3_000, 4_000] {
        assert_eq!(first.tick(at(millis), false, &settings(), &host), None, "the request is under way");
        assert_eq!(second.tick(at(millis), false, &settings(), &host), None, "the claim is renewed");
    }
    first.release(&settings(), &host);
    assert!(first.take(7).is_none(), "it is no longer under way");
    assert!(second.tick(at(4_001), false, &settings(), &host).is_some());
}

#[test]
fn a_claim_is_renewed_each_second_and_ends_without_renewal() {
    let (host, mut first, mut second) = threads();
    let due = first.tick(at(0), false, &settings(), &host).unwrap();
    first.sent(&due, 7, at(0));
    assert_eq!(first.tick(at(999), false, &settings(), &host), None);
    assert_eq!(second.tick(at(2_999), false, &settings(), &host), None);
    assert_eq!(first.tick(at(2_999), false, &settings(), &host), None);
    assert_eq!(second.tick(at(5_998), false, &settings(), &host), None, "renewed at 2,999 ms");
    assert!(second.tick(at(5_999), false, &settings(), &host).is_some());
}

#[test]
fn a_call_ends_only_the_request_that_it_was_made_for() {
    let (host, mut first, _) = threads();
    let due = first.tick(at(0), false, &settings(), &host).unwrap();
    first.sent(&due, 7, at(0));
    assert!(first.take(8).is_none());
    assert!(first.take(7).is_some());
    assert!(first.take(7).is_none());
}

#[test]
fn each_answer_has_its_outcome() {
    let is_warning = |outcome: &Outcome| matches!(&outcome.log[..], [LogLine::Warning(_)]);
    for (etag, status, length, serves_requests, counted) in [
        (Some("\"1\""), Some(304), 0, false, Some("not_modified")),
        (None, Some(304), 0, false, Some("failure")),
        (None, Some(200), SHORT + 1, true, None),
        (None, Some(200), MAX_DOCUMENT_LENGTH + 1, false, Some("failure")),
        (None, Some(503), 0, false, Some("failure")),
        (None, None, 0, false, Some("failure")),
    ] {
        let (host, mut poller, mut other) = threads();
        let mut due = poller.tick(at(0), false, &settings(), &host).unwrap();
        due.etag = etag.map(str::to_owned);
        poller.sent(&due, 7, at(0));
        let request = poller.take(7).unwrap();
        let next = request.answered(status, length, serves_requests, at(10), &settings(), &host);
        let Next::Report(outcome) = next else { panic!("{status:?}") };
        assert_eq!((outcome.counted, outcome.is_confirmed), (counted, counted == Some("not_modified")), "{status:?}");
        assert_eq!(is_warning(&outcome), counted == Some("failure"), "{status:?}");
        assert_eq!(other.tick(at(10), false, &settings(), &host).is_some(), counted.is_none(), "left to another: {status:?}");
    }
}

fn reader() -> PartReader {
    PartReader { clusters: crate::jwks::Clusters { https: Some("https".into()), http: None }, separator: "__".into() }
}

#[test]
fn a_document_is_published_or_refused_and_is_not_fetched_again() {
    for (document, counted, level) in [
        (r#"{"version": "1", "orgs": {}}"#, "success", "info"),
        (r#"{"version": 1}"#, "invalid", "error"),
        ("not JSON", "invalid", "error"),
    ] {
        let (host, mut poller, mut other) = threads();
        let due = poller.tick(at(0), false, &settings(), &host).unwrap();
        poller.sent(&due, 7, at(0));
        let request = poller.take(7).unwrap();
        assert_eq!(request.answered(Some(200), document.len(), false, at(10), &settings(), &host), Next::Publish);
        assert_eq!(other.tick(at(30_000), false, &settings(), &host), None, "one thread works on the document");
        let received = Received { etag: Some("\"1\"".to_owned()), content_type: None, body: document.as_bytes() };
        let outcome = poller.publish(&request, received, &reader(), at(20), &settings(), &host);
        assert_eq!((outcome.counted, outcome.is_confirmed), (Some(counted), counted == "success"), "{document}");
        let is_level = |line: &LogLine| match line {
            LogLine::Info(_) => level == "info",
            LogLine::Error(_) => level == "error",
            LogLine::Warning(_) => false,
        };
        assert!(!outcome.log.is_empty() && outcome.log.iter().all(is_level), "{:?}", outcome.log);
        let next = poller.tick(at(2_020), false, &settings(), &host).unwrap();
        let expected = (document != "not JSON").then_some("\"1\"");
        assert_eq!(next.etag.as_deref(), expected, "a document that was broken on the way is fetched again");
    }
}

#[test]
fn a_document_that_comes_after_another_request_began_is_not_published() {
    let (host, mut first, mut second) = threads();
    let due = first.tick(at(0), false, &settings(), &host).unwrap();
    first.sent(&due, 7, at(0));
    let request = first.take(7).unwrap();
    assert!(second.tick(at(3_000), false, &settings(), &host).is_some(), "the claim has ended");
    let Next::Report(outcome) = request.answered(Some(200), 9, false, at(3_001), &settings(), &host) else { panic!("published") };
    assert_eq!((outcome.counted, outcome.log.len()), (None, 1));
}

#[test]
fn a_request_that_envoy_does_not_send_is_a_failure() {
    let (host, mut poller, _) = threads();
    let due = poller.tick(at(0), false, &settings(), &host).unwrap();
    let outcome = Poller::not_sent(&due, "no cluster", at(0), &settings(), &host);
    assert_eq!((outcome.counted, outcome.log.len()), (Some("failure"), 1));
    assert_eq!(poller.tick(at(999), false, &settings(), &host), None, "the first pause");
    assert!(poller.tick(at(1_000), false, &settings(), &host).is_some());
}

/// A Settings service that sends pages, and the parts that it should have sent so far.
struct Paged {
    host: MemoryHost,
    millis: u64,
}

fn part(org: &str, quota: u32) -> (String, String) {
    let policy = format!(r#"{{"orgs":{{"{org}":{{"limits":{{"monthly_quota":{quota}}}}}}}}}"#);
    (format!("org/{org}"), format!(r#"{{"key_parts":0,"policy":{policy}}}"#))
}

fn sum_of(parts: &[(String, String)]) -> Sum {
    parts.iter().fold(Sum::default(), |sum, (name, text)| sum.with(name, text))
}

fn page(since: Option<&str>, next: &str, sum: Option<Sum>, parts: &[(String, Option<String>)]) -> String {
    let parts: Vec<String> = parts.iter().map(|(name, text)| format!("{name:?}:{}", text.as_deref().unwrap_or("null"))).collect();
    let since = since.map(|since| format!(r#""since":"{since}","#)).unwrap_or_default();
    let (is_last, sum) = (sum.is_some(), sum.map(|sum| format!(r#""sum":"{sum}","#)).unwrap_or_default());
    let parts = parts.join(",");
    format!(r#"{{{since}"next":"{next}","version":"{next}","is_last":{is_last},{sum}"parts":{{{parts}}}}}"#)
}

fn some(parts: &[(String, String)]) -> Vec<(String, Option<String>)> {
    parts.iter().map(|(name, text)| (name.clone(), Some(text.clone()))).collect()
}

impl Paged {
    /// The next request of a thread gets this page. Returns what was asked with, and the outcome.
    fn answer(&mut self, poller: &mut Poller, page: &str) -> (Option<String>, bool, Outcome) {
        self.millis += 60_000;
        let due = poller.tick(at(self.millis), false, &settings(), &self.host).unwrap();
        poller.sent(&due, 7, at(self.millis));
        let request = poller.take(7).unwrap();
        assert_eq!(request.answered(Some(200), page.len(), false, at(self.millis), &settings(), &self.host), Next::Publish);
        let content_type = Some(page::CONTENT_TYPE.to_owned());
        let received = Received { etag: None, content_type, body: page.as_bytes() };
        let outcome = poller.publish(&request, received, &reader(), at(self.millis), &settings(), &self.host);
        (due.etag, due.may_wait, outcome)
    }

    fn quota(&self, org: &str) -> Option<String> {
        let value = self.host.shared(&settings().place().name(&format!("org/{org}")))?;
        let text = String::from_utf8(value.bytes).unwrap();
        text.split_once("monthly_quota\":").map(|(_, rest)| rest.trim_end_matches('}').to_owned())
    }

    fn version(&self) -> Option<String> {
        let remote = crate::policy::remote::RemotePolicy::new(settings().place(), reader().clusters, "__".into());
        remote.sync(&self.host)
    }
}

#[test]
fn pages_are_taken_one_after_the_other() {
    let (host, mut poller, _) = threads();
    let mut service = Paged { host, millis: 0 };
    let (a, b, c) = (part("a", 1), part("b", 1), part("c", 1));
    let (etag, may_wait, outcome) = service.answer(&mut poller, &page(None, "1.a", None, &some(std::slice::from_ref(&a))));
    assert_eq!((etag, may_wait, outcome.counted, outcome.is_confirmed), (None, false, Some("success"), false));
    assert_eq!(service.version(), None, "there is more to come");
    let sum = sum_of(&[a.clone(), b.clone(), c.clone()]);
    let last = page(Some("1.a"), "1", Some(sum), &some(&[b, c]));
    let (etag, may_wait, outcome) = service.answer(&mut poller, &last);
    assert_eq!((etag.as_deref(), may_wait, outcome.is_confirmed), (Some("\"1.a\""), false, true));
    assert_eq!(service.version().as_deref(), Some("1"));
    // A part changes, and another one goes.
    let changed = part("a", 2);
    let parts = [(changed.0.clone(), Some(changed.1.clone())), ("org/b".to_owned(), None)];
    let change = page(Some("1"), "2", Some(sum_of(&[changed, part("c", 1)])), &parts);
    let (etag, may_wait, outcome) = service.answer(&mut poller, &change);
    assert_eq!((etag.as_deref(), may_wait, outcome.is_confirmed), (Some("\"1\""), true, true), "{:?}", outcome.log);
    assert_eq!(["a", "b", "c"].map(|org| service.quota(org)), [Some("2".into()), None, Some("1".into())]);
    assert_eq!(service.version().as_deref(), Some("2"));
    // The service has lost what the gateway knew, and begins anew.
    let again = page(None, "9", Some(sum_of(&[part("c", 1)])), &some(&[part("c", 1)]));
    assert!(service.answer(&mut poller, &again).2.is_confirmed);
    assert_eq!(["a", "c"].map(|org| service.quota(org)), [None, Some("1".into())], "what the service does not have is gone");
}

#[test]
fn a_wrong_sum_fetches_everything_anew() {
    let (host, mut poller, mut other) = threads();
    let mut service = Paged { host, millis: 0 };
    let first = page(None, "1", Some(sum_of(&[part("a", 1)])), &some(&[part("a", 1)]));
    assert!(service.answer(&mut poller, &first).2.is_confirmed);
    let wrong = page(Some("1"), "2", Some(Sum::default()), &some(&[part("b", 1)]));
    let (_, _, outcome) = service.answer(&mut other, &wrong);
    assert_eq!((outcome.counted, outcome.is_confirmed), (Some("failure"), false));
    assert_eq!(service.quota("b").as_deref(), Some("1"), "what came is in force");
    let (etag, ..) = service.answer(&mut other, &first);
    assert_eq!((etag, service.quota("b")), (None, None));
    // A page that continues what was never asked for.
    let (_, _, outcome) = service.answer(&mut poller, &page(Some("7"), "8", Some(Sum::default()), &[]));
    assert_eq!((outcome.counted, service.quota("a").as_deref()), (Some("failure"), Some("1")));
    assert_eq!(service.answer(&mut poller, &first).0, None);
}

#[test]
fn a_transfer_ends_when_another_thread_takes_a_page() {
    let (host, mut first, mut second) = threads();
    let mut service = Paged { host, millis: 0 };
    let beginning = page(None, "1.a", None, &some(&[part("a", 1)]));
    assert_eq!(service.answer(&mut first, &beginning).0, None);
    assert_eq!(service.answer(&mut second, &beginning).0, None, "it does not know what the first thread got");
    assert_eq!(service.answer(&mut first, &beginning).0, None, "nor does the first thread know what the second got");
    assert_eq!(service.answer(&mut first, &beginning).0.as_deref(), Some("\"1.a\""));
}

#[test]
fn a_page_with_a_problem_changes_nothing() {
    let (host, mut poller, _) = threads();
    let mut service = Paged { host, millis: 0 };
    let first = page(None, "1", Some(sum_of(&[part("a", 1)])), &some(&[part("a", 1)]));
    assert!(service.answer(&mut poller, &first).2.is_confirmed);
    let bad = ("keys/a/0.0".to_owned(), r#"{"orgs":{"a":{"api_keys":[{"id":"k"}]}}}"#.to_owned());
    let (etag, _, outcome) =
        service.answer(&mut poller, &page(Some("1"), "2", Some(Sum::default()), &some(&[part("a", 2), bad])));
    assert_eq!((etag.as_deref(), outcome.counted), (Some("\"1\""), Some("invalid")));
    let [LogLine::Error(line)] = &outcome.log[..] else { panic!("{:?}", outcome.log) };
    assert!(line.contains("keys/a/0.0.orgs.a.api_keys[0].sha256"), "{line}");
    assert_eq!((service.quota("a").as_deref(), service.version().as_deref()), (Some("1"), Some("1")));
    assert_eq!(service.answer(&mut poller, &first).0.as_deref(), Some("\"1\""), "it asks for the same change again");
}

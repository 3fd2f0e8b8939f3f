use super::*;
use crate::testing::MemoryHost;

fn settings() -> RemoteSettings {
    RemoteSettings {
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

fn at(millis: u64) -> UnixTime {
    UnixTime::from_secs(1_000_000).plus(Duration::from_millis(millis))
}

#[test]
fn one_thread_asks_and_the_main_thread_is_first() {
    let claimed = Poll::default().claim(at(0), false, &settings()).unwrap();
    assert_eq!(claimed.claim(at(2_999), false, &settings()), None);
    assert!(claimed.claim(at(3_000), false, &settings()).is_some(), "a thread that died loses its claim");
    let answered = succeeded(&claimed, Answer::Taken(Some("\"1\"".into())), 100);
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
    assert_eq!(other.succeeded(late, Answer::Taken(Some("\"old\"".into())), JUDGE, at(3_001), &settings()), None);
}

#[test]
fn the_next_request_follows_at_once_only_after_a_new_document() {
    let known = Poll { etag: Some("\"1\"".into()), judged_by: JUDGE.into(), ..Poll::default() };
    let claimed = known.claim(at(0), false, &settings()).unwrap();
    let next_at = |answer, now| succeeded(&claimed, answer, now).next_at;
    for answer in [Answer::Taken, Answer::Refused] {
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
    let taken = succeeded(&claimed, Answer::Taken(Some("\"1\"".into())), 200);
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
    let done = succeeded(&again, Answer::Taken(Some("\"1\"".into())), 700);
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
    let document = br#"{"version": "1", "orgs": {}}"#;
    let is_warning = |outcome: &Outcome| matches!(&outcome.log[..], [LogLine::Warning(_)]);
    for (etag, status, length, serves_requests, counted) in [
        (Some("\"1\""), Some(304), 0, false, Some("not_modified")),
        (None, Some(304), 0, false, Some("failure")),
        (None, Some(200), document.len(), true, None),
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

fn publication(document: &[u8]) -> Result<Publication, Vec<Problem>> {
    Publication::of(document, &crate::jwks::Clusters { https: Some("https".into()), http: None }, "__")
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
        let published = publication(document.as_bytes());
        let etag = Some("\"1\"".to_owned());
        let outcome = request.published(etag, document.as_bytes(), &published, at(20), &settings(), &host);
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

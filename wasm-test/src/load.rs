//! Clients that send requests while a test changes something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::eventually;
use crate::http::{Client, Reply, Request};
use crate::policy::{api_key, merged};
use crate::token::Key;

/// The number of concurrent clients.
pub const CLIENTS: usize = 8;

/// A request that must be refused with 401, and the expected reason.
pub type Stranger = (Request, &'static str);

/// Variants of `call` that must be refused: without a credential, and with an unknown API key. For each pair of a key
/// and claims, two more: a token that [`Key::second`] signed under the `kid` of the key, and an expired token.
pub fn strangers<'k>(call: &Request, tokens: impl IntoIterator<Item = (&'k Key, Value)>) -> Vec<Stranger> {
    let mut strangers =
        vec![(call.clone(), "credential_missing"), (call.clone().api_key(&api_key("key_none")), "api_key_unknown")];
    for (key, claims) in tokens {
        strangers.push((call.clone().bearer(&Key::second(&key.kid).token(&claims)), "signature_invalid"));
        strangers.push((call.clone().bearer(&key.token(&merged(claims, &json!({"exp": 1})))), "token_expired"));
    }
    strangers
}

/// A request, and the expected reason if it must be refused.
type Expected = (Request, Option<&'static str>);

/// Clients that send the same list of requests in a loop, one request at a time, until they are stopped.
#[derive(Debug)]
pub struct Load {
    requests: watch::Sender<Vec<Expected>>,
    sent: Arc<AtomicUsize>,
    answered: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    clients: JoinSet<Vec<Reply>>,
}

impl Load {
    /// Starts to send requests that must be admitted.
    pub fn start(client: &Client, requests: Vec<Request>) -> Self {
        Self::expecting(200, client, requests.into_iter().map(|request| (request, None)).collect())
    }

    /// Starts to send requests that must be refused.
    pub fn refused(client: &Client, strangers: Vec<Stranger>) -> Self {
        Self::expecting(401, client, strangers.into_iter().map(|(request, reason)| (request, Some(reason))).collect())
    }

    fn expecting(status: u16, client: &Client, requests: Vec<Expected>) -> Self {
        let (requests, watched) = watch::channel(requests);
        let (sent, answered) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (is_over, mut clients) = (Arc::<AtomicBool>::default(), JoinSet::new());
        for _ in 0..CLIENTS {
            let (client, watched, sent, is_over) = (client.clone(), watched.clone(), sent.clone(), is_over.clone());
            let answered = answered.clone();
            clients.spawn(async move {
                let mut others = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let index = sent.fetch_add(1, Ordering::Relaxed);
                    let (request, reason) = {
                        let requests = watched.borrow();
                        requests[index % requests.len()].clone()
                    };
                    let Some(reply) = client.try_send(&request).await else { continue };
                    answered.fetch_add(1, Ordering::Relaxed);
                    if reply.status != status || reason.is_some_and(|reason| reply.json()["reason"] != reason) {
                        others.push(reply);
                    }
                }
                others
            });
        }
        Self { requests, sent, answered, is_over, clients }
    }

    /// Adds a request that must be admitted.
    pub fn add(&self, request: Request) {
        self.requests.send_modify(|requests| requests.push((request, None)));
    }

    /// Waits for this number of further answers.
    pub async fn until_answered(&self, more: usize) {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        eventually("more answers", async || (self.answered.load(Ordering::Relaxed) >= goal).then_some(())).await;
    }

    /// The number of requests that were sent until now.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops the clients. Returns the number of sent requests, and the replies that were not as expected. Panics if a
    /// request got no reply.
    pub async fn stop(self) -> (usize, Vec<Reply>) {
        let (sent, others, unanswered) = self.stop_broken().await;
        assert_eq!(unanswered, 0, "of {sent} requests, some got no reply");
        (sent, others)
    }

    /// Like [`Self::stop`], for tests in which connections may break. Also returns the number of requests without a
    /// reply.
    pub async fn stop_broken(self) -> (usize, Vec<Reply>, usize) {
        self.is_over.store(true, Ordering::Relaxed);
        let others = self.clients.join_all().await.concat();
        let sent = self.sent.load(Ordering::Relaxed);
        (sent, others, sent - self.answered.load(Ordering::Relaxed))
    }
}

/// Two loads: requests that must be admitted, and requests that must be refused.
#[derive(Debug)]
pub struct Loads {
    good: Load,
    bad: Load,
}

impl Loads {
    /// Starts to send `good`, which must be admitted, and `bad`, which must be refused.
    pub fn start(client: &Client, good: Vec<Request>, bad: Vec<Stranger>) -> Self {
        Self { good: Load::start(client, good), bad: Load::refused(client, bad) }
    }

    /// Adds a request that must be admitted.
    pub fn add(&self, request: Request) {
        self.good.add(request);
    }

    /// The number of requests that were sent until now.
    pub fn sent(&self) -> usize {
        self.good.sent() + self.bad.sent()
    }

    /// Waits for this number of further answers of each kind.
    pub async fn until_answered(&self, more: usize) {
        self.good.until_answered(more).await;
        self.bad.until_answered(more).await;
    }

    /// Stops both loads and prints a summary that begins with `what`. Panics if any decision was wrong. Returns the
    /// number of requests without a reply.
    pub async fn stop(self, what: &str) -> usize {
        let (sent, wrong, unanswered) = self.good.stop_broken().await;
        assert!(
            wrong.is_empty(),
            "{what}: {} of {sent} valid requests got a wrong answer, the first: {:?}",
            wrong.len(),
            wrong.first()
        );
        let (sent_bad, wrong, unanswered_bad) = self.bad.stop_broken().await;
        assert!(
            wrong.is_empty(),
            "{what}: {} of {sent_bad} invalid requests got a wrong answer, the first: {:?}",
            wrong.len(),
            wrong.first()
        );
        let unanswered = unanswered + unanswered_bad;
        println!("{what}: {} requests, 0 wrong decisions, {unanswered} without a reply", sent + sent_bad);
        unanswered
    }
}

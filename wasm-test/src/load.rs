//! Requests that run while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::eventually;
use crate::http::{Client, Reply, Request};
use crate::policy::{api_key, merged};
use crate::token::Key;

/// So many clients send at once.
pub const CLIENTS: usize = 8;

/// A request that is to be refused with 401, and for which reason.
pub type Stranger = (Request, &'static str);

/// `call` by those who must not pass: without a credential, with a key that nobody has, and for each of these claims and the key
/// that is to sign them, with a token signed by the second key under its id, and with an expired one.
pub fn strangers<'k>(call: &Request, tokens: impl IntoIterator<Item = (&'k Key, Value)>) -> Vec<Stranger> {
    let mut strangers =
        vec![(call.clone(), "credential_missing"), (call.clone().api_key(&api_key("key_none")), "api_key_unknown")];
    for (key, claims) in tokens {
        strangers.push((call.clone().bearer(&Key::second(&key.kid).token(&claims)), "signature_invalid"));
        strangers.push((call.clone().bearer(&key.token(&merged(claims, &json!({"exp": 1})))), "token_expired"));
    }
    strangers
}

/// A request, and the reason for which it is to be refused.
type Expected = (Request, Option<&'static str>);

/// Clients that send requests in turn, one after the other, until they are stopped.
#[derive(Debug)]
pub struct Load {
    requests: watch::Sender<Vec<Expected>>,
    sent: Arc<AtomicUsize>,
    answered: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    clients: JoinSet<Vec<Reply>>,
}

impl Load {
    /// Starts to send these, which are to pass.
    pub fn start(client: &Client, requests: Vec<Request>) -> Self {
        Self::expecting(200, client, requests.into_iter().map(|request| (request, None)).collect())
    }

    /// Starts to send these, which are to be refused.
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

    /// From now on sends this too.
    pub fn add(&self, request: Request) {
        self.requests.send_modify(|requests| requests.push((request, None)));
    }

    /// Awaits that so many more were answered.
    pub async fn until_answered(&self, more: usize) {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        eventually("more answers", async || (self.answered.load(Ordering::Relaxed) >= goal).then_some(())).await;
    }

    /// How many were sent by now.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// How many were sent, and the replies that were not as expected.
    ///
    /// # Panics
    /// Where one got no reply.
    pub async fn stop(self) -> (usize, Vec<Reply>) {
        let (sent, others, unanswered) = self.stop_broken().await;
        assert_eq!(unanswered, 0, "of {sent}");
        (sent, others)
    }

    /// The same where connections may break: and how many got no reply.
    pub async fn stop_broken(self) -> (usize, Vec<Reply>, usize) {
        self.is_over.store(true, Ordering::Relaxed);
        let others = self.clients.join_all().await.concat();
        let sent = self.sent.load(Ordering::Relaxed);
        (sent, others, sent - self.answered.load(Ordering::Relaxed))
    }
}

/// Requests of both kinds.
#[derive(Debug)]
pub struct Loads {
    good: Load,
    bad: Load,
}

impl Loads {
    /// Starts to send `good`, which are to pass, and `bad`, which are to be refused.
    pub fn start(client: &Client, good: Vec<Request>, bad: Vec<Stranger>) -> Self {
        Self { good: Load::start(client, good), bad: Load::refused(client, bad) }
    }

    /// From now on sends this too, which is to pass.
    pub fn add(&self, request: Request) {
        self.good.add(request);
    }

    /// How many were sent by now.
    pub fn sent(&self) -> usize {
        self.good.sent() + self.bad.sent()
    }

    /// Awaits that so many more of either kind were answered.
    pub async fn until_answered(&self, more: usize) {
        self.good.until_answered(more).await;
        self.bad.until_answered(more).await;
    }

    /// No request was answered wrongly, which is told of `what`. Returns how many were not answered.
    ///
    /// # Panics
    /// Where one was.
    pub async fn stop(self, what: &str) -> usize {
        let (sent, wrong, unanswered) = self.good.stop_broken().await;
        assert!(wrong.is_empty(), "{what}: {} of {sent}: {:?}", wrong.len(), wrong.first());
        let (sent_bad, wrong, unanswered_bad) = self.bad.stop_broken().await;
        assert!(wrong.is_empty(), "{what}: {} of {sent_bad}: {:?}", wrong.len(), wrong.first());
        let unanswered = unanswered + unanswered_bad;
        println!("{what}: {} requests, 0 wrong decisions, {unanswered} without a connection", sent + sent_bad);
        unanswered
    }
}

//! Requests that run while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::eventually;
use crate::http::{Client, Reply, Request};

/// So many clients send at once.
pub const CLIENTS: usize = 8;

/// Clients that send requests in turn, one after the other, until they are stopped.
#[derive(Debug)]
pub struct Load {
    requests: watch::Sender<Vec<Request>>,
    sent: Arc<AtomicUsize>,
    unanswered: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    clients: JoinSet<Vec<Reply>>,
}

impl Load {
    /// Starts to send these, which are to pass.
    pub fn start(client: &Client, requests: Vec<Request>) -> Self {
        Self::expecting(200, client, requests)
    }

    /// Starts to send these, which are to be answered with this status.
    pub fn expecting(status: u16, client: &Client, requests: Vec<Request>) -> Self {
        let (requests, watched) = watch::channel(requests);
        let (sent, unanswered) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (is_over, mut clients) = (Arc::<AtomicBool>::default(), JoinSet::new());
        for _ in 0..CLIENTS {
            let (client, watched, sent, is_over) = (client.clone(), watched.clone(), sent.clone(), is_over.clone());
            let unanswered = unanswered.clone();
            clients.spawn(async move {
                let mut others = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let index = sent.fetch_add(1, Ordering::Relaxed);
                    let request = {
                        let requests = watched.borrow();
                        requests[index % requests.len()].clone()
                    };
                    match client.try_send(&request).await {
                        Some(reply) if reply.status == status => {}
                        Some(reply) => others.push(reply),
                        None => {
                            unanswered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                others
            });
        }
        Self { requests, sent, unanswered, is_over, clients }
    }

    /// From now on sends this too.
    pub fn add(&self, request: Request) {
        self.requests.send_modify(|requests| requests.push(request));
    }

    /// Awaits that so many more were sent.
    pub async fn until_sent(&self, more: usize) {
        let goal = self.sent.load(Ordering::Relaxed) + more;
        eventually("more requests", async || (self.sent.load(Ordering::Relaxed) >= goal).then_some(())).await;
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
        (self.sent.load(Ordering::Relaxed), others, self.unanswered.load(Ordering::Relaxed))
    }
}

/// Requests of both kinds.
#[derive(Debug)]
pub struct Loads {
    good: Load,
    bad: Load,
}

impl Loads {
    /// Starts to send `good`, which are to pass, and `bad`, which are to be answered with 401.
    pub fn start(client: &Client, good: Vec<Request>, bad: Vec<Request>) -> Self {
        Self { good: Load::start(client, good), bad: Load::expecting(401, client, bad) }
    }

    /// From now on sends this too, which is to pass.
    pub fn add(&self, request: Request) {
        self.good.add(request);
    }

    /// How many were sent by now.
    pub fn sent(&self) -> usize {
        self.good.sent() + self.bad.sent()
    }

    /// Awaits that so many more of either kind were sent.
    pub async fn until_sent(&self, more: usize) {
        self.good.until_sent(more).await;
        self.bad.until_sent(more).await;
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

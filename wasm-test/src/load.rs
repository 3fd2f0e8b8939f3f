//! Requests that run while something else happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::eventually;
use crate::http::{Client, Reply, Request};

const CLIENTS: usize = 8;

/// Clients that send requests in turn, one after the other, until they are stopped.
#[derive(Debug)]
pub struct Load {
    requests: watch::Sender<Vec<Request>>,
    sent: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
    clients: JoinSet<Vec<Reply>>,
}

impl Load {
    /// Starts to send these.
    pub fn start(client: &Client, requests: Vec<Request>) -> Self {
        let (requests, watched) = watch::channel(requests);
        let (sent, is_over, mut clients) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default(), JoinSet::new());
        for _ in 0..CLIENTS {
            let (client, watched, sent, is_over) = (client.clone(), watched.clone(), sent.clone(), is_over.clone());
            clients.spawn(async move {
                let mut refused = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let index = sent.fetch_add(1, Ordering::Relaxed);
                    let request = {
                        let requests = watched.borrow();
                        requests[index % requests.len()].clone()
                    };
                    let reply = client.send(&request).await;
                    if reply.status != 200 {
                        refused.push(reply);
                    }
                }
                refused
            });
        }
        Self { requests, sent, is_over, clients }
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

    /// How many were sent, and the replies that were not 200.
    pub async fn stop(self) -> (usize, Vec<Reply>) {
        self.is_over.store(true, Ordering::Relaxed);
        let refused = self.clients.join_all().await.concat();
        (self.sent.load(Ordering::Relaxed), refused)
    }
}

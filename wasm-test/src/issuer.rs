//! An identity provider that a test controls: it can publish its key set, delay it, break it, or send anything else.

use http_body_util::Full;
use hyper::Response;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::policy::merged;
use crate::server::{Answer, Server};
use crate::token::{Key, now};

/// How the provider answers requests for its key set.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Sends a document.
    Document { status: u16, body: String },
    /// Redirects to another location.
    Redirect { location: String, body: String },
    /// Does not answer until its behaviour changes.
    Hang,
    /// Closes the connection.
    HangUp,
}

#[derive(Debug)]
pub struct Issuer {
    server: Server,
    behaviour: watch::Sender<Behaviour>,
}

impl Issuer {
    /// Starts a provider that publishes these keys.
    pub async fn start(keys: &[&Key]) -> Self {
        let (behaviour, watched) = watch::channel(publishing(keys));
        let server = Server::start(move |_| answer(watched.clone())).await;
        Self { server, behaviour }
    }

    /// The `iss` of its tokens.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.authority())
    }

    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// The address of its key set.
    pub fn jwks_uri(&self) -> String {
        format!("{}/keys", self.url())
    }

    /// Its record in a policy.
    pub fn record(&self) -> Value {
        json!({"issuer": self.url(), "jwks_uri": self.jwks_uri(), "audience": "apexmcp"})
    }

    /// Publishes these keys from now on.
    pub fn publish(&self, keys: &[&Key]) {
        self.behave(publishing(keys));
    }

    /// Changes the behaviour from now on.
    pub fn behave(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
    }

    /// The number of requests for its key set.
    pub fn requests(&self) -> usize {
        self.server.requests()
    }

    /// The claims of a valid token.
    pub fn claims(&self) -> Value {
        json!({"iss": self.url(), "sub": "agent-7", "aud": "apexmcp", "iat": now(), "exp": now() + 3600})
    }

    /// The claims of a valid token with these changes. A null removes a claim.
    pub fn claims_with(&self, changes: &Value) -> Value {
        merged(self.claims(), changes)
    }
}

fn publishing(keys: &[&Key]) -> Behaviour {
    let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
    Behaviour::Document { status: 200, body: json!({ "keys": keys }).to_string() }
}

async fn answer(mut watched: watch::Receiver<Behaviour>) -> Answer {
    let is_settled = |behaviour: &Behaviour| !matches!(behaviour, Behaviour::Hang);
    let behaviour = watched.wait_for(is_settled).await.ok()?.clone();
    match behaviour {
        Behaviour::Document { status, body } => Response::builder().status(status).body(Full::from(body)).ok(),
        Behaviour::Redirect { location, body } => {
            Response::builder().status(302).header("location", location).body(Full::from(body)).ok()
        }
        Behaviour::Hang | Behaviour::HangUp => None,
    }
}

//! The worlds in which the tests of the exchange run. The tests are in one file for each subject.

use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::config::{Config, Mode};
use crate::denial::LocalReply;
use crate::gateway::Gateway;
use crate::jwks::KeySetId;
use crate::names::{ConnectorId, OrgName};
use crate::policy::publication::Publication;
use crate::policy::source::PolicySource;
use crate::principal::Attribute;
use crate::request::RequestHead;
use crate::route::{RouteMode, RouteSettings};
use crate::testing::{self, MemoryHost};
use crate::time::UnixTime;

mod documents;
mod gateway_tokens;
mod key_sets;
mod limits;
mod messages;
mod pages;
mod requests;
mod tokens;
mod transitions;
mod waiting;

const KEY: &str = "apx_live_sk_0123456789abcdefghijABCDEFGHIJ01";
const KEY_SHA256: &str = "68da3d5e3810933a9dff1f9d7809ad982642279332ed1dced6bf37f389dcc0e9";
const ISSUER: &str = "https://idp.example/oauth2/default";
/// The headers of a request with an MCP message.
const MESSAGE: [(&str, &str); 2] = [(":method", "POST"), ("content-type", "application/json; charset=utf-8")];
const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

struct World {
    gateway: Gateway,
    host: MemoryHost,
    now: UnixTime,
}

impl World {
    fn with(change: impl FnOnce(&mut Value)) -> Self {
        let mut config = json!({
            "gateway": {"origin": "https://gw.example"},
            "jwks": {"https_cluster": "https"},
            "policy": {"inline": {"orgs": {
                "acme": {
                    "api_keys": [{"id": "k1", "sha256": KEY_SHA256}],
                    "identity_providers": [{"issuer": ISSUER, "jwks_uri": "https://idp.example/keys", "audience": "apexmcp"}],
                },
                "other": {},
            }}},
        });
        change(&mut config);
        let (config, policy) = Config::parse(config.to_string().as_bytes(), &|_| None).unwrap();
        Self { gateway: Gateway::new(config, policy), host: MemoryHost::default(), now: NOW }
    }

    fn new() -> Self {
        Self::with(|_| {})
    }

    /// The issuer's key set arrives.
    fn publish(&mut self, kids: &[&str]) {
        let now = self.now;
        self.fetched(now.plus(self.gateway.config.jwks.refresh_interval), Some(kids));
    }

    /// Starts a fetch, which is due at `due_at`, and ends it with these keys or without keys.
    fn fetched(&mut self, due_at: UnixTime, kids: Option<&[&str]>) {
        let Self { gateway: Gateway { key_sets, config, .. }, host, now } = self;
        let fetch = key_sets.sync(KeySetId::at(0), due_at, &config.jwks, host).unwrap().expect("a fetch is due");
        key_sets.finish(&fetch, kids.map(testing::jwk_set).as_ref(), *now, &config.jwks, host).unwrap();
    }

    fn start_on(&mut self, path: &str, headers: &[(&str, &str)], route: RouteSettings) -> Step {
        let path = [(":path", path)];
        start(&mut self.gateway, testing::head(&[&path, headers].concat()), route, self.now, &self.host)
    }

    fn start(&mut self, path: &str, headers: &[(&str, &str)]) -> Step {
        self.start_on(path, headers, RouteSettings::default())
    }

    /// Handles an event of a request with this head and body. Returns the outcome of a question, too.
    fn handle_all(
        &mut self,
        pending: Pending,
        event: Event<'_>,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> (Step, Option<ServiceOutcome>) {
        let request = FakeRequest { headers, body, now: self.now };
        let mut context = Context::new(&mut self.gateway, &self.host, &request);
        let step = pending.handle(event, &mut context);
        (step, context.service_outcome)
    }

    /// Handles an event that needs no part of the request.
    fn handle(&mut self, pending: Pending, event: Event<'_>) -> Step {
        self.handle_all(pending, event, &[], &[]).0
    }

    /// Handles a tick. The request has this head.
    fn tick(&mut self, pending: Pending, headers: &[(&str, &str)]) -> Step {
        self.handle_all(pending, Event::Tick { now: self.now }, headers, &[]).0
    }

    /// Handles a whole body.
    fn read(&mut self, pending: Pending, body: &[u8]) -> Step {
        self.handle_all(pending, whole(body), &[], body).0
    }

    /// Whether a tick ends the wait.
    fn is_due(&self, pending: &mut Pending, now: UnixTime) -> bool {
        pending.is_ended_by(&Event::Tick { now }, &self.gateway)
    }

    fn bearer(&mut self, token: &str) -> Step {
        self.start("/mcp/acme", &[MESSAGE[0], MESSAGE[1], ("authorization", &format!("Bearer {token}"))])
    }
}

/// A request that the shell reads again when it continues.
struct FakeRequest<'a> {
    headers: &'a [(&'a str, &'a str)],
    body: &'a [u8],
    now: UnixTime,
}

impl RequestReader for FakeRequest<'_> {
    fn head(&self) -> Option<RequestHead> {
        Some(testing::head(self.headers))
    }

    fn body(&self, max: usize) -> Vec<u8> {
        self.body.iter().take(max).copied().collect()
    }

    fn now(&self) -> UnixTime {
        self.now
    }
}

fn whole(body: &[u8]) -> Event<'static> {
    Event::BodyArrived(BodyProgress { length: body.len(), is_whole: true })
}

/// The request waits, with or without edits before.
fn pending(step: Step) -> Pending {
    match step {
        Step::Wait(pending) | Step::EditAndWait(_, pending) | Step::Ask(_, _, pending) => pending,
        other => panic!("does not wait: {other:?}"),
    }
}

/// The head of [`World::bearer`], except its token.
const BEARER: [(&str, &str); 3] = [(":path", "/mcp/acme"), MESSAGE[0], MESSAGE[1]];

impl World {
    /// The request of [`World::bearer`] in the next tick.
    fn tick_bearer(&mut self, pending: Pending, token: &str) -> Step {
        let authorization = format!("Bearer {token}");
        self.tick(pending, &[&BEARER[..], &[("authorization", &authorization)]].concat())
    }
}

fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "u1", "aud": "apexmcp", "exp": 1_800_000_300})
}

fn token(claims: &Value) -> String {
    testing::sign(&json!({"alg": "RS256", "kid": "a"}), claims)
}

fn reason(step: &Step) -> &'static str {
    match step {
        Step::Pass => "pass",
        Step::Wait(pending) | Step::EditAndWait(_, pending) | Step::Ask(_, _, pending) => match pending.name() {
            "AwaitingPolicy" => "await policy",
            "AwaitingKeySet" => "await",
            "AwaitingForm" => "read body",
            "AwaitingMessage" => "inspect",
            "AwaitingCount" => "count",
            "AwaitingRest" => "await rest",
            other => panic!("an unknown state {other}"),
        },
        Step::Forward(_, record) | Step::Reply(_, record) | Step::EarlyResponse(_, record) => record.reason(),
    }
}

fn status(step: &Step) -> u32 {
    match step {
        Step::Reply(reply, _) => reply.status,
        _ => 0,
    }
}

fn attributes(step: Step) -> Vec<String> {
    match step {
        Step::Forward(Forward { edits: Edits { principal: Some(principal), .. }, .. }, _) => {
            Attribute::ALL.map(|attribute| principal.attribute(attribute).to_owned()).to_vec()
        }
        other => panic!("not admitted: {other:?}"),
    }
}

const CLIENT: &str = "apx_client_4b7d9e21";
const SECRET: &str = "apx_secret_0123456789abcdefghijABCD";
const SECRET_SHA256: &str = "a86201cae7792e61427faa7d5fe613084cb91f424072b0ebfa73d55f1b37600c";

/// A world in which acme has an OAuth client, changed by `change`.
fn issuing(change: impl FnOnce(&mut Value)) -> World {
    World::with(|config| {
        let policy = &mut config["policy"]["inline"];
        policy["signing_keys"] = json!([{"kid": "s1", "private_key_pem": testing::signing_key_pem()}]);
        policy["orgs"]["acme"]["oauth_clients"] =
            json!([{"client_id": CLIENT, "secret_sha256": [SECRET_SHA256], "scopes": ["mcp:call"]}]);
        change(policy);
    })
}

impl World {
    fn post_token(&mut self, body: &str) -> Step {
        let head = [(":method", "POST"), ("content-type", "application/x-www-form-urlencoded")];
        let mut form = pending(self.start("/oauth/token", &head));
        assert!(!self.is_due(&mut form, self.now));
        let head = [&[(":path", "/oauth/token")], &head[..]].concat();
        self.handle_all(form, whole(body.as_bytes()), &head, body.as_bytes()).0
    }

    fn token(&mut self, more: &str) -> String {
        let body = format!("grant_type=client_credentials&client_id={CLIENT}&client_secret={SECRET}{more}");
        let Step::Reply(reply, _) = self.post_token(&body) else { panic!("must answer") };
        let answer: Value = serde_json::from_str(&reply.body).unwrap();
        answer["access_token"].as_str().unwrap().to_owned()
    }
}

/// A world whose key covers the connectors `notes` and `files`.
fn scoped_world(mode: &str) -> World {
    World::with(|config| {
        config["mode"] = json!(mode);
        config["policy"]["inline"]["orgs"]["acme"]["api_keys"][0]["connectors"] = json!(["notes", "files"]);
    })
}

const POST: [(&str, &str); 3] = [MESSAGE[0], MESSAGE[1], ("x-api-key", KEY)];

/// A world with a rate for the org and a quota for its key, counted in `store`.
fn limited_world(store: &str, on_error: &str, mode: &str) -> World {
    World::with(|config| {
        config["mode"] = json!(mode);
        config["limits"] = json!({"store": store, "rate_limit_service": {"cluster": "ratelimit", "on_error": on_error}});
        let acme = &mut config["policy"]["inline"]["orgs"]["acme"];
        acme["limits"] = json!({"rate": {"requests": 2, "per": "minute"}});
        acme["api_keys"][0]["limits"] = json!({"monthly_quota": 3});
        acme["api_keys"][0]["connectors"] = json!(["notes"]);
    })
}

fn header<'a>(reply: &'a LocalReply, wanted: &str) -> &'a str {
    reply.headers.iter().find(|(name, _)| *name == wanted).map_or("", |(_, value)| value)
}

/// A world whose policy comes from a Settings service.
fn remote_world() -> World {
    World::with(|config| config["policy"] = json!({"remote": {"cluster": "settings"}}))
}

impl World {
    /// A thread publishes a policy, and this thread switches to it.
    fn publish_policy(&mut self, orgs: &Value) {
        let settings = self.gateway.config.remote.as_ref().unwrap();
        let document = json!({"version": "1", "orgs": orgs}).to_string();
        let publication = Publication::of(document.as_bytes(), &self.gateway.config.clusters, "__").unwrap();
        publication.publish(&settings.place(), &self.host);
        let PolicySource::Remote(remote) = &self.gateway.policy else { panic!("not remote") };
        assert_eq!(remote.sync(&self.host).as_deref(), Some("1"));
    }
}

//! The plugin in one thread: its configuration, its clock, its callouts.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{ContextType, Status};

use crate::hostcalls;
use crate::http::{Plugin, Stream};
use apexmcp_core::config::{Config, RemoteSettings};
use apexmcp_core::gateway::Gateway;
use apexmcp_core::host::{Host, Update};
use apexmcp_core::jose::jwk::{self, JwkSet, JwkSetError};
use apexmcp_core::json::is_json;
use apexmcp_core::jwks::{Fetch, JwksUri, KeySet, KeySetId};
use apexmcp_core::policy::poll::{Answer, Poll, RENEWAL};
use apexmcp_core::policy::remote;
use apexmcp_core::policy::source::PolicySource;
use apexmcp_core::time::UnixTime;

/// On which it depends what documents are taken: another module may take what this one refused.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How often waiting requests are looked after and due fetches begun. A request that waits for what another thread
/// fetches waits as much longer; a tick with nothing to do costs a few microseconds.
const TICK: Duration = Duration::from_millis(20);

pub(crate) struct Root {
    id: u32,
    plugin: Rc<Plugin>,
    /// The fetches under way, by the number under which the answer comes.
    fetches: HashMap<u32, Fetch>,
    /// The request for the policy under way.
    poll: Option<Polling>,
}

/// A request for the policy.
struct Polling {
    /// The number under which the answer comes.
    token: u32,
    started_at: UnixTime,
    /// Whether it names a document that may be in force still.
    is_conditional: bool,
    /// When the claim to be the only one is to be renewed.
    renew_at: UnixTime,
}

impl Root {
    pub(crate) fn new(id: u32) -> Self {
        let plugin = Rc::<Plugin>::default();
        plugin.root_id.set(id);
        Self { id, plugin, fetches: HashMap::new(), poll: None }
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, num_headers: usize, body_size: usize, _num_trailers: usize) {
        if let Some(polling) = self.poll.take_if(|polling| polling.token == token) {
            self.finish_poll(&polling, num_headers, body_size);
            return;
        }
        let Some(fetch) = self.fetches.remove(&token) else { return };
        let now = hostcalls::now();
        self.finish(&fetch, read_key_set(num_headers, body_size), now);
        self.wake(now);
    }

    // Envoy has another configuration, or stops: whoever comes next need not wait until the claim is over.
    fn on_done(&mut self) -> bool {
        if let Some(polling) = self.poll.take() {
            self.hold_claim(|poll| poll.release(polling.started_at));
        }
        let now = hostcalls::now();
        self.fetches.drain().for_each(|(_, fetch)| fetch.abandon(now, &self.plugin.envoy));
        true
    }

    // For streams that waited for keys before they were counted.
    fn on_grpc_call_response(&mut self, token: u32, status: u32, size: usize) {
        self.plugin.counted(token, status, size);
        hostcalls::enter(self.id);
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        match Config::parse(&hostcalls::plugin_configuration(), &|name| std::env::var(name).ok()) {
            Ok((config, policy)) => {
                match &config.remote {
                    None => self.plugin.note_version(&policy.version),
                    Some(remote) => log::info!("the policy comes from cluster {:?}", remote.cluster),
                }
                log::info!("{}", self.plugin.envoy.describe());
                for warning in &config.warnings {
                    log::warn!("{warning}");
                }
                *self.plugin.gateway.borrow_mut() = Some(Gateway::new(config, policy));
                hostcalls::tick_every(TICK)
            }
            Err(problems) => {
                for problem in problems {
                    log::error!("invalid configuration: {problem}");
                }
                false
            }
        }
    }

    fn on_tick(&mut self) {
        let now = hostcalls::now();
        self.sync_policy();
        self.start_poll(now);
        let due = self
            .plugin
            .gateway
            .borrow()
            .as_ref()
            .map(|gateway| gateway.key_sets.sync_due(now, &gateway.config.jwks))
            .unwrap_or_default();
        for id in due {
            self.sync(id, now);
        }
        self.forget_unused(now);
        self.wake(now);
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream::new(id, Rc::clone(&self.plugin))))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl Root {
    /// Takes notice of a policy that some thread has published.
    fn sync_policy(&self) {
        let gateway = self.plugin.gateway.borrow();
        let Some(PolicySource::Remote(remote)) = gateway.as_ref().map(|gateway| &gateway.policy) else { return };
        if let Some(version) = remote.sync(&self.plugin.envoy) {
            self.plugin.note_version(&version);
        }
    }

    /// Asks for changes of the policy, where that is due and no other thread does.
    fn start_poll(&mut self, now: UnixTime) {
        let gateway = self.plugin.gateway.borrow();
        let Some(gateway) = gateway.as_ref() else { return };
        let Some(settings) = &gateway.config.remote else { return };
        if let Some(polling) = &mut self.poll {
            if !polling.renew_at.is_ahead(now, RENEWAL) {
                polling.renew_at = now.plus(RENEWAL);
                let started_at = polling.started_at;
                self.hold_claim(|poll| poll.renew(started_at, now));
            }
            return;
        }
        let name = poll_key(settings);
        let (value, cas) = hostcalls::shared_data(&name);
        let poll = Poll::from_bytes(&value.unwrap_or_default());
        let Some(claimed) = poll.claim(now, self.plugin.serves_requests.get(), settings) else { return };
        if !hostcalls::set_shared_data(&name, &claimed.to_bytes(), cas) {
            return; // Another thread was faster.
        }
        let etag = claimed.etag(VERSION);
        match hostcalls::get_policy(settings, etag) {
            Ok(token) => {
                self.poll = Some(Polling {
                    token,
                    started_at: claimed.started_at(),
                    is_conditional: etag.is_some(),
                    renew_at: now.plus(RENEWAL),
                });
            }
            Err(status) => {
                self.poll_failed(claimed.started_at(), &refused_callout(&settings.cluster, status), now);
            }
        }
    }

    /// Changes the claim of this thread's request, as long as it is this thread's; tells whether it was.
    fn hold_claim(&self, mut change: impl FnMut(Poll) -> Option<Poll>) -> bool {
        let gateway = self.plugin.gateway.borrow();
        let Some(settings) = gateway.as_ref().and_then(|gateway| gateway.config.remote.as_ref()) else { return false };
        let change = &mut |bytes: &[u8]| change(Poll::from_bytes(bytes)).map(|poll| poll.to_bytes());
        self.plugin.envoy.update(&poll_key(settings), change) == Update::Changed
    }

    /// The Settings service answered, or will not any more.
    fn finish_poll(&self, polling: &Polling, num_headers: usize, body_size: usize) {
        let now = hostcalls::now();
        {
            let gateway = self.plugin.gateway.borrow();
            let Some(gateway) = gateway.as_ref() else { return };
            let Some(settings) = &gateway.config.remote else { return };
            let started_at = polling.started_at;
            match hostcalls::response_status(num_headers) {
                Some(304) if polling.is_conditional => self.poll_succeeded(settings, started_at, Answer::NotModified, now),
                Some(200) if self.gives_way(started_at, now) => {}
                Some(200) if body_size <= remote::MAX_DOCUMENT_LENGTH => {
                    let etag = hostcalls::response_etag();
                    // Another thread may have asked since, and know better: two must not publish at once.
                    if !self.hold_claim(|poll| poll.work(started_at, now)) {
                        log::warn!("a policy came too late, and is asked for again");
                        return;
                    }
                    let document = hostcalls::response_body(body_size);
                    let answer = match gateway.publish(&document, settings, &self.plugin.envoy) {
                        Ok(publication) => {
                            log::info!("policy version {:?} came, {body_size} bytes, and is published", publication.version());
                            for warning in publication.warnings() {
                                log::warn!("{warning}");
                            }
                            Answer::Taken(etag)
                        }
                        Err(problems) => {
                            for problem in problems.iter().take(MAX_PROBLEMS) {
                                log::error!("invalid policy: {problem}");
                            }
                            // The same document would be refused again, and another one is awaited; but what is no JSON was
                            // broken on the way.
                            Answer::Refused(etag.filter(|_| is_json(&document)))
                        }
                    };
                    self.poll_succeeded(settings, started_at, answer, now);
                }
                Some(200) => self.poll_failed(started_at, "the document is too long", now),
                Some(status) => self.poll_failed(started_at, &unexpected(status), now),
                None => {
                    let problem = "the connection failed, or the document is longer than Envoy takes";
                    self.poll_failed(started_at, problem, now);
                }
            }
        }
        self.sync_policy();
        self.wake(now);
    }

    /// Leaves a document to a thread that serves no requests, where there may be one.
    fn gives_way(&self, started_at: UnixTime, now: UnixTime) -> bool {
        self.plugin.serves_requests.get() && self.hold_claim(|poll| poll.give_way(started_at, now))
    }

    fn poll_succeeded(&self, settings: &RemoteSettings, started_at: UnixTime, answer: Answer, now: UnixTime) {
        let outcome = match answer {
            Answer::NotModified => "not_modified",
            Answer::Taken(_) => "success",
            Answer::Refused(_) => "invalid",
        };
        let mut is_refused = false;
        let is_held = self.hold_claim(|poll| {
            let poll = poll.succeeded(started_at, answer.clone(), VERSION, now, settings)?;
            is_refused = poll.is_refused();
            Some(poll)
        });
        let mut metrics = self.plugin.metrics.borrow_mut();
        metrics.policy_fetched(outcome);
        if is_held && !is_refused {
            metrics.policy_confirmed(now);
        }
    }

    fn poll_failed(&self, started_at: UnixTime, problem: &str, now: UnixTime) {
        log::warn!("the policy could not be fetched: {problem}");
        self.hold_claim(|poll| poll.failed(started_at, now));
        self.plugin.metrics.borrow_mut().policy_fetched("failure");
    }

    /// Compares this thread's copy of a key set with what all threads share, and begins a fetch if one is due.
    fn sync(&mut self, id: KeySetId, now: UnixTime) {
        let mut gateway = self.plugin.gateway.borrow_mut();
        let Some(Gateway { config, key_sets, .. }) = gateway.as_mut() else { return };
        let synced = key_sets.sync(id, now, &config.jwks, &self.plugin.envoy);
        let Some(uri) = key_sets.get(id).map(KeySet::uri) else { return };
        let fetch = match synced {
            Ok(Some(fetch)) => fetch,
            Ok(None) => return,
            Err(error) => return log_unreadable(uri, &error),
        };
        let begun = match config.clusters.of(uri) {
            Ok(cluster) => hostcalls::get(cluster, uri, config.jwks.timeout).map_err(|status| refused_callout(cluster, status)),
            Err(problem) => Err(problem.to_owned()),
        };
        drop(gateway);
        match begun {
            Ok(token) => {
                self.fetches.insert(token, fetch);
            }
            Err(problem) => self.finish(&fetch, Err(problem), now),
        }
    }

    /// Removes key sets that this thread no longer uses, and their keys in shared data if no thread can use them.
    fn forget_unused(&self, now: UnixTime) {
        let mut gateway = self.plugin.gateway.borrow_mut();
        let Some(Gateway { config, key_sets, .. }) = gateway.as_mut() else { return };
        if key_sets.forget_unused(now, &config.jwks, &self.plugin.envoy) > 0 {
            self.plugin.metrics.borrow_mut().jwks_keys(key_sets.key_count());
        }
    }

    /// Records how a fetch ended, for all threads.
    fn finish(&self, fetch: &Fetch, fetched: Result<JwkSet, String>, now: UnixTime) {
        let mut gateway = self.plugin.gateway.borrow_mut();
        let Some(Gateway { config, key_sets, .. }) = gateway.as_mut() else { return };
        let finished = key_sets.finish(fetch, fetched.as_ref().ok(), now, &config.jwks, &self.plugin.envoy);
        let Some(uri) = key_sets.get(fetch.key_set).map(KeySet::uri) else { return };
        match &fetched {
            Ok(keys) => log::info!("key set {}: {} usable keys", uri.as_str(), keys.len()),
            Err(problem) => log::warn!("key set {} could not be fetched: {problem}", uri.as_str()),
        }
        if let Err(error) = finished {
            log_unreadable(uri, &error);
        }
        let mut metrics = self.plugin.metrics.borrow_mut();
        metrics.jwks_fetched(fetched.is_ok());
        metrics.jwks_keys(key_sets.key_count());
    }

    /// Decides the requests for which something happened.
    fn wake(&self, now: UnixTime) {
        self.plugin.wake(now);
        // What follows in this callback is the root's again.
        hostcalls::enter(self.id);
    }
}

fn log_unreadable(uri: &JwksUri, error: &JwkSetError) {
    log::error!("the shared keys of {} cannot be read, so they will be fetched again: {error}", uri.as_str());
}

/// As many problems of one document are logged: the first ones tell what is wrong.
const MAX_PROBLEMS: usize = 20;

/// The name of the record in shared data of who asks for the policy.
fn poll_key(settings: &RemoteSettings) -> String {
    settings.place().name("poll")
}

/// What it means that a request was not even begun.
fn refused_callout(cluster: &str, status: Status) -> String {
    format!("Envoy refused the callout to cluster {cluster:?} ({status:?}): does it exist, and is the host's name found?")
}

/// What an answer with this status means; two of them Envoy gives itself.
fn unexpected(status: u16) -> String {
    match status {
        503 => "no host of the cluster answered (or 503)".to_owned(),
        504 => "no answer in time (or 504)".to_owned(),
        _ => format!("the answer was {status}"),
    }
}

/// The key set in the answer that came.
fn read_key_set(num_headers: usize, body_size: usize) -> Result<JwkSet, String> {
    match hostcalls::response_status(num_headers) {
        None => Err("the connection failed".to_owned()),
        // Redirects are not followed: the policy names where keys are.
        Some(status) if status != 200 => Err(unexpected(status)),
        Some(_) if body_size > jwk::MAX_DOCUMENT_LENGTH => Err(JwkSetError::TooLong.to_string()),
        Some(_) => JwkSet::parse(&hostcalls::response_body(body_size)).map_err(|error| error.to_string()),
    }
}

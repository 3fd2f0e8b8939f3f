//! The calls of one thread to other services: to identity providers for their keys, and to Settings for the policy.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apexmcp_core::callout;
use apexmcp_core::config::LimitStore;
use apexmcp_core::gateway::Gateway;
use apexmcp_core::jose::jwk::{JwkSet, JwkSetError};
use apexmcp_core::jwks::{self, Fetch, JwksUri, KeySet, KeySetId, Wish};
use apexmcp_core::policy::page;
use apexmcp_core::policy::poll::{self, Due, LogLine, Next, Outcome, Poller, Received};
use apexmcp_core::policy::service::{RemoteSettings, SdsSecret, Secret, SettingsToken};
use apexmcp_core::policy::source::PolicySource;
use apexmcp_core::time::UnixTime;
use apexmcp_core::usage::UsageSettings;
use apexmcp_core::usage::counts::Counts;
use apexmcp_core::usage::reporter::Reporter;

use crate::envoy::{Call, Envoy};
use crate::metrics::{self, Metric};
use crate::plugin::Plugin;

/// The version of this module. Another version may accept a policy that this one refuses.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The header `User-Agent` of all calls.
const AGENT: &str = concat!("apexmcp-auth/", env!("CARGO_PKG_VERSION"));

/// The calls of one thread that are under way.
pub struct Fetcher<E: Envoy> {
    plugin: Rc<Plugin<E>>,
    /// The fetches of key sets, by the number of their call.
    fetches: HashMap<u32, Fetch>,
    poller: Poller,
    reporter: Reporter,
}

/// The answer to a call.
pub trait Answer {
    /// The HTTP status. `None` if the connection failed.
    fn status(&self) -> Option<u16>;

    /// Length of the body in bytes.
    fn size(&self) -> usize;

    /// The body. It may be long, so it is read only if it is needed.
    fn body(&self) -> Vec<u8>;

    /// The value of a header.
    fn header(&self, name: &str) -> Option<String>;
}

impl<E: Envoy> Fetcher<E> {
    /// A thread without calls.
    pub fn new(plugin: Rc<Plugin<E>>) -> Self {
        Self { plugin, fetches: HashMap::new(), poller: Poller::new(VERSION), reporter: Reporter::default() }
    }

    /// Takes over what other threads have published, and begins the calls that are due. `counted` is what other threads counted,
    /// whose usage this thread reports.
    pub fn tick(&mut self, now: UnixTime, counted: &[Arc<Mutex<Counts>>]) {
        self.plugin.sync_policy();
        self.start_poll(now);
        self.report_usage(now, counted);
        for id in self.plugin.due_key_sets(now) {
            self.sync(id, now);
        }
        self.plugin.forget_unused(now);
    }

    /// Fetches what a thread wishes that fetches nothing itself. The next tick begins the fetch.
    pub fn take_over(&self, wish: Wish) {
        if let Some(gateway) = self.plugin.gateway.borrow_mut().as_mut() {
            gateway.key_sets.take_over(wish);
        }
    }

    /// A call ended. False if it is none of this thread.
    pub fn answered(&mut self, call: u32, answer: &impl Answer) -> bool {
        if let Some(request) = self.poller.take(call) {
            self.finish_poll(&request, answer);
            return true;
        }
        if self.reporter.is_of(call) {
            self.finish_report(answer);
            return true;
        }
        let Some(fetch) = self.fetches.remove(&call) else { return false };
        let fetched = jwks::read_answer(answer.status(), answer.size(), || answer.body());
        self.finish(&fetch, fetched, self.plugin.envoy.now());
        true
    }

    /// Releases the claims of this thread, because its configuration ends.
    pub fn release(&mut self) {
        let envoy = &self.plugin.envoy;
        if let Some(settings) = remote_settings(self.plugin.gateway.borrow().as_ref()) {
            self.poller.release(settings, envoy);
        }
        let now = envoy.now();
        self.fetches.drain().for_each(|(_, fetch)| fetch.abandon(now, envoy));
    }

    /// Asks for changes of the policy, if that is due and no other thread does.
    fn start_poll(&mut self, now: UnixTime) {
        let envoy = &self.plugin.envoy;
        let gateway = self.plugin.gateway.borrow();
        let Some(settings) = remote_settings(gateway.as_ref()) else { return };
        let Some(due) = self.poller.tick(now, self.plugin.serves_requests.get(), settings, envoy) else { return };
        match ask_for_policy(settings, &due, envoy) {
            Ok(call) => self.poller.sent(&due, call, now),
            Err(problem) => self.report(Poller::not_sent(&due, &problem, now, settings, envoy), now),
        }
    }

    /// The call to the Settings service ended.
    fn finish_poll(&mut self, request: &poll::Request, answer: &impl Answer) {
        let envoy = &self.plugin.envoy;
        let now = envoy.now();
        {
            let gateway = self.plugin.gateway.borrow();
            let Some(gateway) = gateway.as_ref() else { return };
            let (Some(settings), PolicySource::Remote(remote)) = (&gateway.config.remote, &gateway.policy) else { return };
            let serves_requests = self.plugin.serves_requests.get();
            let outcome = match request.answered(answer.status(), answer.size(), serves_requests, now, settings, envoy) {
                Next::Report(outcome) => outcome,
                Next::Publish => {
                    let (etag, content_type) = (answer.header("etag"), answer.header("content-type"));
                    let received = Received { etag, content_type, body: &answer.body() };
                    self.poller.publish(request, received, remote.reader(), now, settings, envoy)
                }
            };
            self.report(outcome, now);
        }
        self.plugin.sync_policy();
    }

    /// Logs and counts the outcome of a request for the policy.
    fn report(&self, outcome: Outcome, now: UnixTime) {
        outcome.log.into_iter().for_each(log_line);
        if let Some(counted) = outcome.counted {
            self.plugin.envoy.count(Metric::PolicyFetches(counted));
        }
        if outcome.is_confirmed {
            metrics::policy_confirmed(now, &self.plugin.envoy);
        }
    }

    /// Reports the usage, if that is due.
    fn report_usage(&mut self, now: UnixTime, counted: &[Arc<Mutex<Counts>>]) {
        let envoy = &self.plugin.envoy;
        let gateway = self.plugin.gateway.borrow();
        let Some((settings, usage)) = remote_settings(gateway.as_ref()).and_then(|remote| Some((remote, remote.usage.as_ref()?)))
        else {
            return;
        };
        let all =
            || std::iter::once(&self.plugin.usage).chain(counted).map(|one| one.lock().unwrap_or_else(PoisonError::into_inner));
        if !self.reporter.wants_counts(all().any(|counts| !counts.is_empty()), usage.interval, now) {
            return;
        }
        all().for_each(|mut counts| self.reporter.take(&mut counts));
        let Some(body) = self.reporter.body(envoy) else { return };
        let problem = match send_usage(settings, usage, body, envoy) {
            Ok(call) => {
                self.reporter.sent(call);
                None
            }
            Err(problem) => self.reporter.not_sent(&problem),
        };
        problem.into_iter().for_each(log_line);
    }

    /// The call with a report ended.
    fn finish_report(&mut self, answer: &impl Answer) {
        let envoy = &self.plugin.envoy;
        let gateway = self.plugin.gateway.borrow();
        let is_local = gateway.as_ref().is_some_and(|gateway| matches!(gateway.config.limits, LimitStore::Local));
        let body = if Reporter::is_readable(answer.size()) { answer.body() } else { Vec::new() };
        let line = self.reporter.answered(answer.status(), &body, is_local, envoy.now(), envoy);
        line.into_iter().for_each(log_line);
    }

    /// Compares this thread's copy of a key set with what all threads share, and begins a fetch if one is due.
    fn sync(&mut self, id: KeySetId, now: UnixTime) {
        let envoy = &self.plugin.envoy;
        let mut gateway = self.plugin.gateway.borrow_mut();
        let Some(Gateway { config, key_sets, .. }) = gateway.as_mut() else { return };
        let synced = key_sets.sync(id, now, &config.jwks, envoy);
        let Some(uri) = key_sets.get(id).map(KeySet::uri) else { return };
        let fetch = match synced {
            Ok(Some(fetch)) => fetch,
            Ok(None) => return,
            Err(error) => return log_unreadable(uri, &error),
        };
        let begun = match config.clusters.of(uri) {
            Ok(cluster) => begin_fetch(cluster, uri, config.jwks.timeout, envoy),
            Err(problem) => Err(problem.to_owned()),
        };
        drop(gateway);
        match begun {
            Ok(call) => {
                self.fetches.insert(call, fetch);
            }
            Err(problem) => self.finish(&fetch, Err(problem), now),
        }
    }

    /// Records the end of a fetch for all threads.
    fn finish(&self, fetch: &Fetch, fetched: Result<JwkSet, String>, now: UnixTime) {
        let envoy = &self.plugin.envoy;
        let mut gateway = self.plugin.gateway.borrow_mut();
        let Some(Gateway { config, key_sets, .. }) = gateway.as_mut() else { return };
        let finished = key_sets.finish(fetch, fetched.as_ref().ok(), now, &config.jwks, envoy);
        let Some(uri) = key_sets.get(fetch.key_set).map(KeySet::uri) else { return };
        match &fetched {
            Ok(keys) => log::info!("key set {}: {} usable keys", uri.as_str(), keys.len()),
            Err(problem) => log::warn!("key set {} could not be fetched: {problem}", uri.as_str()),
        }
        if let Err(error) = finished {
            log_unreadable(uri, &error);
        }
        envoy.count(Metric::JwksFetches(fetched.is_ok()));
        metrics::jwks_keys(key_sets.key_count(), envoy);
    }
}

/// The parts of a tick that begin no call.
impl<E: Envoy> Plugin<E> {
    /// Switches to the policy that a thread has published since the last call.
    fn sync_policy(&self) {
        let gateway = self.gateway.borrow();
        let Some(PolicySource::Remote(remote)) = gateway.as_ref().map(|gateway| &gateway.policy) else { return };
        if let Some(version) = remote.sync(&self.envoy) {
            self.note_version(&version);
        }
    }

    /// The part of a tick for a thread that fetches nothing itself: takes over what other threads have published, and returns
    /// what another thread should fetch.
    pub fn follow(&self, now: UnixTime) -> Vec<Wish> {
        self.sync_policy();
        let mut wishes = Vec::new();
        for id in self.due_key_sets(now) {
            let mut gateway = self.gateway.borrow_mut();
            let Some(Gateway { config, key_sets, .. }) = gateway.as_mut() else { break };
            match key_sets.follow(id, now, &config.jwks, &self.envoy) {
                Ok(wish) => wishes.extend(wish),
                Err(error) => key_sets.get(id).into_iter().for_each(|set| log_unreadable(set.uri(), &error)),
            }
        }
        self.forget_unused(now);
        if let Some(gateway) = self.gateway.borrow_mut().as_mut() {
            gateway.questions.look(now);
        }
        wishes
    }

    /// The key sets that must be compared with what all threads share, the most urgent first.
    fn due_key_sets(&self, now: UnixTime) -> Vec<KeySetId> {
        let gateway = self.gateway.borrow();
        gateway.as_ref().map(|gateway| gateway.key_sets.sync_due(now, &gateway.config.jwks)).unwrap_or_default()
    }

    /// Removes key sets that this thread no longer uses, and their keys in shared data if no thread can use them.
    fn forget_unused(&self, now: UnixTime) {
        let mut gateway = self.gateway.borrow_mut();
        let Some(Gateway { config, key_sets, .. }) = gateway.as_mut() else { return };
        if key_sets.forget_unused(now, &config.jwks, &self.envoy) > 0 {
            metrics::jwks_keys(key_sets.key_count(), &self.envoy);
        }
    }
}

fn begin_fetch(cluster: &str, uri: &JwksUri, timeout: Duration, envoy: &impl Envoy) -> Result<u32, String> {
    let headers = vec![(":scheme", uri.scheme()), (":authority", uri.authority()), (":path", uri.path())];
    begin(Call { cluster, headers, body: &[], timeout }, jwks::ACCEPT, envoy)
}

/// Begins to ask the Settings service for a policy other than the known one.
fn ask_for_policy(settings: &RemoteSettings, due: &Due, envoy: &impl Envoy) -> Result<u32, String> {
    let bearer = settings.token.as_ref().map(|token| bearer(token, envoy)).transpose()?;
    let is_waiting = due.may_wait && !settings.long_poll.is_zero();
    let wait = format!("{}wait={}s", if settings.path.contains('?') { '&' } else { '?' }, settings.long_poll.as_secs());
    let path = format!("{}{}", settings.path, if is_waiting { wait.as_str() } else { "" });
    let gateway = format!("{} {VERSION}", due.gateway);
    let mut headers = vec![(":scheme", "http"), (":authority", settings.authority.as_str()), (":path", path.as_str())];
    headers.push((page::GATEWAY_HEADER, &gateway));
    headers.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
    headers.extend(due.etag.as_deref().map(|etag| ("if-none-match", etag)));
    let patience = if is_waiting { settings.long_poll } else { Duration::ZERO };
    let timeout = settings.timeout.saturating_add(patience);
    let accept = format!("{}, application/json;q=0.9, */*;q=0.1", page::CONTENT_TYPE);
    begin(Call { cluster: &settings.cluster, headers, body: &[], timeout }, &accept, envoy)
}

/// Begins to send a report of usage.
fn send_usage(settings: &RemoteSettings, usage: &UsageSettings, body: &[u8], envoy: &impl Envoy) -> Result<u32, String> {
    let (bearer, length) = (format!("Bearer {}", usage.token.0), body.len().to_string());
    let headers = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", settings.authority.as_str()),
        (":path", usage.path.as_str()),
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("content-length", length.as_str()),
        ("accept-encoding", "identity"),
        ("user-agent", AGENT),
    ];
    let call = Call { cluster: &settings.cluster, headers, body, timeout: settings.timeout };
    envoy.call(call).map_err(|status| callout::refused(&settings.cluster, status))
}

fn log_line(line: LogLine) {
    match line {
        LogLine::Info(line) => log::info!("{line}"),
        LogLine::Warning(line) => log::warn!("{line}"),
        LogLine::Error(line) => log::error!("{line}"),
    }
}

/// The value of `authorization` (RFC 6750 §2.1).
fn bearer(token: &SettingsToken, envoy: &impl Envoy) -> Result<String, String> {
    match token {
        SettingsToken::Known(Secret(token)) => Ok(format!("Bearer {token}")),
        SettingsToken::Sds(SdsSecret { name, .. }) => {
            let value = envoy.secret().ok_or_else(|| format!("Envoy does not have the secret {name:?} of token_sds yet"))?;
            // A file often ends with a line break.
            let token = std::str::from_utf8(&value).map(str::trim).ok();
            let token = token.filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
            let wrong = || format!("the secret {name:?} of token_sds must be one line of visible ASCII characters");
            token.map(|token| format!("Bearer {token}")).ok_or_else(wrong)
        }
    }
}

fn begin<'c>(mut call: Call<'c>, accept: &'c str, envoy: &impl Envoy) -> Result<u32, String> {
    // RFC 9110 §12.5.3: without Accept-Encoding, a server may compress its answer, and the filter could not read it.
    call.headers.extend([(":method", "GET"), ("accept", accept), ("accept-encoding", "identity"), ("user-agent", AGENT)]);
    let cluster = call.cluster;
    envoy.call(call).map_err(|status| callout::refused(cluster, status))
}

fn log_unreadable(uri: &JwksUri, error: &JwkSetError) {
    log::error!("the shared keys of {} cannot be read, so they will be fetched again: {error}", uri.as_str());
}

fn remote_settings(gateway: Option<&Gateway>) -> Option<&RemoteSettings> {
    gateway.and_then(|gateway| gateway.config.remote.as_ref())
}

//! The root context of one thread: its configuration, its timer and its calls to other services.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::ContextType;

use crate::hostcalls;
use crate::http::{Plugin, Stream};
use crate::log_level::FollowedLevel;
use apexmcp_core::callout;
use apexmcp_core::config::Config;
use apexmcp_core::gateway::Gateway;
use apexmcp_core::jose::jwk::{JwkSet, JwkSetError};
use apexmcp_core::jwks::{self, Fetch, JwksUri, KeySet, KeySetId};
use apexmcp_core::policy::poll::{self, LogLine, Next, Outcome, Poller};
use apexmcp_core::policy::service::RemoteSettings;
use apexmcp_core::policy::source::PolicySource;
use apexmcp_core::time::UnixTime;

/// The version of this module. Another version may accept a policy that this one refuses.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Interval at which held requests are checked and due fetches begin. A request that waits for a fetch of another thread
/// waits up to this much longer. A tick with nothing to do costs a few microseconds.
const TICK: Duration = Duration::from_millis(20);

pub(crate) struct Root {
    id: u32,
    plugin: Rc<Plugin>,
    /// The fetches under way, by the number of their call.
    fetches: HashMap<u32, Fetch>,
    poller: Poller,
    log_level: FollowedLevel,
}

impl Root {
    pub(crate) fn new(id: u32) -> Self {
        let plugin = Rc::<Plugin>::default();
        plugin.root_id.set(id);
        Self { id, plugin, fetches: HashMap::new(), poller: Poller::new(VERSION), log_level: FollowedLevel::default() }
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, num_headers: usize, body_size: usize, _num_trailers: usize) {
        if let Some(request) = self.poller.take(token) {
            self.finish_poll(&request, num_headers, body_size);
            return;
        }
        let Some(fetch) = self.fetches.remove(&token) else { return };
        let now = hostcalls::now();
        let status = hostcalls::response_status(num_headers);
        let fetched = jwks::read_answer(status, body_size, || hostcalls::response_body(body_size));
        self.finish(&fetch, fetched, now);
        self.wake(now);
    }

    // Envoy has another configuration, or stops.
    fn on_done(&mut self) -> bool {
        if let Some(settings) = remote_settings(self.plugin.gateway.borrow().as_ref()) {
            self.poller.release(settings, &self.plugin.envoy);
        }
        let now = hostcalls::now();
        self.fetches.drain().for_each(|(_, fetch)| fetch.abandon(now, &self.plugin.envoy));
        true
    }

    // The root context asks the rate limit service, so it gets the answers.
    fn on_grpc_call_response(&mut self, token: u32, status: u32, size: usize) {
        self.plugin.counted(token, status, size);
        hostcalls::enter(self.id);
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        self.log_level.start(hostcalls::now());
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
        self.log_level.tick(now);
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
    /// Switches to the policy that a thread has published since the last call.
    fn sync_policy(&self) {
        let gateway = self.plugin.gateway.borrow();
        let Some(PolicySource::Remote(remote)) = gateway.as_ref().map(|gateway| &gateway.policy) else { return };
        if let Some(version) = remote.sync(&self.plugin.envoy) {
            self.plugin.note_version(&version);
        }
    }

    /// Asks for changes of the policy, if that is due and no other thread does.
    fn start_poll(&mut self, now: UnixTime) {
        let gateway = self.plugin.gateway.borrow();
        let Some(settings) = remote_settings(gateway.as_ref()) else { return };
        let serves_requests = self.plugin.serves_requests.get();
        let Some(due) = self.poller.tick(now, serves_requests, settings, &self.plugin.envoy) else { return };
        match hostcalls::get_policy(settings, due.etag.as_deref()) {
            Ok(call) => self.poller.sent(&due, call, now),
            Err(status) => {
                let problem = callout::refused(&settings.cluster, status);
                self.report(Poller::not_sent(&due, &problem, now, settings, &self.plugin.envoy), now);
            }
        }
    }

    /// The call to the Settings service ended.
    fn finish_poll(&self, request: &poll::Request, num_headers: usize, body_size: usize) {
        let now = hostcalls::now();
        {
            let gateway = self.plugin.gateway.borrow();
            let Some(gateway) = gateway.as_ref() else { return };
            let Some(settings) = &gateway.config.remote else { return };
            let host = &self.plugin.envoy;
            let status = hostcalls::response_status(num_headers);
            let serves_requests = self.plugin.serves_requests.get();
            let outcome = match request.answered(status, body_size, serves_requests, now, settings, host) {
                Next::Report(outcome) => outcome,
                Next::Publish => {
                    let (etag, document) = (hostcalls::response_etag(), hostcalls::response_body(body_size));
                    let published = gateway.publish(&document, settings, host);
                    request.published(etag, &document, &published, now, settings, host)
                }
            };
            self.report(outcome, now);
        }
        self.sync_policy();
        self.wake(now);
    }

    /// Logs and counts the outcome of a request for the policy.
    fn report(&self, outcome: Outcome, now: UnixTime) {
        for line in outcome.log {
            match line {
                LogLine::Info(line) => log::info!("{line}"),
                LogLine::Warning(line) => log::warn!("{line}"),
                LogLine::Error(line) => log::error!("{line}"),
            }
        }
        let mut metrics = self.plugin.metrics.borrow_mut();
        if let Some(counted) = outcome.counted {
            metrics.policy_fetched(counted);
        }
        if outcome.is_confirmed {
            metrics.policy_confirmed(now);
        }
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
            Ok(cluster) => hostcalls::get(cluster, uri, config.jwks.timeout).map_err(|status| callout::refused(cluster, status)),
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

    /// Records the end of a fetch for all threads.
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

    /// Decides the held requests that are ready.
    fn wake(&self, now: UnixTime) {
        self.plugin.wake(now);
        // Streams were the current context meanwhile.
        hostcalls::enter(self.id);
    }
}

fn log_unreadable(uri: &JwksUri, error: &JwkSetError) {
    log::error!("the shared keys of {} cannot be read, so they will be fetched again: {error}", uri.as_str());
}

fn remote_settings(gateway: Option<&Gateway>) -> Option<&RemoteSettings> {
    gateway.and_then(|gateway| gateway.config.remote.as_ref())
}

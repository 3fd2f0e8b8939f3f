//! Limits for the callers of the management API and the console: for each credential, and for the failed attempts of each address.
//!
//! A credential that was accepted before is not limited by its address. An attacker who shares an address with others, behind a
//! proxy, can therefore not stop them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::Extensions;
use axum::http::HeaderMap;
use axum::http::header::HeaderName;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::address::is_public;
use crate::database::pool::Pool;
use crate::failure::{Failure, Reason};
use crate::secret::sha256;

/// Requests per second of one credential, and the maximum burst.
const CREDENTIAL_RATE: u32 = 200;
const CREDENTIAL_BURST: u32 = 400;
/// The number of requests as which a search counts.
const SEARCH_COST: u32 = 20;
/// Failed attempts per second of one address, and the maximum burst.
const FAILURE_RATE: u32 = 1;
const FAILURE_BURST: u32 = 30;
/// Maximum number of credentials, and of addresses, that are remembered. Those beyond share one limit.
const MAX_REMEMBERED: usize = 10_000;

/// The address of the other side of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// The buckets of one kind, as in the generic cell rate algorithm (ITU-T I.371): each is the moment at which it will be full again.
#[derive(Debug)]
struct Buckets {
    full_at: HashMap<String, Instant>,
    interval: Duration,
    /// How far ahead a bucket may be of the present.
    tolerance: Duration,
}

impl Buckets {
    fn new(rate: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1).checked_div(rate).unwrap_or_default();
        let tolerance = interval.saturating_mul(burst);
        Self { full_at: HashMap::new(), interval, tolerance }
    }

    /// The time until the bucket has room. `None`: it has room.
    fn wait(&self, name: &str, now: Instant) -> Option<Duration> {
        let full_at = self.full_at.get(self.place(name)).copied().unwrap_or(now).max(now);
        let after = full_at.saturating_duration_since(now).saturating_add(self.interval);
        after.checked_sub(self.tolerance).filter(|wait| !wait.is_zero())
    }

    /// Takes one place.
    fn take(&mut self, name: &str, now: Instant) {
        if self.full_at.len() >= MAX_REMEMBERED && !self.full_at.contains_key(name) {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        let place = self.place(name).to_owned();
        let full_at = self.full_at.entry(place).or_insert(now);
        *full_at = (*full_at).max(now).checked_add(self.interval).unwrap_or(now);
    }

    /// The name under which the bucket is kept: its own, or that of all which have no place.
    fn place<'n>(&self, name: &'n str) -> &'n str {
        if self.full_at.len() < MAX_REMEMBERED || self.full_at.contains_key(name) { name } else { "" }
    }
}

/// The limits of all callers.
#[derive(Debug)]
pub(crate) struct Throttle {
    credentials: Mutex<Buckets>,
    addresses: Mutex<Buckets>,
}

impl Default for Throttle {
    fn default() -> Self {
        let [credentials, addresses] = [(CREDENTIAL_RATE, CREDENTIAL_BURST), (FAILURE_RATE, FAILURE_BURST)];
        Self {
            credentials: Mutex::new(Buckets::new(credentials.0, credentials.1)),
            addresses: Mutex::new(Buckets::new(addresses.0, addresses.1)),
        }
    }
}

/// A request whose credential is not checked yet.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    throttle: Arc<Throttle>,
    /// The hash of the credential.
    credential: String,
    address: String,
}

impl Throttle {
    /// The caller that presents `credential`.
    pub(crate) fn caller(self: &Arc<Self>, credential: &str, headers: &HeaderMap, extensions: &Extensions) -> Caller {
        let address = extensions.get::<Peer>().map(|Peer(peer)| name(address(*peer, headers))).unwrap_or_default();
        Caller { throttle: Arc::clone(self), credential: sha256(credential), address }
    }
}

impl Caller {
    /// Counts the request.
    ///
    /// # Errors
    /// If the credential exceeds its limit, or is a new one of an address with too many failed attempts.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let now = Instant::now();
        let mut credentials = self.throttle.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        if credentials.full_at.contains_key(&self.credential) {
            if let Some(wait) = credentials.wait(&self.credential, now) {
                let line = format!("more than {CREDENTIAL_RATE} requests a second with this credential");
                return Err(exceeded(&line, wait));
            }
            credentials.take(&self.credential, now);
            return Ok(());
        }
        drop(credentials);
        let addresses = self.throttle.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        match addresses.wait(&self.address, now) {
            Some(wait) => Err(exceeded("too many attempts with invalid credentials came from your address", wait)),
            None => Ok(()),
        }
    }

    /// A place for a list that may be a search, which is then charged. Drop it when the list is read.
    ///
    /// # Errors
    /// If too many searches run.
    pub(crate) async fn search(&self, is_search: bool, pool: &Pool) -> Result<Option<OwnedSemaphorePermit>, Failure> {
        if !is_search {
            return Ok(None);
        }
        self.charge_search();
        pool.search().await.map(Some)
    }

    /// Counts a search as [`SEARCH_COST`] requests: it may read many records.
    fn charge_search(&self) {
        let now = Instant::now();
        let mut credentials = self.throttle.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        (1..SEARCH_COST).for_each(|_| credentials.take(&self.credential, now));
    }

    /// The credential is valid. From now on it has a limit of its own.
    pub(crate) fn passed(&self) {
        let mut credentials = self.throttle.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        if !credentials.full_at.contains_key(&self.credential) {
            credentials.take(&self.credential, Instant::now());
        }
    }

    /// The credential is invalid.
    pub(crate) fn failed(&self) {
        self.throttle.credentials.lock().unwrap_or_else(PoisonError::into_inner).full_at.remove(&self.credential);
        self.throttle.addresses.lock().unwrap_or_else(PoisonError::into_inner).take(&self.address, Instant::now());
    }
}

fn exceeded(line: &str, wait: Duration) -> Failure {
    let seconds = wait.as_secs().saturating_add(1);
    Failure::new(Reason::RateLimited, format!("{line}: try again in {seconds} s")).retry_after(seconds)
}

/// The address of the client. A proxy in the operator's network names it last in `X-Forwarded-For`.
fn address(peer: IpAddr, headers: &HeaderMap) -> IpAddr {
    let forwarded = headers.get_all(HeaderName::from_static("x-forwarded-for")).iter().next_back();
    let forwarded = forwarded.and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
    forwarded.filter(|_| !is_public(peer)).unwrap_or(peer)
}

/// The name of an address. All addresses of an IPv6 network of 64 bits count as one, because a client can use them all.
fn name(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(throttle: &Arc<Throttle>, credential: &str, peer: &str, forwarded: &'static str) -> Caller {
        let mut extensions = Extensions::new();
        extensions.insert(Peer(peer.parse().unwrap()));
        let mut headers = HeaderMap::new();
        if !forwarded.is_empty() {
            headers.insert("x-forwarded-for", forwarded.parse().unwrap());
        }
        throttle.caller(credential, &headers, &extensions)
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_has_30_failed_attempts_and_one_more_each_second() {
        let throttle = Arc::new(Throttle::default());
        let known = caller(&throttle, "known", "127.0.0.1", "");
        known.check().unwrap();
        known.passed();
        for attempt in 0..30 {
            let guess = caller(&throttle, &format!("guess {attempt}"), "127.0.0.1", "");
            guess.check().unwrap();
            guess.failed();
        }
        let next = caller(&throttle, "next", "127.0.0.1", "");
        assert_eq!(next.check().unwrap_err().reason, Reason::RateLimited);
        known.check().unwrap();
        caller(&throttle, "next", "127.0.0.1", "203.0.113.7, 198.51.100.9").check().unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        next.check().unwrap();
        next.failed();
        assert!(next.check().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_credential_has_400_requests_and_200_more_each_second() {
        let throttle = Arc::new(Throttle::default());
        let known = caller(&throttle, "known", "127.0.0.1", "");
        known.passed();
        assert_eq!((0..1000).filter(|_| known.check().is_ok()).count(), 399);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((0..1000).filter(|_| known.check().is_ok()).count(), 200);
        let other = caller(&throttle, "other", "127.0.0.1", "");
        other.passed();
        other.check().unwrap();
        (0..20).for_each(|_| other.charge_search());
        assert_eq!((0..1000).filter(|_| other.check().is_ok()).count(), 18);
    }

    #[tokio::test(start_paused = true)]
    async fn many_addresses_share_one_limit_when_no_more_can_be_remembered() {
        let throttle = Arc::new(Throttle::default());
        for number in 0..u32::try_from(MAX_REMEMBERED).unwrap() + 1_000 {
            let peer = std::net::Ipv4Addr::from_bits(0x0100_0000 + number).to_string();
            caller(&throttle, "guess", &peer, "").failed();
        }
        assert_eq!(throttle.addresses.lock().unwrap().full_at.len(), MAX_REMEMBERED + 1);
        assert!(caller(&throttle, "guess", "9.9.9.9", "").check().is_err());
        // Those that were remembered first are not concerned, and all are forgotten in time.
        caller(&throttle, "guess", "1.0.0.1", "").check().unwrap();
        tokio::time::advance(Duration::from_secs(10_000)).await;
        caller(&throttle, "guess", "9.9.9.9", "").failed();
        assert_eq!(throttle.addresses.lock().unwrap().full_at.len(), 1);
    }

    #[test]
    fn only_a_proxy_of_the_own_network_names_the_address() {
        for (peer, forwarded, expected) in [
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "8.8.8.8", "8.8.8.8"),
            ("10.0.0.1", "1.2.3.4, 8.8.8.8", "8.8.8.8"),
            ("10.0.0.1", "unknown", "10.0.0.1"),
            ("9.9.9.9", "8.8.8.8", "9.9.9.9"),
            ("2606:4700:1:2:3:4:5:6", "", "2606:4700:1:2::"),
            ("::ffff:9.9.9.9", "", "9.9.9.9"),
        ] {
            let mut headers = HeaderMap::new();
            if !forwarded.is_empty() {
                headers.insert("x-forwarded-for", forwarded.parse().unwrap());
            }
            assert_eq!(name(address(peer.parse().unwrap(), &headers)), expected, "{peer} {forwarded}");
        }
    }
}

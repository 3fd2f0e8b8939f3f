//! The gateways that ask this server for the policy. They are kept in memory: after a restart, each gateway is known again with its
//! next request.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::clock::Moment;

/// Maximum number of gateways that are remembered. A further one replaces the one that was silent for the longest time.
const MAX_GATEWAYS: usize = 10_000;
/// How long a gateway is remembered after its last request.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);
/// How long after its last request a gateway counts as connected. It pauses at most ten seconds between two requests.
const PATIENCE: Duration = Duration::from_secs(30);
/// Maximum length of what a gateway says of itself, in bytes.
const MAX_NAME_LENGTH: usize = 64;

/// A gateway, which is one Envoy.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Gateway {
    /// A random id of its Envoy. Empty: an older module, which sends none.
    pub(crate) id: String,
    /// The address from which it connects.
    pub(crate) address: String,
    /// The version of its module.
    pub(crate) module: String,
    /// The version of the policy that it has. Null: none yet.
    pub(crate) version: Option<i64>,
    /// Whether it has the present policy.
    pub(crate) is_current: bool,
    /// Since when it does not have the present policy.
    pub(crate) behind_since: Option<String>,
    pub(crate) last_seen: String,
    /// Whether it asked within the last 30 seconds, or waits for a change.
    pub(crate) is_connected: bool,
}

#[derive(Debug)]
struct Known {
    module: String,
    /// The state of the policy that it has.
    state: String,
    behind_since: Option<Moment>,
    last_seen: Moment,
    /// Its requests that wait for a change.
    waiting: u32,
}

/// The id and the address of a gateway.
type Name = (String, IpAddr);

/// All known gateways.
#[derive(Debug, Default)]
pub(crate) struct Gateways(Mutex<HashMap<Name, Known>>);

/// A request of a gateway, until it is answered.
#[derive(Debug)]
pub(super) struct Visit<'a> {
    gateways: &'a Gateways,
    name: Name,
}

impl Gateways {
    fn known(&self) -> MutexGuard<'_, HashMap<Name, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a request. `said` is what the gateway says of itself, and `state` the state that it has.
    pub(super) fn visit(&self, said: &str, address: IpAddr, state: &str, present: &str, now: Moment) -> Visit<'_> {
        let said: String = said.chars().filter(|letter| matches!(letter, ' '..='~')).take(MAX_NAME_LENGTH).collect();
        let (id, module) = said.split_once(' ').unwrap_or((&said, ""));
        let name = (id.to_owned(), address);
        let mut known = self.known();
        if known.len() >= MAX_GATEWAYS && !known.contains_key(&name) {
            known.retain(|_, gateway| gateway.waiting > 0 || now.since(gateway.last_seen) < REMEMBERED);
            let oldest =
                known.iter().min_by_key(|(_, gateway)| (gateway.waiting, gateway.last_seen)).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest.filter(|_| known.len() >= MAX_GATEWAYS) {
                known.remove(&oldest);
            }
        }
        let is_current = state == present;
        let gateway = known.entry(name.clone()).or_insert_with(|| Known {
            module: String::new(),
            state: String::new(),
            behind_since: None,
            last_seen: now,
            waiting: 0,
        });
        gateway.module = module.to_owned();
        gateway.behind_since = if is_current { None } else { gateway.behind_since.or(Some(now)) };
        gateway.state = state.chars().take(MAX_NAME_LENGTH).collect();
        gateway.last_seen = now;
        gateway.waiting = gateway.waiting.saturating_add(1);
        Visit { gateways: self, name }
    }

    /// All gateways, those without the present policy first.
    pub(crate) fn list(&self, present: &str, now: Moment) -> Vec<Gateway> {
        let mut known = self.known();
        known.retain(|_, gateway| gateway.waiting > 0 || now.since(gateway.last_seen) < REMEMBERED);
        let mut gateways: Vec<Gateway> = known
            .iter()
            .map(|((id, address), gateway)| {
                let is_current = gateway.state == present;
                // A gateway that is gone got none of the later policies.
                let behind_since = (!is_current).then(|| gateway.behind_since.unwrap_or(gateway.last_seen).to_string());
                Gateway {
                    id: id.clone(),
                    address: address.to_string(),
                    module: gateway.module.clone(),
                    // A transfer that goes on begins with the state before it.
                    version: gateway.state.split('-').next().and_then(|version| version.parse().ok()),
                    is_current,
                    behind_since,
                    last_seen: gateway.last_seen.to_string(),
                    is_connected: gateway.waiting > 0 || now.since(gateway.last_seen) < PATIENCE,
                }
            })
            .collect();
        gateways.sort_by(|a, b| {
            let key = |gateway: &Gateway| (gateway.is_current, gateway.address.clone(), gateway.id.clone());
            key(a).cmp(&key(b))
        });
        gateways
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if let Some(gateway) = self.gateways.known().get_mut(&self.name) {
            gateway.waiting = gateway.waiting.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The id, the version, whether it is the present one, since when it is not, and whether the gateway is connected.
    type Seen = (String, Option<i64>, bool, Option<String>, bool);

    fn seen(gateways: &Gateways, present: &str, now: Moment) -> Vec<Seen> {
        let list = gateways.list(present, now).into_iter();
        list.map(|it| (it.id, it.version, it.is_current, it.behind_since, it.is_connected)).collect()
    }

    #[test]
    fn a_gateway_is_behind_from_its_first_request_without_the_present_state() {
        let gateways = Gateways::default();
        let address = IpAddr::from([10, 0, 0, 1]);
        let at = |seconds: u64| Moment::parse("2027-01-01T00:00:00Z").unwrap().plus(Duration::from_secs(seconds)).unwrap();
        let behind = |seconds| Some(at(seconds).to_string());
        drop(gateways.visit("a 0.1.0", address, "", "7-x", at(0)));
        assert_eq!(seen(&gateways, "7-x", at(0)), [("a".to_owned(), None, false, behind(0), true)]);
        let waiting = gateways.visit("a 0.1.0", address, "7-x", "7-x", at(1));
        assert_eq!(seen(&gateways, "7-x", at(100)), [("a".to_owned(), Some(7), true, None, true)]);
        drop(waiting);
        drop(gateways.visit("a 0.1.0", address, "7-x", "8-y", at(101)));
        drop(gateways.visit("a 0.1.0", address, "7-x.8-y.key", "8-y", at(102)));
        assert_eq!(seen(&gateways, "8-y", at(140)), [("a".to_owned(), Some(7), false, behind(101), false)]);
        drop(gateways.visit("a 0.1.0", address, "8-y", "8-y", at(141)));
        drop(gateways.visit("", address, "7-x", "8-y", at(142)));
        let names: Vec<String> = seen(&gateways, "8-y", at(142)).into_iter().map(|it| it.0).collect();
        assert_eq!(names, ["", "a"], "those that are behind come first");
        assert_eq!(seen(&gateways, "8-y", at(142 + 24 * 60 * 60)), []);
    }

    #[test]
    fn the_number_of_gateways_is_bounded() {
        let gateways = Gateways::default();
        let address = IpAddr::from([10, 0, 0, 1]);
        let now = Moment::now();
        let waiting = gateways.visit("first", address, "", "1-x", now);
        for number in 0..MAX_GATEWAYS + 100 {
            drop(gateways.visit(&number.to_string(), address, "", "1-x", now));
        }
        let list = gateways.list("1-x", now);
        assert_eq!(list.len(), MAX_GATEWAYS);
        assert!(list.iter().any(|gateway| gateway.id == "first"), "a connected gateway keeps its place");
        drop(waiting);
    }
}

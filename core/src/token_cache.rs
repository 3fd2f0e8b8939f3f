//! A cache of verified tokens, so that each worker checks the signature of a token once.

use std::num::NonZeroUsize;
use std::rc::Rc;

use lru::LruCache;

use crate::host::Host;
use crate::jose::claims::Validity;
use crate::jwks::KeySetId;
use crate::oauth_client::OauthClient;
use crate::path::Resource;
use crate::policy::Org;
use crate::policy::source::PolicySource;
use crate::principal::Principal;
use crate::signing_key::SigningKey;
use crate::time::UnixTime;

/// The result of verifying a token, and everything on which it depends.
#[derive(Debug)]
pub struct Entry {
    pub principal: Rc<Principal>,
    pub validity: Validity,
    /// The resources for which the token is valid. `None` if it is valid for all resources of the org.
    pub only_for: Option<Box<[Resource]>>,
    /// The key set that verified the token, and the version of the set at that time. `None` for a token that the gateway
    /// issued: its keys are part of the policy, and [`Basis`] has them.
    pub key_set: Option<(KeySetId, u64)>,
    pub basis: Basis,
}

/// The parts of the policy on which the result for a token depends.
#[derive(Debug)]
pub struct Basis {
    /// The latest generation of the policy in which these parts were in force.
    pub generation: u64,
    pub org: Rc<Org>,
    /// The client and the signing keys of the gateway, for a token that the gateway issued.
    pub client: Option<(Rc<OauthClient>, Rc<[SigningKey]>)>,
}

impl Basis {
    /// Whether these parts are still in force. A part that has not changed is the same value in memory, so pointers are
    /// compared.
    pub fn holds(&mut self, policy: &PolicySource, resource: &Resource, host: &dyn Host) -> bool {
        if self.generation == policy.generation() {
            return true;
        }
        let is_org = policy.org(&resource.org, host).is_some_and(|org| Rc::ptr_eq(&org, &self.org));
        let is_client = self.client.as_ref().is_none_or(|(client, keys)| {
            let now = policy.oauth_client(&client.id, host);
            now.is_some_and(|now| Rc::ptr_eq(&now, client)) && Rc::ptr_eq(&policy.signing_keys(host), keys)
        });
        if is_org && is_client {
            self.generation = policy.generation();
        }
        is_org && is_client
    }
}

/// A bounded map from a token to its result. A full cache removes the token that was not used for the longest time.
#[derive(Debug)]
pub struct TokenCache(Option<LruCache<Box<str>, Entry>>);

impl TokenCache {
    /// A cache of at most `capacity` tokens. With a capacity of zero it keeps none.
    pub fn new(capacity: usize) -> Self {
        // The map grows as needed. An operator may allow a capacity that is never used.
        Self(NonZeroUsize::new(capacity).map(|capacity| {
            let mut cache = LruCache::unbounded();
            cache.resize(capacity);
            cache
        }))
    }

    /// Returns the principal of `token` at `resource` if the cached result is still valid at `now`. `version_of` returns
    /// the current version of a key set. `holds` tells whether the parts of the policy are still in force.
    pub fn get(
        &mut self,
        token: &str,
        resource: &Resource,
        now: UnixTime,
        mut version_of: impl FnMut(KeySetId) -> Option<u64>,
        holds: impl FnOnce(&mut Basis) -> bool,
    ) -> Option<Rc<Principal>> {
        let cache = self.0.as_mut()?;
        let entry = cache.get_mut(token)?;
        // Two orgs may trust the same provider. A token can then be valid for both, with different principals.
        let is_for_resource =
            *entry.principal.org() == resource.org && entry.only_for.as_ref().is_none_or(|only| only.contains(resource));
        let are_keys_old = entry.key_set.is_some_and(|(id, version)| version_of(id) != Some(version));
        if !entry.validity.holds(now) || are_keys_old || (is_for_resource && !holds(&mut entry.basis)) {
            cache.pop(token);
            return None;
        }
        is_for_resource.then(|| Rc::clone(&entry.principal))
    }

    pub fn insert(&mut self, token: &str, entry: Entry) {
        if let Some(cache) = &mut self.0 {
            cache.put(token.into(), entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Subjects;
    use crate::names::{ConnectorId, OrgName};
    use crate::scope::ScopeSet;

    fn resource(org: &str, connector: Option<&str>) -> Resource {
        Resource { org: OrgName::parse(org).unwrap(), connector: connector.and_then(ConnectorId::parse) }
    }

    fn entry(org: &str, refused_from: u64) -> Entry {
        let org = OrgName::parse(org).unwrap();
        Entry {
            principal: Principal::of_identity_provider(&org, "https://idp", "sub", ScopeSet::default(), Subjects::default()),
            validity: Validity { from: UnixTime::from_secs(50), until: UnixTime::from_secs(refused_from) },
            only_for: None,
            key_set: Some((KeySetId::at(0), 1)),
            basis: Basis { generation: 1, org: Rc::default(), client: None },
        }
    }

    fn is_hit(cache: &mut TokenCache, token: &str, org: &str, now: u64, version: u64) -> bool {
        cache.get(token, &resource(org, None), UnixTime::from_secs(now), |_| Some(version), |_| true).is_some()
    }

    #[test]
    fn an_entry_is_valid_for_its_org_its_time_and_its_keys() {
        let mut cache = TokenCache::new(8);
        cache.insert("t", entry("a", 100));
        assert!(is_hit(&mut cache, "t", "a", 99, 1));
        assert!(!is_hit(&mut cache, "t", "b", 99, 1));
        assert!(!is_hit(&mut cache, "T", "a", 99, 1));
        assert!(!is_hit(&mut cache, "t", "a", 100, 1));
        assert!(!is_hit(&mut cache, "t", "a", 99, 1), "an expired entry is removed");
        cache.insert("t", entry("a", 100));
        assert!(is_hit(&mut cache, "t", "a", 50, 1));
        assert!(!is_hit(&mut cache, "t", "a", 49, 1), "the clock was set back to before its validity");
        cache.insert("t", entry("a", 100));
        assert!(!is_hit(&mut cache, "t", "a", 99, 2), "the keys changed");
        assert!(!is_hit(&mut cache, "t", "a", 99, 1));
    }

    #[test]
    fn a_token_for_some_connectors_is_cached_for_these_alone() {
        let mut cache = TokenCache::new(8);
        cache.insert(
            "t",
            Entry {
                only_for: Some([resource("a", Some("github")), resource("a", Some("slack"))].into()),
                key_set: None,
                ..entry("a", 100)
            },
        );
        let mut is_hit =
            |connector| cache.get("t", &resource("a", connector), UnixTime::from_secs(60), |_| None, |_| true).is_some();
        assert!(is_hit(Some("github")) && is_hit(Some("slack")));
        assert!(!is_hit(Some("jira")) && !is_hit(None));
    }

    #[test]
    fn the_cache_is_bounded_and_can_be_turned_off() {
        let mut cache = TokenCache::new(2);
        for token in ["1", "2", "3"] {
            cache.insert(token, entry("a", 100));
        }
        let hits = ["1", "2", "3"].map(|token| is_hit(&mut cache, token, "a", 60, 1));
        assert_eq!(hits, [false, true, true]);
        let mut off = TokenCache::new(0);
        off.insert("1", entry("a", 100));
        assert!(!is_hit(&mut off, "1", "a", 60, 1));
    }
}

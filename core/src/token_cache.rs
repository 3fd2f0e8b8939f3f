//! Tokens that were verified before, so that a signature is checked once for each token and worker.

use std::num::NonZeroUsize;
use std::rc::Rc;

use lru::LruCache;

use crate::host::Host;
use crate::jose::claims::Validity;
use crate::jwks::KeySetId;
use crate::oauth::client::OauthClient;
use crate::oauth::signing_key::SigningKey;
use crate::path::Resource;
use crate::policy::Org;
use crate::policy::source::PolicySource;
use crate::principal::Principal;
use crate::time::UnixTime;

/// What a remembered token rests on.
#[derive(Debug)]
pub struct Entry {
    /// Whom it stands for.
    pub principal: Rc<Principal>,
    /// When it is good.
    pub validity: Validity,
    /// The resources for which the token is valid. `None` if it is valid for all resources of the org.
    pub only_for: Option<Box<[Resource]>>,
    /// The key set that verified it, and that set's version then. A token of the gateway itself has none: its keys
    /// change only with the whole policy, and this cache with them.
    pub key_set: Option<(KeySetId, u64)>,
    /// What the policy said.
    pub basis: Basis,
}

/// The parts of the policy by which a token was judged.
#[derive(Debug)]
pub struct Basis {
    /// The policy's generation in which these were last the ones in force.
    pub generation: u64,
    /// The org.
    pub org: Rc<Org>,
    /// The client, and the keys of the gateway, where it is a token of the gateway itself.
    pub client: Option<(Rc<OauthClient>, Rc<[SigningKey]>)>,
}

impl Basis {
    /// Whether they still are: what did not change is the same value in memory.
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

/// A bounded map from the whole token to what was verified; the one not used for the longest goes first.
#[derive(Debug)]
pub struct TokenCache(Option<LruCache<Box<str>, Entry>>);

impl TokenCache {
    /// A cache of at most `capacity` tokens; none are kept where that is zero.
    pub fn new(capacity: usize) -> Self {
        // Grown as needed: a capacity is what an operator allows, not what is always used.
        Self(NonZeroUsize::new(capacity).map(|capacity| {
            let mut cache = LruCache::unbounded();
            cache.resize(capacity);
            cache
        }))
    }

    /// Whom `token` stands for at `resource`, where that is remembered and still holds at `now`. `version_of` tells a
    /// key set's version now, `holds` whether the policy says what it said.
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
        // Two orgs may trust one provider, and then one token may be good for both, with different principals.
        let is_for_resource =
            *entry.principal.org() == resource.org && entry.only_for.as_ref().is_none_or(|only| only.contains(resource));
        let are_keys_old = entry.key_set.is_some_and(|(id, version)| version_of(id) != Some(version));
        if !entry.validity.holds(now) || are_keys_old || (is_for_resource && !holds(&mut entry.basis)) {
            cache.pop(token);
            return None;
        }
        is_for_resource.then(|| Rc::clone(&entry.principal))
    }

    /// Remembers `token`.
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
    fn an_entry_holds_for_its_org_its_time_and_its_keys() {
        let mut cache = TokenCache::new(8);
        cache.insert("t", entry("a", 100));
        assert!(is_hit(&mut cache, "t", "a", 99, 1));
        assert!(!is_hit(&mut cache, "t", "b", 99, 1));
        assert!(!is_hit(&mut cache, "T", "a", 99, 1));
        assert!(!is_hit(&mut cache, "t", "a", 100, 1));
        assert!(!is_hit(&mut cache, "t", "a", 99, 1), "an entry that ended is gone");
        cache.insert("t", entry("a", 100));
        assert!(is_hit(&mut cache, "t", "a", 50, 1));
        assert!(!is_hit(&mut cache, "t", "a", 49, 1), "the clock was put back before its beginning");
        cache.insert("t", entry("a", 100));
        assert!(!is_hit(&mut cache, "t", "a", 99, 2), "the keys changed");
        assert!(!is_hit(&mut cache, "t", "a", 99, 1));
    }

    #[test]
    fn a_token_for_some_connectors_is_remembered_for_these() {
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
    fn it_is_bounded_and_may_be_off() {
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

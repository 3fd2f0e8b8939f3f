//! The source of the policy: the configuration itself, or a Settings service. Look-ups are the same for both.

use std::rc::Rc;

use super::remote::RemotePolicy;
use super::{Org, Policy};
use crate::api_key::KeyDigest;
use crate::host::Host;
use crate::names::OrgName;
use crate::oauth_client::OauthClient;
use crate::principal::Principal;
use crate::reason::Reason;
use crate::signing_key::SigningKey;
use crate::time::UnixTime;

/// The policy in force.
#[derive(Debug)]
pub enum PolicySource {
    /// `policy.inline`
    Inline(Policy),
    /// `policy.remote`
    Remote(RemotePolicy),
}

impl PolicySource {
    /// A number that grows with each change. Zero: there is no policy yet.
    pub fn generation(&self) -> u64 {
        match self {
            Self::Inline(_) => 1,
            Self::Remote(remote) => remote.generation(),
        }
    }

    /// The organization with this name.
    pub fn org(&self, name: &OrgName, host: &dyn Host) -> Option<Rc<Org>> {
        match self {
            Self::Inline(policy) => policy.org(name),
            Self::Remote(remote) => remote.org(name, host),
        }
    }

    /// The signing keys of the gateway. The first one signs, and all of them verify.
    pub fn signing_keys(&self, host: &dyn Host) -> Rc<[SigningKey]> {
        match self {
            Self::Inline(policy) => policy.signing_keys(),
            Self::Remote(remote) => remote.signing_keys(host),
        }
    }

    /// The OAuth client with this id.
    pub fn oauth_client(&self, id: &str, host: &dyn Host) -> Option<Rc<OauthClient>> {
        match self {
            Self::Inline(policy) => policy.oauth_client(id),
            Self::Remote(remote) => remote.oauth_client(id, host),
        }
    }

    /// The principal of the API key with this digest in `org`.
    ///
    /// # Errors
    /// As [`Policy::api_key`].
    pub fn api_key(&self, digest: &KeyDigest, org: &OrgName, now: UnixTime, host: &dyn Host) -> Result<Rc<Principal>, Reason> {
        match self {
            Self::Inline(policy) => policy.api_key(digest, org, now),
            Self::Remote(remote) => remote.api_key(digest, org, now, host),
        }
    }
}

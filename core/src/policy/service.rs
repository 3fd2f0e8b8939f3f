//! How a gateway reaches the Settings service, section `policy.remote` of the configuration.

use std::fmt;
use std::time::Duration;

use super::store::Place;
use crate::usage::UsageSettings;

/// Section `policy.remote`.
#[derive(Debug)]
pub struct RemoteSettings {
    /// The Envoy cluster of the Settings service.
    pub cluster: String,
    /// The `:authority` of the requests.
    pub authority: String,
    /// The `:path` of the requests.
    pub path: String,
    /// How long an answer may take. A request also waits this long for the first policy.
    pub timeout: Duration,
    /// Time from a request that was answered at once to the next request.
    pub interval: Duration,
    /// How long the service is asked to wait for a change. Zero if the service cannot wait.
    pub long_poll: Duration,
    /// Where the bearer token of the requests comes from. `None`: the requests have no token.
    pub token: Option<SettingsToken>,
    /// Where usage is reported. `None`: nowhere.
    pub usage: Option<UsageSettings>,
}

/// Where the bearer token for the Settings service comes from.
#[derive(Debug)]
pub enum SettingsToken {
    /// `token_env`: the value of the variable.
    Known(Secret),
    /// `token_sds`: read for each request, so that a new value takes effect.
    Sds(SdsSecret),
}

/// A generic secret that Envoy holds, as Envoy's `SdsSecretConfig` names it.
#[derive(Debug)]
pub struct SdsSecret {
    /// The name of the secret.
    pub name: String,
    /// Envoy's `ConfigSource` as JSON. Empty: the secret is in `static_resources.secrets` of the bootstrap.
    pub sds_config: String,
}

impl RemoteSettings {
    /// The place of the policy in shared data.
    pub fn place(&self) -> Place {
        Place::of(&self.cluster, &self.authority, &self.path)
    }
}

/// A text that must not appear in a log.
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a secret")
    }
}

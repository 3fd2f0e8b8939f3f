//! The plugin configuration. It is parsed once at load, into types that need no later validation.

mod header_prefix;
mod raw;
mod settings;
#[cfg(test)]
mod tests;
mod wire;

use std::rc::Rc;
use std::time::Duration;

use http::Uri;

use crate::jwks::{Clusters, MAX_TIMEOUT, Timing};
use crate::limits::service;
use crate::origin::AllowedOrigins;
use crate::path::McpPath;
use crate::policy::Policy;
use crate::policy::check::{Environment, Extent, Surroundings};
use crate::policy::service::{RemoteSettings, SdsSecret, Secret, SettingsToken};
use crate::principal::Attribute;
use crate::problem::{self, Problem, Problems};
use crate::request::RESERVED_PREFIX;
use crate::usage::UsageSettings;
use raw::{
    Limits, RawConfig, RawForward, RawGateway, RawJwks, RawLimitStore, RawOrigins, RawRemote, RawSdsSecret, RawTokens, RawUsage,
};
pub use settings::{
    ForwardSettings, GatewaySettings, LimitStore, Mode, OnError, PROTECTED_RESOURCE, RateLimitService, TokenSettings,
    UnmatchedPaths,
};

/// A checked plugin configuration, except for an inline policy.
#[derive(Debug)]
pub struct Config {
    /// The public address of the gateway and the paths that it serves.
    pub gateway: GatewaySettings,
    /// The Settings service. `None` if the policy is inline.
    pub remote: Option<RemoteSettings>,
    /// Times of fetches of key sets.
    pub jwks: Timing,
    /// The clusters for fetches of key sets.
    pub clusters: Clusters,
    /// Lifetimes, clock skew and cache of tokens.
    pub tokens: TokenSettings,
    /// The headers of forwarded requests.
    pub forward: ForwardSettings,
    /// Where requests are counted.
    pub limits: LimitStore,
    /// Whether refusals take effect.
    pub mode: Mode,
    /// Warnings about a configuration that is nevertheless in force.
    pub warnings: Vec<Problem>,
}

impl Config {
    /// Reads a plugin configuration and its inline policy. `bytes` are JSON or a serialized `google.protobuf.Struct`. Secrets
    /// are read from `environment`.
    ///
    /// # Errors
    /// All problems, each with its JSON path.
    pub fn parse(bytes: &[u8], environment: &Environment<'_>) -> Result<(Self, Policy), Vec<Problem>> {
        let mut problems = Problems::default();
        let parsed = problem::read::<RawConfig>(&wire::json_text(bytes), &mut problems)
            .and_then(|raw| check(raw, environment, &mut problems));
        let ((config, policy), warnings) = problems.conclude(parsed)?;
        Ok((Self { warnings, ..config }, policy))
    }
}

fn check(raw: RawConfig, environment: &Environment<'_>, problems: &mut Problems) -> Option<(Config, Policy)> {
    let gateway = problems.required("gateway", raw.gateway).and_then(|gateway| check_gateway(gateway, problems));
    let jwks = check_jwks(&raw.jwks, problems);
    let clusters = Clusters { https: raw.jwks.https_cluster, http: raw.jwks.http_cluster };
    let policy = problems.required("policy", raw.policy).and_then(|source| match (source.inline, source.remote) {
        (Some(inline), None) => {
            let separator = gateway.as_ref().map_or(DEFAULT_SEPARATOR, |gateway| &gateway.connector_separator);
            let origin = gateway.as_ref().map(|gateway| gateway.origin.as_str());
            let surroundings =
                Surroundings { clusters: &clusters, environment, separator, origin, is_for_many: false, extent: Extent::Whole };
            Some((Policy::check(inline, "policy.inline", &surroundings, problems), None))
        }
        (None, Some(remote)) => Some((Policy::default(), Some(check_remote(remote, environment, problems)?))),
        _ => {
            problems.add("policy", "needs either inline or remote");
            None
        }
    });
    let tokens = check_tokens(&raw.tokens, problems);
    let forward = check_forward(raw.forward, problems);
    let limits = check_limits(raw.limits, problems);
    let (policy, remote) = policy?;
    let config = Config {
        gateway: gateway?,
        remote,
        jwks: jwks?,
        clusters,
        tokens: tokens?,
        forward: forward?,
        limits: limits?,
        mode: raw.mode,
        warnings: Vec::new(),
    };
    Some((config, policy))
}

/// Default of `gateway.connector_separator`: the separator of Envoy's `mcp_router`.
pub const DEFAULT_SEPARATOR: &str = "__";
/// Maximum length of the separator. That of `mcp_router` has two characters.
const MAX_SEPARATOR_LENGTH: usize = 16;

fn check_gateway(raw: RawGateway, problems: &mut Problems) -> Option<GatewaySettings> {
    let origin = problems
        .required("gateway.origin", raw.origin)
        .and_then(|origin| problems.checked("gateway.origin", parse_origin(&origin)));
    let template = raw.mcp_path.as_deref().unwrap_or("/mcp/{org}");
    let mcp_path = problems.checked("gateway.mcp_path", McpPath::parse(template));
    let token_path = raw.token_path.unwrap_or_else(|| "/oauth/token".to_owned());
    let is_visible = token_path.bytes().all(|byte| byte.is_ascii_graphic());
    if token_path.parse::<Uri>().is_err() || !token_path.starts_with('/') || token_path.contains(['?', '#', '%']) || !is_visible {
        problems.add("gateway.token_path", "must be a path such as /oauth/token");
    }
    let connector_separator = raw.connector_separator.unwrap_or_else(|| DEFAULT_SEPARATOR.to_owned());
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
    if !(1..=MAX_SEPARATOR_LENGTH).contains(&connector_separator.len()) || !connector_separator.bytes().all(is_plain) {
        problems.add("gateway.connector_separator", "must be 1 to 16 visible ASCII characters, without \" and \\, such as __");
    }
    let allowed_origins = check_origins(origin.as_deref().unwrap_or_default(), raw.allowed_origins, problems);
    Some(GatewaySettings {
        origin: origin?,
        token_path,
        mcp_path: mcp_path?,
        connector_separator: connector_separator.into(),
        unmatched_paths: raw.unmatched_paths,
        route_metadata: raw.route_metadata,
        host_holds_bodies: raw.host_holds_bodies,
        allowed_origins,
    })
}

fn check_origins(own: &str, raw: Option<RawOrigins>, problems: &mut Problems) -> AllowedOrigins {
    let path = "gateway.allowed_origins";
    let entries = match raw {
        None => Vec::new(),
        Some(RawOrigins::Many(entries)) => entries,
        Some(RawOrigins::One(text)) => {
            if text != "*" {
                problems.add(path, "must be a list of origins, such as [\"https://app.example.com\"], or \"*\"");
            }
            vec!["*".to_owned()]
        }
    };
    AllowedOrigins::new(own, &entries, |index, problem| problems.add(format_args!("{path}[{index}]"), problem))
}

/// Normalizes `scheme://host[:port]`: lower case, without the default port of the scheme (RFC 6454 §4 and §6.2). Clients
/// compare the origin letter by letter.
fn parse_origin(text: &str) -> Result<String, &'static str> {
    let wrong = "must be scheme://host[:port], such as https://gateway.example.com";
    let uri: Uri = text.parse().map_err(|_| wrong)?;
    let (scheme, its_port) = match uri.scheme_str() {
        Some("https") => ("https", 443),
        Some("http") => ("http", 80),
        _ => return Err(wrong),
    };
    let authority = uri.authority().ok_or(wrong)?;
    let (host, port) = (authority.host().to_ascii_lowercase(), authority.port_u16());
    let is_origin = uri.path() == "/" && uri.query().is_none() && !authority.as_str().contains('@') && !text.contains('#');
    let is_port = port.is_some() || authority.as_str().len() == host.len();
    if !is_origin || !is_port || host.is_empty() {
        return Err(wrong);
    }
    let port = port.filter(|port| *port != its_port).map(|port| format!(":{port}")).unwrap_or_default();
    Ok(format!("{scheme}://{host}{port}"))
}

fn check_remote(raw: RawRemote, environment: &Environment<'_>, problems: &mut Problems) -> Option<RemoteSettings> {
    let cluster = problems.required("policy.remote.cluster", raw.cluster);
    let mut text = |name: &str, value: Option<String>, default: String, is_good: fn(&str) -> bool, wrong: &str| {
        let value = value.unwrap_or(default);
        problems.checked(format_args!("policy.remote.{name}"), if is_good(&value) { Ok(value) } else { Err(wrong.to_owned()) })
    };
    let is_visible = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let authority = text("authority", raw.authority, cluster.clone().unwrap_or_default(), is_visible, "must be host[:port]");
    let is_path = |text: &str| text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let path = text("path", raw.path, "/v1/policy".to_owned(), is_path, "must be a path such as /v1/policy");
    let mut time = |name: &str, value: &Option<String>, default: u64, least: u64| {
        let path = format!("policy.remote.{name}");
        let time = duration(&path, value, Duration::from_secs(default), problems)?;
        if time < Duration::from_millis(least) {
            problems.add(path, format!("must be at least {least}ms"));
        }
        Some(time)
    };
    let (timeout, interval, long_poll) =
        (time("timeout", &raw.timeout, 5, 1), time("interval", &raw.interval, 2, 100), time("long_poll", &raw.long_poll, 30, 0));
    let token = match (raw.token_env, raw.token_sds) {
        (None, None) => Some(None),
        (Some(_), Some(_)) => {
            problems.add("policy.remote.token_sds", "cannot be combined with token_env: remove one of them");
            None
        }
        (None, Some(secret)) => {
            check_sds("policy.remote.token_sds", secret, problems).map(|secret| Some(SettingsToken::Sds(secret)))
        }
        (Some(name), None) => {
            let token = check_token("policy.remote.token_env", &name, environment, problems);
            token.map(|token| Some(SettingsToken::Known(token)))
        }
    };
    let usage = match raw.usage {
        None => Some(None),
        Some(usage) => check_usage(usage, environment, problems).map(Some),
    };
    Some(RemoteSettings {
        cluster: cluster?,
        authority: authority?,
        path: path?,
        timeout: timeout?,
        interval: interval?,
        long_poll: long_poll?,
        token: token?,
        usage: usage?,
    })
}

/// Least time between two reports.
const LEAST_USAGE_INTERVAL: Duration = Duration::from_secs(1);
/// Most time between two reports. A gateway that ends loses what it has not reported.
const MOST_USAGE_INTERVAL: Duration = Duration::from_secs(3_600);

fn check_usage(raw: RawUsage, environment: &Environment<'_>, problems: &mut Problems) -> Option<UsageSettings> {
    let path = raw.path.unwrap_or_else(|| "/v1/usage".to_owned());
    let is_path = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let path =
        problems.checked("policy.remote.usage.path", if is_path { Ok(path) } else { Err("must be a path such as /v1/usage") });
    let at = "policy.remote.usage.interval";
    let interval = duration(at, &raw.interval, Duration::from_secs(30), problems);
    if interval.is_some_and(|interval| !(LEAST_USAGE_INTERVAL..=MOST_USAGE_INTERVAL).contains(&interval)) {
        problems.add(at, "must be 1s to 1h");
    }
    let at = "policy.remote.usage.token_env";
    let token = problems.required(at, raw.token_env).and_then(|name| check_token(at, &name, environment, problems));
    Some(UsageSettings { path: path?, interval: interval?, token: token? })
}

/// The token in an environment variable.
fn check_token(path: &str, name: &str, environment: &Environment<'_>, problems: &mut Problems) -> Option<Secret> {
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let token = environment(name).filter(|token| is_name && token.bytes().all(|byte| byte.is_ascii_graphic()));
    // The message does not repeat the value: an operator may have written the token itself here.
    let wrong = "must name an environment variable that is set for the module: in vm_config.environment_variables, or for the \
                 native module in Envoy's environment";
    problems.checked(path, token.ok_or(wrong)).map(Secret)
}

fn check_sds(path: &str, raw: RawSdsSecret, problems: &mut Problems) -> Option<SdsSecret> {
    let name = problems.required(format_args!("{path}.name"), raw.name)?;
    if name.is_empty() {
        problems.add(format_args!("{path}.name"), "must be the name of a secret of Envoy");
    }
    // Envoy reads and checks it.
    let sds_config = raw.sds_config.map(|source| serde_json::Value::Object(source).to_string()).unwrap_or_default();
    Some(SdsSecret { name, sds_config })
}

fn check_jwks(raw: &RawJwks, problems: &mut Problems) -> Option<Timing> {
    let timeout = duration("jwks.timeout", &raw.timeout, Duration::from_secs(5), problems);
    let refresh_interval = duration("jwks.refresh_interval", &raw.refresh_interval, Duration::from_secs(300), problems);
    let refetch_cooldown = duration("jwks.refetch_cooldown", &raw.refetch_cooldown, Duration::from_secs(10), problems);
    let max_stale = duration("jwks.max_stale", &raw.max_stale, Duration::from_secs(86_400), problems);
    let timing = Timing {
        timeout: timeout?,
        refresh_interval: refresh_interval?,
        refetch_cooldown: refetch_cooldown?,
        max_stale: max_stale?,
    };
    if timing.timeout < Duration::from_millis(1) || timing.timeout > MAX_TIMEOUT {
        // Envoy treats a timeout below one millisecond as no timeout. A request waits as long as this timeout.
        problems.add("jwks.timeout", "must be from 1ms to 60s");
    }
    if timing.refresh_interval < Duration::from_secs(1) {
        problems.add("jwks.refresh_interval", "must be at least 1s");
    }
    if timing.refetch_cooldown < Duration::from_millis(1) {
        problems.add("jwks.refetch_cooldown", "must be at least 1ms, and 10s is a good one");
    }
    if timing.max_stale < timing.refresh_interval {
        problems.add("jwks.max_stale", "must be at least jwks.refresh_interval");
    }
    Some(timing)
}

fn check_tokens(raw: &RawTokens, problems: &mut Problems) -> Option<TokenSettings> {
    let clock_skew = duration("tokens.clock_skew", &raw.clock_skew, Duration::from_secs(60), problems)?;
    if clock_skew > Duration::from_secs(600) {
        problems.add("tokens.clock_skew", "must be at most 10m: expired tokens are accepted for as long");
    }
    let ttl = duration("tokens.ttl", &raw.ttl, Duration::from_secs(3600), problems)?;
    if ttl < Duration::from_secs(1) || ttl > Duration::from_secs(86_400) {
        problems.add("tokens.ttl", "must be from 1s to 1d");
    }
    let cache_size = raw.cache_size.unwrap_or(4096);
    if cache_size > 1_000_000 {
        problems.add("tokens.cache_size", "must be at most 1000000: each worker keeps as many tokens in memory");
    }
    Some(TokenSettings { ttl, clock_skew, cache_size: usize::try_from(cache_size).unwrap_or(usize::MAX) })
}

fn check_limits(raw: Limits, problems: &mut Problems) -> Option<LimitStore> {
    let service = raw.rate_limit_service.map(|raw| {
        let path = "limits.rate_limit_service.cluster";
        let cluster = problems.required(path, raw.cluster).and_then(|cluster| {
            let too_long = || "must be at most 125 bytes: a module cannot tell Envoy a longer one".to_owned();
            let upstream = problems.checked(path, service::upstream(&cluster).ok_or_else(too_long))?;
            Some((Rc::from(cluster), upstream))
        });
        let path = "limits.rate_limit_service.timeout";
        let timeout = duration(path, &raw.timeout, Duration::from_millis(100), problems);
        if timeout.is_some_and(|timeout| timeout < Duration::from_millis(1)) {
            problems.add(path, "must be at least 1ms");
        }
        let domain = raw.domain.unwrap_or_else(|| "apexmcp".to_owned());
        let (cluster, upstream) = cluster?;
        Some(RateLimitService { cluster, upstream, domain, timeout: timeout?, on_error: raw.on_error })
    });
    match raw.store {
        RawLimitStore::Local => Some(LimitStore::Local),
        RawLimitStore::RateLimitService => {
            problems.required("limits.rate_limit_service", service)?.map(LimitStore::RateLimitService)
        }
    }
}

fn check_forward(raw: RawForward, problems: &mut Problems) -> Option<ForwardSettings> {
    let header_prefix = raw.header_prefix.unwrap_or_else(|| RESERVED_PREFIX.to_owned());
    problems.checked("forward.header_prefix", header_prefix::check(&header_prefix))?;
    let headers = raw.headers.unwrap_or_else(|| Attribute::ALL.to_vec());
    check_distinct("forward.headers", headers.iter().map(|attribute| attribute.word()), problems);
    let headers = headers.into_iter().map(|attribute| (attribute, format!("{header_prefix}{}", attribute.word()))).collect();
    let state = raw.filter_state.as_deref().unwrap_or_default();
    check_distinct("forward.filter_state", state.iter().map(|state| state.word()), problems);
    let filter_state = match &raw.filter_state {
        Some(state) => state.iter().filter_map(|state| state.attribute()).collect(),
        None => Attribute::ALL.to_vec(),
    };
    let call = state.iter().filter_map(|state| state.part()).collect();
    let strip_credentials = raw.strip_credentials.unwrap_or(true);
    Some(ForwardSettings { strip_credentials, header_prefix, headers, filter_state, call })
}

/// Checks that no word of a list occurs twice.
fn check_distinct(path: &str, words: impl Iterator<Item = &'static str> + Clone, problems: &mut Problems) {
    for (index, word) in words.clone().enumerate() {
        if words.clone().take(index).any(|earlier| earlier == word) {
            problems.add(format_args!("{path}[{index}]"), format_args!("repeats \"{word}\": remove it"));
        }
    }
}

/// A duration such as `500ms`, `5s`, `10m`, `1h`, `90d`.
fn duration(path: &str, text: &Option<String>, default: Duration, problems: &mut Problems) -> Option<Duration> {
    match text {
        None => Some(default),
        Some(text) => {
            let parsed = humantime::parse_duration(text);
            problems.checked(path, parsed.map_err(|error| format!("{error}; write it like 500ms, 5s, 10m, 1h or 90d")))
        }
    }
}

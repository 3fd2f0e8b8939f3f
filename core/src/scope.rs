//! OAuth scopes (RFC 6749 §3.3) of this gateway: `mcp:call` for all connectors of the org, `mcp:call:<connector-id>` for one.

use std::fmt;

use serde_json::Value;

use crate::names::ConnectorId;

const ALL: &str = "mcp:call";
const ONE_PREFIX: &str = "mcp:call:";
/// The prefix of all scopes of this gateway. A token without such a scope gets the default scopes.
const FAMILY: &str = "mcp:";

/// One scope that this gateway knows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// `mcp:call`
    AllConnectors,
    /// `mcp:call:<connector-id>`
    Connector(ConnectorId),
}

impl Scope {
    /// Returns `None` if `text` is not a scope of this gateway.
    pub fn parse(text: &str) -> Option<Self> {
        if text == ALL {
            return Some(Self::AllConnectors);
        }
        text.strip_prefix(ONE_PREFIX).and_then(ConnectorId::parse).map(Self::Connector)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllConnectors => formatter.write_str(ALL),
            Self::Connector(connector) => write!(formatter, "{ONE_PREFIX}{connector}"),
        }
    }
}

/// A set of scopes, sorted and without repetition. It is what a credential allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScopeSet(Vec<Scope>);

impl ScopeSet {
    /// Whether this set covers an operation that needs `needed`. The search is binary, because it runs for each entry of
    /// a list, and a token may have a thousand scopes.
    pub fn covers(&self, needed: &Scope) -> bool {
        self.0.first() == Some(&Scope::AllConnectors) || self.0.binary_search(needed).is_ok()
    }

    /// The part of `asked` that this set covers. If `asked` contains `mcp:call` and this set has single connectors, the
    /// result has these connectors. MCP clients ask for the scope that a challenge names.
    pub fn cut_to(&self, asked: &Self) -> Self {
        asked
            .0
            .iter()
            .flat_map(|scope| match scope {
                Scope::AllConnectors => self.0.clone(),
                one if self.covers(one) => vec![one.clone()],
                _ => Vec::new(),
            })
            .collect()
    }

    /// The connectors that this set names.
    pub fn connectors(&self) -> impl Iterator<Item = &ConnectorId> {
        self.0.iter().filter_map(|scope| match scope {
            Scope::AllConnectors => None,
            Scope::Connector(connector) => Some(connector),
        })
    }

    /// Whether this set allows nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Scope> for ScopeSet {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        let mut scopes: Vec<Scope> = scopes.into_iter().collect();
        scopes.sort();
        scopes.dedup();
        Self(scopes)
    }
}

impl fmt::Display for ScopeSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, scope) in self.0.iter().enumerate() {
            if index > 0 {
                formatter.write_str(" ")?;
            }
            scope.fmt(formatter)?;
        }
        Ok(())
    }
}

/// Parses words separated by spaces. Words that are not scopes of this gateway are ignored.
pub fn parse_words(text: &str) -> ScopeSet {
    text.split(' ').filter_map(Scope::parse).collect()
}

/// The scopes in a token's claims. `None` if they contain no scope of the `mcp:` family: the provider's defaults may then
/// apply.
///
/// Both `scope` and `scp` are read, as a space-separated string or as an array: Okta, Entra and Keycloak differ. A scope
/// of the family that this gateway does not know grants nothing, but it also excludes the defaults.
///
/// # Errors
/// The name of the claim that has a wrong type.
pub fn granted_by(claims: &serde_json::Map<String, Value>) -> Result<Option<ScopeSet>, &'static str> {
    let mut family: Option<Vec<Scope>> = None;
    let mut note = |text: &str| {
        for word in text.split(' ').filter(|word| word.starts_with(FAMILY)) {
            family.get_or_insert_default().extend(Scope::parse(word));
        }
    };
    for claim in ["scope", "scp"] {
        match claims.get(claim) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => note(text),
            Some(Value::Array(elements)) => {
                for element in elements {
                    note(element.as_str().ok_or(claim)?);
                }
            }
            Some(_) => return Err(claim),
        }
    }
    Ok(family.map(ScopeSet::from_iter))
}

/// Whether `text` is a scope-token of RFC 6749 §3.3: one scope, without space, `"` or `\`.
pub fn is_scope_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'))
}

/// A text that looks like a scope of this gateway, in a token from which no scope was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadGrant<'c> {
    /// The top-level claim that contains the text.
    pub claim: &'c str,
    pub text: &'c str,
}

/// Finds a text that contains `mcp:call` in claims of which [`granted_by`] read no scope.
///
/// Such a token may carry a narrow grant in a form that the filter does not read: Cognito adds a prefix to each scope
/// (`apexmcp/mcp:call:github`), and other providers have roles, groups or permissions. The default scopes would be wider
/// than that grant. Providers name and nest such claims freely, so the search covers every claim and member name, in any
/// letter case. `is_configured` excludes texts that the policy itself names and that grant nothing: the issuer and the
/// audiences.
pub fn unread_grant<'c>(
    claims: &'c serde_json::Map<String, Value>,
    is_configured: impl Fn(&str) -> bool,
) -> Option<UnreadGrant<'c>> {
    let is_suspect = |text: &str| {
        let mut windows = text.as_bytes().windows(ALL.len());
        windows.any(|window| window.eq_ignore_ascii_case(ALL.as_bytes())) && !is_configured(text)
    };
    claims.iter().find_map(|(claim, value)| {
        let text = if is_suspect(claim) { Some(claim.as_str()) } else { find_text(value, &is_suspect) };
        text.map(|text| UnreadGrant { claim, text })
    })
}

/// The first text in `value`, at any depth, for which `is_wanted` is true. The depth of claims is limited ([`crate::json`]).
fn find_text<'v>(value: &'v Value, is_wanted: &impl Fn(&str) -> bool) -> Option<&'v str> {
    match value {
        Value::String(text) => is_wanted(text).then_some(text),
        Value::Array(elements) => elements.iter().find_map(|element| find_text(element, is_wanted)),
        Value::Object(members) => members
            .iter()
            .find_map(|(name, member)| if is_wanted(name) { Some(name.as_str()) } else { find_text(member, is_wanted) }),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_grant_in_any_claim_is_found() {
        for (claims, expected) in [
            (json!({"scope": "apexmcp/mcp:call:github"}), Some("scope: apexmcp/mcp:call:github")),
            (json!({"scp": ["openid", "api://apexmcp/mcp:call"]}), Some("scp: api://apexmcp/mcp:call")),
            (json!({"scope": "openid,mcp:call:github"}), Some("scope: openid,mcp:call:github")),
            (json!({"roles": ["reader", "mcp:call:github"]}), Some("roles: mcp:call:github")),
            (json!({"groups": "mcp:call:github"}), Some("groups: mcp:call:github")),
            (json!({"permissions": [{"rsname": "mcp:call:github"}]}), Some("permissions: mcp:call:github")),
            (json!({"realm_access": {"roles": ["mcp:call:github"]}}), Some("realm_access: mcp:call:github")),
            (json!({"resource_access": {"mcp:call": {"roles": []}}}), Some("resource_access: mcp:call")),
            (json!({"cognito:groups": ["MCP:Call:GitHub"]}), Some("cognito:groups: MCP:Call:GitHub")),
            (json!({"https://idp.example/mcp:call:github": true}), {
                Some("https://idp.example/mcp:call:github: https://idp.example/mcp:call:github")
            }),
            (json!({"aud": ["urn:mcp:call", "mcp:call:github"]}), Some("aud: mcp:call:github")),
            (json!({"aud": "urn:mcp:call", "sub": "u1", "exp": 7, "scope": "openid", "roles": ["mcp-call", "mcp"]}), None),
            (json!({}), None),
        ] {
            let found = unread_grant(claims.as_object().unwrap(), |text| text == "urn:mcp:call");
            assert_eq!(found.map(|found| format!("{}: {}", found.claim, found.text)).as_deref(), expected, "{claims}");
        }
    }

    fn granted(claims: Value) -> Result<Option<String>, &'static str> {
        granted_by(claims.as_object().unwrap()).map(|scopes| scopes.map(|scopes| scopes.to_string()))
    }

    #[test]
    fn scopes_are_read_from_both_claims_and_in_both_forms() {
        for (claims, expected) in [
            (json!({}), None),
            (json!({"scope": "openid profile"}), None),
            (json!({"scope": "openid mcp:call"}), Some("mcp:call")),
            (json!({"scp": "mcp:call:github"}), Some("mcp:call:github")),
            (json!({"scp": ["mcp:call:jira", "mcp:call:github", "mcp:call:jira"]}), Some("mcp:call:github mcp:call:jira")),
            (json!({"scope": "mcp:call:a", "scp": ["mcp:call:b"]}), Some("mcp:call:a mcp:call:b")),
            (json!({"scope": "mcp:admin"}), Some("")),
            (json!({"scope": "mcp:call:"}), Some("")),
            (json!({"scope": "mcp:call:a/b"}), Some("")),
            (json!({"scope": "xmcp:call"}), None),
            (json!({"scope": null}), None),
        ] {
            assert_eq!(granted(claims.clone()), Ok(expected.map(str::to_owned)), "{claims}");
        }
        assert_eq!(granted(json!({"scope": 7})), Err("scope"));
        assert_eq!(granted(json!({"scp": ["a", 7]})), Err("scp"));
    }

    #[test]
    fn a_client_gets_the_scopes_that_it_asks_for_and_holds() {
        for (held, asked, granted) in [
            ("mcp:call", "mcp:call", "mcp:call"),
            ("mcp:call", "mcp:call:a", "mcp:call:a"),
            ("mcp:call:a", "mcp:call", "mcp:call:a"),
            ("mcp:call:a mcp:call:b", "mcp:call:b mcp:call:c", "mcp:call:b"),
            ("mcp:call:a mcp:call:b", "mcp:call mcp:call:c", "mcp:call:a mcp:call:b"),
            ("mcp:call:a", "mcp:call:b", ""),
            ("mcp:call", "openid", ""),
        ] {
            assert_eq!(parse_words(held).cut_to(&parse_words(asked)).to_string(), granted, "{held} cut to {asked}");
        }
    }

    #[test]
    fn mcp_call_covers_every_connector_and_another_scope_only_its_own() {
        let github = Scope::parse("mcp:call:github").unwrap();
        let all: ScopeSet = [Scope::AllConnectors].into_iter().collect();
        let one: ScopeSet = [github.clone()].into_iter().collect();
        assert!(all.covers(&github) && all.covers(&Scope::AllConnectors));
        assert!(one.covers(&github) && !one.covers(&Scope::AllConnectors));
        assert!(!one.covers(&Scope::parse("mcp:call:git").unwrap()));
        assert!(!ScopeSet::default().covers(&github));
        let several = parse_words("mcp:call:b mcp:call:c mcp:call:a");
        let covered = |id: &str| several.covers(&Scope::parse(&format!("mcp:call:{id}")).unwrap());
        assert!(["a", "b", "c"].into_iter().all(covered) && !["0", "aa", "d"].into_iter().any(covered));
        assert!(parse_words("mcp:call:b mcp:call").covers(&github));
    }
}

//! OAuth scopes (RFC 6749 §3.3) of this gateway: `mcp:call` for all connectors of the org, `mcp:call:<connector-id>` for one.

use std::fmt;

use serde_json::Value;

use crate::names::ConnectorId;

const ALL: &str = "mcp:call";
const ONE_PREFIX: &str = "mcp:call:";
/// What starts with this speaks about this gateway; a token that has none of it gets the defaults.
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
    /// `text` as a scope of this gateway, where it is one.
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

/// What a credential may do: a set of scopes, in a fixed order, without repetition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScopeSet(Vec<Scope>);

impl ScopeSet {
    /// Whether this set covers an operation that needs `needed`. Asked for each entry of a list, by whose token may have a
    /// thousand scopes: so they are sorted.
    pub fn covers(&self, needed: &Scope) -> bool {
        self.0.first() == Some(&Scope::AllConnectors) || self.0.binary_search(needed).is_ok()
    }

    /// What of `asked` this set covers. Who holds single connectors and asks for all gets those: MCP clients ask for
    /// what a challenge names.
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

/// The scopes of this gateway among words separated by spaces; others are passed over.
pub fn parse_words(text: &str) -> ScopeSet {
    text.split(' ').filter_map(Scope::parse).collect()
}

/// The scopes that a token's claims carry, or `None` where they name none of the `mcp:` family and the provider's defaults hold.
///
/// Both `scope` and `scp` are read, as a space-separated string or as an array: Okta, Entra and Keycloak differ.
/// A scope of the family that this gateway does not know grants nothing, and keeps the defaults out too.
///
/// # Errors
/// The name of the claim that has another type.
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn granted(claims: Value) -> Result<Option<String>, &'static str> {
        granted_by(claims.as_object().unwrap()).map(|scopes| scopes.map(|scopes| scopes.to_string()))
    }

    #[test]
    fn both_claims_and_both_forms() {
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
    fn a_cut_follows_the_hierarchy() {
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
    fn all_covers_one_and_one_covers_itself_alone() {
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

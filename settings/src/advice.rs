//! Warnings about unwise settings of an identity provider that the gateway accepts.

use apexmcp_core::policy::issuer::is_url;
use apexmcp_core::policy::{MAX_CLIENT_SCOPE_LENGTH, MAX_CLIENT_SCOPES};
use apexmcp_core::scope::is_scope_token;

/// The scope that clients are told to request by default.
const MCP_SCOPE: &str = "mcp:call";

/// Adds the consequence and the advice to the reason why other tokens contain an audience.
macro_rules! of_many {
    ($why:literal) => {
        concat!($why, ". The gateway would accept tokens for other applications: use an audience that only the gateway has")
    };
}

/// The reason why tokens for other applications contain `audience`. `None` if no such reason is known.
pub fn audience_of_many(issuer: &str, audience: &str) -> Option<&'static str> {
    let after_scheme = issuer.split_once("://").filter(|_| is_url(issuer)).map_or("", |(_, rest)| rest);
    let host = after_scheme.split(['/', ':']).next().unwrap_or_default().to_ascii_lowercase();
    let base = issuer.trim_end_matches('/');
    let is_alphanumeric = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let is_lowercase = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    match audience {
        "account" => Some(of_many!("Keycloak puts this audience into every access token of a realm")),
        "authenticated" => Some(of_many!("Supabase puts this audience into every access token of a project")),
        "https://graph.microsoft.com"
        | "https://graph.windows.net"
        | "00000002-0000-0000-c000-000000000000"
        | "00000003-0000-0000-c000-000000000000"
        | "https://management.azure.com"
        | "https://management.azure.com/" => {
            Some(of_many!("this audience is an API of Microsoft, and every application can get tokens for it"))
        }
        "sts.amazonaws.com" | "api://AzureADTokenExchange" => {
            Some(of_many!("this audience is the token exchange of a cloud, and every workload can get tokens for it"))
        }
        _ if audience.trim_end_matches('/') == base => {
            Some(of_many!("this audience is the issuer itself, which providers put into tokens that name no other audience"))
        }
        _ if audience.strip_prefix(base) == Some("/userinfo") => {
            Some(of_many!("this audience is the user information endpoint, which Auth0 puts into every access token of a user"))
        }
        _ if host.ends_with(".auth0.com") && audience.ends_with("/api/v2/") => {
            Some(of_many!("this audience is the management API of Auth0"))
        }
        _ if audience.trim_start_matches("https://").starts_with("kubernetes.default") => {
            Some(of_many!("Kubernetes puts this audience into every token of a service account that names no other"))
        }
        _ if host == "securetoken.google.com" && base.ends_with(&format!("/{audience}")) => {
            Some(of_many!("Firebase puts the project's id into every token of the project"))
        }
        _ if host == "token.actions.githubusercontent.com" && audience.starts_with("https://github.com/") => {
            Some(of_many!("GitHub puts the owner's URL into the tokens of all its workflows that name no other audience"))
        }
        _ if audience.ends_with(".apps.googleusercontent.com") => {
            Some(of_many!("this audience is a client id of Google, which every ID token of that client carries"))
        }
        _ if host.starts_with("cognito-idp.") && audience.len() == 26 && is_lowercase(audience) => {
            Some(of_many!("this audience is a client id of Cognito, which every ID token of that client carries"))
        }
        _ if host.contains("okta") && audience.starts_with("0oa") && audience.len() == 20 && is_alphanumeric(audience) => {
            Some(of_many!("this audience is a client id of Okta, which every ID token of that client carries"))
        }
        _ => None,
    }
}

/// A proposal for `client_scopes`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Proposal {
    /// A message for the administrator.
    pub finding: Option<String>,
    /// The proposed scopes, if they differ from the present ones.
    pub client_scopes: Option<Vec<String>>,
}

/// Compares the scopes that clients will be told to request with `scopes_supported` of the provider's metadata.
pub fn client_scopes(chosen: Option<&[String]>, supported: Option<&[String]>) -> Proposal {
    let Some(supported) = supported else { return Proposal::default() };
    let is_known = |scope: &str| supported.iter().any(|known| known == scope);
    if let Some(chosen) = chosen {
        let unknown: Vec<&str> = chosen.iter().map(String::as_str).filter(|scope| !is_known(scope)).collect();
        let finding = (!unknown.is_empty()).then(|| {
            format!(
                "scopes_supported of the provider's metadata does not name {}: a client that requests an unknown scope \
                 gets invalid_scope. Check that the provider knows the scope; some providers support more scopes than they name",
                unknown.join(" ")
            )
        });
        return Proposal { finding, client_scopes: None };
    }
    if is_known(MCP_SCOPE) {
        return Proposal::default();
    }
    let usable = supported.iter().filter(|scope| scope.len() <= MAX_CLIENT_SCOPE_LENGTH && is_scope_token(scope));
    let usable: Vec<&str> = usable.map(String::as_str).take(MAX_CLIENT_SCOPES).collect();
    let of_mcp: Vec<&str> = usable.iter().copied().filter(|scope| scope.to_ascii_lowercase().contains(MCP_SCOPE)).collect();
    let options = match of_mcp.is_empty() {
        true => format!(
            "pass --no-client-scope, or --client-scope with the scope that the provider needs for this audience; \
             its metadata names: {}",
            usable.join(" ")
        ),
        false => {
            let options: Vec<String> = of_mcp.iter().map(|scope| format!("--client-scope {scope}")).collect();
            format!("pass {}", options.join(" "))
        }
    };
    let finding = format!(
        "scopes_supported of the provider's metadata does not name {MCP_SCOPE}, which clients will be told to request, and a \
         client that requests an unknown scope gets invalid_scope: {options}"
    );
    Proposal { finding: Some(finding), client_scopes: Some(of_mcp.into_iter().map(str::to_owned).collect()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audiences_of_other_applications_are_found() {
        let keycloak = "https://sso.example/realms/a";
        for (issuer, audience, expected) in [
            (keycloak, "account", Some("Keycloak")),
            (keycloak, "accounts", None),
            (keycloak, "apexmcp", None),
            (keycloak, "https://sso.example/realms/a", Some("issuer itself")),
            (keycloak, "https://gateway.example/mcp/acme", None),
            ("https://accounts.google.com", "123-abc.apps.googleusercontent.com", Some("Google")),
            ("accounts.google.com", "123-abc.apps.googleusercontent.com", Some("Google")),
            ("https://gitlab.com", "https://gitlab.com/", Some("issuer itself")),
            ("https://a.eu.auth0.com/", "https://a.eu.auth0.com/userinfo", Some("Auth0")),
            ("https://a.eu.auth0.com/", "https://a.eu.auth0.com/api/v2/", Some("Auth0")),
            ("https://a.eu.auth0.com/", "https://gateway.example/api/v2/", Some("Auth0")),
            (keycloak, "https://gateway.example/api/v2/", None),
            ("https://login.microsoftonline.com/t/v2.0", "00000003-0000-0000-c000-000000000000", Some("Microsoft")),
            ("https://login.microsoftonline.com/t/v2.0", "6e74172b-be56-4843-9ff4-e66a39bb12e3", None),
            ("https://oidc.eks.eu-west-1.amazonaws.com/id/A", "https://kubernetes.default.svc", Some("Kubernetes")),
            ("https://kubernetes.default.svc.cluster.local", "kubernetes.default.svc.cluster.local", Some("Kubernetes")),
            ("https://oidc.eks.eu-west-1.amazonaws.com/id/A", "sts.amazonaws.com", Some("workload")),
            ("https://securetoken.google.com/shop-1", "shop-1", Some("Firebase")),
            ("https://securetoken.google.com/shop-1", "shop", None),
            ("https://token.actions.githubusercontent.com", "https://github.com/acme", Some("GitHub")),
            ("https://a.supabase.co/auth/v1", "authenticated", Some("Supabase")),
            ("https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_a", "1example23456789abcdefghij", Some("Cognito")),
            ("https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_a", "apexmcp", None),
            ("https://acme.okta.com/oauth2/default", "0oa1b2c3d4E5f6g7h8i9", Some("Okta")),
            ("https://acme.okta.com/oauth2/default", "api://default", None),
        ] {
            let why = audience_of_many(issuer, audience);
            assert_eq!(why.is_some(), expected.is_some(), "{issuer} {audience}: {why:?}");
            assert!(expected.is_none_or(|part| why.is_some_and(|why| why.contains(part))), "{issuer} {audience}: {why:?}");
        }
    }

    #[test]
    fn scopes_that_a_provider_names_are_proposed() {
        for (chosen, supported, proposed, part) in [
            (None, None, None, None),
            (None, Some(&["openid", "mcp:call"][..]), None, None),
            (None, Some(&["openid", "api://apexmcp/mcp:call"]), Some(&["api://apexmcp/mcp:call"][..]), {
                Some("pass --client-scope api://apexmcp/mcp:call")
            }),
            (None, Some(&["openid", "mcp:call:notes", "mcp:call:clock"]), Some(&["mcp:call:notes", "mcp:call:clock"]), {
                Some("pass --client-scope mcp:call:notes --client-scope mcp:call:clock")
            }),
            (None, Some(&["openid", "a\"b", "email"]), Some(&[]), Some("--no-client-scope, or --client-scope with")),
            (None, Some(&[]), Some(&[]), Some("--no-client-scope")),
            (Some(&[][..]), Some(&["openid"]), None, None),
            (Some(&["openid"]), Some(&["openid"]), None, None),
            (Some(&["openid", "api://apexmcp/.default"]), Some(&["openid"]), None, Some("not name api://apexmcp/.default:")),
        ] {
            let owned = |scopes: &[&str]| scopes.iter().map(|scope| (*scope).to_owned()).collect::<Vec<_>>();
            let (chosen, supported, proposed) = (chosen.map(owned), supported.map(owned), proposed.map(owned));
            let proposal = client_scopes(chosen.as_deref(), supported.as_deref());
            assert_eq!(proposal.client_scopes, proposed, "{chosen:?} {supported:?}");
            assert_eq!(proposal.finding.is_some(), part.is_some(), "{chosen:?} {supported:?}: {proposal:?}");
            let finding = proposal.finding.unwrap_or_default();
            assert!(part.is_none_or(|part| finding.contains(part)) && !finding.contains('"'), "{finding}");
        }
    }
}

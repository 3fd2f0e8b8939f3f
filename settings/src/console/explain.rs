//! `SSO`: why a token was refused.

use askama::Template;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::Value;

use super::filters;
use super::frame::{Frame, Wrong};
use super::sign_in::Form;
use super::{Page, Session, Shared, is_of_form, show, show_again};
use crate::explain::{self, Credential, Explanation};
use crate::failure::Failure;
use crate::records::{org, provider};

const SECTION: &str = "SSO";
const TITLE: &str = "Why was this token refused?";

/// The credential to explain.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Fields {
    #[serde(default)]
    token: String,
    /// Empty: the endpoint of all connectors.
    #[serde(default)]
    connector: String,
}

#[derive(Template)]
#[template(path = "explain.html")]
struct ExplainPage {
    frame: Frame,
    org: String,
    wrong: Wrong,
    connector: String,
    explanation: Option<Explanation>,
}

impl ExplainPage {
    /// The JSON of a part of the token, in lines.
    fn lines(part: Option<&Value>) -> String {
        part.and_then(|part| serde_json::to_string_pretty(part).ok()).unwrap_or_else(|| "It cannot be read.".to_owned())
    }

    /// The page on which the advice can be followed, with its name.
    fn place(&self, found: &Explanation) -> Option<(&'static str, String)> {
        let org = &self.org;
        let of_provider = || {
            let issuer = found.claims.as_ref()?.get("iss")?.as_str()?;
            Some(format!("/orgs/{org}/sso/configure?id={}", provider::id_of(issuer)))
        };
        match found.reason.as_str() {
            "audience_mismatch" | "signature_invalid" | "key_unknown" | "jwks_unavailable" => {
                of_provider().map(|path| ("Change this identity provider", path))
            }
            "issuer_unknown" => Some(("Configure an identity provider", format!("/orgs/{org}/sso/configure"))),
            "api_key_unknown" | "api_key_expired" => Some(("API keys", format!("/orgs/{org}/keys"))),
            "scope_insufficient" => {
                match found.principal.as_ref().map(|principal| (principal.method.as_str(), &principal.subject)) {
                    Some(("api_key", id)) => Some(("Edit the API key", format!("/orgs/{org}/keys/{id}/edit"))),
                    Some(("oauth", _)) => Some(("OAuth clients", format!("/orgs/{org}/clients"))),
                    _ => of_provider().map(|path| ("Change this identity provider", path)),
                }
            }
            "client_unknown" => Some(("OAuth clients", format!("/orgs/{org}/clients"))),
            _ => None,
        }
    }
}

/// The form for a token.
pub(super) async fn form(State(console): Shared, session: Session, Path(org): Path<String>) -> Page {
    let name = org.clone();
    let (actor, ()) = console.read(session, move |sql, actor| org::require_change(sql, actor, &name)).await?;
    let frame = Frame::new(&actor, Some(&org), SECTION, TITLE);
    Ok(show(&ExplainPage { frame, org, wrong: Wrong::default(), connector: String::new(), explanation: None }))
}

/// The credential in a text that somebody copied: alone, in a header, or in the answer of a token endpoint.
fn credential(text: &str) -> Result<Credential, Failure> {
    let answer = serde_json::from_str::<Value>(text.trim()).ok();
    let of_answer = answer.as_ref().and_then(|answer| answer.get("access_token")).and_then(Value::as_str);
    let mut text = of_answer.unwrap_or(text).trim();
    for prefix in ["x-api-key:", "authorization:", "bearer "] {
        let begin = text.get(..prefix.len()).filter(|begin| begin.eq_ignore_ascii_case(prefix));
        text = begin.and_then(|begin| text.strip_prefix(begin)).unwrap_or(text).trim();
    }
    if text.starts_with("apx_live_sk_") {
        return Ok(Credential::ApiKey(text.to_owned()));
    }
    let wrong = match text {
        "" => "must be a token or an API key",
        text if text.starts_with("apx_secret_") => "is the secret of an OAuth client: get a token with it, and paste the token",
        text if text.starts_with("key_") => "is the id of an API key: paste the key itself",
        _ => return Ok(Credential::Token(text.to_owned())),
    };
    Err(Failure::of("token", wrong))
}

/// Explains a token or an API key. It is neither stored nor logged, and the page does not repeat it.
pub(super) async fn explain(State(console): Shared, session: Session, Path(org): Path<String>, form: Form<Fields>) -> Page {
    let credential = match credential(&form.0.token) {
        Ok(credential) => credential,
        Err(failure) => {
            let name = org.clone();
            let (actor, ()) = console.read(session, move |sql, actor| org::require_change(sql, actor, &name)).await?;
            let frame = Frame::new(&actor, Some(&org), SECTION, TITLE);
            return Ok(show_again(&ExplainPage {
                frame,
                org,
                wrong: failure.into(),
                connector: form.0.connector,
                explanation: None,
            }));
        }
    };
    let connector = form.0.connector.trim().to_owned();
    let wanted = Some(connector.clone()).filter(|connector| !connector.is_empty());
    let (name, origin) = (org.clone(), console.origin.clone());
    let asked = console.read(session, move |sql, actor| explain::question(sql, actor, &name, wanted, credential, &origin));
    let (actor, question) = asked.await?;
    let explained = console.pool.run_aside(&org, move || explain::explain(&question));
    let page = |wrong, explanation| {
        let frame = Frame::new(&actor, Some(&org), SECTION, TITLE);
        ExplainPage { frame, org: org.clone(), wrong, connector, explanation }
    };
    match explained.await {
        Ok(explanation) => Ok(show(&page(Wrong::default(), Some(explanation)))),
        Err(failure) if is_of_form(&failure) => Ok(show_again(&page(failure.into(), None))),
        Err(failure) => Err(failure.into()),
    }
}

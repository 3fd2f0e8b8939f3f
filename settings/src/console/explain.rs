//! `SSO`: why a token was refused.

use askama::Template;
use axum::extract::{Path, State};
use serde::Deserialize;
use serde_json::Value;

use super::frame::{Frame, Wrong};
use super::sign_in::Form;
use super::{Page, Session, Shared, is_of_form, show, show_again};
use crate::access::Role;
use crate::explain::{self, Credential, Explanation};
use crate::failure::Failure;
use crate::issuer::Reach;
use crate::records::org;

const SECTION: &str = "SSO";
const TITLE: &str = "Why was this token refused?";

/// The credential to explain.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Fields {
    #[serde(default)]
    token: String,
}

#[derive(Template)]
#[template(path = "explain.html")]
struct ExplainPage {
    frame: Frame,
    org: String,
    wrong: Wrong,
    explanation: Option<Explanation>,
}

impl ExplainPage {
    /// The JSON of a part of the token, in lines.
    fn lines(part: Option<&Value>) -> String {
        part.and_then(|part| serde_json::to_string_pretty(part).ok()).unwrap_or_else(|| "It cannot be read.".to_owned())
    }
}

/// The form for a token.
pub(super) async fn form(State(console): Shared, session: Session, Path(org): Path<String>) -> Page {
    let name = org.clone();
    let (actor, ()) = console.read(session, move |sql, actor| org::require_change(sql, actor, &name)).await?;
    let frame = Frame::new(&actor, Some(&org), SECTION, TITLE);
    Ok(show(&ExplainPage { frame, org, wrong: Wrong::default(), explanation: None }))
}

/// Explains a token or an API key. It is neither stored nor logged, and the page does not repeat it.
pub(super) async fn explain(State(console): Shared, session: Session, Path(org): Path<String>, form: Form<Fields>) -> Page {
    let text = form.0.token.trim().to_owned();
    let text = text.strip_prefix("Bearer ").map_or(text.clone(), |token| token.trim().to_owned());
    let credential = if text.starts_with("apx_live_sk_") { Credential::ApiKey(text) } else { Credential::Token(text) };
    let (name, of, origin) = (org.clone(), credential.clone(), console.origin.clone());
    let asked = console.read(session, move |sql, actor| {
        let reach = Reach::allowing_private(actor.role == Role::Operator);
        Ok((explain::configuration(sql, actor, &name, &of, &origin)?, reach))
    });
    let (actor, (configuration, reach)) = asked.await?;
    let (name, now) = (org.clone(), actor.now);
    let explained = console.pool.run_aside(&org, move || match &credential {
        Credential::Token(token) if token.is_empty() => Err(Failure::of("token", "must be a token or an API key")),
        _ => explain::explain(&configuration, &name, &credential, reach, now.into()),
    });
    let frame = Frame::new(&actor, Some(&org), SECTION, TITLE);
    match explained.await {
        Ok(explanation) => Ok(show(&ExplainPage { frame, org, wrong: Wrong::default(), explanation: Some(explanation) })),
        Err(failure) if is_of_form(&failure) => {
            Ok(show_again(&ExplainPage { frame, org, wrong: failure.into(), explanation: None }))
        }
        Err(failure) => Err(failure.into()),
    }
}

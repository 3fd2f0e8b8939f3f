//! `SSO`: the identity providers of an org.

use askama::Template;
use axum::extract::{Path, Query, State};
use serde::Deserialize;

use super::frame::{Done, Frame, Told, Wrong};
use super::sign_in::Form;
use super::{Console, Page, Refused, Session, Shared, back_to, is_of_form, show, show_again, words};
use crate::access::Actor;
use crate::failure::Failure;
use crate::issuer::{self, Finding, Published, Reach};
use crate::records::org;
use crate::records::provider::{self, Provider};
use crate::service::{self, Wanted};
use crate::sql::Sql;

const SECTION: &str = "SSO";

#[derive(Template)]
#[template(path = "providers.html")]
struct ListPage {
    frame: Frame,
    org: String,
    providers: Vec<Provider>,
}

fn frame(actor: &Actor, org: &str, title: &str) -> Frame {
    Frame::new(actor, Some(org), SECTION, title)
}

/// The identity providers of an org.
pub(super) async fn list(State(console): Shared, session: Session, told: Told, Path(org): Path<String>) -> Page {
    let name = org.clone();
    let (actor, providers) = console.read(session, move |sql, actor| provider::list(sql, actor, &name)).await?;
    Ok(show(&ListPage { frame: frame(&actor, &org, "Single sign-on").after(told), org, providers }))
}

/// The fields of a provider.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Fields {
    #[serde(default)]
    issuer: String,
    #[serde(default)]
    jwks_uri: String,
    /// Separated by spaces, commas or lines.
    #[serde(default)]
    audience: String,
    /// Separated by spaces, commas or lines. Empty: the default.
    #[serde(default)]
    default_scopes: String,
    /// `on`: save the provider although a check failed.
    #[serde(default)]
    force: String,
    /// `on`: allow addresses outside of the public Internet.
    #[serde(default)]
    private: String,
}

#[derive(Template)]
#[template(path = "provider_form.html")]
struct FormPage {
    frame: Frame,
    org: String,
    fields: Fields,
    wrong: Wrong,
    /// What the checks found.
    findings: Vec<Finding>,
    /// What the provider publishes.
    published: Option<Published>,
}

/// Which provider is changed.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Chosen {
    id: Option<String>,
}

fn of(sql: &dyn Sql, actor: &Actor, org: &str, id: &str) -> Result<Provider, Failure> {
    org::require_change(sql, actor, org)?;
    provider::of_org(sql, actor, org, id)
}

/// The form for a provider.
pub(super) async fn form(
    State(console): Shared,
    session: Session,
    Path(org): Path<String>,
    Query(chosen): Query<Chosen>,
) -> Page {
    let name = org.clone();
    let asked = console.read(session, move |sql, actor| {
        org::require_change(sql, actor, &name)?;
        chosen.id.map(|id| of(sql, actor, &name, &id)).transpose()
    });
    let (actor, provider) = asked.await?;
    let fields = provider.map_or_else(Fields::default, |provider| Fields {
        issuer: provider.issuer,
        jwks_uri: provider.jwks_uri,
        audience: provider.audience.join(" "),
        default_scopes: provider.default_scopes.unwrap_or_default().join(" "),
        ..Fields::default()
    });
    let (frame, wrong) = (frame(&actor, &org, "Configure BYOIDP"), Wrong::default());
    Ok(show(&FormPage { frame, org, fields, wrong, findings: Vec::new(), published: None }))
}

/// Shows what a provider publishes, and fills the form with it.
pub(super) async fn discover(State(console): Shared, session: Session, Path(org): Path<String>, form: Form<Fields>) -> Page {
    let Form(mut fields) = form;
    let (name, is_private) = (org.clone(), fields.private == "on");
    let asked = console.read(session, move |sql, actor| {
        org::require_change(sql, actor, &name)?;
        if is_private { actor.check_operator() } else { Ok(()) }
    });
    let (actor, ()) = asked.await?;
    let issuer = fields.issuer.trim().to_owned();
    let reach = Reach::allowing_private(is_private);
    let (frame, findings) = (frame(&actor, &org, "Configure BYOIDP"), Vec::new());
    match console.pool.run_aside(&org, move || issuer::published(&issuer, reach)).await {
        Ok(published) => {
            fields.jwks_uri = published.jwks_uri.clone().unwrap_or(fields.jwks_uri);
            let (wrong, published) = (Wrong::default(), Some(published));
            Ok(show(&FormPage { frame, org, fields, wrong, findings, published }))
        }
        Err(failure) if is_of_form(&failure) => {
            Ok(show_again(&FormPage { frame, org, fields, wrong: failure.into(), findings, published: None }))
        }
        Err(failure) => Err(failure.into()),
    }
}

/// What became of a form.
enum Outcome {
    Saved,
    /// A check failed.
    Checked(Vec<Finding>),
}

/// Examines a provider, and saves it if every check passes.
pub(super) async fn configure(State(console): Shared, session: Session, Path(org): Path<String>, form: Form<Fields>) -> Page {
    let fields = form.0.clone();
    let (actor, saved) = save(&console, session, org.clone(), fields).await?;
    let frame = frame(&actor, &org, "Configure BYOIDP");
    Ok(match saved {
        Ok(Outcome::Saved) => back_to(&org, "sso", Done::ProviderSaved),
        Ok(Outcome::Checked(findings)) => {
            show_again(&FormPage { frame, org, fields: form.0, wrong: Wrong::default(), findings, published: None })
        }
        Err(failure) => {
            show_again(&FormPage { frame, org, fields: form.0, wrong: failure.into(), findings: Vec::new(), published: None })
        }
    })
}

/// A provider that somebody wants to save.
struct New {
    org: String,
    issuer: String,
    jwks_uri: String,
    audience: Vec<String>,
    default_scopes: Option<Vec<String>>,
}

impl New {
    fn wanted(&self) -> Wanted<'_> {
        let Self { org, issuer, jwks_uri, audience, .. } = self;
        Wanted { org, issuer, jwks_uri, audience, client_scopes: None }
    }
}

async fn save(
    console: &Console,
    session: Session,
    org: String,
    fields: Fields,
) -> Result<(Actor, Result<Outcome, Failure>), Refused> {
    let new = New {
        org,
        issuer: fields.issuer.trim().to_owned(),
        jwks_uri: fields.jwks_uri.trim().to_owned(),
        audience: words(&fields.audience),
        default_scopes: Some(words(&fields.default_scopes)).filter(|scopes| !scopes.is_empty()),
    };
    let is_private = fields.private == "on";
    // A provider may be slow, so it is fetched without a connection to the database.
    let asked = console.read(session.clone(), move |sql, actor| {
        if is_private {
            actor.check_operator()?;
        }
        let sharing = service::sharing(sql, actor, &new.wanted());
        Ok((sharing, new))
    });
    let (actor, (sharing, new)) = asked.await?;
    let sharing = match sharing {
        Ok(sharing) => sharing,
        Err(failure) if is_of_form(&failure) => return Ok((actor, Err(failure))),
        Err(failure) => return Err(failure.into()),
    };
    let examined = console.pool.run_aside(new.org.clone(), move || {
        if new.audience.is_empty() {
            return Ok((Err(Failure::of("audience", "must name at least one audience")), new));
        }
        let reach = Reach::allowing_private(is_private);
        Ok((service::examine(&sharing, &new.wanted(), reach), new))
    });
    let (examined, new) = examined.await?;
    match examined {
        Err(failure) => return Ok((actor, Err(failure))),
        Ok(examined) if examined.failed() > 0 && fields.force != "on" => {
            return Ok((actor, Ok(Outcome::Checked(examined.findings))));
        }
        Ok(_) => {}
    }
    let (actor, saved) = console
        .change(session, move |change, actor| {
            let New { org, issuer, jwks_uri, audience, default_scopes } = new;
            let known = provider::list(change, actor, &org)?.into_iter().find(|known| known.issuer == issuer);
            // The form does not show them.
            let client_scopes = known.and_then(|known| known.client_scopes);
            let (id, configured_at) = (provider::id_of(&issuer), actor.now.to_string());
            let record = Provider { id, org, issuer, jwks_uri, audience, default_scopes, client_scopes, configured_at };
            provider::configure(change, actor, &record)
        })
        .await?;
    Ok((actor, saved.map(|()| Outcome::Saved)))
}

#[derive(Template)]
#[template(path = "provider_remove.html")]
struct RemovePage {
    frame: Frame,
    provider: Provider,
}

/// Asks whether to remove a provider.
pub(super) async fn confirm(State(console): Shared, session: Session, Path((org, id)): Path<(String, String)>) -> Page {
    let (actor, provider) = console.read(session, move |sql, actor| of(sql, actor, &org, &id)).await?;
    Ok(show(&RemovePage { frame: frame(&actor, &provider.org, "Remove identity provider"), provider }))
}

/// Removes a provider.
pub(super) async fn remove(State(console): Shared, session: Session, Path((org, id)): Path<(String, String)>) -> Page {
    let made = console.change(session, move |change, actor| {
        let provider = of(change, actor, &org, &id)?;
        provider::remove(change, actor, &org, &provider.issuer)
    });
    let (_, provider) = made.await?;
    Ok(back_to(&provider.map_err(Refused::Failure)?.org, "sso", Done::ProviderRemoved))
}

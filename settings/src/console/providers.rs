//! `SSO`: the identity providers of an org.

use askama::Template;
use axum::extract::{Path, Query, State};
use serde::Deserialize;

use super::filters;
use super::frame::{Done, Frame, Told, Wrong};
use super::sign_in::Form;
use super::{Console, Page, Refused, Session, Shared, back_to, is_of_form, show, show_again, words};
use crate::access::{Actor, Role};
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
    Ok(show(&ListPage { frame: frame(&actor, &org, "SSO").after(told), org, providers }))
}

/// The fields of a provider.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Fields {
    /// The id of the provider that is changed. Empty: a new one.
    #[serde(default)]
    id: String,
    #[serde(default)]
    issuer: String,
    #[serde(default)]
    jwks_uri: String,
    /// Separated by spaces, commas or lines.
    #[serde(default)]
    audience: String,
    /// Separated by spaces, commas or lines. Empty: the default. `none`: no scopes.
    #[serde(default)]
    default_scopes: String,
    /// `on`: save the provider although a check failed.
    #[serde(default)]
    force: String,
    /// `on`: allow addresses outside of the public Internet. The form of an admin only repeats what an operator allowed.
    #[serde(default)]
    private: String,
}

impl Fields {
    fn title(&self) -> &'static str {
        if self.id.is_empty() { "Configure BYOIDP" } else { "Change identity provider" }
    }

    /// The permission that the actor asks for. An admin cannot change it.
    fn permission(&self, actor: &Actor) -> Option<bool> {
        (actor.role == Role::Operator).then_some(self.private == "on")
    }
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

impl FormPage {
    /// Whether an operator allowed a private network, and the person is none. The URLs must then stay the same.
    fn is_fixed(&self) -> bool {
        self.fields.private == "on" && !self.frame.is_operator
    }

    /// The attributes of a field for a URL.
    fn url(is_fixed: bool, example: &str, is_first: bool) -> String {
        let more = if is_fixed { "readonly".to_owned() } else { format!("placeholder={example}") };
        let focus = if is_first { "autofocus" } else { "" };
        format!("required inputmode=url autocomplete=off spellcheck=false {more} {focus}")
    }

    fn issuer(&self) -> String {
        let is_fixed = self.is_fixed() || !self.fields.id.is_empty();
        let is_first = !is_fixed && self.published.is_none() && self.findings.is_empty();
        Self::url(is_fixed, "https://your-company.okta.com/oauth2/default", is_first)
    }

    fn jwks_uri(&self) -> String {
        Self::url(self.is_fixed(), "https://your-company.okta.com/oauth2/default/v1/keys", false)
    }

    /// The attributes of the audience. It is what remains after a discovery.
    fn audience(&self) -> &'static str {
        match &self.published {
            Some(found) if Self::usable(found) > 0 => "required autofocus autocomplete=off spellcheck=false",
            _ => "required autocomplete=off spellcheck=false",
        }
    }

    /// The number of keys that the gateway can use.
    fn usable(published: &Published) -> usize {
        published.keys.iter().filter(|key| key.problem.is_none()).count()
    }
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
        default_scopes: match provider.default_scopes {
            Some(scopes) if scopes.is_empty() => NO_SCOPES.to_owned(),
            scopes => scopes.unwrap_or_default().join(" "),
        },
        id: provider.id,
        private: if provider.allow_private_address { "on".to_owned() } else { String::new() },
        ..Fields::default()
    });
    let (frame, wrong) = (frame(&actor, &org, fields.title()), Wrong::default());
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
    let (frame, findings) = (frame(&actor, &org, fields.title()), Vec::new());
    match console.pool.run_aside(&org, move || issuer::published(&issuer, reach)).await {
        Ok(published) => {
            fields.jwks_uri = published.jwks_uri.clone().unwrap_or(fields.jwks_uri);
            let (wrong, published) = (Wrong::default(), Some(published));
            Ok(show(&FormPage { frame, org, fields, wrong, findings, published }))
        }
        Err(failure) if is_of_form(&failure) => {
            let wrong = Wrong::of_provider(failure, frame.is_operator);
            Ok(show_again(&FormPage { frame, org, fields, wrong, findings, published: None }))
        }
        Err(failure) => Err(failure.into()),
    }
}

/// The word for no scopes. It is no scope of the gateway.
const NO_SCOPES: &str = "none";

/// What became of a form.
enum Outcome {
    Saved(Done),
    /// A check failed.
    Checked(Vec<Finding>),
}

/// Examines a provider, and saves it if every check passes.
pub(super) async fn configure(State(console): Shared, session: Session, Path(org): Path<String>, form: Form<Fields>) -> Page {
    let fields = form.0.clone();
    let (actor, saved) = save(&console, session, org.clone(), fields).await?;
    let frame = frame(&actor, &org, form.0.title());
    Ok(match saved {
        Ok(Outcome::Saved(done)) => back_to(&org, "sso", done),
        Ok(Outcome::Checked(findings)) => {
            show_again(&FormPage { frame, org, fields: form.0, wrong: Wrong::default(), findings, published: None })
        }
        Err(failure) => {
            let wrong = Wrong::of_provider(failure, frame.is_operator);
            show_again(&FormPage { frame, org, fields: form.0, wrong, findings: Vec::new(), published: None })
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
        default_scopes: match words(&fields.default_scopes).as_slice() {
            [] => None,
            [word] if word == NO_SCOPES => Some(Vec::new()),
            scopes => Some(scopes.to_vec()),
        },
    };
    // A provider may be slow, so it is fetched without a connection to the database.
    let (asked_by, changed) = (fields.clone(), fields.id.clone());
    let asked = console.read(session.clone(), move |sql, actor| {
        let permission = || {
            if !asked_by.id.is_empty() && asked_by.id != provider::id_of(&new.issuer) {
                return Err(Failure::of("issuer", "must stay the same: configure another provider, and remove this one"));
            }
            let known = provider::list(sql, actor, &new.org)?;
            if asked_by.id.is_empty() && known.iter().any(|known| known.issuer == new.issuer) {
                return Err(Failure::of("issuer", "is configured already: change that provider instead"));
            }
            let sharing = service::sharing(sql, actor, &new.wanted())?;
            let provider = [new.org.as_str(), &new.issuer, &new.jwks_uri];
            Ok((sharing, provider::permission(sql, actor, provider, asked_by.permission(actor))?))
        };
        Ok((permission(), new))
    });
    let (actor, (allowed, new)) = asked.await?;
    let (sharing, allow_private_address) = match allowed {
        Ok(allowed) => allowed,
        Err(failure) if is_of_form(&failure) => return Ok((actor, Err(failure))),
        Err(failure) => return Err(failure.into()),
    };
    let examined = console.pool.run_aside(new.org.clone(), move || {
        if new.audience.is_empty() {
            return Ok((Err(Failure::of("audience", "must name at least one audience")), new));
        }
        let reach = Reach::allowing_private(allow_private_address);
        Ok((service::examine(&sharing, &new.wanted(), reach), new))
    });
    let (examined, new) = examined.await?;
    let mut done = Done::ProviderSaved;
    match examined {
        Err(failure) => return Ok((actor, Err(failure))),
        Ok(examined) if examined.failed() > 0 && fields.force != "on" => {
            return Ok((actor, Ok(Outcome::Checked(examined.findings))));
        }
        Ok(examined) if examined.failed() > 0 => done = Done::ProviderForced,
        Ok(_) => {}
    }
    let (actor, saved) = console
        .change(session, move |change, actor| {
            let New { org, issuer, jwks_uri, audience, default_scopes } = new;
            if !changed.is_empty() {
                // Somebody may have removed it while it was examined.
                provider::of_org(change, actor, &org, &changed)?;
            }
            let known = provider::list(change, actor, &org)?.into_iter().find(|known| known.issuer == issuer);
            // The form does not show them.
            let client_scopes = known.and_then(|known| known.client_scopes);
            let (id, configured_at) = (provider::id_of(&issuer), actor.now.to_string());
            let record = Provider {
                id,
                org,
                issuer,
                jwks_uri,
                audience,
                default_scopes,
                client_scopes,
                allow_private_address,
                configured_at,
            };
            provider::configure(change, actor, &record)
        })
        .await?;
    Ok((actor, saved.map(|()| Outcome::Saved(done))))
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

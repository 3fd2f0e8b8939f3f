//! `Members`

use askama::Template;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::header::{HOST, HeaderName};
use serde::Deserialize;

use super::frame::{Done, Frame, Told, Wrong};
use super::sign_in::Form;
use super::{Page, Refused, Session, Shared, back_to, show, show_again};
use crate::records::member::{self, Member};
use crate::records::session::{self, Person};

const SECTION: &str = "Members";

/// The fields of a member.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Fields {
    #[serde(default)]
    email: String,
    #[serde(default)]
    role: String,
}

#[derive(Template)]
#[template(path = "members.html")]
struct ListPage {
    frame: Frame,
    org: String,
    members: Vec<Member>,
    fields: Fields,
    wrong: Wrong,
    /// A new link, with the address of its member.
    link: Option<(String, String)>,
}

/// The members of an org.
pub(super) async fn list(State(console): Shared, session: Session, told: Told, Path(org): Path<String>) -> Page {
    let name = org.clone();
    let (actor, members) = console.read(session, move |sql, actor| member::list(sql, actor, &name)).await?;
    let frame = Frame::new(&actor, Some(&org), SECTION, "Members").after(told);
    Ok(show(&ListPage { frame, org, members, fields: Fields::default(), wrong: Wrong::default(), link: None }))
}

/// Adds a member.
pub(super) async fn add(State(console): Shared, session: Session, Path(org): Path<String>, form: Form<Fields>) -> Page {
    let (name, fields, again) = (org.clone(), form.0.clone(), session.clone());
    let made = console.change(session, move |change, actor| member::add(change, actor, &name, &fields.email, &fields.role));
    match made.await? {
        (_, Ok(_)) => Ok(back_to(&org, "members", Done::MemberAdded)),
        (_, Err(failure)) => {
            let name = org.clone();
            let (actor, members) = console.read(again, move |sql, actor| member::list(sql, actor, &name)).await?;
            let frame = Frame::new(&actor, Some(&org), SECTION, "Members");
            Ok(show_again(&ListPage { frame, org, members, fields: form.0, wrong: failure.into(), link: None }))
        }
    }
}

/// Removes a member.
pub(super) async fn remove(
    State(console): Shared,
    session: Session,
    Path(org): Path<String>,
    Form(fields): Form<Fields>,
) -> Page {
    let made = console.change(session, move |change, actor| member::remove(change, actor, &org, &fields.email));
    let (_, member) = made.await?;
    Ok(back_to(&member.map_err(Refused::Failure)?.org, "members", Done::MemberRemoved))
}

/// Makes a link that signs a member in.
pub(super) async fn link(
    State(console): Shared,
    session: Session,
    Path(org): Path<String>,
    headers: HeaderMap,
    Form(fields): Form<Fields>,
) -> Page {
    let (name, email) = (org.clone(), fields.email.clone());
    let made = console.change(session, move |change, actor| {
        let link = session::create_link(change, actor, &Person::Member { org: &name, email: &email })?;
        Ok((link, member::list(change, actor, &name)?))
    });
    let (actor, made) = made.await?;
    let (link, members) = made.map_err(Refused::Failure)?;
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let scheme = if text(HeaderName::from_static("x-forwarded-proto")) == "https" { "https" } else { "http" };
    let console = console.url.clone().unwrap_or_else(|| format!("{scheme}://{}", text(HOST)));
    let url = format!("{console}/sign-in?link={link}");
    let frame = Frame::new(&actor, Some(&org), SECTION, "Members");
    let link = Some((fields.email, url));
    Ok(show(&ListPage { frame, org, members, fields: Fields::default(), wrong: Wrong::default(), link }))
}

//! `Members`

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::http::header::{HOST, HeaderName};
use serde::Deserialize;

use super::frame::{Done, Frame, Told, Wrong};
use super::sign_in::Form;
use super::{Page, Refused, Session, Shared, back_to, filters, show, show_again};
use crate::access::Actor;
use crate::failure::Failure;
use crate::records::member::{self, Member};
use crate::records::session::{self, Person};
use crate::sql::Sql;

const SECTION: &str = "Members";

/// The fields of a member.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Fields {
    #[serde(default)]
    email: String,
    #[serde(default)]
    role: String,
    /// Whether the person has seen what the change means. Empty: no.
    #[serde(default)]
    confirmed: String,
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

/// What makes a change of a member serious.
#[derive(Clone, Copy, Debug)]
struct Stakes {
    /// The person who is signed in is this member.
    is_own: bool,
    /// The org has no other admin.
    is_last_admin: bool,
}

impl Stakes {
    fn of(sql: &dyn Sql, actor: &Actor, member: &Member) -> Result<Self, Failure> {
        let is_own = actor.role.org() == Some(&member.org) && actor.name == member.email;
        Ok(Self { is_own, is_last_admin: member::is_last_admin(sql, member)? })
    }
}

#[derive(Template)]
#[template(path = "member_role.html")]
struct RolePage {
    frame: Frame,
    member: Member,
    stakes: Stakes,
}

/// Changes the role of a member. Asks first if admins take the role from themselves, or an org would have no admin.
pub(super) async fn change_role(
    State(console): Shared,
    session: Session,
    Path(org): Path<String>,
    Form(fields): Form<Fields>,
) -> Page {
    let name = org.clone();
    let made = console.change(session, move |change, actor| {
        let member = member::to_change(change, actor, &name, &fields.email)?;
        let stakes = Stakes::of(change, actor, &member)?;
        let is_serious = fields.role == "viewer" && member.role == "admin" && (stakes.is_own || stakes.is_last_admin);
        if is_serious && fields.confirmed.is_empty() {
            return Ok(Some((member, stakes)));
        }
        member::change_role(change, actor, &name, &fields.email, &fields.role)?;
        Ok(None)
    });
    let (actor, made) = made.await?;
    Ok(match made.map_err(Refused::Failure)? {
        None => back_to(&org, "members", Done::RoleChanged),
        Some((member, stakes)) => {
            show(&RolePage { frame: Frame::new(&actor, Some(&org), SECTION, "Change role"), member, stakes })
        }
    })
}

/// The member that a page is about.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    email: String,
}

#[derive(Template)]
#[template(path = "member_remove.html")]
struct RemovePage {
    frame: Frame,
    member: Member,
    stakes: Stakes,
}

/// Asks whether to remove a member.
pub(super) async fn confirm(
    State(console): Shared,
    session: Session,
    Path(org): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Page {
    let name = org.clone();
    let asked = console.read(session, move |sql, actor| {
        let member = member::to_change(sql, actor, &name, &wanted.email)?;
        let stakes = Stakes::of(sql, actor, &member)?;
        Ok((member, stakes))
    });
    let (actor, (member, stakes)) = asked.await?;
    Ok(show(&RemovePage { frame: Frame::new(&actor, Some(&org), SECTION, "Remove member"), member, stakes }))
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

//! `Organizations`

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Redirect};
use serde::Deserialize;

use super::frame::{Done, Frame, Told, Wrong};
use super::sign_in::Form;
use super::{Cursor, Page, Session, Shared, back, back_to, next, show, show_again};
use crate::access::Actor;
use crate::failure::Failure;
use crate::records::org::{self, Org};
use crate::serve::log;
use crate::sql::Part;

const SECTION: &str = "Organizations";

/// The first page of whoever is signed in.
pub(super) async fn home(State(console): Shared, session: Session) -> Page {
    let (actor, ()) = console.read(session, |_, _| Ok(())).await?;
    Ok(match actor.role.org() {
        Some(org) => Redirect::to(&format!("/orgs/{org}/keys")).into_response(),
        None => Redirect::to("/orgs").into_response(),
    })
}

/// The fields of a new org.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Fields {
    #[serde(default)]
    name: String,
}

#[derive(Template)]
#[template(path = "orgs.html")]
struct ListPage {
    frame: Frame,
    orgs: Vec<Org>,
    fields: Fields,
    wrong: Wrong,
    next: Option<String>,
}

impl ListPage {
    fn new(actor: &Actor, orgs: Part<Org>, fields: Fields, wrong: Wrong) -> Self {
        let next = next(&orgs, |org| [org.name.clone(), String::new()]);
        Self { frame: Frame::new(actor, None, SECTION, "Organizations"), orgs: orgs.items, fields, wrong, next }
    }
}

/// All orgs.
pub(super) async fn list(State(console): Shared, session: Session, told: Told, Query(wanted): Query<Cursor>) -> Page {
    let listed = console.read(session, move |sql, actor| {
        actor.check_operator()?;
        org::list(sql, actor, &wanted.range())
    });
    let (actor, orgs) = listed.await?;
    let page = ListPage::new(&actor, orgs, Fields::default(), Wrong::default());
    Ok(show(&ListPage { frame: page.frame.after(told), ..page }))
}

/// Creates an org.
pub(super) async fn create(State(console): Shared, session: Session, form: Form<Fields>) -> Page {
    let (name, again) = (form.0.name.trim().to_owned(), session.clone());
    let wrong_name = |failure: Failure| Wrong { field: "name", line: failure.sentence() };
    match console.change(session, move |change, actor| org::create(change, actor, &name)).await? {
        (_, Ok(org)) => Ok(back_to(&org.name, "keys", Done::OrgCreated)),
        (_, Err(failure)) => {
            let (actor, orgs) = console.read(again, |sql, actor| org::list(sql, actor, &Cursor::default().range())).await?;
            Ok(show_again(&ListPage::new(&actor, orgs, form.0, wrong_name(failure))))
        }
    }
}

#[derive(Template)]
#[template(path = "org_delete.html")]
struct DeletePage {
    frame: Frame,
    org: Org,
    wrong: Wrong,
}

/// Asks whether to delete an org.
pub(super) async fn confirm(State(console): Shared, session: Session, Path(org): Path<String>) -> Page {
    let asked = console.read(session, move |sql, actor| {
        actor.check_operator()?;
        org::show(sql, actor, &org)
    });
    let (actor, org) = asked.await?;
    let frame = Frame::new(&actor, Some(&org.name), SECTION, "Delete organization");
    Ok(show(&DeletePage { frame, org, wrong: Wrong::default() }))
}

/// Deletes an org, if its name was typed.
pub(super) async fn delete(
    State(console): Shared,
    session: Session,
    Path(org): Path<String>,
    Form(fields): Form<Fields>,
) -> Page {
    let (name, again) = (org.clone(), session.clone());
    let made = console.change(session, move |change, actor| {
        actor.check_operator()?;
        if fields.name.trim() != name {
            return Err(Failure::of("name", format!("must be {name}, so that nothing is deleted by mistake")));
        }
        org::delete(change, actor, &name)
    });
    match made.await? {
        (actor, Ok(org)) => {
            let usage = Arc::clone(&console.usage);
            let forgotten = console.pool.run_aside("", move || usage.forget(&org.name, actor.now));
            forgotten.await.unwrap_or_else(log);
            Ok(back("/orgs", Done::OrgDeleted))
        }
        (_, Err(failure)) => {
            let (actor, org) = console.read(again, move |sql, actor| org::show(sql, actor, &org)).await?;
            let frame = Frame::new(&actor, Some(&org.name), SECTION, "Delete organization");
            Ok(show_again(&DeletePage { frame, org, wrong: failure.into() }))
        }
    }
}

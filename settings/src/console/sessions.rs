//! `Sessions`: who is signed in.

use askama::Template;
use axum::extract::{Path, State};

use super::frame::{Done, Frame, Told};
use super::{Page, Refused, Session, Shared, back, filters, show};
use crate::records::session;

#[derive(Template)]
#[template(path = "sessions.html")]
struct ListPage {
    frame: Frame,
    sessions: Vec<session::Session>,
    /// The id of the session of this browser.
    own: String,
}

/// The sessions that the person may end.
pub(super) async fn list(State(console): Shared, session: Session, told: Told) -> Page {
    let own = session.id();
    let (actor, sessions) = console.read(session, session::list).await?;
    Ok(show(&ListPage { frame: Frame::new(&actor, None, "Sessions", "Sessions").after(told), sessions, own }))
}

#[derive(Template)]
#[template(path = "session_end.html")]
struct EndPage {
    frame: Frame,
    session: session::Session,
    is_own: bool,
}

/// Asks whether to end a session.
pub(super) async fn confirm(State(console): Shared, session: Session, Path(id): Path<String>) -> Page {
    let own = session.id();
    let (actor, session) = console.read(session, move |sql, actor| session::find(sql, actor, &id)).await?;
    let (frame, is_own) = (Frame::new(&actor, None, "Sessions", "End session"), session.id == own);
    Ok(show(&EndPage { frame, session, is_own }))
}

/// Ends a session.
pub(super) async fn end(State(console): Shared, session: Session, Path(id): Path<String>) -> Page {
    let (_, made) = console.change(session, move |change, actor| session::end_by_id(change, actor, &id)).await?;
    made.map_err(Refused::Failure)?;
    Ok(back("/sessions", Done::SessionEnded))
}

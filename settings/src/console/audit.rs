//! `Audit log`

use askama::Template;
use axum::extract::{Path, Query, State};
use serde::Deserialize;

use super::filters;
use super::frame::Frame;
use super::{Console, Page, Session, Shared, show};
use crate::clock::Moment;
use crate::records::audit::{self, Entry, Filter};
use crate::sql::{Part, Range};

/// Number of changes on a page.
const PAGE: u32 = 100;

/// Which changes are wanted. Empty: all.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    actor: String,
    #[serde(default)]
    action: String,
    /// Dates.
    #[serde(default)]
    from: String,
    #[serde(default)]
    to: String,
    #[serde(default)]
    cursor: String,
}

#[derive(Template)]
#[template(path = "audit.html")]
struct AuditPage {
    frame: Frame,
    /// The path of this page.
    path: String,
    wanted: Wanted,
    entries: Vec<Entry>,
    shows_org: bool,
    next: Option<String>,
}

/// The changes of one org.
pub(super) async fn of_org(
    State(console): Shared,
    session: Session,
    Path(org): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Page {
    page(&console, session, Some(org), wanted).await
}

/// The changes of all orgs, and those of no org.
pub(super) async fn of_all(State(console): Shared, session: Session, Query(wanted): Query<Wanted>) -> Page {
    page(&console, session, None, wanted).await
}

async fn page(console: &Console, session: Session, org: Option<String>, wanted: Wanted) -> Page {
    let some = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let start = |date: &str| Moment::parse(&format!("{date}T00:00:00Z")).ok();
    let filter = Filter {
        org: org.clone(),
        actor: some(&wanted.actor),
        action: some(&wanted.action),
        from: start(&wanted.from),
        // The whole last day.
        to: start(&wanted.to).and_then(|day| day.plus(std::time::Duration::from_secs(24 * 60 * 60)).ok()),
    };
    let after = Range::from_cursor(&wanted.cursor).unwrap_or_default();
    let range = Range { after, limit: PAGE, ..Range::default() };
    let is_of_all = org.is_none();
    let place = session.caller.search(filter.is_search(), &console.pool).await?;
    let asked = console.read(session, move |sql, actor| {
        let _place = place;
        if is_of_all {
            actor.check_operator()?;
        }
        audit::latest(sql, actor, &filter, &range)
    });
    let (actor, Part { items: entries, has_more }) = asked.await?;
    let next = entries.last().filter(|_| has_more).map(|entry| Range::cursor(&[entry.version.to_string(), String::new()]));
    let path = org.as_ref().map_or_else(|| "/audit".to_owned(), |org| format!("/orgs/{org}/audit"));
    let section = if is_of_all { "All changes" } else { "Audit log" };
    let frame = Frame::new(&actor, org.as_deref(), section, section);
    Ok(show(&AuditPage { frame, path, wanted, entries, shows_org: is_of_all, next }))
}

//! `Audit log`

use apexmcp_core::names::OrgName;
use askama::Template;
use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::filters;
use super::frame::Frame;
use super::{Console, Cursor, NO_PAGE, Page, Refused, Session, Shared, show};
use crate::access::Actor;
use crate::api::MAX_PAGE;
use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::records::audit::{self, ACTIONS, Entry, Filter};
use crate::sql::{Part, Range};

/// Which changes are wanted. Empty: all.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Wanted {
    /// A part of the name.
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

impl Wanted {
    /// A date or an action that does not exist is as if it were empty.
    fn filter(&self, org: Option<String>) -> Filter {
        let start = |date: &str| Moment::parse(&format!("{date}T00:00:00Z")).ok();
        Filter {
            org,
            actor: None,
            actor_part: self.actor.trim().to_owned(),
            action: Some(self.action.clone()).filter(|action| ACTIONS.contains(&action.as_str())),
            from: start(&self.from),
            // The whole last day.
            to: start(&self.to).and_then(|day| day.plus(std::time::Duration::from_secs(24 * 60 * 60)).ok()),
        }
    }

    fn range(&self) -> Range {
        Range { after: Range::from_cursor(&self.cursor).unwrap_or_default(), ..Cursor::default().range() }
    }
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
    /// Whether the list was narrowed down.
    is_filtered: bool,
    /// Maximum number of changes in a file.
    longest: u32,
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

/// Reads changes. Without an org: those of all orgs, for operators.
async fn read(
    console: &Console,
    session: Session,
    filter: Filter,
    range: Range,
    is_search: bool,
) -> Result<(Actor, Part<Entry>), Refused> {
    let place = session.caller.search(is_search, &console.pool).await?;
    let asked = console.read(session, move |sql, actor| {
        let _place = place;
        if filter.org.is_none() {
            actor.check_operator()?;
        }
        audit::latest(sql, actor, &filter, &range)
    });
    asked.await
}

/// The cursor of the changes that follow.
fn next(part: &Part<Entry>) -> Option<String> {
    super::next(part, |entry| [entry.version.to_string(), String::new()])
}

async fn page(console: &Console, session: Session, org: Option<String>, wanted: Wanted) -> Page {
    let (filter, range) = (wanted.filter(org.clone()), wanted.range());
    let (is_filtered, shows_org) = (filter.is_search(), org.is_none());
    let (actor, found) = read(console, session, filter, range, is_filtered).await?;
    let next = next(&found);
    let path = org.as_ref().map_or_else(|| "/audit".to_owned(), |org| format!("/orgs/{org}/audit"));
    let section = if shows_org { "All changes" } else { "Audit log" };
    let frame = Frame::new(&actor, org.as_deref(), section, section);
    Ok(show(&AuditPage { frame, path, wanted, entries: found.items, shows_org, is_filtered, longest: MAX_PAGE, next }))
}

/// The forms of a file with changes.
#[derive(Clone, Copy, Debug)]
enum Form {
    Csv,
    Json,
}

impl Form {
    /// By the last part of the path.
    fn of(file: &str) -> Result<Self, Failure> {
        match file {
            "csv" => Ok(Self::Csv),
            "json" => Ok(Self::Json),
            _ => Err(Failure::new(Reason::NotFound, NO_PAGE)),
        }
    }

    /// The content of a file. It is that of the management API.
    fn write(self, found: &Part<Entry>) -> Response {
        match self {
            Self::Csv => ([(CONTENT_TYPE, "text/csv; charset=utf-8")], audit::csv(&found.items)).into_response(),
            Self::Json => Json(json!({ "items": found.items, "next": next(found) })).into_response(),
        }
    }
}

/// A file with the changes of one org.
pub(super) async fn export_of_org(
    State(console): Shared,
    session: Session,
    Path((org, file)): Path<(String, String)>,
    Query(wanted): Query<Wanted>,
) -> Page {
    export(&console, session, Some(org), &file, &wanted).await
}

/// A file with the changes of all orgs, and those of no org.
pub(super) async fn export_of_all(
    State(console): Shared,
    session: Session,
    Path(file): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Page {
    export(&console, session, None, &file, &wanted).await
}

async fn export(console: &Console, session: Session, org: Option<String>, file: &str, wanted: &Wanted) -> Page {
    let form = Form::of(file)?;
    let of_org = org.as_deref().and_then(OrgName::parse);
    let name = of_org.map_or_else(|| format!("audit.{file}"), |org| format!("audit-{org}.{file}"));
    let range = Range { limit: MAX_PAGE, ..wanted.range() };
    // A file has as many changes as ten pages, so it always counts as a search.
    let (_, found) = read(console, session, wanted.filter(org), range, true).await?;
    let mut response = form.write(&found);
    let disposition = HeaderValue::from_str(&format!("attachment; filename=\"{name}\""));
    response.headers_mut().insert(CONTENT_DISPOSITION, disposition.unwrap_or(HeaderValue::from_static("attachment")));
    Ok(response)
}

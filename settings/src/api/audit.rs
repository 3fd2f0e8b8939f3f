//! `/audit`

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::HeaderValue;
use axum::http::header::{ACCEPT, CONTENT_TYPE, LINK};
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::call::{Call, moment, page, query, range};
use super::problem::Problem;
use super::{Items, Shared};
use crate::records::audit::{self, Entry, Filter};
use crate::sql::Range;

/// Which changes are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    /// Only changes of this org.
    org: Option<String>,
    /// Only changes by this actor.
    actor: Option<String>,
    /// Only this kind of change, such as `key.create`.
    action: Option<String>,
    /// Only changes at this time or later.
    #[param(format = DateTime)]
    from: Option<String>,
    /// Only changes before this time.
    #[param(format = DateTime)]
    to: Option<String>,
    /// Maximum number of records: 1 to 1,000.
    #[serde(default = "page")]
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: u32,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// The query, and whether the client wants CSV.
pub(super) struct Wanted {
    filter: Filter,
    range: Range,
    is_csv: bool,
    /// The query without its cursor.
    query: String,
}

impl<S: Sync> FromRequestParts<S> for Wanted {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let AuditQuery { org, actor, action, from, to, limit, cursor } = query(parts)?;
        let [from, to] = [("from", from), ("to", to)].map(|(field, text)| moment(field, text.as_deref()));
        let filter = Filter { org, actor, action, from: from?, to: to?, ..Filter::default() };
        let accepted = parts.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut ranges = accepted.flat_map(|ranges| ranges.split(','));
        let is_csv = ranges.any(|range| range.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/csv")));
        let pairs = parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.starts_with("cursor="));
        let query = pairs.filter(|pair| !pair.is_empty()).fold(String::new(), |query, pair| query + pair + "&");
        Ok(Self { filter, range: range(limit, cursor.as_deref())?, is_csv, query })
    }
}

/// The changes, the latest first. With `Accept: text/csv`, a table; its header `Link` names the next part.
#[utoipa::path(get, path = "/audit", params(AuditQuery), responses((status = 200, content((Items<Entry> = "application/json"), (String = "text/csv")))), extensions(("x-role" = json!("viewer"))))]
pub(super) async fn list(State(api): Shared, call: Call, wanted: Wanted) -> Result<Response, Problem> {
    let Wanted { filter, range, is_csv, query } = wanted;
    let place = call.caller.search(filter.is_search(), &api.pool).await?;
    let found = api.read(call, move |sql, actor| {
        let _place = place;
        let found = audit::latest(sql, actor, &filter, &range)?;
        Ok(Items::of(found, |entry| [entry.version.to_string(), String::new()]))
    });
    let items = found.await?;
    if !is_csv {
        return Ok(Json(items).into_response());
    }
    let mut response = ([(CONTENT_TYPE, "text/csv; charset=utf-8")], audit::csv(&items.items)).into_response();
    let next = items.next.and_then(|next| HeaderValue::from_str(&format!("<?{query}cursor={next}>; rel=\"next\"")).ok());
    if let Some(next) = next {
        response.headers_mut().insert(LINK, next);
    }
    Ok(response)
}

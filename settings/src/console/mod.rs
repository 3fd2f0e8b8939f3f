//! The console: pages for administrators. They work without JavaScript.
//!
//! A page only reads a form and shows a result. The operation itself is one of [`crate::records`], as for the command line and the
//! management API.

mod audit;
mod clients;
mod explain;
mod frame;
mod gateways;
mod keys;
mod limits;
mod members;
mod orgs;
mod providers;
mod sessions;
mod sign_in;
mod signing_keys;

use std::sync::Arc;

use askama::Template;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderName, ORIGIN, REFERRER_POLICY, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};

use crate::access::Actor;
use crate::clock::Moment;
use crate::database::pool::Pool;
use crate::database::{Change, Database};
use crate::failure::{Failure, Reason};
use crate::oidc::{self, Oidc};
use crate::serve::{Connected, SignIn, log};
use crate::service::{self, Changed};
use crate::sql::{Part, Range, Sql};
use crate::throttle::Throttle;
use crate::usage::Usage;
use frame::Done;
use sign_in::Session;

/// What all pages share.
#[derive(Debug)]
pub(crate) struct Console {
    pool: Arc<Pool>,
    usage: Arc<Usage>,
    throttle: Arc<Throttle>,
    gateways: Connected,
    /// The gateway's public origin.
    origin: String,
    /// The URL at which people reach the console, without a slash at its end.
    url: Option<String>,
    /// Sign-in with the operator's identity provider.
    oidc: Option<Oidc>,
}

type Shared = State<Arc<Console>>;

/// Why there is no page.
enum Refused {
    /// Nobody is signed in.
    SignedOut,
    Failure(Failure),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        match failure.reason {
            Reason::Unauthenticated => Self::SignedOut,
            _ => Self::Failure(failure),
        }
    }
}

/// A page for a failure that no form can show.
#[derive(Template)]
#[template(path = "failure.html")]
struct FailurePage {
    title: &'static str,
    detail: String,
}

/// The line of a path that has no page.
const NO_PAGE: &str = "there is no such page";

/// Records that do not exist, and those of other orgs, have the same page.
fn absent(failure: &Failure) -> String {
    let detail = failure.sentence();
    let more = if failure.detail() == NO_PAGE { String::new() } else { format!(" {detail}") };
    format!("This page does not exist, or you may not see it.{more}")
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let failure = match self {
            Self::SignedOut => return Redirect::to("/sign-in").into_response(),
            Self::Failure(failure) => failure,
        };
        let (status, title) = match failure.reason {
            Reason::NotFound => (StatusCode::NOT_FOUND, "Not found"),
            Reason::Forbidden => (StatusCode::FORBIDDEN, "Not allowed"),
            Reason::InvalidArgument | Reason::RequestMalformed => (StatusCode::BAD_REQUEST, "The form cannot be read"),
            Reason::RequestTooLong => (StatusCode::PAYLOAD_TOO_LARGE, "The form is too long"),
            Reason::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "The form did not arrive in time"),
            Reason::Conflict | Reason::AlreadyExists | Reason::PolicyRefused | Reason::LimitExceeded => {
                (StatusCode::CONFLICT, "Nothing was changed")
            }
            Reason::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
            Reason::DatabaseBusy => (StatusCode::SERVICE_UNAVAILABLE, "The server is busy"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "The server failed"),
        };
        let detail = if status.is_server_error() {
            log(&failure);
            "Try again. If it fails again, tell your operator: the log of apexmcp serve has the reason.".to_owned()
        } else if failure.reason == Reason::NotFound {
            absent(&failure)
        } else {
            failure.sentence()
        };
        let retry_after = failure.retry_after.map(|seconds| [(RETRY_AFTER, seconds.to_string())]);
        (status, retry_after, show(&FailurePage { title, detail })).into_response()
    }
}

type Page = Result<Response, Refused>;

/// Filters of the templates.
#[expect(unreachable_pub, reason = "the macro makes its items public")]
mod filters {
    /// A word at the beginning of a line: `admin` becomes `Admin`.
    #[askama::filter_fn]
    pub(in crate::console) fn sentence_case(text: &str, _: &dyn askama::Values) -> askama::Result<String> {
        Ok(crate::failure::capitalized(text))
    }

    /// A moment for people: `2026-11-27 09:30`, in UTC.
    #[askama::filter_fn]
    pub(in crate::console) fn moment(text: &str, _: &dyn askama::Values) -> askama::Result<String> {
        Ok(text.replace('T', " ").chars().take(16).collect())
    }

    /// A number with commas between groups of three digits: `1,000,000`.
    #[askama::filter_fn]
    pub(in crate::console) fn grouped(number: &i64, _: &dyn askama::Values) -> askama::Result<String> {
        let digits = number.to_string();
        let grouped = digits.char_indices().flat_map(|(index, digit)| {
            let is_group = index > 0 && digits.len().saturating_sub(index).is_multiple_of(3);
            is_group.then_some(',').into_iter().chain([digit])
        });
        Ok(grouped.collect())
    }

    /// A line of a failure as a sentence.
    #[askama::filter_fn]
    pub(in crate::console) fn sentence(line: &str, _: &dyn askama::Values) -> askama::Result<String> {
        Ok(crate::failure::sentence(line))
    }

    /// The details of a change for people: `name: ci agent; connectors: github, jira`. What is null is left out.
    #[askama::filter_fn]
    pub(in crate::console) fn details(details: &serde_json::Value, _: &dyn askama::Values) -> askama::Result<String> {
        Ok(text(details))
    }

    fn text(value: &serde_json::Value) -> String {
        use serde_json::Value;
        match value {
            Value::Object(members) => {
                let members = members.iter().filter(|(_, value)| !value.is_null());
                members.map(|(name, value)| format!("{}: {}", name.replace('_', " "), text(value))).collect::<Vec<_>>().join("; ")
            }
            Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(", "),
            Value::String(text) => text.clone(),
            value => value.to_string(),
        }
    }
}

/// A page. Its template was checked when the program was built.
fn show(page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => Html(text).into_response(),
        Err(error) => {
            log(format_args!("a page could not be written: {error}"));
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// A page with what is wrong in its form.
fn show_again(page: &impl Template) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, show(page)).into_response()
}

/// The words of a field that takes several.
fn words(text: &str) -> Vec<String> {
    text.split([' ', ',', '\n', '\r', '\t']).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Maximum number of records on a page of a list.
const PAGE: u32 = 100;

/// Which part of a list is wanted.
#[derive(Clone, Debug, Default, serde::Deserialize)]
struct Cursor {
    /// The part after this place.
    cursor: Option<String>,
    /// The part before this place. Only lists with the newest records first have it.
    before: Option<String>,
}

impl Cursor {
    /// A cursor that cannot be read is the first part.
    fn range(&self) -> Range {
        let [after, before] = [&self.cursor, &self.before].map(|cursor| cursor.as_deref().and_then(Range::from_cursor));
        Range { is_backward: before.is_some(), after: before.or(after).unwrap_or_default(), limit: PAGE }
    }
}

/// The cursors of the parts before and after this one.
struct Around {
    previous: Option<String>,
    next: Option<String>,
}

/// The parts around this one. `place` is the place of a record in the list.
fn around<T>(part: &Part<T>, range: &Range, place: impl Fn(&T) -> [String; 2]) -> Around {
    let is_first = range.after == <[String; 2]>::default();
    let (has_previous, has_next) = if range.is_backward { (part.has_more, true) } else { (!is_first, part.has_more) };
    let cursor = |record: Option<&T>, is_there: bool| record.filter(|_| is_there).map(|record| Range::cursor(&place(record)));
    Around { previous: cursor(part.items.first(), has_previous), next: cursor(part.items.last(), has_next) }
}

/// The cursor of the next part. `place` is the place of a record in the list.
fn next<T>(part: &Part<T>, place: impl Fn(&T) -> [String; 2]) -> Option<String> {
    part.items.last().filter(|_| part.has_more).map(|last| Range::cursor(&place(last)))
}

/// Back to a list, which says what was done.
fn back(list: &str, done: Done) -> Response {
    Redirect::to(&format!("{list}?done={}", done.word())).into_response()
}

/// Back to a list of an org.
fn back_to(org: &str, list: &str, done: Done) -> Response {
    back(&format!("/orgs/{org}/{list}"), done)
}

/// Whether a failure belongs into the form that caused it. Others have a page of their own.
fn is_of_form(failure: &Failure) -> bool {
    matches!(
        failure.reason,
        Reason::InvalidArgument
            | Reason::AlreadyExists
            | Reason::Conflict
            | Reason::PolicyRefused
            | Reason::LimitExceeded
            | Reason::PrivateAddress
            | Reason::ProviderCheckFailed
    )
}

impl Console {
    pub(crate) fn new(
        pool: Arc<Pool>,
        usage: Arc<Usage>,
        throttle: Arc<Throttle>,
        gateways: Connected,
        origin: String,
        SignIn { console_url, oidc }: SignIn,
    ) -> Arc<Self> {
        let [origin, url] = [Some(origin), console_url].map(|url| url.map(|url| url.trim_end_matches('/').to_owned()));
        Arc::new(Self { pool, usage, throttle, gateways, origin: origin.unwrap_or_default(), url, oidc })
    }

    /// Reads records for the person who is signed in.
    async fn read<T: Send + 'static>(
        &self,
        session: Session,
        question: impl FnOnce(&dyn Sql, &Actor) -> Result<T, Failure> + Send + 'static,
    ) -> Result<(Actor, T), Refused> {
        let ask = move |database: &mut Database, _: &_| {
            database.read(|sql| {
                let actor = session.actor(sql, Moment::now())?;
                let answer = question(sql, &actor)?;
                Ok((actor, answer))
            })
        };
        Ok(self.pool.run(ask).await?)
    }

    /// Changes records for the person who is signed in. The inner result is a failure that the form shows.
    async fn change<T: Send + 'static>(
        &self,
        session: Session,
        action: impl FnOnce(&Change<'_>, &Actor) -> Result<T, Failure> + Send + 'static,
    ) -> Result<(Actor, Result<T, Failure>), Refused> {
        let make = move |database: &mut Database, location: &_| {
            let actor = database.read(|sql| session.actor(sql, Moment::now()))?;
            let made = service::change(database, location, |change| action(change, &session.actor(change, Moment::now())?));
            match made {
                Ok(Changed { value, file, .. }) => {
                    if let Some(failure) = file {
                        log(&failure);
                    }
                    Ok((actor, Ok(value)))
                }
                Err(failure) if is_of_form(&failure) => Ok((actor, Err(failure))),
                Err(failure) => Err(failure),
            }
        };
        Ok(self.pool.run(make).await?)
    }
}

/// The pages.
pub(crate) fn router(console: Arc<Console>) -> Router {
    Router::new()
        .route("/", get(orgs::home))
        .route("/sign-in", get(sign_in::page).post(sign_in::begin))
        .route("/sign-in/provider", get(sign_in::ask_provider))
        .route(oidc::CALLBACK, get(sign_in::answer))
        .route("/sign-out", post(sign_in::end))
        .route("/sessions", get(sessions::list))
        .route("/sessions/{id}/end", get(sessions::confirm).post(sessions::end))
        .route("/orgs", get(orgs::list).post(orgs::create))
        .route("/orgs/{org}/delete", get(orgs::confirm).post(orgs::delete))
        .route("/orgs/{org}/keys", get(keys::list).post(keys::create))
        .route("/orgs/{org}/keys/new", get(keys::new))
        .route("/orgs/{org}/keys/{id}/edit", get(keys::ask_edit).post(keys::edit))
        .route("/orgs/{org}/keys/{id}/revoke", get(keys::confirm).post(keys::revoke))
        .route("/orgs/{org}/keys/{id}/roll", get(keys::ask_roll).post(keys::roll))
        .route("/orgs/{org}/clients", get(clients::list).post(clients::create))
        .route("/orgs/{org}/clients/new", get(clients::new))
        .route("/orgs/{org}/clients/{id}/revoke", get(clients::confirm).post(clients::revoke))
        .route("/orgs/{org}/clients/{id}/secrets", post(clients::add_secret))
        .route("/orgs/{org}/clients/{id}/secrets/drop", get(clients::confirm_drop).post(clients::drop_secret))
        .route("/orgs/{org}/sso", get(providers::list))
        .route("/orgs/{org}/sso/configure", get(providers::form).post(providers::configure))
        .route("/orgs/{org}/sso/discover", post(providers::discover))
        .route("/orgs/{org}/sso/explain", get(explain::form).post(explain::explain))
        .route("/orgs/{org}/sso/{id}/remove", get(providers::confirm).post(providers::remove))
        .route("/orgs/{org}/limits", get(limits::page).post(limits::set))
        .route("/orgs/{org}/members", get(members::list).post(members::add))
        .route("/orgs/{org}/members/remove", get(members::confirm).post(members::remove))
        .route("/orgs/{org}/members/role", post(members::change_role))
        .route("/orgs/{org}/members/link", post(members::link))
        .route("/orgs/{org}/audit", get(audit::of_org))
        .route("/orgs/{org}/audit/{file}", get(audit::export_of_org))
        .route("/audit", get(audit::of_all))
        .route("/audit/{file}", get(audit::export_of_all))
        .route("/gateways", get(gateways::list))
        .route("/signing-keys", get(signing_keys::list).post(signing_keys::create))
        .route("/signing-keys/{kid}/use", get(signing_keys::confirm_sign).post(signing_keys::sign))
        .route("/signing-keys/{kid}/remove", get(signing_keys::confirm_remove).post(signing_keys::remove))
        .route("/assets/console.css", get(async || ([(CONTENT_TYPE, "text/css")], include_str!("../../assets/console.css"))))
        .route("/assets/console.js", get(async || ([(CONTENT_TYPE, "text/javascript")], include_str!("../../assets/console.js"))))
        .fallback(async || Refused::Failure(Failure::new(Reason::NotFound, NO_PAGE)))
        .with_state(console)
        .layer(middleware::from_fn(guard))
}

/// Refuses requests that a page of another site made, and tells browsers what the pages may do.
async fn guard(request: Request, next: Next) -> Response {
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD);
    // PostgreSQL cannot store this character.
    let has_nul = request.uri().path_and_query().is_some_and(|target| target.as_str().contains("%00"));
    let mut response = if has_nul {
        Refused::Failure(Failure::new(Reason::NotFound, NO_PAGE)).into_response()
    } else if is_safe || is_of_same_site(request.headers()) {
        next.run(request).await
    } else {
        let line = "a page of another site sent this form: open the console, and use its own forms";
        Refused::Failure(Failure::new(Reason::Forbidden, line)).into_response()
    };
    let policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; \
                  frame-ancestors 'none'";
    for (name, value) in [
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, policy),
        (REFERRER_POLICY, "no-referrer"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether a request comes from our own pages, by the metadata that browsers send. Older browsers send only `Origin`.
fn is_of_same_site(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    match text(HeaderName::from_static("sec-fetch-site")) {
        Some(site) => site == "same-origin",
        None => text(ORIGIN).and_then(|origin| Some(origin.split_once("://")?.1)).is_some_and(|host| Some(host) == text(HOST)),
    }
}

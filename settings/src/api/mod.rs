//! The management API. What the command line does, it does for callers with an admin token.
//!
//! A handler only reads the request. The operation itself is one of [`crate::records`], which also checks the caller's role.

mod admin_tokens;
mod audit;
mod call;
mod clients;
mod explain;
mod gateways;
mod keys;
mod limits;
mod members;
mod openapi;
mod orgs;
mod problem;
mod providers;
mod replies;
mod signing_keys;
mod tokens;
mod usage;

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::header::{CACHE_CONTROL, ETAG, HeaderName};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::Actor;
use crate::clock::Moment;
use crate::database::pool::Pool;
use crate::database::{Change, Database};
use crate::failure::{Failure, Reason};
use crate::serve::{Connected, log};
use crate::service::{self, Changed};
use crate::sql::{Part, Range, Sql};
use crate::throttle::Throttle;
use crate::usage::{Usage, Used};
pub(crate) use call::{BODY_TIMEOUT, MAX_PAGE};
use call::{Call, etag};
use problem::Problem;
use replies::Place;

/// Where the paths of the API begin.
const BASE: &str = "/api/v1";

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Api {
    pool: Arc<Pool>,
    usage: Arc<Usage>,
    throttle: Arc<Throttle>,
    gateways: Connected,
    /// The gateway's public origin.
    origin: String,
}

type Shared = axum::extract::State<Arc<Api>>;

/// The result of a change.
#[derive(Debug)]
pub(super) struct Made {
    status: u16,
    /// The record.
    body: Value,
    /// A secret with its name, which only this answer contains.
    secret: Option<(&'static str, String)>,
    /// When the credential was used last.
    last_used: Option<String>,
    warnings: Vec<String>,
    is_replayed: bool,
}

impl Made {
    fn ok(record: impl Serialize) -> Self {
        Self { status: 200, body: json!(record), secret: None, last_used: None, warnings: Vec::new(), is_replayed: false }
    }

    fn created(record: impl Serialize) -> Self {
        Self { status: 201, ..Self::ok(record) }
    }

    /// The record is gone.
    fn deleted() -> Self {
        Self { status: 204, ..Self::ok(Value::Null) }
    }

    fn with(self, name: &'static str, secret: Option<String>) -> Self {
        Self { secret: secret.map(|secret| (name, secret)), ..self }
    }

    /// The answer. The tag is that of the record alone: its use is no change.
    fn into_response(mut self, warnings: Vec<String>) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::OK);
        if status == StatusCode::NO_CONTENT {
            return status.into_response();
        }
        let tag = etag(&self.body);
        if let Value::Object(members) = &mut self.body {
            if let Some((name, secret)) = self.secret {
                members.insert(name.to_owned(), secret.into());
            }
            if let Some(last_used) = self.last_used {
                members.insert("last_used".to_owned(), last_used.into());
            }
            if !warnings.is_empty() {
                members.insert("warnings".to_owned(), warnings.into());
            }
        }
        let mut response = (status, Json(self.body)).into_response();
        tagged(&mut response, &tag);
        if self.is_replayed {
            let replayed = HeaderName::from_static("idempotent-replayed");
            response.headers_mut().insert(replayed, HeaderValue::from_static("true"));
        }
        response
    }
}

fn tagged(response: &mut Response, tag: &str) {
    if let Ok(tag) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(ETAG, tag);
    }
}

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
struct Items<T> {
    items: Vec<T>,
    /// The `cursor` of the next part. Null: this is the last one.
    next: Option<String>,
}

impl<T> Items<T> {
    /// `place` is the place of a record in the list.
    fn of(part: Part<T>, place: impl Fn(&T) -> [String; 2]) -> Self {
        let next = part.items.last().filter(|_| part.has_more).map(|last| Range::cursor(&place(last)));
        Self { items: part.items, next }
    }

    fn all(items: Vec<T>) -> Self {
        Self { items, next: None }
    }
}

impl Api {
    pub(crate) fn new(
        pool: Arc<Pool>,
        usage: Arc<Usage>,
        throttle: Arc<Throttle>,
        gateways: Connected,
        origin: String,
    ) -> Arc<Self> {
        Arc::new(Self { pool, usage, throttle, gateways, origin })
    }

    /// Answers a question about the records.
    async fn read<T: Send + 'static>(
        &self,
        call: Call,
        question: impl FnOnce(&dyn Sql, &Actor) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Problem> {
        let ask = move |database: &mut Database, _: &_| database.read(|sql| question(sql, &call.actor(sql, Moment::now())?));
        Ok(self.pool.run(ask).await?)
    }

    /// Answers with one record.
    async fn show<T: Serialize>(
        &self,
        call: Call,
        question: impl FnOnce(&dyn Sql, &Actor) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Response, Problem> {
        let record = self.read(call, |sql, actor| Ok(json!(question(sql, actor)?))).await?;
        Ok(Made::ok(record).into_response(Vec::new()))
    }

    /// Answers with one key or client. Its use changes, so its time is no part of the tag.
    async fn show_used<T: Used + Serialize + Send + 'static>(
        &self,
        call: Call,
        org: String,
        question: impl FnOnce(&dyn Sql, &Actor, &str) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Response, Problem> {
        let usage = Arc::clone(&self.usage);
        let (record, last_used) = self
            .read(call, move |sql, actor| {
                let mut records = [question(sql, actor, &org)?];
                let unused = json!(records[0]);
                usage.note_last_used_or_log(&org, &mut records);
                Ok((unused, records[0].last_used().take()))
            })
            .await?;
        Ok(Made { last_used, ..Made::ok(record) }.into_response(Vec::new()))
    }

    /// Changes the records. `digest` is the hash of the request's body.
    async fn change(
        &self,
        call: Call,
        digest: String,
        action: impl FnOnce(&Change<'_>, &Actor, &Call) -> Result<Made, Failure> + Send + 'static,
    ) -> Result<Response, Problem> {
        let make = move |database: &mut Database, location: &_| {
            // Before the lock of all changes: a caller without a token must not take it.
            database.read(|sql| call.actor(sql, Moment::now()))?;
            service::change(database, location, |change| {
                let actor = call.actor(change, Moment::now())?;
                let place = Place::of(&call, &digest, &actor);
                if let Some(known) = place.known(change, &actor)? {
                    return Ok(known);
                }
                let made = action(change, &actor, &call)?;
                place.keep(change, &made, &actor)?;
                Ok(made)
            })
        };
        let Changed { value, warnings, file } = self.pool.run(make).await?;
        let file = file.map(|failure| {
            log(failure);
            "the change is made, but Envoy still has the old policy: tell your operator".to_owned()
        });
        let warnings = value.warnings.iter().cloned().chain(warnings.iter().map(ToString::to_string)).chain(file).collect();
        Ok(value.into_response(warnings))
    }
}

/// The routes below [`BASE`], with their description.
fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(orgs::list, orgs::create))
        .routes(routes!(orgs::show, orgs::delete))
        .routes(routes!(keys::list, keys::create))
        .routes(routes!(keys::show, keys::update))
        .routes(routes!(keys::revoke))
        .routes(routes!(keys::roll))
        .routes(routes!(clients::list, clients::create))
        .routes(routes!(clients::show, clients::update))
        .routes(routes!(clients::revoke))
        .routes(routes!(clients::add_secret, clients::drop_secret))
        .routes(routes!(providers::list, providers::create))
        .routes(routes!(providers::discover))
        .routes(routes!(providers::show, providers::replace, providers::delete))
        .routes(routes!(limits::show, limits::replace))
        .routes(routes!(usage::show))
        .routes(routes!(explain::explain))
        .routes(routes!(tokens::revoke))
        .routes(routes!(members::list, members::add, members::change_role, members::remove))
        .routes(routes!(audit::list))
        .routes(routes!(signing_keys::list, signing_keys::create))
        .routes(routes!(signing_keys::delete))
        .routes(routes!(signing_keys::sign))
        .routes(routes!(gateways::list))
        .routes(routes!(admin_tokens::list, admin_tokens::create))
        .routes(routes!(admin_tokens::show))
        .routes(routes!(admin_tokens::revoke))
}

/// The API of these records.
pub(crate) fn router(api: Arc<Api>) -> Router {
    let (router, description) = OpenApiRouter::new().nest(BASE, routes()).split_for_parts();
    let description = Arc::new(openapi::complete(description));
    let document = axum::routing::get(move || {
        let description = Arc::clone(&description);
        async move { Json(&*description).into_response() }
    });
    router
        .route(&format!("{BASE}/openapi.json"), document)
        .route(&format!("{BASE}/{{*path}}"), axum::routing::any(unknown))
        .method_not_allowed_fallback(not_allowed)
        .with_state(api)
        .layer(middleware::from_fn(guard))
}

/// No answer may be kept by a cache: it may contain a secret, and the next one may differ.
async fn guard(request: Request, next: Next) -> Response {
    // axum answers HEAD by GET, without a word in the description.
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    let mut response = match *request.method() {
        Method::HEAD => not_allowed().await,
        // PostgreSQL cannot store this character.
        _ if target.contains("%00") => unknown().await,
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    response
}

async fn unknown() -> Response {
    Problem::from(Failure::new(Reason::NotFound, format!("this API has no such path: {BASE}/openapi.json lists all paths")))
        .into_response()
}

async fn not_allowed() -> Response {
    let line = format!("this path has no such method: {BASE}/openapi.json lists the methods of each path");
    Problem::from(Failure::new(Reason::MethodNotAllowed, line)).into_response()
}

/// The parts of a path. A part that is not UTF-8 names no record.
struct Path<T>(T);

impl<S: Send + Sync, T: serde::de::DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Result<Self, Problem> {
        let read = axum::extract::Path::from_request_parts(parts, state).await;
        let unknown = |_| Failure::new(Reason::NotFound, "the path names no record");
        Ok(read.map(|axum::extract::Path(parts)| Self(parts)).map_err(unknown)?)
    }
}

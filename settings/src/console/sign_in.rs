//! Signing in with a one-time link, and out.

use std::sync::Arc;

use askama::Template;
use axum::extract::{FromRequest, FromRequestParts, Query, Request, State};
use axum::http::HeaderMap;
use axum::http::header::{COOKIE, HeaderName, SET_COOKIE};
use axum::http::request::Parts;
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use axum::{Form as AxumForm, body};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Console, Page, Refused, Shared, show};
use crate::access::Actor;
use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::records::session;
use crate::service;
use crate::sql::Sql;

/// The cookie of a session.
const COOKIE_NAME: &str = "apexmcp_session";
/// Maximum length of a form, in bytes. A JWK Set of a client is the longest.
const MAX_FORM_LENGTH: usize = 256 << 10;

/// The session of a request.
#[derive(Clone, Debug)]
pub(super) struct Session(String);

impl Session {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(name, _)| *name == COOKIE_NAME).map(|(_, value)| Self(value.to_owned()))
    }

    /// The person who is signed in.
    ///
    /// # Errors
    /// If the session is unknown or has ended.
    pub(super) fn actor(&self, sql: &dyn Sql, now: Moment) -> Result<Actor, Failure> {
        let signed_out = || Failure::new(Reason::Unauthenticated, "you are signed out");
        session::owner(sql, &self.0, now)?.ok_or_else(signed_out)
    }
}

impl<S: Sync> FromRequestParts<S> for Session {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refused> {
        Self::of(&parts.headers).ok_or(Refused::SignedOut)
    }
}

/// The fields of a form, from somebody who is signed in.
pub(super) struct Form<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<Console>> for Form<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, console: &Arc<Console>) -> Result<Self, Refused> {
        let session = Session::of(request.headers()).ok_or(Refused::SignedOut)?;
        // The server checks the session before it reads the form.
        console.read(session, |_, _| Ok(())).await?;
        read(request).await
    }
}

/// Reads a form.
async fn read<T: DeserializeOwned>(request: Request) -> Result<Form<T>, Refused> {
    let (parts, body) = request.into_parts();
    let seconds = crate::api::BODY_TIMEOUT.as_secs();
    let late =
        |_| Failure::new(Reason::RequestTimeout, format!("the form did not arrive within {seconds} seconds: send it again"));
    let long = |_| Failure::new(Reason::RequestTooLong, format!("a form may have at most {MAX_FORM_LENGTH} bytes"));
    let read = tokio::time::timeout(crate::api::BODY_TIMEOUT, body::to_bytes(body, MAX_FORM_LENGTH));
    let bytes = read.await.map_err(late)?.map_err(long)?;
    // PostgreSQL cannot store this character.
    if bytes.windows(3).any(|letters| letters == b"%00") || bytes.contains(&0) {
        return Err(Failure::new(Reason::RequestMalformed, "the form contains the character U+0000: remove it").into());
    }
    let request = Request::from_parts(parts, body::Body::from(bytes));
    let wrong = |error: axum::extract::rejection::FormRejection| Failure::new(Reason::RequestMalformed, error.body_text());
    let AxumForm(fields) = AxumForm::<T>::from_request(request, &()).await.map_err(wrong)?;
    Ok(Form(fields))
}

/// The query or the form with the secret of a link.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Link {
    #[serde(default)]
    link: String,
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    link: String,
    is_wrong: bool,
}

/// Shows a button. The link alone signs nobody in: programs that look at links in messages would use it up.
pub(super) async fn page(Query(Link { link }): Query<Link>) -> Response {
    show(&SignInPage { link, is_wrong: false })
}

/// Signs in.
pub(super) async fn begin(State(console): Shared, headers: HeaderMap, request: Request) -> Page {
    let Form(Link { link }) = read(request).await?;
    let made = console.pool.run(move |database, location| {
        service::change(database, location, |change| session::begin(change, &link, Moment::now()))
    });
    let Some(session) = made.await?.value else {
        return Ok(show(&SignInPage { link: String::new(), is_wrong: true }));
    };
    let life = session::LIFE.as_secs();
    // A proxy with TLS sets this header. A client that sets it itself only makes its own cookie unusable over plain HTTP.
    let is_secure = headers.get(HeaderName::from_static("x-forwarded-proto")).is_some_and(|scheme| scheme == "https");
    let secure = if is_secure { "; Secure" } else { "" };
    let cookie = format!("{COOKIE_NAME}={session}; Path=/; Max-Age={life}; HttpOnly; SameSite=Lax{secure}");
    Ok((AppendHeaders([(SET_COOKIE, cookie)]), Redirect::to("/")).into_response())
}

/// Signs out.
pub(super) async fn end(State(console): Shared, session: Session) -> Page {
    let own = session.clone();
    // If the session has ended already, only the cookie is left to remove.
    let _ = console.change(session, move |change, actor| session::end(change, actor, &own.0)).await;
    let cookie = format!("{COOKIE_NAME}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax");
    Ok((AppendHeaders([(SET_COOKIE, cookie)]), Redirect::to("/sign-in")).into_response())
}

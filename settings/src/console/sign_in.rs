//! Signing in with a one-time link or with the operator's identity provider, and out.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::{FromRequest, FromRequestParts, Query, Request, State};
use axum::http::header::{COOKIE, HeaderName, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use axum::{Form as AxumForm, body};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Console, Page, Refused, Shared, show, show_again};
use crate::access::Actor;
use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::oidc::{Attempt, Oidc};
use crate::records::session::{self, Admitted};
use crate::serve::log;
use crate::service;
use crate::sql::Sql;
use crate::throttle::Caller;

/// The cookie of a session.
const COOKIE_NAME: &str = "apexmcp_session";
/// Maximum length of a form, in bytes. A JWK Set of a client is the longest.
const MAX_FORM_LENGTH: usize = 256 << 10;

/// Maximum length of the form with a link, in bytes, and how long a client may take to send it. Nobody is known yet.
const MAX_LINK_FORM_LENGTH: usize = 1024;
const LINK_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum length of an error of the identity provider in the log, in characters.
const MAX_LOGGED: usize = 100;
/// The cookie of a sign-in that began at the identity provider.
const ATTEMPT_NAME: &str = "apexmcp_sign_in";

/// The value of a cookie.
fn cookie<'h>(headers: &'h HeaderMap, wanted: &str) -> Option<&'h str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value)
}

/// A header that sets a cookie for some seconds. Scripts cannot read it, and forms of other sites do not send it.
fn set_cookie(console: &Console, headers: &HeaderMap, name: &str, value: &str, seconds: u64) -> (HeaderName, String) {
    // A proxy with TLS sets this header. A client that sets it itself only makes its own cookie unusable over plain HTTP.
    let is_forwarded = headers.get(HeaderName::from_static("x-forwarded-proto")).is_some_and(|scheme| scheme == "https");
    let is_secure = is_forwarded || console.url.as_ref().is_some_and(|url| url.starts_with("https://"));
    let secure = if is_secure { "; Secure" } else { "" };
    (SET_COOKIE, format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"))
}

/// The session of a request.
#[derive(Clone, Debug)]
pub(super) struct Session {
    secret: String,
    pub(super) caller: Caller,
}

impl Session {
    fn of(parts: &Parts, console: &Console) -> Result<Self, Refused> {
        let secret = cookie(&parts.headers, COOKIE_NAME).ok_or(Refused::SignedOut)?.to_owned();
        let caller = console.throttle.caller(&secret, &parts.headers, &parts.extensions);
        Ok(Self { secret, caller })
    }

    /// The id of the session in lists.
    pub(super) fn id(&self) -> String {
        session::id(&self.secret)
    }

    /// The person who is signed in.
    ///
    /// # Errors
    /// If the session is unknown or has ended.
    pub(super) fn actor(&self, sql: &dyn Sql, now: Moment) -> Result<Actor, Failure> {
        let Some(owner) = session::owner(sql, &self.secret, now)? else {
            self.caller.failed();
            return Err(Failure::new(Reason::Unauthenticated, "you are signed out"));
        };
        self.caller.passed();
        Ok(owner)
    }
}

impl FromRequestParts<Arc<Console>> for Session {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, console: &Arc<Console>) -> Result<Self, Refused> {
        let session = Self::of(parts, console)?;
        session.caller.check()?;
        Ok(session)
    }
}

/// The fields of a form, from somebody who is signed in.
pub(super) struct Form<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<Console>> for Form<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, console: &Arc<Console>) -> Result<Self, Refused> {
        let (parts, body) = request.into_parts();
        // The server checks the session before it reads the form.
        console.read(Session::of(&parts, console)?, |_, _| Ok(())).await?;
        read(Request::from_parts(parts, body), MAX_FORM_LENGTH, crate::api::BODY_TIMEOUT).await
    }
}

/// Reads a form.
async fn read<T: DeserializeOwned>(request: Request, longest: usize, patience: Duration) -> Result<Form<T>, Refused> {
    let (parts, body) = request.into_parts();
    let seconds = patience.as_secs();
    let late =
        |_| Failure::new(Reason::RequestTimeout, format!("the form did not arrive within {seconds} seconds: send it again"));
    let long = |_| Failure::new(Reason::RequestTooLong, format!("a form may have at most {longest} bytes"));
    let read = tokio::time::timeout(patience, body::to_bytes(body, longest));
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
    /// Why the person is not signed in.
    wrong: &'static str,
    /// The host of the identity provider.
    provider: Option<String>,
}

const USED: &str = "This link was used already, or is older than ten minutes. Ask for a new one.";
const STRANGER: &str = "Your identity provider knows you, but you are neither an operator nor a member of an organization here. \
                        Ask an administrator of your organization to add your address at the page Members.";
const FAILED: &str = "The sign-in with your identity provider failed. Try again. If it fails again, tell your operator: the log of \
                      apexmcp serve has the reason.";

impl SignInPage {
    fn new(console: &Console, wrong: &'static str) -> Self {
        Self { link: String::new(), wrong, provider: console.oidc.as_ref().map(|oidc| oidc.host().to_owned()) }
    }
}

/// Shows a button. The link alone signs nobody in: programs that look at links in messages would use it up.
pub(super) async fn page(State(console): Shared, Query(Link { link }): Query<Link>) -> Response {
    show(&SignInPage { link, ..SignInPage::new(&console, "") })
}

/// Signs in with a link.
pub(super) async fn begin(State(console): Shared, request: Request) -> Page {
    let (parts, body) = request.into_parts();
    let Form(Link { link }) = read(Request::from_parts(parts.clone(), body), MAX_LINK_FORM_LENGTH, LINK_TIMEOUT).await?;
    let caller = console.throttle.caller(&link, &parts.headers, &parts.extensions);
    caller.check()?;
    let made = console.pool.run(move |database, location| {
        service::change(database, location, |change| session::begin(change, &link, Moment::now()))
    });
    let Some(session) = made.await?.value else {
        caller.failed();
        return Ok(show_again(&SignInPage::new(&console, USED)));
    };
    Ok(signed_in(&console, &parts.headers, &session))
}

fn signed_in(console: &Console, headers: &HeaderMap, session: &str) -> Response {
    let cookie = set_cookie(console, headers, COOKIE_NAME, session, session::LIFE.as_secs());
    (AppendHeaders([cookie]), Redirect::to("/")).into_response()
}

fn oidc(console: &Console) -> Result<&Oidc, Failure> {
    console.oidc.as_ref().ok_or_else(|| Failure::new(Reason::NotFound, super::NO_PAGE))
}

/// Sends the browser to the identity provider.
pub(super) async fn ask_provider(State(console): Shared, headers: HeaderMap) -> Page {
    match oidc(&console)?.begin().await {
        Ok((url, attempt)) => {
            let cookie = set_cookie(&console, &headers, ATTEMPT_NAME, &attempt.to_text(), session::LINK_LIFE.as_secs());
            Ok((AppendHeaders([cookie]), Redirect::to(&url)).into_response())
        }
        // The reason is in the log since the fetch.
        Err(_) => Ok((StatusCode::BAD_GATEWAY, show(&SignInPage::new(&console, FAILED))).into_response()),
    }
}

/// What the identity provider sends the browser back with (RFC 6749 §4.1.2).
#[derive(Debug, Default, Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    state: String,
    #[serde(default)]
    code: String,
    #[serde(default)]
    error: String,
}

#[derive(Template)]
#[template(path = "choose.html")]
struct ChoosePage {
    name: String,
    /// An org, or `None` for an operator, with the secret of a link.
    roles: Vec<(Option<String>, String)>,
}

/// Signs in a person who comes back from the identity provider.
pub(super) async fn answer(State(console): Shared, Query(answer): Query<Answer>, request: Request) -> Page {
    let (oidc, headers) = (oidc(&console)?, request.headers());
    let over = set_cookie(&console, headers, ATTEMPT_NAME, "", 0);
    let failed = || (AppendHeaders([over.clone()]), show_again(&SignInPage::new(&console, FAILED))).into_response();
    // Any page can send its visitors here. Without an attempt, nothing was guessed: it is neither counted nor logged.
    let Some(attempt) = cookie(headers, ATTEMPT_NAME).and_then(Attempt::from_text).filter(|it| it.is_of(&answer.state)) else {
        return Ok(failed());
    };
    if !answer.error.is_empty() {
        let error: String = answer.error.chars().take(MAX_LOGGED).collect();
        log(format_args!("sign-in: the identity provider answered {error:?}"));
        return Ok(failed());
    }
    let caller = console.throttle.caller(&answer.code, headers, request.extensions());
    caller.check()?;
    let person = match oidc.complete(attempt, answer.code).await {
        Ok(person) => person,
        Err(failure) => {
            if failure.reason == Reason::Unauthenticated {
                caller.failed();
            }
            log(format_args!("sign-in: {failure}"));
            return Ok(failed());
        }
    };
    let name = person.name.clone();
    let made = console.pool.run(move |database, location| {
        service::change(database, location, |change| session::admit(change, &person, Moment::now()))
    });
    let response = match made.await?.value {
        Admitted::Session(session) => signed_in(&console, headers, &session),
        Admitted::Choice(roles) => show(&ChoosePage { name, roles }),
        Admitted::Nobody => {
            log(format_args!("sign-in: {name} is neither an operator nor a member of an org"));
            (StatusCode::FORBIDDEN, show(&SignInPage::new(&console, STRANGER))).into_response()
        }
    };
    Ok((AppendHeaders([over]), response).into_response())
}

/// Signs out.
pub(super) async fn end(State(console): Shared, headers: HeaderMap, session: Session) -> Page {
    let own = session.clone();
    // If the session has ended already, only the cookie is left to remove.
    let _ = console.change(session, move |change, actor| session::end(change, actor, &own.secret)).await;
    let cookie = set_cookie(&console, &headers, COOKIE_NAME, "", 0);
    Ok((AppendHeaders([cookie]), Redirect::to("/sign-in")).into_response())
}

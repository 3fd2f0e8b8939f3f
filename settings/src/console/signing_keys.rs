//! `Signing keys`

use askama::Template;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};

use super::filters;
use super::frame::{Done, Frame, Told};
use super::{Page, Refused, Session, Shared, back, show};
use crate::records::signing_key::{self, SigningKey};

const SECTION: &str = "Signing keys";

#[derive(Template)]
#[template(path = "signing_keys.html")]
struct ListPage {
    frame: Frame,
    keys: Vec<SigningKey>,
}

/// All signing keys.
pub(super) async fn list(State(console): Shared, session: Session, told: Told) -> Page {
    let (actor, keys) = console.read(session, signing_key::list).await?;
    Ok(show(&ListPage { frame: Frame::new(&actor, None, SECTION, "Signing keys").after(told), keys }))
}

/// Creates and publishes a key.
pub(super) async fn create(State(console): Shared, session: Session) -> Page {
    let own = session.clone();
    // Generated before the transaction, and only for an operator: it takes long.
    console.read(own, |_, actor| actor.check_operator()).await?;
    let pem = console.pool.run_aside("", signing_key::generate).await?;
    let (_, made) = console.change(session, move |change, actor| signing_key::create(change, actor, None, &pem)).await?;
    made.map_err(Refused::Failure)?;
    Ok(back("/signing-keys", Done::KeyCreated))
}

/// Lets a key sign.
pub(super) async fn sign(State(console): Shared, session: Session, Path(kid): Path<String>) -> Page {
    let (_, made) = console.change(session, move |change, actor| signing_key::sign_with(change, actor, &kid)).await?;
    made.map_err(Refused::Failure)?;
    Ok(back("/signing-keys", Done::KeySigns))
}

/// Removes a key.
pub(super) async fn remove(State(console): Shared, session: Session, Path(kid): Path<String>) -> Page {
    let (_, made) = console.change(session, move |change, actor| signing_key::remove(change, actor, &kid)).await?;
    made.map_err(Refused::Failure)?;
    Ok(back("/signing-keys", Done::KeyRemoved))
}

//! `Signing keys`

use std::time::Duration;

use askama::Template;
use axum::extract::{Path, State};

use super::filters;
use super::frame::{Done, Frame, Told};
use super::{Page, Refused, Session, Shared, back, show};
use crate::access::Actor;
use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::records::signing_key::{self, SigningKey};
use crate::sql::Sql;

const SECTION: &str = "Signing keys";

/// How long clients cache the published keys.
const CACHED: Duration = Duration::from_secs(60);

/// The lifetime of a token by default (`tokens.ttl`).
const TOKEN_LIFE: Duration = Duration::from_secs(60 * 60);

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

/// A key that does not sign, and the key that signs.
fn of(sql: &dyn Sql, actor: &Actor, kid: &str) -> Result<(SigningKey, Option<SigningKey>), Failure> {
    let key = signing_key::find(sql, actor, kid)?;
    if key.signs {
        return Err(Failure::new(Reason::Conflict, format!("{kid} signs new tokens already")));
    }
    Ok((key, signing_key::list(sql, actor)?.into_iter().find(|key| key.signs)))
}

#[derive(Template)]
#[template(path = "signing_key_use.html")]
struct UsePage {
    frame: Frame,
    key: SigningKey,
    /// The id of the key that signs now.
    signer: Option<String>,
    /// The age of the key in seconds, and the seconds that are left of its first minute. `None`: the key is older.
    too_young: Option<(u64, u64)>,
}

/// Asks whether a key shall sign.
pub(super) async fn confirm_sign(State(console): Shared, session: Session, Path(kid): Path<String>) -> Page {
    let (actor, (key, signer)) = console.read(session, move |sql, actor| of(sql, actor, &kid)).await?;
    let age = Moment::parse(&key.created_at).ok().map(|created_at| actor.now.since(created_at));
    let too_young = age.filter(|age| *age < CACHED).map(|age| (age.as_secs(), CACHED.saturating_sub(age).as_secs()));
    let frame = Frame::new(&actor, None, SECTION, format!("Sign with {}", key.kid));
    Ok(show(&UsePage { frame, key, signer: signer.map(|signer| signer.kid), too_young }))
}

#[derive(Template)]
#[template(path = "signing_key_remove.html")]
struct RemovePage {
    frame: Frame,
    key: SigningKey,
    /// The id of the key that signs now.
    signer: Option<String>,
    /// When that key began to sign, if this is known.
    since: Option<String>,
    /// When the last token of the other keys expires, if this is not yet over.
    wait_until: Option<String>,
}

/// Asks whether to remove a key.
pub(super) async fn confirm_remove(State(console): Shared, session: Session, Path(kid): Path<String>) -> Page {
    let read = console.read(session, move |sql, actor| {
        let (key, signer) = of(sql, actor, &kid)?;
        let since = signer.as_ref().map(|signer| signing_key::signs_since(sql, actor, &signer.kid)).transpose()?.flatten();
        Ok((key, signer, since))
    });
    let (actor, (key, signer, since)) = read.await?;
    let end = since.and_then(|since| since.plus(TOKEN_LIFE).ok()).filter(|end| actor.now < *end);
    let frame = Frame::new(&actor, None, SECTION, format!("Remove {}", key.kid));
    let (signer, since, wait_until) =
        (signer.map(|signer| signer.kid), since.map(|at| at.to_string()), end.map(|at| at.to_string()));
    Ok(show(&RemovePage { frame, key, signer, since, wait_until }))
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

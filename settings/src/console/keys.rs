//! `API keys`

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use serde::Deserialize;

use super::frame::{Done, Frame, Told, Wrong};
use super::sign_in::Form;
use super::{Around, Cursor, Page, Refused, Session, Shared, around, back_to, filters, show, show_again, words};
use crate::access::Actor;
use crate::clock::Moment;
use crate::failure::Failure;
use crate::records::api_key::{self, ApiKey, Changes, Filter, NewKey, Rolled, Status};
use crate::records::org;
use crate::sql::Sql;

const SECTION: &str = "API keys";

/// A key with its status.
struct Shown {
    key: ApiKey,
    status: Status,
    expires_soon: bool,
    /// Whether the person has just created it.
    is_new: bool,
}

/// Which part of the list is wanted.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    status: String,
    #[serde(default)]
    search: String,
    cursor: Option<String>,
    before: Option<String>,
    /// The id of the key that the person has just created.
    #[serde(default)]
    created: String,
}

impl Wanted {
    fn filter(&self) -> Filter {
        let statuses = [Status::Active, Status::Expired, Status::Revoked];
        Filter { status: statuses.into_iter().find(|status| status.name() == self.status), search: self.search.trim().to_owned() }
    }
}

#[derive(Template)]
#[template(path = "keys.html")]
struct ListPage {
    frame: Frame,
    org: String,
    keys: Vec<Shown>,
    /// Why a key has no time of its last use.
    why_unused: String,
    wanted: Wanted,
    around: Around,
}

impl ListPage {
    /// Whether the list was not narrowed down.
    fn is_whole(&self) -> bool {
        let Wanted { status, search, cursor, before, created: _ } = &self.wanted;
        status.is_empty() && search.is_empty() && cursor.is_none() && before.is_none()
    }
}

/// The keys of an org.
pub(super) async fn list(
    State(console): Shared,
    session: Session,
    told: Told,
    Path(org): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Page {
    let range = Cursor { cursor: wanted.cursor.clone(), before: wanted.before.clone() }.range();
    let (name, filter, of_list) = (org.clone(), wanted.filter(), range.clone());
    let place = session.caller.search(filter.is_search(), &console.pool).await?;
    let usage = Arc::clone(&console.usage);
    let listed = console.read(session, move |sql, actor| {
        let _place = place;
        let mut keys = api_key::list(sql, actor, &name, &filter, &of_list)?;
        usage.note_last_used_or_log(&name, &mut keys.items);
        Ok((keys, usage.why_unused()))
    });
    let (actor, (keys, why_unused)) = listed.await?;
    let around = around(&keys, &range, |key| [key.created_at.clone(), key.id.clone()]);
    let shown = |key: ApiKey| Shown {
        status: key.status(actor.now),
        expires_soon: key.expires_soon(actor.now),
        is_new: key.id == wanted.created,
        key,
    };
    let keys = keys.items.into_iter().map(shown).collect();
    Ok(show(&ListPage { frame: frame(&actor, &org, "API Keys").after(told), org, keys, why_unused, wanted, around }))
}

/// The fields of a new key.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Fields {
    #[serde(default)]
    name: String,
    /// Separated by spaces, commas or lines. Empty: all connectors.
    #[serde(default)]
    connectors: String,
    /// Days until the key expires. Empty: never.
    #[serde(default)]
    days: String,
}

#[derive(Template)]
#[template(path = "key_new.html")]
struct NewPage {
    frame: Frame,
    org: String,
    fields: Fields,
    wrong: Wrong,
    /// The hint of the field with the connectors.
    hint: String,
}

/// Says how to write connectors, and which ones the keys of the org use.
fn hint(sql: &dyn Sql, actor: &Actor, org: &str) -> Result<String, Failure> {
    let used = api_key::used_connectors(sql, actor, org)?;
    let hint = "The ids of the connectors that the key may call, separated by spaces. Leave it empty for all.";
    Ok(if used.is_empty() { hint.to_owned() } else { format!("{hint} Your keys use: {}.", used.join(", ")) })
}

/// The form for a new key.
pub(super) async fn new(State(console): Shared, session: Session, Path(org): Path<String>) -> Page {
    let name = org.clone();
    let read = console.read(session, move |sql, actor| {
        org::require_change(sql, actor, &name)?;
        hint(sql, actor, &name)
    });
    let (actor, hint) = read.await?;
    let fields = Fields { days: "90".to_owned(), ..Fields::default() };
    Ok(show(&NewPage { frame: frame(&actor, &org, "Create API key"), org, fields, wrong: Wrong::default(), hint }))
}

fn frame(actor: &Actor, org: &str, title: &str) -> Frame {
    Frame::new(actor, Some(org), SECTION, title)
}

/// The end of a number of days from now.
fn end(now: Moment, days: &str) -> Result<Option<Moment>, Failure> {
    let days = days.trim();
    if days.is_empty() {
        return Ok(None);
    }
    let wrong = || Failure::of("days", "must be a number of days from 1 to 3650, or nothing");
    let days: u32 = days.parse().ok().filter(|days| (1..=3650).contains(days)).ok_or_else(wrong)?;
    now.plus(std::time::Duration::from_secs(u64::from(days).saturating_mul(24 * 60 * 60))).map(Some)
}

/// A new key, with ready-made lines for clients. It is shown only here.
#[derive(Template)]
#[template(path = "key_created.html")]
struct CreatedPage {
    frame: Frame,
    key: ApiKey,
    secret: String,
    /// The URL at which clients call the gateway.
    endpoint: String,
    /// What happened to the key that this one replaces.
    old: Option<String>,
}

impl CreatedPage {
    fn new(actor: &Actor, key: ApiKey, secret: String, origin: &str, old: Option<String>) -> Self {
        let connector = match key.connectors.as_deref() {
            Some([one]) => format!("/{one}"),
            _ => String::new(),
        };
        let endpoint = format!("{origin}/mcp/{}{connector}", key.org);
        let title = if old.is_some() { "API key rolled" } else { "API key created" };
        Self { frame: frame(actor, &key.org, title), key, secret, endpoint, old }
    }

    fn curl(&self) -> String {
        self.filled(include_str!("../../templates/examples/curl.txt"))
    }

    fn python(&self) -> String {
        self.filled(include_str!("../../templates/examples/python.txt"))
    }

    fn typescript(&self) -> String {
        self.filled(include_str!("../../templates/examples/typescript.txt"))
    }

    fn config(&self) -> String {
        self.filled(include_str!("../../templates/examples/config.txt"))
    }

    fn filled(&self, example: &str) -> String {
        example.trim_end().replace("ENDPOINT", &self.endpoint).replace("API_KEY", &self.secret)
    }
}

/// Creates a key.
pub(super) async fn create(State(console): Shared, session: Session, Path(org): Path<String>, form: Form<Fields>) -> Page {
    let again = session.clone();
    let (name, fields) = (org.clone(), form.0.clone());
    let made = console.change(session, move |change, actor| {
        org::require_change(change, actor, &name)?;
        let (connectors, expires_at) = (words(&fields.connectors), end(actor.now, &fields.days)?);
        api_key::create(change, actor, &NewKey { org: &name, name: fields.name.trim(), connectors: &connectors, expires_at })
    });
    Ok(match made.await? {
        (actor, Ok((key, secret))) => show(&CreatedPage::new(&actor, key, secret, &console.origin, None)),
        (actor, Err(failure)) => {
            let (name, frame) = (org.clone(), frame(&actor, &org, "Create API key"));
            let (_, hint) = console.read(again, move |sql, actor| hint(sql, actor, &name)).await?;
            show_again(&NewPage { frame, org, fields: form.0, wrong: failure.into(), hint })
        }
    })
}

/// A key of this org that the actor may change.
fn of(sql: &dyn Sql, actor: &Actor, org: &str, id: &str) -> Result<ApiKey, Failure> {
    org::require_change(sql, actor, org)?;
    api_key::of_org(sql, actor, org, id)
}

/// The text by which people recognize a key. The beginning of an imported key is unknown.
fn label(key: &ApiKey) -> String {
    if key.prefix.is_empty() { key.id.clone() } else { format!("{}…", key.prefix) }
}

/// The fields of a key that is changed.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct EditFields {
    #[serde(default)]
    name: String,
    /// Separated by spaces, commas or lines. Empty: all connectors.
    #[serde(default)]
    connectors: String,
    /// The last day of the key in UTC. Empty: it never expires.
    #[serde(default)]
    expires_at: String,
}

/// The last day of a key. Empty: it never expires.
fn last_day(key: &ApiKey) -> String {
    key.expires_at.iter().flat_map(|end| end.chars().take_while(|letter| *letter != 'T')).collect()
}

impl EditFields {
    fn of(key: &ApiKey) -> Self {
        let connectors = key.connectors.as_deref().unwrap_or_default().join(" ");
        Self { name: key.name.clone(), connectors, expires_at: last_day(key) }
    }

    /// The changes of a key. The day that the form showed keeps its time.
    fn changes(&self, key: &ApiKey) -> Result<Changes, Failure> {
        let day = self.expires_at.trim();
        let wrong = |_| Failure::of("expires_at", "must be a day such as 2027-01-31, or nothing");
        let expires_at = match day {
            day if day == last_day(key) => None,
            "" => Some(None),
            day => Some(Some(Moment::parse(&format!("{day}T23:59:59Z")).map_err(wrong)?)),
        };
        let connectors = Some(words(&self.connectors)).filter(|connectors| !connectors.is_empty());
        Ok(Changes { name: Some(self.name.trim().to_owned()), connectors: Some(connectors), expires_at, limits: None })
    }
}

#[derive(Template)]
#[template(path = "key_edit.html")]
struct EditPage {
    frame: Frame,
    key: ApiKey,
    label: String,
    fields: EditFields,
    wrong: Wrong,
    /// The hint of the field with the connectors.
    hint: String,
}

impl EditPage {
    fn new(actor: &Actor, key: ApiKey, hint: String, fields: EditFields, wrong: Wrong) -> Self {
        Self { frame: frame(actor, &key.org, "Edit API key"), label: label(&key), key, fields, wrong, hint }
    }
}

/// The form that changes a key.
pub(super) async fn ask_edit(State(console): Shared, session: Session, Path((org, id)): Path<(String, String)>) -> Page {
    let read = console.read(session, move |sql, actor| Ok((of(sql, actor, &org, &id)?, hint(sql, actor, &org)?)));
    let (actor, (key, hint)) = read.await?;
    let fields = EditFields::of(&key);
    Ok(show(&EditPage::new(&actor, key, hint, fields, Wrong::default())))
}

/// Changes a key. Its limits stay as they are.
pub(super) async fn edit(
    State(console): Shared,
    session: Session,
    Path((org, id)): Path<(String, String)>,
    form: Form<EditFields>,
) -> Page {
    let again = session.clone();
    let (of_org, of_id, fields) = (org.clone(), id.clone(), form.0.clone());
    let made = console.change(session, move |change, actor| {
        let key = of(change, actor, &of_org, &of_id)?;
        api_key::update(change, actor, &of_id, fields.changes(&key)?)
    });
    match made.await? {
        (_, Ok(key)) => Ok(back_to(&key.org, "keys", Done::KeySaved)),
        (_, Err(failure)) => {
            let read = console.read(again, move |sql, actor| Ok((of(sql, actor, &org, &id)?, hint(sql, actor, &org)?)));
            let (actor, (key, hint)) = read.await?;
            Ok(show_again(&EditPage::new(&actor, key, hint, form.0, failure.into())))
        }
    }
}

#[derive(Template)]
#[template(path = "key_revoke.html")]
struct RevokePage {
    frame: Frame,
    key: ApiKey,
    label: String,
}

/// Asks whether to revoke a key.
pub(super) async fn confirm(State(console): Shared, session: Session, Path((org, id)): Path<(String, String)>) -> Page {
    let (actor, key) = console.read(session, move |sql, actor| of(sql, actor, &org, &id)).await?;
    Ok(show(&RevokePage { frame: frame(&actor, &key.org, "Revoke API key"), label: label(&key), key }))
}

/// Revokes a key.
pub(super) async fn revoke(State(console): Shared, session: Session, Path((org, id)): Path<(String, String)>) -> Page {
    let made = console.change(session, move |change, actor| {
        of(change, actor, &org, &id)?;
        api_key::revoke(change, actor, &id)
    });
    let (_, key) = made.await?;
    let key = key.map_err(Refused::Failure)?;
    Ok(back_to(&key.org, "keys", Done::KeyRevoked))
}

/// How long the old key stays valid.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RollFields {
    overlap: String,
}

#[derive(Template)]
#[template(path = "key_roll.html")]
struct RollPage {
    frame: Frame,
    label: String,
    is_expired: bool,
    /// When the new key expires.
    end: Option<String>,
    key: ApiKey,
    wrong: Wrong,
}

impl RollPage {
    fn new(actor: &Actor, key: ApiKey, wrong: Wrong) -> Result<Self, Failure> {
        let end = api_key::end_after_roll(&key, actor.now)?.map(|end| end.to_string());
        let (frame, label) = (frame(actor, &key.org, "Roll API key"), label(&key));
        Ok(Self { frame, label, is_expired: key.status(actor.now) == Status::Expired, end, key, wrong })
    }
}

/// Asks how to roll a key.
pub(super) async fn ask_roll(State(console): Shared, session: Session, Path((org, id)): Path<(String, String)>) -> Page {
    let (actor, key) = console.read(session, move |sql, actor| of(sql, actor, &org, &id)).await?;
    Ok(show(&RollPage::new(&actor, key, Wrong::default())?))
}

/// A moment for people.
fn minute(moment: &str) -> String {
    let minute: String = moment.replace('T', " ").chars().take(16).collect();
    format!("{minute} UTC")
}

/// Rolls a key.
pub(super) async fn roll(
    State(console): Shared,
    session: Session,
    Path((org, id)): Path<(String, String)>,
    Form(fields): Form<RollFields>,
) -> Page {
    let again = session.clone();
    let (of_org, of_id) = (org.clone(), id.clone());
    let made = console.change(session, move |change, actor| {
        of(change, actor, &of_org, &of_id)?;
        let overlap = humantime::parse_duration(&fields.overlap);
        let overlap = overlap.map_err(|_| Failure::of("overlap", "must be a duration such as 24h"))?;
        api_key::roll(change, actor, &of_id, overlap)
    });
    match made.await? {
        (actor, Ok(Rolled { new, key, old })) => {
            let old = match (&old.revoked_at, &old.expires_at) {
                (None, Some(end)) if old.status(actor.now) == Status::Active => {
                    format!("Replace the old key {} in your agents before {}. Then it stops working.", label(&old), minute(end))
                }
                _ => format!("The old key {} no longer works.", label(&old)),
            };
            Ok(show(&CreatedPage::new(&actor, new, key, &console.origin, Some(old))))
        }
        (_, Err(failure)) => {
            let (actor, key) = console.read(again, move |sql, actor| of(sql, actor, &org, &id)).await?;
            Ok(show_again(&RollPage::new(&actor, key, failure.into())?))
        }
    }
}

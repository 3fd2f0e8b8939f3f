//! The usage of an org, for people and programs.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use super::batch::Credential;
use super::{ALLOWED, KEPT_DAYS, NO_CREDENTIAL, Usage, began_at, each_of, last_used};
use crate::access::Actor;
use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::records::limits::{self, Holder};
use crate::records::{org, provider};
use crate::sql::{Part, Range, Sql, part, rows, values};

/// The requests of an org, and how many of its monthly quota they are.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Usage)]
pub(crate) struct OrgUsage {
    /// The first day of the report, in UTC.
    #[schema(format = Date)]
    pub(crate) from: String,
    /// The last day of the report, in UTC.
    #[schema(format = Date)]
    pub(crate) to: String,
    #[serde(flatten)]
    #[schema(inline)]
    pub(crate) overview: Overview,
    /// The refused requests without a known credential, by their reason.
    pub(crate) refused: BTreeMap<String, i64>,
    /// The credentials with requests in this time, by their name.
    #[schema(inline)]
    pub(crate) credentials: Vec<CredentialUsage>,
    /// The `cursor` of the next part of the credentials. Null: this is the last one.
    pub(crate) next: Option<String>,
}

/// The usage of an org without its credentials.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct Overview {
    /// When collection began: there is no usage from before. Null: usage is not collected.
    pub(crate) began_at: Option<String>,
    /// The present month.
    #[schema(inline)]
    pub(crate) month: MonthUsage,
    /// The days with requests, the first one first.
    #[schema(inline)]
    pub(crate) days: Vec<DayUsage>,
    /// The hours with requests. Hours are kept for 14 days.
    #[schema(inline)]
    pub(crate) hours: Vec<HourUsage>,
}

/// The requests of a calendar month.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct MonthUsage {
    /// The month in UTC.
    #[schema(example = "2026-11")]
    pub(crate) month: String,
    /// Allowed requests.
    pub(crate) allowed: i64,
    /// Null: the org has no quota.
    pub(crate) monthly_quota: Option<u64>,
}

/// The requests of a day.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct DayUsage {
    /// The day in UTC.
    #[schema(format = Date)]
    pub(crate) day: String,
    pub(crate) allowed: i64,
    pub(crate) refused: i64,
}

/// The requests of an hour.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HourUsage {
    /// The beginning of the hour.
    #[schema(format = DateTime)]
    pub(crate) hour: String,
    pub(crate) allowed: i64,
    pub(crate) refused: i64,
}

/// The requests of a credential.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CredentialUsage {
    /// `<org>/key/<id>`, `<org>/client/<id>` or `<org>/idp/<id>`. `<org>/other` has the requests of credentials that a gateway could
    /// not count one by one.
    #[schema(example = "acme/key/key_1f9c")]
    pub(crate) credential: String,
    /// The name of the key or the client, or the issuer of the provider. Null: there is no such record.
    pub(crate) name: Option<String>,
    pub(crate) allowed: i64,
    /// Refused requests by their reason.
    pub(crate) refused: BTreeMap<String, i64>,
    /// The time of the last allowed request, to the minute. Null: none since collection began.
    #[schema(format = DateTime)]
    pub(crate) last_used: Option<String>,
}

/// A range of days.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dates {
    from: i64,
    to: i64,
}

impl Dates {
    /// The days that a request names: by default, this month until today.
    ///
    /// # Errors
    /// If one is no day, or the range is empty.
    pub(crate) fn parse(from: Option<&str>, to: Option<&str>, now: Moment) -> Result<Self, Failure> {
        let day = |field: &'static str, text: Option<&str>, default: i64| match text {
            None => Ok(default),
            Some(text) => {
                let moment = Moment::parse(&format!("{text}T00:00:00Z")).ok().filter(|moment| moment.date() == text);
                moment.map(Moment::day).ok_or_else(|| Failure::of(field, "must be a day such as 2026-11-30"))
            }
        };
        let to = day("to", to, now.day())?;
        let from = day("from", from, now.start_of_month().day().min(to))?;
        if from > to {
            return Err(Failure::of("from", "must not be after 'to'"));
        }
        // Older days are deleted.
        Ok(Self { from: from.max(now.day().saturating_sub(KEPT_DAYS)).min(to), to })
    }

    /// The last days until today.
    pub(crate) fn last(days: i64, now: Moment) -> Self {
        Self { from: now.day().saturating_sub(days).saturating_add(1), to: now.day() }
    }

    /// Each day, such as `2026-11-30`.
    pub(crate) fn each(self) -> impl Iterator<Item = String> {
        (self.from..=self.to).map(date)
    }
}

fn date(day: i64) -> String {
    Moment::of_day(day).map(Moment::date).unwrap_or_default()
}

/// An org's usage in some days, with a part of its credentials.
///
/// # Errors
/// If no org has this name, or a database fails.
pub(crate) fn usage_of_org(
    settings: &dyn Sql,
    usage: &Usage,
    actor: &Actor,
    name: &str,
    dates: Dates,
    range: &Range,
) -> Result<OrgUsage, Failure> {
    let overview = overview(settings, usage, actor, name, dates)?;
    let since = created_on(settings, actor, name)?;
    let dates_of_org = Dates { from: dates.from.max(since), ..dates };
    let found = usage.read(|sql| Ok((refused(sql, name, dates_of_org)?, credentials(sql, name, dates_of_org, range)?)))?;
    let (refused, Part { items: mut credentials, has_more }) =
        found.unwrap_or((BTreeMap::new(), Part { items: Vec::new(), has_more: false }));
    let place = |item: &CredentialUsage| [item.credential.clone(), String::new()];
    let next = credentials.last().filter(|_| has_more).map(|last| Range::cursor(&place(last)));
    name_them(settings, name, &mut credentials)?;
    for item in &mut credentials {
        item.credential.insert_str(0, &format!("{name}/"));
    }
    Ok(OrgUsage { from: date(dates.from), to: date(dates.to), overview, refused, credentials, next })
}

/// The day on which the org was created. A deleted org may have had the same name.
fn created_on(settings: &dyn Sql, actor: &Actor, name: &str) -> Result<i64, Failure> {
    Moment::parse(&org::show(settings, actor, name)?.created_at)
        .map(Moment::day)
        .map_err(|line| Failure::new(Reason::DatabaseInvalid, line))
}

/// An org's usage in some days, without its credentials.
///
/// # Errors
/// If no org has this name, or a database fails.
pub(crate) fn overview(settings: &dyn Sql, usage: &Usage, actor: &Actor, name: &str, dates: Dates) -> Result<Overview, Failure> {
    let since = created_on(settings, actor, name)?;
    let monthly_quota = limits::show(settings, actor, Holder::Org(name))?.and_then(|limits| limits.monthly_quota);
    let month = actor.now.start_of_month().day().max(since);
    let found = usage.read(|sql| {
        let mut days: BTreeMap<i64, DayUsage> = BTreeMap::new();
        let mut allowed = 0_i64;
        let query = "SELECT day, outcome, requests FROM usage_org_days WHERE org = ? AND day >= ? AND day <= ?";
        let first = dates.from.max(since).min(month);
        sql.each(query, values![name, first, dates.to.max(actor.now.day())], &mut |row| {
            let (day, requests): (i64, i64) = (row.get("day")?, row.get("requests")?);
            let is_allowed = row.get::<String>("outcome")? == ALLOWED;
            if day >= month && is_allowed {
                allowed = allowed.saturating_add(requests);
            }
            if (dates.from.max(since)..=dates.to).contains(&day) {
                let of_day = days.entry(day).or_insert_with(|| DayUsage { day: date(day), ..DayUsage::default() });
                let sum = if is_allowed { &mut of_day.allowed } else { &mut of_day.refused };
                *sum = sum.saturating_add(requests);
            }
            Ok(())
        })?;
        let [first, end] = [dates.from.max(since), dates.to.saturating_add(1)].map(|day| day.saturating_mul(24));
        let query = "SELECT hour, allowed, refused FROM usage_hours WHERE org = ? AND hour >= ? AND hour < ? ORDER BY hour";
        let hours = rows(sql, query, values![name, first, end], |row| {
            let hour = Moment::of_seconds(row.get::<i64>("hour")?.saturating_mul(60 * 60));
            let hour = hour.map(|hour| hour.to_string()).unwrap_or_default();
            Ok(HourUsage { hour, allowed: row.get("allowed")?, refused: row.get("refused")? })
        })?;
        let month = MonthUsage { allowed, ..MonthUsage::default() };
        Ok(Overview { began_at: began_at(sql)?, month, days: days.into_values().collect(), hours })
    })?;
    let mut overview = found.unwrap_or_default();
    overview.month = MonthUsage { month: actor.now.month(), monthly_quota, ..overview.month };
    Ok(overview)
}

/// The refused requests without a known credential.
fn refused(sql: &dyn Sql, org: &str, Dates { from, to }: Dates) -> Result<BTreeMap<String, i64>, Failure> {
    let query = "SELECT outcome, CAST(sum(requests) AS BIGINT) AS requests FROM usage_days
        WHERE org = ? AND credential = ? AND day >= ? AND day <= ? GROUP BY outcome";
    let found = rows(sql, query, values![org, NO_CREDENTIAL, from, to], |row| Ok((row.get("outcome")?, row.get("requests")?)))?;
    Ok(found.into_iter().collect())
}

/// A part of the credentials with requests, by their name within the org.
fn credentials(sql: &dyn Sql, org: &str, dates: Dates, range: &Range) -> Result<Part<CredentialUsage>, Failure> {
    let Dates { from, to } = dates;
    let query = "SELECT DISTINCT credential FROM usage_days
        WHERE org = ? AND credential > ? AND day >= ? AND day <= ? ORDER BY credential LIMIT ?";
    // All credentials sort after the name that stands for none.
    let after = match &range.after {
        [after, _] if after.is_empty() => NO_CREDENTIAL,
        [after, _] => after,
    };
    let values = values![org, after, from, to, range.with_next()];
    let Part { items: names, has_more } = part(sql, query, values, range, |row| row.get::<String>("credential"))?;
    let used = last_used(sql, org, &names)?;
    let mut items: BTreeMap<String, CredentialUsage> = names
        .iter()
        .map(|name| {
            let credential = name.clone();
            let last_used = used.get(name).cloned();
            let refused = BTreeMap::new();
            (name.clone(), CredentialUsage { credential, name: None, allowed: 0, refused, last_used })
        })
        .collect();
    let query = "SELECT credential, outcome, CAST(sum(requests) AS BIGINT) AS requests FROM usage_days
        WHERE org = ? AND day >= ? AND day <= ? AND credential IN";
    each_of(sql, (query, " GROUP BY credential, outcome"), values![org, from, to], &names, &mut |row| {
        let (outcome, requests): (String, i64) = (row.get("outcome")?, row.get("requests")?);
        if let Some(item) = items.get_mut(&row.get::<String>("credential")?) {
            if outcome == ALLOWED {
                item.allowed = requests;
            } else {
                item.refused.insert(outcome, requests);
            }
        }
        Ok(())
    })?;
    Ok(Part { items: items.into_values().collect(), has_more })
}

/// Adds the names of the records.
fn name_them(settings: &dyn Sql, org: &str, items: &mut [CredentialUsage]) -> Result<(), Failure> {
    let credential = |item: &CredentialUsage| Credential::parse(&item.credential);
    let mut names: BTreeMap<Credential, String> = BTreeMap::new();
    let (mut keys, mut clients, mut has_provider) = (Vec::new(), Vec::new(), false);
    for item in items.iter().filter_map(credential) {
        match item {
            Credential::Key(id) => keys.push(id),
            Credential::Client(id) => clients.push(id),
            Credential::Provider(_) => has_provider = true,
            Credential::Other => {}
        }
    }
    each_of(settings, ("SELECT id, name FROM api_keys WHERE org = ? AND id IN", ""), values![org], &keys, &mut |row| {
        names.insert(Credential::Key(row.get("id")?), row.get("name")?);
        Ok(())
    })?;
    let query = "SELECT client_id, name FROM oauth_clients WHERE org = ? AND client_id IN";
    each_of(settings, (query, ""), values![org], &clients, &mut |row| {
        names.insert(Credential::Client(row.get("client_id")?), row.get("name")?);
        Ok(())
    })?;
    if has_provider {
        settings.each("SELECT issuer FROM identity_providers WHERE org = ?", values![org], &mut |row| {
            let issuer: String = row.get("issuer")?;
            names.insert(Credential::Provider(provider::id_of(&issuer)), issuer);
            Ok(())
        })?;
    }
    for item in items {
        item.name = credential(item).and_then(|credential| names.remove(&credential));
    }
    Ok(())
}

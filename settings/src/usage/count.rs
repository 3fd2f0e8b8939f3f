//! Counts a report, exactly once.

use std::collections::{BTreeMap, BTreeSet};

use apexmcp_core::limits::document::Limits;
use apexmcp_core::principal::Principal;
use serde::Serialize;

use super::batch::{Batch, Counts, Credential, OrgCounts, Refused};
use super::expiry::KEPT_HOURS;
use super::{ALLOWED, NO_CREDENTIAL, Usage, each_of, insert};
use crate::clock::Moment;
use crate::failure::Failure;
use crate::records::provider;
use crate::sql::{Sql, Value, values};

/// Sums of allowed requests in a calendar month, of all gateways. Only orgs and keys with a monthly quota are in it.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Totals {
    month: String,
    orgs: BTreeMap<String, i64>,
    /// By the name of the principal.
    keys: BTreeMap<String, i64>,
    /// The requests that were counted. `None`: the report was counted before.
    #[serde(skip)]
    pub(crate) counted: Option<[i64; 2]>,
}

/// The orgs of a report that the database has.
pub(crate) type Known = BTreeMap<String, KnownOrg>;

/// An org of a report that the database has.
#[derive(Debug)]
pub(crate) struct KnownOrg {
    /// The day on which the org was created. A deleted org of the same name may have had usage before.
    since: i64,
    has_quota: bool,
    /// The credentials of the report, with their form in the store.
    credentials: BTreeMap<Credential, Credential>,
    keys_with_quota: BTreeSet<String>,
}

/// Counts the requests of a report, unless a report with its sequence was counted before. What is not `known` is ignored, so a
/// report cannot create names.
///
/// # Errors
/// If the store fails. Nothing is counted then.
pub(crate) fn count(usage: &Usage, batch: &Batch, known: &Known, now: Moment) -> Result<Totals, Failure> {
    usage.write(now, |sql| {
        // The row is locked until the end of the transaction, so a repeated report waits for the first one.
        let query = "INSERT INTO usage_gateways (gateway, sequence, hour) VALUES (?, ?, ?)
            ON CONFLICT (gateway) DO UPDATE SET sequence = excluded.sequence, hour = excluded.hour
            WHERE usage_gateways.sequence < excluded.sequence";
        let is_new = sql.execute(query, values![&batch.gateway, batch.sequence, now.hour()])? > 0;
        let counted = if is_new { Some(add(sql, batch, known, now)?) } else { None };
        Ok(Totals { counted, ..totals(sql, batch, known, now)? })
    })
}

/// The orgs and the credentials of a report that the database has.
///
/// # Errors
/// If the database fails.
pub(crate) fn known(settings: &dyn Sql, batch: &Batch) -> Result<Known, Failure> {
    let mut known = Known::new();
    let names: Vec<String> = batch.orgs.keys().cloned().collect();
    each_of(settings, ("SELECT name, created_at, limits FROM orgs WHERE name IN", ""), &[], &names, &mut |row| {
        let created_at: String = row.get("created_at")?;
        let since = Moment::parse(&created_at).map_or(0, Moment::day);
        let has_quota = has_quota(row.json("limits")?);
        let credentials = BTreeMap::from([(Credential::Other, Credential::Other)]);
        let org = KnownOrg { since, has_quota, credentials, keys_with_quota: BTreeSet::new() };
        known.insert(row.get::<String>("name")?, org);
        Ok(())
    })?;
    let credentials = || batch.orgs.values().flat_map(|org| org.credentials.keys());
    let keys: Vec<String> = credentials()
        .filter_map(|credential| match credential {
            Credential::Key(id) => Some(id.clone()),
            _ => None,
        })
        .collect();
    each_of(settings, ("SELECT id, org, limits FROM api_keys WHERE id IN", ""), &[], &keys, &mut |row| {
        let (id, has_quota) = (row.get::<String>("id")?, has_quota(row.json("limits")?));
        if let Some(org) = known.get_mut(&row.get::<String>("org")?) {
            org.keys_with_quota.extend(has_quota.then(|| id.clone()));
            org.credentials.insert(Credential::Key(id.clone()), Credential::Key(id));
        }
        Ok(())
    })?;
    let clients: Vec<String> = credentials()
        .filter_map(|credential| match credential {
            Credential::Client(id) => Some(id.clone()),
            _ => None,
        })
        .collect();
    let query = "SELECT client_id, org FROM oauth_clients WHERE client_id IN";
    each_of(settings, (query, ""), &[], &clients, &mut |row| {
        if let Some(org) = known.get_mut(&row.get::<String>("org")?) {
            let client = Credential::Client(row.get("client_id")?);
            org.credentials.insert(client.clone(), client);
        }
        Ok(())
    })?;
    let has_provider = |org: &OrgCounts| org.credentials.keys().any(|credential| matches!(credential, Credential::Provider(_)));
    let names: Vec<String> = batch.orgs.iter().filter(|(_, org)| has_provider(org)).map(|(name, _)| name.clone()).collect();
    each_of(settings, ("SELECT org, issuer FROM identity_providers WHERE org IN", ""), &[], &names, &mut |row| {
        let (name, issuer): (String, String) = (row.get("org")?, row.get("issuer")?);
        if let Some(org) = known.get_mut(&name) {
            let namespace = Principal::namespace_of_issuer(&name, &issuer);
            let reported = namespace.trim_end_matches('#').strip_prefix(&format!("{name}/")).and_then(Credential::parse);
            org.credentials.extend(reported.map(|reported| (reported, Credential::Provider(provider::id_of(&issuer)))));
        }
        Ok(())
    })?;
    Ok(known)
}

fn has_quota(limits: Option<Limits>) -> bool {
    limits.is_some_and(|limits| limits.monthly_quota.is_some())
}

/// The time to which the requests of a report belong, in hours. The clock of a gateway may be wrong: requests that would be in
/// the future, or too old to be kept, belong to the present hour.
fn hour_of(batch: &Batch, now: Moment) -> i64 {
    let present = now.hour();
    let kept = present.saturating_sub(KEPT_HOURS)..=present;
    if kept.contains(&batch.hour) { batch.hour } else { present }
}

/// Adds the requests of a report. Returns the numbers of allowed and refused requests.
fn add(sql: &dyn Sql, batch: &Batch, known: &Known, now: Moment) -> Result<[i64; 2], Failure> {
    let hour = hour_of(batch, now);
    let day = hour.div_euclid(24);
    let (mut days, mut org_days, mut hours, mut last_used) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut all = [0_i64; 2];
    // All rows are written in the order of their keys, so that two servers cannot wait for each other.
    for (name, org) in &batch.orgs {
        let Some(known) = known.get(name) else { continue };
        let mut sums = BTreeMap::new();
        let mut note = |credential: &str, allowed: i64, refused: &Refused| {
            for (outcome, requests) in
                std::iter::once((ALLOWED, allowed)).chain(refused.iter().map(|(word, count)| (*word, *count)))
            {
                if requests > 0 {
                    days.push([name.into(), credential.into(), day.into(), outcome.into(), requests.into()]);
                    let sum: &mut i64 = sums.entry(outcome).or_default();
                    *sum = sum.saturating_add(requests);
                }
            }
        };
        note(NO_CREDENTIAL, 0, &org.refused);
        for (credential, Counts { allowed, refused, last_used: used }) in &org.credentials {
            let Some(stored) = known.credentials.get(credential) else { continue };
            let text = stored.to_string();
            note(&text, *allowed, refused);
            if let Some(used) = used
                && *stored != Credential::Other
            {
                // To the minute, and never in the future.
                let at = (*used).clamp(0, now.seconds());
                let at = at.saturating_sub(at.rem_euclid(60));
                last_used.push([name.into(), text.into(), at.into()]);
            }
        }
        let sum = |is_allowed: bool| {
            let sums = sums.iter().filter(|(outcome, _)| (**outcome == ALLOWED) == is_allowed);
            sums.fold(0_i64, |sum, (_, requests)| sum.saturating_add(*requests))
        };
        let [allowed, refused] = [sum(true), sum(false)];
        all = [all[0].saturating_add(allowed), all[1].saturating_add(refused)];
        if allowed > 0 || refused > 0 {
            hours.push([name.into(), hour.into(), allowed.into(), refused.into()]);
        }
        org_days.extend(
            sums.iter().map(|(outcome, requests)| [Value::from(name), day.into(), Value::from(*outcome), Value::from(*requests)]),
        );
    }
    // A sum that wrong reports made that large stays as it is: the sum of 13 months must fit into 64 bits, or all reports would fail.
    insert(
        sql,
        "INSERT INTO usage_days (org, credential, day, outcome, requests) VALUES",
        "ON CONFLICT (org, credential, day, outcome) DO UPDATE SET requests = usage_days.requests + excluded.requests
            WHERE usage_days.requests < 10000000000000000",
        &days,
    )?;
    insert(
        sql,
        "INSERT INTO usage_org_days (org, day, outcome, requests) VALUES",
        "ON CONFLICT (org, day, outcome) DO UPDATE SET requests = usage_org_days.requests + excluded.requests
            WHERE usage_org_days.requests < 10000000000000000",
        &org_days,
    )?;
    insert(
        sql,
        "INSERT INTO usage_hours (org, hour, allowed, refused) VALUES",
        "ON CONFLICT (org, hour) DO UPDATE SET
            allowed = usage_hours.allowed + excluded.allowed, refused = usage_hours.refused + excluded.refused
            WHERE usage_hours.allowed < 10000000000000000 AND usage_hours.refused < 10000000000000000",
        &hours,
    )?;
    insert(
        sql,
        "INSERT INTO usage_last_used (org, credential, at) VALUES",
        "ON CONFLICT (org, credential) DO UPDATE SET at = excluded.at WHERE usage_last_used.at < excluded.at",
        &last_used,
    )?;
    Ok(all)
}

/// The sums of this month for the orgs and the keys of a report that have a quota.
fn totals(sql: &dyn Sql, batch: &Batch, known: &Known, now: Moment) -> Result<Totals, Failure> {
    let start = now.start_of_month().day();
    let mut totals = Totals { month: now.month(), ..Totals::default() };
    let mut since: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for (name, org) in known.iter().filter(|(_, org)| org.has_quota) {
        totals.orgs.insert(name.clone(), 0);
        since.entry(start.max(org.since)).or_default().push(name.clone());
    }
    for (since, names) in since {
        let query = "SELECT org, CAST(sum(requests) AS BIGINT) AS requests FROM usage_org_days
            WHERE outcome = ? AND day >= ? AND org IN";
        each_of(sql, (query, " GROUP BY org"), values![ALLOWED, since], &names, &mut |row| {
            totals.orgs.insert(row.get("org")?, row.get("requests")?);
            Ok(())
        })?;
    }
    for (name, org) in known.iter().filter(|(_, org)| !org.keys_with_quota.is_empty()) {
        let of_batch = batch.orgs.get(name);
        let is_of_batch = |id: &String| of_batch.is_some_and(|org| org.credentials.contains_key(&Credential::Key(id.clone())));
        let keys: Vec<String> =
            org.keys_with_quota.iter().filter(|id| is_of_batch(id)).map(|id| Credential::Key(id.clone()).to_string()).collect();
        totals.keys.extend(keys.iter().map(|key| (format!("{name}/{key}"), 0)));
        let query = "SELECT credential, CAST(sum(requests) AS BIGINT) AS requests FROM usage_days
            WHERE org = ? AND outcome = ? AND day >= ? AND credential IN";
        each_of(sql, (query, " GROUP BY credential"), values![name, ALLOWED, start], &keys, &mut |row| {
            let credential: String = row.get("credential")?;
            totals.keys.insert(format!("{name}/{credential}"), row.get("requests")?);
            Ok(())
        })?;
    }
    Ok(totals)
}

//! `apexmcp usage`

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::json;

use super::session::Session;
use super::tables::or_dash;
use crate::cli::UsageCommand;
use crate::failure::Failure;
use crate::output::{Answer, table};
use crate::sql::Range;
use crate::usage::{CredentialUsage, Dates, OrgUsage, Usage, usage_of_org};

pub(super) fn run(session: &Session<'_>, command: UsageCommand) -> Result<Answer, Failure> {
    let UsageCommand::Show { org, from, to } = command;
    let dates = Dates::parse(from.as_deref(), to.as_deref(), session.actor.now)?;
    let usage = Usage::reader(session.location);
    let read = |sql: &dyn crate::sql::Sql| usage_of_org(sql, &usage, &session.actor, &org, dates, &Range::all());
    let shown = session.open()?.read(read)?;
    let json = json!(shown);
    Ok(session.answer(|| described(&org, shown), json))
}

/// The usage as a text: the month, then a table of the days, then one of the credentials.
fn described(org: &str, OrgUsage { from, to, overview, refused, mut credentials, .. }: OrgUsage) -> String {
    let Some(began_at) = &overview.began_at else {
        return "Usage is not collected. Start 'apexmcp serve' with APEXMCP_USAGE_TOKEN, and configure your gateways to report \
                usage."
            .to_owned();
    };
    let month = &overview.month;
    let quota = month.monthly_quota.map_or_else(|| " (no monthly quota)".to_owned(), |quota| format!(" of {quota}"));
    let day = |moment: &str| moment.chars().take(10).collect::<String>();
    let mut text = format!(
        "{org}: {} requests{quota} in {}. From {from} to {to}; no data before {}.",
        month.allowed,
        month.month,
        day(began_at)
    );
    let days: Vec<[String; 3]> =
        overview.days.iter().map(|day| [day.day.clone(), day.allowed.to_string(), day.refused.to_string()]).collect();
    text.push_str("\n\n");
    text.push_str(&table(["DAY", "ALLOWED", "REFUSED"], &days, "No requests."));
    credentials.sort_by_key(|item| Reverse(item.allowed));
    let of_credential = |item: &CredentialUsage| {
        row([&item.credential, &or_dash(item.name.as_ref())], item.allowed, &item.refused, item.last_used.as_ref())
    };
    let mut rows: Vec<[String; 6]> = credentials.iter().map(of_credential).collect();
    if !refused.is_empty() {
        rows.push(row(["-", "(no known credential)"], 0, &refused, None));
    }
    if !rows.is_empty() {
        text.push_str("\n\n");
        text.push_str(&table(["CREDENTIAL", "NAME", "ALLOWED", "REFUSED", "REASONS", "LAST USED"], &rows, ""));
    }
    text
}

fn row([credential, name]: [&str; 2], allowed: i64, refused: &BTreeMap<String, i64>, last_used: Option<&String>) -> [String; 6] {
    let sum = refused.values().fold(0_i64, |sum, count| sum.saturating_add(*count));
    let reasons: Vec<String> = refused.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    let reasons = Some(reasons.join(", ")).filter(|reasons| !reasons.is_empty());
    let (reasons, last_used) = (or_dash(reasons.as_ref()), or_dash(last_used));
    [credential.to_owned(), name.to_owned(), allowed.to_string(), sum.to_string(), reasons, last_used]
}

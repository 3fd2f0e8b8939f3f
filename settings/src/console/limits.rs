//! `Limits and usage`

use std::sync::Arc;

use apexmcp_core::limits::Unit;
use apexmcp_core::limits::document::{Limits, Rate};
use askama::Template;
use axum::extract::{Path, State};
use serde::Deserialize;

use super::frame::{Done, Frame, Told, Wrong};
use super::sign_in::Form;
use super::{Page, Session, Shared, back_to, filters, show, show_again};
use crate::clock::Moment;
use crate::failure::Failure;
use crate::records::limits::{self, Holder};
use crate::serve::log;
use crate::usage::{self, Dates, DayUsage, Overview};

const SECTION: &str = "Limits and usage";

/// Number of days in the graph.
const DAYS: i64 = 30;
/// The size of the graph, in its own units.
const HEIGHT: i64 = 120;
const STEP: i64 = 20;
/// Part of a quota, in percent, from which the page warns.
const NEARLY_USED: u64 = 80;

/// The usage of an org for people.
struct Shown {
    /// Whether this server collects usage.
    is_collected: bool,
    /// Since when there is usage. `None`: it was never collected.
    began_at: Option<String>,
    /// Allowed requests of this month.
    allowed: i64,
    quota: Option<Quota>,
    bars: Vec<Bar>,
    /// The requests of the highest bar.
    highest: i64,
}

/// A monthly quota, and how much of it is used.
struct Quota {
    requests: i64,
    percent: u64,
    is_nearly_used: bool,
    is_used: bool,
}

/// The requests of a day, and their places in the graph.
struct Bar {
    day: String,
    allowed: i64,
    refused: i64,
    x: i64,
    y: i64,
    height: i64,
    refused_y: i64,
    refused_height: i64,
}

impl Quota {
    fn of(quota: u64, allowed: i64) -> Self {
        let used = u64::try_from(allowed).unwrap_or(0);
        let percent = used.saturating_mul(100).checked_div(quota).unwrap_or(100);
        let (is_nearly_used, is_used) = ((NEARLY_USED..100).contains(&percent), percent >= 100);
        Self { requests: quota.try_into().unwrap_or(i64::MAX), percent, is_nearly_used, is_used }
    }
}

impl Shown {
    fn of(Overview { began_at, month, days, .. }: Overview, is_collected: bool, now: Moment) -> Self {
        let highest = days.iter().map(|day| day.allowed.saturating_add(day.refused)).max().unwrap_or(0);
        // A bar of few requests stays visible.
        let height = |requests: i64| match requests.saturating_mul(HEIGHT).checked_div(highest).unwrap_or(0) {
            0 if requests > 0 => 2,
            height => height,
        };
        let bar = |(day, x): (String, i64)| {
            let known = days.iter().find(|known| known.day == day).cloned();
            let DayUsage { allowed, refused, .. } = known.unwrap_or_default();
            let (height, refused_height) = (height(allowed), height(refused));
            let y = HEIGHT.saturating_sub(height);
            let refused_y = y.saturating_sub(refused_height);
            Bar { day, allowed, refused, x: x.saturating_mul(STEP), y, height, refused_y, refused_height }
        };
        Self {
            is_collected,
            began_at,
            allowed: month.allowed,
            quota: month.monthly_quota.map(|quota| Quota::of(quota, month.allowed)),
            bars: Dates::last(DAYS, now).each().zip(0..).map(bar).collect(),
            highest,
        }
    }

    /// The width of the graph.
    fn width(&self) -> i64 {
        DAYS.saturating_mul(STEP)
    }
}

/// The fields of the limits. Empty: unlimited.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Fields {
    #[serde(default)]
    requests: String,
    #[serde(default)]
    per: String,
    #[serde(default)]
    burst: String,
    #[serde(default)]
    monthly_quota: String,
}

#[derive(Template)]
#[template(path = "limits.html")]
struct LimitsPage {
    frame: Frame,
    org: String,
    fields: Fields,
    wrong: Wrong,
    units: Vec<String>,
    /// `None`: the page shows only the form again.
    usage: Option<Shown>,
}

impl LimitsPage {
    fn new(frame: Frame, org: String, fields: Fields, wrong: Wrong) -> Self {
        Self { frame, org, fields, wrong, units: Unit::ALL.iter().map(ToString::to_string).collect(), usage: None }
    }
}

/// The limits and the usage of an org.
pub(super) async fn page(State(console): Shared, session: Session, told: Told, Path(org): Path<String>) -> Page {
    let name = org.clone();
    let usage = Arc::clone(&console.usage);
    let read = console.read(session, move |sql, actor| {
        let limits = limits::show(sql, actor, Holder::Org(&name))?;
        // The limits are needed even if usage cannot be read.
        let overview = usage::overview(sql, &usage, actor, &name, Dates::last(DAYS, actor.now)).map_err(log).ok();
        Ok((limits, overview.map(|overview| Shown::of(overview, usage.is_collected(), actor.now))))
    });
    let (actor, (limits, usage)) = read.await?;
    let limits = limits.unwrap_or_default();
    let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
    let rate = limits.rate.as_ref();
    let fields = Fields {
        requests: number(rate.and_then(|rate| rate.requests)),
        per: rate.and_then(|rate| rate.per).map(|unit| unit.to_string()).unwrap_or_default(),
        burst: number(rate.and_then(|rate| rate.burst)),
        monthly_quota: number(limits.monthly_quota),
    };
    let frame = Frame::new(&actor, Some(&org), SECTION, SECTION).after(told);
    Ok(show(&LimitsPage { usage, ..LimitsPage::new(frame, org, fields, Wrong::default()) }))
}

/// The number in a field. Empty: none.
fn number(field: &'static str, text: &str) -> Result<Option<u64>, Failure> {
    let wrong = || Failure::of(field, "must be a number from 1 to 4294967295, or nothing");
    match text.trim() {
        "" => Ok(None),
        text => text.parse::<u32>().ok().filter(|number| *number > 0).map(|number| Some(number.into())).ok_or_else(wrong),
    }
}

fn limits_of(fields: &Fields) -> Result<Limits, Failure> {
    let requests = number("requests", &fields.requests)?;
    let burst = number("burst", &fields.burst)?;
    if burst.is_some() && requests.is_none() {
        return Err(Failure::of("burst", "needs a number of requests: enter Requests, or leave the burst empty"));
    }
    let per = Unit::ALL.into_iter().find(|unit| unit.to_string() == fields.per);
    let rate = requests.map(|requests| Rate { requests: Some(requests), per, burst });
    Ok(Limits { rate, monthly_quota: number("monthly_quota", &fields.monthly_quota)? })
}

/// Sets the limits of an org.
pub(super) async fn set(State(console): Shared, session: Session, Path(org): Path<String>, form: Form<Fields>) -> Page {
    let (name, fields) = (org.clone(), form.0.clone());
    let made = console.change(session, move |change, actor| {
        actor.check_operator()?;
        let wanted = limits_of(&fields)?;
        limits::set(change, actor, Holder::Org(&name), Some(&wanted).filter(|wanted| **wanted != Limits::default()))
    });
    Ok(match made.await? {
        (_, Ok(())) => back_to(&org, "limits", Done::LimitsSaved),
        (actor, Err(failure)) => {
            let frame = Frame::new(&actor, Some(&org), SECTION, SECTION);
            show_again(&LimitsPage::new(frame, org, form.0, failure.into()))
        }
    })
}

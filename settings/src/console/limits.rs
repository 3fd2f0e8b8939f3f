//! `Limits and usage`

use apexmcp_core::limits::Unit;
use apexmcp_core::limits::document::{Limits, Rate};
use askama::Template;
use axum::extract::{Path, State};
use serde::Deserialize;

use super::frame::{Done, Frame, Told, Wrong};
use super::sign_in::Form;
use super::{Page, Session, Shared, back_to, show, show_again};
use crate::failure::Failure;
use crate::records::limits::{self, Holder};

const SECTION: &str = "Limits and usage";

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
}

impl LimitsPage {
    fn new(frame: Frame, org: String, fields: Fields, wrong: Wrong) -> Self {
        Self { frame, org, fields, wrong, units: Unit::ALL.iter().map(ToString::to_string).collect() }
    }
}

/// The limits of an org.
pub(super) async fn page(State(console): Shared, session: Session, told: Told, Path(org): Path<String>) -> Page {
    let name = org.clone();
    let (actor, limits) = console.read(session, move |sql, actor| limits::show(sql, actor, Holder::Org(&name))).await?;
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
    Ok(show(&LimitsPage::new(frame, org, fields, Wrong::default())))
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

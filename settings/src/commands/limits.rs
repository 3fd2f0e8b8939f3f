//! `apexmcp limits`

use apexmcp_core::limits::document::{Limits, Rate};
use serde_json::json;

use super::session::Session;
use crate::cli::{HolderArgs, LimitsCommand};
use crate::failure::{Failure, Reason};
use crate::output::Answer;
use crate::records::limits::{self, Holder};

pub(super) fn run(session: &Session<'_>, command: LimitsCommand) -> Result<Answer, Failure> {
    match command {
        LimitsCommand::Set { holder, rate, burst, monthly_quota } => {
            let holder = holder_of(&holder)?;
            let limits = Limits {
                rate: rate.map(|rate| Rate { burst: burst.map(u64::from), ..rate }),
                monthly_quota: monthly_quota.map(u64::from),
            };
            session.change(|change, actor| limits::set(change, actor, holder, Some(&limits)), |()| answer(holder, Some(&limits)))
        }
        LimitsCommand::Show { holder } => {
            let holder = holder_of(&holder)?;
            let limits = session.open()?.read(|connection| limits::show(connection, &session.actor, holder))?;
            Ok(answer(holder, limits.as_ref()))
        }
        LimitsCommand::Clear { holder } => {
            let holder = holder_of(&holder)?;
            session.change(|change, actor| limits::set(change, actor, holder, None), |()| answer(holder, None))
        }
    }
}

/// The limits in one line.
pub(super) fn described(limits: Option<&Limits>) -> String {
    let rate = limits.and_then(|limits| limits.rate.as_ref()).and_then(|rate| {
        let requests = rate.requests?;
        Some(format!("{requests}/{}, burst {}", rate.per?, rate.burst.unwrap_or(requests)))
    });
    let quota = limits.and_then(|limits| limits.monthly_quota).map(|quota| format!("{quota} a month"));
    let all: Vec<String> = rate.into_iter().chain(quota).collect();
    if all.is_empty() { "no limits".to_owned() } else { all.join("; ") }
}

fn answer(holder: Holder<'_>, limits: Option<&Limits>) -> Answer {
    let text = format!("{}: {}", holder.name(), described(limits));
    Answer::new(text, json!({"holder": holder.name(), "limits": limits}))
}

fn holder_of(arguments: &HolderArgs) -> Result<Holder<'_>, Failure> {
    match (&arguments.org, &arguments.key) {
        (Some(org), _) => Ok(Holder::Org(org)),
        (None, Some(key)) => Ok(Holder::ApiKey(key)),
        (None, None) => Err(Failure::new(Reason::InvalidArgument, "pass --org or --key")),
    }
}

//! Limits as operators write them, and their check.

use std::num::NonZeroU32;
use std::rc::Rc;

use serde::Deserialize;

use super::{Rate, Subject, Unit};
use crate::problem::Problems;

#[derive(Debug, Deserialize)]
pub(crate) struct RawLimits {
    rate: Option<RawRate>,
    monthly_quota: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct RawRate {
    requests: Option<u64>,
    per: Option<Unit>,
    burst: Option<u64>,
}

impl RawLimits {
    /// The limits of what is called `name`, which stand at `path`; `None` where nothing is limited, or not rightly.
    pub(crate) fn check(self, name: String, path: &str, problems: &mut Problems) -> Option<Rc<Subject>> {
        let count = |path: String, value: u64, problems: &mut Problems| {
            let count = u32::try_from(value).ok().and_then(NonZeroU32::new);
            problems.checked(path, count.ok_or("must be from 1 to 4294967295"))
        };
        let monthly_quota = self.monthly_quota.and_then(|quota| count(format!("{path}.monthly_quota"), quota, problems));
        let rate = self.rate.and_then(|rate| {
            let requests = problems.required(format_args!("{path}.rate.requests"), rate.requests);
            let requests = requests.and_then(|requests| count(format!("{path}.rate.requests"), requests, problems));
            let per = problems.required(format_args!("{path}.rate.per"), rate.per);
            let burst = rate.burst.map(|burst| count(format!("{path}.rate.burst"), burst, problems));
            Some(Rate { requests: requests?, per: per?, burst: burst.unwrap_or(requests)? })
        });
        let is_limited = rate.is_some() || monthly_quota.is_some();
        is_limited.then(|| Rc::new(Subject { name: name.into(), rate, monthly_quota }))
    }
}

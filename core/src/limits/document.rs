//! Limits as the policy document writes them, and their check. The gateway reads them, and Settings writes them.

use std::num::NonZeroU32;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::subject::{self, Subject, Unit};
use crate::problem::Problems;

/// The limits of an organization or of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The rate. `None`: unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Maximum number of requests in a calendar month. `None`: unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly_quota: Option<u64>,
}

/// A token bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Requests in each period. Required.
    pub requests: Option<u64>,
    /// The period. Required.
    pub per: Option<Unit>,
    /// Maximum burst. Default: `requests`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

impl Limits {
    /// The limits of the subject `name`. `path` is their JSON path in the document. `None` if nothing is limited, or if a
    /// limit is wrong and a problem was added.
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
            Some(subject::Rate { requests: requests?, per: per?, burst: burst.unwrap_or(requests)? })
        });
        let is_limited = rate.is_some() || monthly_quota.is_some();
        is_limited.then(|| Rc::new(Subject { name: name.into(), rate, monthly_quota }))
    }
}

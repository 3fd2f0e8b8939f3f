//! Counting in the shared data of one Envoy: one small record for each subject.
//!
//! The bucket is kept as in the generic cell rate algorithm (ITU-T I.371). The record has no level that a timer would have to
//! raise, but the moment at which the bucket will be full again.

use std::num::NonZeroU32;
use std::time::Duration;

use super::standing::{Standing, Window};
use super::subject::{Kind, Rate, Subject, Subjects};
use crate::host::{Host, Update};
use crate::time::UnixTime;

const RECORD_LENGTH: usize = 24;
/// Maximum clock staleness of a worker. A worker reads the clock before it decides, and writes afterwards. In between, it may
/// read a message, verify a signature, or decide many requests that waited for the same event.
const LATENESS: Duration = Duration::from_secs(10);
/// Maximum length of a calendar month. The end of a longer one was written while the clock was wrong.
const LONGEST_MONTH: Duration = Duration::from_secs(31 * 86_400).saturating_add(LATENESS);
/// `Retry-After` if too many threads write at the same moment.
const CONTENDED: Duration = Duration::from_secs(1);

/// A limit that a request exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// Rate or quota.
    pub kind: Kind,
    /// Time until the limit has room again.
    pub retry_after: Duration,
    /// The standing at the subject with this limit.
    pub standing: Standing,
}

/// Counts one request at each of `subjects`, or at none of them.
///
/// # Errors
/// The first limit that is exceeded.
pub fn take(subjects: &Subjects, now: UnixTime, host: &dyn Host) -> Result<Standing, Exceeded> {
    let mut standing = Standing::default();
    for (index, subject) in subjects.iter().enumerate() {
        match take_one(subject, now, host) {
            Ok(taken) => standing = standing.and(taken),
            Err(exceeded) => {
                for before in subjects.iter().take(index) {
                    let give_back = &mut |record: &[u8]| Some(Record::read(record).give_back(before).to_bytes());
                    host.update(&shared_name(before), give_back);
                }
                return Err(exceeded);
            }
        }
    }
    Ok(standing)
}

/// Counts one request at `subject`.
///
/// # Errors
/// The limit that is exceeded.
pub fn take_one(subject: &Subject, now: UnixTime, host: &dyn Host) -> Result<Standing, Exceeded> {
    let mut outcome = None;
    let update = host.update(&shared_name(subject), &mut |bytes| match Record::read(bytes).take(subject, now) {
        Ok((record, standing)) => {
            outcome = Some(Ok(standing));
            Some(record.to_bytes())
        }
        Err(exceeded) => {
            outcome = Some(Err(exceeded));
            None
        }
    });
    match (update, outcome) {
        (_, Some(Err(exceeded))) => Err(exceeded),
        (Update::Changed | Update::Unchanged, Some(Ok(standing))) => Ok(standing),
        // The request was not counted, so the standing that it would have does not hold.
        (Update::Contended, Some(Ok(_))) | (_, None) => {
            let standing = Standing::refused_for(std::iter::once(subject), CONTENDED);
            Err(Exceeded { kind: Kind::Rate, retry_after: CONTENDED, standing })
        }
    }
}

/// Raises the requests of a subject in the present month to `total`, which other Envoys counted as well. They never fall.
pub fn raise(subject: &str, total: u64, now: UnixTime, host: &dyn Host) {
    host.update(&record_name(subject), &mut |bytes| {
        let record = Record::read(bytes).in_month_of(now);
        (record.taken_in_month < total).then(|| Record { taken_in_month: total, ..record }.to_bytes())
    });
}

/// The name of a subject's record in shared data, where nothing can be deleted. The number of names is bounded by what
/// operators configure. The name has the version of the record's form.
fn shared_name(subject: &Subject) -> String {
    record_name(&subject.name)
}

fn record_name(subject: &str) -> String {
    format!("apexmcp/limit/1/{subject}")
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Record {
    /// When the bucket will be full again, in nanoseconds since the epoch.
    full_at: u64,
    month_ends_at: UnixTime,
    taken_in_month: u64,
}

impl Record {
    /// Reads a record. Bytes in another form count as no record.
    fn read(bytes: &[u8]) -> Self {
        let number = |index: usize| {
            let bytes = bytes.chunks_exact(8).nth(index).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_le_bytes)
        };
        if bytes.len() != RECORD_LENGTH {
            return Self::default();
        }
        Self { full_at: number(0), month_ends_at: UnixTime::from_millis(number(1)), taken_in_month: number(2) }
    }

    fn to_bytes(self) -> Vec<u8> {
        [self.full_at, self.month_ends_at.as_millis(), self.taken_in_month].map(u64::to_le_bytes).concat()
    }

    fn take(self, subject: &Subject, now: UnixTime) -> Result<(Self, Standing), Exceeded> {
        let rate = subject.rate.map(|rate| (rate, Bucket::of(rate)));
        let quota = subject.monthly_quota.map(NonZeroU32::get).map(u64::from);
        let present = if quota.is_some() { self.in_month_of(now) } else { self };
        let present = rate.map_or(present, |(_, bucket)| Self { full_at: bucket.repaired(present.full_at, now), ..present });
        let standing = |record: Self| Standing {
            rate: rate.map(|(rate, bucket)| bucket.window(rate, record.full_at, now)),
            month: quota.map(|quota| Window {
                quota,
                length: None,
                remaining: quota.saturating_sub(record.taken_in_month),
                resets_in: record.month_ends_at.since(now),
            }),
        };
        let taken = Self {
            full_at: rate.map_or(present.full_at, |(_, bucket)| present.full_at.saturating_add(bucket.interval)),
            taken_in_month: present.taken_in_month.saturating_add(u64::from(quota.is_some())),
            ..present
        };
        let exceeded = |kind, retry_after| Err(Exceeded { kind, retry_after, standing: standing(present) });
        if quota.is_some_and(|quota| taken.taken_in_month > quota) {
            return exceeded(Kind::Month, present.month_ends_at.since(now));
        }
        if let Some(wait) = rate.and_then(|(_, bucket)| bucket.overflow(taken.full_at, now)) {
            return exceeded(Kind::Rate, wait);
        }
        Ok((taken, standing(taken)))
    }

    fn give_back(self, subject: &Subject) -> Self {
        let interval = subject.rate.map_or(0, |rate| Bucket::of(rate).interval);
        let counted = u64::from(subject.monthly_quota.is_some());
        Self {
            full_at: self.full_at.saturating_sub(interval),
            taken_in_month: self.taken_in_month.saturating_sub(counted),
            ..self
        }
    }

    /// The record as it is in the month of `now`.
    fn in_month_of(self, now: UnixTime) -> Self {
        if now < self.month_ends_at && self.month_ends_at.since(now) <= LONGEST_MONTH {
            return self;
        }
        Self { month_ends_at: now.end_of_month(), taken_in_month: 0, ..self }
    }
}

/// A rate as durations in nanoseconds.
#[derive(Clone, Copy)]
struct Bucket {
    /// Time in which one request flows in.
    interval: u64,
    /// Time in which an empty bucket fills.
    capacity: u64,
}

impl Bucket {
    fn of(rate: Rate) -> Self {
        let (requests, burst) = (u128::from(rate.requests.get()), u128::from(rate.burst.get()));
        let nanos = rate.per.duration().as_nanos();
        let narrow = |nanos: u128| u64::try_from(nanos).unwrap_or(u64::MAX).max(1);
        let interval = narrow(nanos.checked_div(requests).unwrap_or(nanos));
        Self { interval, capacity: narrow(u128::from(interval).saturating_mul(burst)) }
    }

    /// Corrects the moment at which the bucket is full. A moment in the past means that the bucket is full now. A moment that
    /// is too far ahead was written under another rate, or while the clock was ahead, so the bucket is full again. The
    /// tolerance is [`LATENESS`]: a smaller one would let a worker with a stale clock refill the bucket for everyone.
    fn repaired(self, full_at: u64, now: UnixTime) -> u64 {
        let latest = nanos(now.plus(LATENESS)).saturating_add(self.capacity);
        if full_at > latest { nanos(now) } else { full_at.max(nanos(now)) }
    }

    /// Time until the bucket has room again. `None` if it has room now.
    fn overflow(self, full_at: u64, now: UnixTime) -> Option<Duration> {
        let overflow = full_at.checked_sub(nanos(now).saturating_add(self.capacity)).filter(|overflow| *overflow > 0);
        overflow.map(Duration::from_nanos)
    }

    fn window(self, rate: Rate, full_at: u64, now: UnixTime) -> Window {
        let missing = full_at.saturating_sub(nanos(now));
        Window {
            quota: rate.requests.get().into(),
            length: Some(rate.per.duration()),
            remaining: self.capacity.saturating_sub(missing).checked_div(self.interval).unwrap_or(0),
            resets_in: Duration::from_nanos(missing),
        }
    }
}

fn nanos(moment: UnixTime) -> u64 {
    moment.as_millis().saturating_mul(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Unit;
    use crate::testing::MemoryHost;
    use proptest::prelude::*;
    use std::rc::Rc;

    const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

    fn subject(name: &str, rate: Option<(u32, Unit, u32)>, quota: Option<u32>) -> Rc<Subject> {
        let count = |count| NonZeroU32::new(count).unwrap();
        let rate = rate.map(|(requests, per, burst)| Rate { requests: count(requests), per, burst: count(burst) });
        Rc::new(Subject { name: name.into(), rate, monthly_quota: quota.map(count) })
    }

    fn at(millis: u64) -> UnixTime {
        NOW.plus(Duration::from_millis(millis))
    }

    #[test]
    fn a_burst_passes_at_once_and_then_what_flows_in() {
        let (host, subject) = (MemoryHost::default(), subject("a", Some((600, Unit::Minute, 3)), None));
        for remaining in [2, 1, 0] {
            let standing = take_one(&subject, NOW, &host).unwrap();
            assert_eq!(standing.rate.map(|window| window.remaining), Some(remaining));
        }
        let exceeded = take_one(&subject, NOW, &host).unwrap_err();
        assert_eq!((exceeded.kind, exceeded.retry_after), (Kind::Rate, Duration::from_millis(100)));
        assert_eq!(exceeded.standing.state(), r#""rate";r=0;t=1"#);
        assert!(take_one(&subject, at(99), &host).is_err());
        assert!(take_one(&subject, at(100), &host).is_ok());
        assert!(take_one(&subject, at(100), &host).is_err());
        let passed = (0..10).filter(|_| take_one(&subject, at(3_600_000), &host).is_ok()).count();
        assert_eq!(passed, 3, "a bucket is never fuller than full");
    }

    #[test]
    fn a_month_ends_with_the_calendar() {
        let (host, subject) = (MemoryHost::default(), subject("a", None, Some(2)));
        let last = UnixTime::from_rfc3339("2026-11-30T23:59:59.900Z").unwrap();
        let next = UnixTime::from_rfc3339("2026-12-01T00:00:00Z").unwrap();
        assert_eq!(take_one(&subject, last, &host).unwrap().month.map(|window| window.remaining), Some(1));
        take_one(&subject, last, &host).unwrap();
        let exceeded = take_one(&subject, last, &host).unwrap_err();
        assert_eq!((exceeded.kind, exceeded.retry_after), (Kind::Month, Duration::from_millis(100)));
        take_one(&subject, next, &host).unwrap();
        take_one(&subject, next.plus(Duration::from_secs(30 * 86_400)), &host).unwrap();
        assert!(take_one(&subject, next.plus(Duration::from_secs(30 * 86_400)), &host).is_err());
    }

    #[test]
    fn a_clock_that_was_ahead_does_not_lock_out() {
        let (host, subject) = (MemoryHost::default(), subject("a", Some((1, Unit::Day, 1)), Some(1)));
        take_one(&subject, NOW.plus(Duration::from_secs(5 * 365 * 86_400)), &host).unwrap();
        take_one(&subject, NOW, &host).unwrap();
        assert!(take_one(&subject, NOW, &host).is_err());
    }

    /// Otherwise such a worker would take the record for that of a wrong clock, and refill the bucket.
    #[test]
    fn who_comes_late_fills_nothing() {
        let (host, subject) = (MemoryHost::default(), subject("a", Some((100, Unit::Second, 5)), Some(10)));
        for _ in 0..5 {
            take_one(&subject, at(60), &host).unwrap();
        }
        for late in [59, 30, 0] {
            assert_eq!(take_one(&subject, at(late), &host).unwrap_err().kind, Kind::Rate, "{late}");
        }
        let passed = (0..10).filter(|_| take_one(&subject, at(80), &host).is_ok()).count();
        assert_eq!(passed, 2, "what flowed in");

        let quota = self::subject("b", None, Some(1));
        let turn = UnixTime::from_rfc3339("2026-12-01T00:00:00Z").unwrap();
        let before = UnixTime::from_rfc3339("2026-11-30T23:59:59.990Z").unwrap();
        take_one(&quota, turn, &host).unwrap();
        assert!(take_one(&quota, before, &host).is_err(), "a month of 31 days has begun");
        assert!(take_one(&quota, turn, &host).is_err());
    }

    #[test]
    fn the_tighter_wins_and_a_refusal_costs_nothing() {
        let host = MemoryHost::default();
        let (key, org) = (subject("k", None, Some(5)), subject("o", Some((1, Unit::Day, 2)), Some(100)));
        let both = Subjects::new([Rc::clone(&key), Rc::clone(&org)]);
        let standing = take(&both, NOW, &host).unwrap();
        assert_eq!(standing.state(), format!(r#""rate";r=1;t=86400, "month";r=4;t={}"#, NOW.end_of_month().since(NOW).as_secs()));
        take(&both, NOW, &host).unwrap();
        for _ in 0..10 {
            assert_eq!(take(&both, NOW, &host).unwrap_err().kind, Kind::Rate);
        }
        let alone = Subjects::new([key]);
        assert_eq!((0..10).filter(|_| take(&alone, NOW, &host).is_ok()).count(), 3);
        assert_eq!(take(&both, NOW, &host).unwrap_err().kind, Kind::Month);
    }

    #[test]
    fn too_many_writers_are_told_to_come_again() {
        let (host, subject) = (MemoryHost::contended(), subject("a", Some((600, Unit::Minute, 60)), None));
        let exceeded = take_one(&subject, NOW, &host).unwrap_err();
        assert_eq!((exceeded.kind, exceeded.retry_after), (Kind::Rate, CONTENDED));
        assert_eq!(exceeded.standing.state(), r#""rate";r=0;t=1"#);
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_what_flowed_in(
            requests in 1_u32..1000, burst in 1_u32..100, waits in prop::collection::vec(0_u64..50, 1..300),
        ) {
            let (host, subject) = (MemoryHost::default(), subject("a", Some((requests, Unit::Second, burst)), None));
            let (mut elapsed, mut passed) = (0, 0_u64);
            for wait in waits {
                elapsed += wait;
                passed += u64::from(take_one(&subject, at(elapsed), &host).is_ok());
            }
            // The interval is a whole number of nanoseconds.
            let flowed = elapsed * 1_000_000 / (1_000_000_000 / u64::from(requests));
            prop_assert!(passed <= u64::from(burst) + flowed);
        }

        #[test]
        fn any_record_is_read(bytes: Vec<u8>, millis: u64) {
            let subject = subject("a", Some((u32::MAX, Unit::Second, u32::MAX)), Some(u32::MAX));
            let _ = Record::read(&bytes).take(&subject, UnixTime::from_millis(millis));
        }
    }
}

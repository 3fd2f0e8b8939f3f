//! The key sets of identity providers: when they are fetched, which thread fetches them, and how long they are used.
//!
//! All threads of an Envoy share one record (`record.rs`) and one document for each set (`sets.rs`). A thread that wants
//! to fetch first writes its claim into the record, so there is one fetch at a time. It also needs a slot
//! (`fetch_slots.rs`). Each thread works with its own copy of the record and of the keys, a [`KeySet`].

mod absent;
mod answer;
mod fetch_slots;
mod record;
mod set;
mod sets;
#[cfg(test)]
mod tests;
mod timing;
mod uri;

pub use absent::KeyName;
pub use answer::read_answer;
pub use set::{KeySet, KeySetId, Lookup, Waiter};
pub use sets::{Fetch, KeySets, Wish};
pub use timing::{MAX_TIMEOUT, SYNC_INTERVAL, Timing};
pub use uri::{ACCEPT, Clusters, JwksUri};

//! The values that all threads of this Envoy share, such as the policy and key sets. Reading takes no lock.

use std::sync::{Arc, LazyLock};

use apexmcp_core::host::{Shared, Update};
use papaya::{Compute, HashMap, Operation};

struct Value {
    bytes: Vec<u8>,
    revision: u32,
}

static VALUES: LazyLock<HashMap<String, Arc<Value>>> = LazyLock::new(HashMap::new);

/// See [`apexmcp_core::host::Host::shared`].
pub(crate) fn get(name: &str) -> Option<Shared> {
    let value = Arc::clone(VALUES.pin().get(name)?);
    Some(Shared { bytes: value.bytes.clone(), revision: value.revision })
}

/// See [`apexmcp_core::host::Host::update`].
pub(crate) fn update(name: &str, change: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Update {
    let mut change = |before: Option<(&String, &Arc<Value>)>| {
        let (bytes, revision) = before.map_or((&[][..], 0), |(_, value)| (&value.bytes, value.revision));
        match change(bytes) {
            // A revision is never zero, and differs after each change.
            Some(bytes) => Operation::Insert(Arc::new(Value { bytes, revision: revision.wrapping_add(1).max(1) })),
            None => Operation::Abort(()),
        }
    };
    match VALUES.pin().compute(name.to_owned(), &mut change) {
        Compute::Aborted(()) => Update::Unchanged,
        _ => Update::Changed,
    }
}

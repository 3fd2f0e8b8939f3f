//! Whether Envoy holds the body of a request together with its head.

use std::cell::Cell;

/// What a worker knows about how Envoy holds bodies.
#[derive(Debug, Default)]
pub struct BodyHolding {
    /// `gateway.host_holds_bodies`
    configured: Option<bool>,
    /// Whether a body arrived while its head was held.
    has_seen_body: Cell<bool>,
}

impl BodyHolding {
    /// Nothing is known except the operator's setting.
    pub fn new(configured: Option<bool>) -> Self {
        Self { configured, has_seen_body: Cell::new(false) }
    }

    /// Whether Envoy holds bodies. `None` if this is unknown.
    ///
    /// A body that arrives while its head is held shows that Envoy does not. The absence of a body proves nothing: a slow
    /// client looks the same.
    pub fn known(&self) -> Option<bool> {
        self.configured.or(self.has_seen_body.get().then_some(false))
    }

    /// A body arrived while its head was held.
    pub fn body_arrived_before_head_went_on(&self) {
        self.has_seen_body.set(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_of_the_operator_wins_over_a_body_that_arrived() {
        for (configured, expected) in [(None, Some(false)), (Some(true), Some(true)), (Some(false), Some(false))] {
            let bodies = BodyHolding::new(configured);
            assert_eq!(bodies.known(), configured);
            bodies.body_arrived_before_head_went_on();
            assert_eq!(bodies.known(), expected);
        }
    }
}

//! Places for requests that are held: each holds a connection and memory, so there are only so many.

use std::rc::Rc;

/// So many requests are held in a thread for one and the same thing.
pub(crate) const MAX_WAITING: usize = 1024;

/// The places of those who wait for one thing.
#[derive(Debug, Default)]
pub struct Places(Rc<()>);

/// One of them, for as long as it is kept.
#[derive(Debug)]
pub struct Place {
    _counted: Rc<()>,
}

impl Places {
    /// A place; `None` where all are taken.
    pub fn take(&self) -> Option<Place> {
        (Rc::strong_count(&self.0) <= MAX_WAITING).then(|| Place { _counted: Rc::clone(&self.0) })
    }

    /// Whether anybody waits.
    pub fn is_any_taken(&self) -> bool {
        Rc::strong_count(&self.0) > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_left() {
        let places = Places::default();
        let mut taken: Vec<Place> = (0..1024).map(|_| places.take().unwrap()).collect();
        assert!(places.take().is_none());
        taken.pop();
        assert!(places.take().is_some() && places.is_any_taken());
        taken.clear();
        assert!(!places.is_any_taken());
    }
}

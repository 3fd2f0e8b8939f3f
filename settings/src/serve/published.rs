//! The policy that is served.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use axum::body::Bytes;
use axum::http::HeaderValue;

use super::catalog::{Catalog, State};
use crate::database::Database;
use crate::document;
use crate::failure::{Failure, Reason};
use crate::parts;

/// The parts of the policy, which the watcher changes.
pub(super) type Shared = Arc<RwLock<Catalog>>;

/// What is known of the present version.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) state: State,
    /// See [`crate::document::database_id`].
    pub(super) database_id: String,
    /// The state. A strong validator (RFC 9110 §8.8.1): a state never has two texts.
    pub(super) etag: HeaderValue,
    /// The length of all parts, in bytes.
    pub(super) length: usize,
    /// The whole document, if somebody has asked for it.
    document: OnceLock<Bytes>,
}

impl Published {
    /// A policy with this document, which is no policy.
    #[cfg(test)]
    pub(super) fn with_document(etag: &'static str, document: Bytes) -> Self {
        let (state, etag) = (State::default(), HeaderValue::from_static(etag));
        Self { state, database_id: String::new(), etag, length: document.len(), document: OnceLock::from(document) }
    }

    fn of(catalog: &Catalog, database_id: String) -> Result<Self, Failure> {
        let state = catalog.state().clone();
        let etag = HeaderValue::from_str(&format!("\"{state}\"")).map_err(Failure::during(Reason::SystemFailed, "the ETag"))?;
        Ok(Self { state, database_id, etag, length: catalog.length(), document: OnceLock::new() })
    }

    /// Reads the whole policy.
    ///
    /// # Errors
    /// If the database fails.
    pub(super) fn read(database: &mut Database) -> Result<(Self, Catalog), Failure> {
        let mut catalog = Catalog::default();
        let (changes, database_id) = database.read(|sql| Ok((parts::all(sql)?, document::database_id(sql)?)))?;
        catalog.apply(changes)?;
        Ok((Self::of(&catalog, database_id)?, catalog))
    }

    /// Reads what changed since the state of the catalog, and adds it. If the database was replaced by another state of it, reads
    /// the whole policy. All of it is one state of the database.
    ///
    /// # Errors
    /// If the database fails, or has another id than `expected`.
    pub(super) fn read_changes(database: &mut Database, shared: &Shared, expected: &str) -> Result<Self, Failure> {
        let (version, tag) = {
            let catalog = shared.read().unwrap_or_else(PoisonError::into_inner);
            let (version, tag) = catalog.since();
            (version, tag.to_owned())
        };
        let (changes, is_whole) = database.read(|sql| {
            // Somebody who has lost the database may run `apexmcp init`. Its empty policy would refuse everybody.
            if document::database_id(sql)? != expected {
                return Err(Failure::new(Reason::DatabaseMissing, document::OTHER_DATABASE));
            }
            match parts::changes_since(sql, (version, &tag))? {
                Some(changes) => Ok((changes, false)),
                None => Ok((parts::all(sql)?, true)),
            }
        })?;
        if is_whole {
            // Gateways get the old policy until all of the new one is read.
            let mut new = Catalog::default();
            new.apply(changes)?;
            let published = Self::of(&new, expected.to_owned());
            *shared.write().unwrap_or_else(PoisonError::into_inner) = new;
            return published;
        }
        let mut catalog = shared.write().unwrap_or_else(PoisonError::into_inner);
        catalog.apply(changes)?;
        Self::of(&catalog, expected.to_owned())
    }

    /// The whole document of this state. `None`: there is a newer state already.
    ///
    /// # Errors
    /// If a part cannot be read.
    pub(super) fn document(&self, shared: &Shared) -> Result<Option<Bytes>, Failure> {
        if let Some(document) = self.document.get() {
            return Ok(Some(document.clone()));
        }
        let catalog = shared.read().unwrap_or_else(PoisonError::into_inner);
        if *catalog.state() != self.state {
            return Ok(None);
        }
        let document = Bytes::from(catalog.document()?);
        Ok(Some(self.document.get_or_init(|| document).clone()))
    }
}

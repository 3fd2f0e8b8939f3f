//! The policy that is served.

use axum::body::Bytes;
use axum::http::HeaderValue;

use crate::database::Database;
use crate::document;
use crate::failure::{Failure, Reason};
use crate::secret::sha256;

/// The document of one version.
#[derive(Debug)]
pub(super) struct Published {
    pub(super) version: i64,
    /// See [`document::database_id`].
    pub(super) database_id: String,
    /// The hash of the document. A strong validator (RFC 9110 §8.8.1): the same text always has the same tag.
    pub(super) etag: HeaderValue,
    pub(super) body: Bytes,
}

impl Published {
    pub(super) fn read(database: &mut Database) -> Result<Self, Failure> {
        let (version, database_id, document) = database.read(|connection| {
            Ok((document::version(connection)?, document::database_id(connection)?, document::render(connection)?))
        })?;
        let etag = format!("\"{}\"", sha256(&document));
        let etag = HeaderValue::from_str(&etag).map_err(Failure::during(Reason::SystemFailed, "the ETag"))?;
        Ok(Self { version, database_id, etag, body: document.into() })
    }
}

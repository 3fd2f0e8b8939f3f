//! JSON Web Signatures as access tokens: RFC 7515, 7517, 7519, with the advice of RFC 8725.
//!
//! Only RS256 is spoken. A token passes the cheap checks first, a signature is the last.

pub mod claims;
pub mod compact;
pub mod jwk;
pub mod signature;

//! JSON Web Signatures as access tokens: RFC 7515, 7517 and 7519, with the advice of RFC 8725.
//!
//! RS256 is the only accepted algorithm. The cheap checks come first, and the signature is checked last.

pub mod claims;
pub mod compact;
pub mod jwk;
pub mod signature;

//! The closed list of reasons to refuse a request. `denial.rs` says what a client and the log are told for each.

/// Defines [`Reason`] with its words, so that no reason can lack one.
macro_rules! reasons {
    ($($(#[$meta:meta])* $name:ident = $word:literal,)*) => {
        /// Why a request is refused. docs/reference/reasons.md explains each word to operators, and a test compares the two.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$meta])* $name,)* }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word in replies, access logs and metrics. It is part of the interface and never changes.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }
        }
    };
}

reasons! {
    /// `alg` is not RS256 (RFC 8725 §3.1).
    AlgorithmNotAllowed = "algorithm_not_allowed",
    /// The API key is past its `expires_at`.
    ApiKeyExpired = "api_key_expired",
    /// The API key is unknown, revoked, or of another organization.
    ApiKeyUnknown = "api_key_unknown",
    /// `aud` names none of the configured audiences.
    AudienceMismatch = "audience_mismatch",
    /// A required claim is absent.
    ClaimMissing = "claim_missing",
    /// The client of a gateway token no longer exists, or is revoked.
    ClientUnknown = "client_unknown",
    /// A credential header does not have the form of a credential.
    CredentialMalformed = "credential_malformed",
    /// The request has no credential.
    CredentialMissing = "credential_missing",
    /// The request has two credentials, or the same one twice.
    CredentialRepeated = "credential_repeated",
    /// `Mcp-Method` or `Mcp-Name` contradicts the body.
    HeaderMismatch = "header_mismatch",
    /// `iss` is not an issuer of this organization.
    IssuerUnknown = "issuer_unknown",
    /// The issuer's key set could not be fetched yet.
    JwksUnavailable = "jwks_unavailable",
    /// The issuer publishes no key with this `kid`.
    KeyUnknown = "key_unknown",
    /// The body is not `application/json`, or it is compressed.
    MediaTypeUnsupported = "media_type_unsupported",
    /// The body is no JSON-RPC message, or one that two readers could read differently.
    MessageMalformed = "message_malformed",
    /// The body is longer than the read limit.
    MessageTooLong = "message_too_long",
    /// An upstream answered before the filter had read the message, so nothing was called.
    MessageUnread = "message_unread",
    /// The method is neither POST nor DELETE. The stream with the messages of all connectors is not for a credential
    /// that covers only some of them.
    MethodNotAllowed = "method_not_allowed",
    /// The organization, the key or the client has used its quota of this month.
    MonthlyQuota = "monthly_quota",
    /// The request comes from a web page whose origin is not allowed.
    OriginNotAllowed = "origin_not_allowed",
    /// The worker has no room for another request that waits.
    Overloaded = "overloaded",
    /// Nothing is served at this path.
    PathUnmatched = "path_unmatched",
    /// The module has no policy yet.
    PolicyUnavailable = "policy_unavailable",
    /// `MCP-Protocol-Version` is a date before the first version of MCP.
    ProtocolVersionUnsupported = "protocol_version_unsupported",
    /// The organization, the key or the client exceeds its rate.
    RateLimit = "rate_limit",
    /// The rate limit service does not answer, and the operator denies requests without it.
    RateLimitUnavailable = "rate_limit_unavailable",
    /// The route's metadata cannot be read.
    RouteInvalid = "route_invalid",
    /// The credential is valid, but lacks the scope that the operation needs.
    ScopeInsufficient = "scope_insufficient",
    /// No key of the issuer made this signature.
    SignatureInvalid = "signature_invalid",
    /// The token is past its `exp`.
    TokenExpired = "token_expired",
    /// The bearer token is no JWS of the accepted profile.
    TokenMalformed = "token_malformed",
    /// The token is before its `nbf`, or its `iat` lies in the future.
    TokenNotYetValid = "token_not_yet_valid",
    /// The token was revoked, alone or together with all tokens of its client or principal.
    TokenRevoked = "token_revoked",
}

/// The word for a request that is not refused.
pub const OK: &str = "ok";

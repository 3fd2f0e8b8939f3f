//! The closed list of reasons to refuse a request. `denial.rs` says what a client and the log are told for each.

/// Why a request is refused. README.md explains each word to operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// `alg` is not RS256 (RFC 8725 §3.1).
    AlgorithmNotAllowed,
    /// The API key is past its `expires_at`.
    ApiKeyExpired,
    /// The API key is unknown, revoked, or of another organization.
    ApiKeyUnknown,
    /// `aud` names none of the configured audiences.
    AudienceMismatch,
    /// A required claim is absent.
    ClaimMissing,
    /// The client of a gateway token no longer exists, or is revoked.
    ClientUnknown,
    /// A credential header does not have the form of a credential.
    CredentialMalformed,
    /// The request has no credential.
    CredentialMissing,
    /// The request has two credentials, or the same one twice.
    CredentialRepeated,
    /// `Mcp-Method` or `Mcp-Name` contradicts the body.
    HeaderMismatch,
    /// `iss` is not an issuer of this organization.
    IssuerUnknown,
    /// The issuer's key set could not be fetched yet.
    JwksUnavailable,
    /// The issuer publishes no key with this `kid`.
    KeyUnknown,
    /// The body is not `application/json`, or it is compressed.
    MediaTypeUnsupported,
    /// The body is no JSON-RPC message, or one that two readers could read differently.
    MessageMalformed,
    /// The body is longer than the read limit.
    MessageTooLong,
    /// An upstream answered before the filter had read the message, so nothing was called.
    MessageUnread,
    /// The method is neither POST nor DELETE. The stream with the messages of all connectors is not for a credential
    /// that covers only some of them.
    MethodNotAllowed,
    /// The organization, the key or the client has used its quota of this month.
    MonthlyQuota,
    /// The request comes from a web page whose origin is not allowed.
    OriginNotAllowed,
    /// The worker has no room for another request that waits.
    Overloaded,
    /// Nothing is served at this path.
    PathUnmatched,
    /// The module has no policy yet.
    PolicyUnavailable,
    /// `MCP-Protocol-Version` is a date before the first version of MCP.
    ProtocolVersionUnsupported,
    /// The organization, the key or the client exceeds its rate.
    RateLimit,
    /// The rate limit service does not answer, and the operator denies requests without it.
    RateLimitUnavailable,
    /// The route's metadata cannot be read.
    RouteInvalid,
    /// The credential is valid, but lacks the scope that the operation needs.
    ScopeInsufficient,
    /// No key of the issuer made this signature.
    SignatureInvalid,
    /// The token is past its `exp`.
    TokenExpired,
    /// The bearer token is no JWS of the accepted profile.
    TokenMalformed,
    /// The token is before its `nbf`, or its `iat` lies in the future.
    TokenNotYetValid,
    /// The token was revoked, alone or together with all tokens of its client or principal.
    TokenRevoked,
}

/// The word for a request that is not refused.
pub const OK: &str = "ok";

impl Reason {
    /// The word in replies, access logs and metrics. It is part of the interface and never changes.
    pub const fn word(self) -> &'static str {
        match self {
            Self::AlgorithmNotAllowed => "algorithm_not_allowed",
            Self::ApiKeyExpired => "api_key_expired",
            Self::ApiKeyUnknown => "api_key_unknown",
            Self::AudienceMismatch => "audience_mismatch",
            Self::ClaimMissing => "claim_missing",
            Self::ClientUnknown => "client_unknown",
            Self::CredentialMalformed => "credential_malformed",
            Self::CredentialMissing => "credential_missing",
            Self::CredentialRepeated => "credential_repeated",
            Self::HeaderMismatch => "header_mismatch",
            Self::IssuerUnknown => "issuer_unknown",
            Self::JwksUnavailable => "jwks_unavailable",
            Self::KeyUnknown => "key_unknown",
            Self::MediaTypeUnsupported => "media_type_unsupported",
            Self::MessageMalformed => "message_malformed",
            Self::MessageTooLong => "message_too_long",
            Self::MessageUnread => "message_unread",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::MonthlyQuota => "monthly_quota",
            Self::OriginNotAllowed => "origin_not_allowed",
            Self::Overloaded => "overloaded",
            Self::PathUnmatched => "path_unmatched",
            Self::PolicyUnavailable => "policy_unavailable",
            Self::ProtocolVersionUnsupported => "protocol_version_unsupported",
            Self::RateLimit => "rate_limit",
            Self::RateLimitUnavailable => "rate_limit_unavailable",
            Self::RouteInvalid => "route_invalid",
            Self::ScopeInsufficient => "scope_insufficient",
            Self::SignatureInvalid => "signature_invalid",
            Self::TokenExpired => "token_expired",
            Self::TokenMalformed => "token_malformed",
            Self::TokenNotYetValid => "token_not_yet_valid",
            Self::TokenRevoked => "token_revoked",
        }
    }
}

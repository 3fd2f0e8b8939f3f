-- Times are RFC 3339 in UTC with whole seconds. They sort as text, and the policy document contains them unchanged.

-- One row with the version of the policy document. Each change adds one.
CREATE TABLE policy (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    version INTEGER NOT NULL
) STRICT;
INSERT INTO policy (only, version) VALUES (1, 0);

CREATE TABLE orgs (
    name TEXT PRIMARY KEY,
    created_at TEXT NOT NULL,
    limits TEXT                     -- a JSON object as in the policy document; null: none
) STRICT, WITHOUT ROWID;

-- A key is stored as a hash, with its first characters so that its owner can recognize it.
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY,
    org TEXT NOT NULL REFERENCES orgs (name) ON DELETE CASCADE,
    name TEXT NOT NULL,
    prefix TEXT NOT NULL,
    sha256 TEXT NOT NULL UNIQUE,
    connectors TEXT,                -- a JSON array; null: all
    created_at TEXT NOT NULL,
    expires_at TEXT,
    limits TEXT,                    -- as those of its org
    revoked_at TEXT
) STRICT;
CREATE INDEX api_keys_by_org ON api_keys (org, created_at);

CREATE TABLE oauth_clients (
    client_id TEXT PRIMARY KEY,
    org TEXT NOT NULL REFERENCES orgs (name) ON DELETE CASCADE,
    name TEXT NOT NULL,
    scopes TEXT NOT NULL,           -- a JSON array
    jwks TEXT,                      -- a JWK Set: it authenticates by private_key_jwt, and has no secret
    created_at TEXT NOT NULL,
    revoked_at TEXT
) STRICT;
CREATE INDEX oauth_clients_by_org ON oauth_clients (org, created_at);

-- A client has two secrets during a rotation. The lower number is the older secret.
CREATE TABLE client_secrets (
    number INTEGER PRIMARY KEY,
    client_id TEXT NOT NULL REFERENCES oauth_clients (client_id) ON DELETE CASCADE,
    sha256 TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;
CREATE INDEX client_secrets_by_client ON client_secrets (client_id, number);

CREATE TABLE identity_providers (
    org TEXT NOT NULL REFERENCES orgs (name) ON DELETE CASCADE,
    issuer TEXT NOT NULL,
    jwks_uri TEXT NOT NULL,
    audiences TEXT NOT NULL,        -- a JSON array
    default_scopes TEXT,            -- a JSON array; null: the policy document's default
    configured_at TEXT NOT NULL,
    PRIMARY KEY (org, issuer)
) STRICT, WITHOUT ROWID;

-- The key with the lowest position signs.
CREATE TABLE signing_keys (
    kid TEXT PRIMARY KEY,
    position INTEGER NOT NULL UNIQUE,
    private_key_pem TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE revoked_tokens (
    org TEXT NOT NULL REFERENCES orgs (name) ON DELETE CASCADE,
    jti TEXT NOT NULL,
    revoked_at TEXT NOT NULL,
    PRIMARY KEY (org, jti)
) STRICT, WITHOUT ROWID;

CREATE TABLE revoked_clients (
    org TEXT NOT NULL REFERENCES orgs (name) ON DELETE CASCADE,
    client_id TEXT NOT NULL,
    issued_before TEXT NOT NULL,
    PRIMARY KEY (org, client_id)
) STRICT, WITHOUT ROWID;

-- An entry stays after its record is deleted, so it has no foreign keys. `version` is that of the policy after the change.
CREATE TABLE audit (
    version INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    org TEXT,
    subject TEXT NOT NULL,
    details TEXT NOT NULL           -- a JSON object, never a secret
) STRICT;
CREATE INDEX audit_by_org ON audit (org, version);

-- One row if the policy is written to a file that Envoy watches.
CREATE TABLE ecds (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    template TEXT NOT NULL,
    file TEXT NOT NULL
) STRICT;

-- Tokens for the management API. A token is stored as a hash, with its first characters so that its owner can recognize it.
CREATE TABLE admin_tokens (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,             -- operator, admin or viewer
    org TEXT REFERENCES orgs (name) ON DELETE CASCADE,  -- null: an operator
    prefix TEXT NOT NULL,
    sha256 TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL,
    expires_at TEXT,
    revoked_at TEXT
) STRICT;

-- The answers to requests with an Idempotency-Key, without secrets.
CREATE TABLE replies (
    key TEXT PRIMARY KEY,           -- the SHA-256 of the caller and its key
    request TEXT NOT NULL,          -- the SHA-256 of the request
    status INTEGER NOT NULL,
    body TEXT NOT NULL,
    at TEXT NOT NULL
) STRICT;
CREATE INDEX replies_by_time ON replies (at);

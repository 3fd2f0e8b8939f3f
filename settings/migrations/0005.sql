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

-- People who may use the console for an org.
CREATE TABLE members (
    org TEXT NOT NULL REFERENCES orgs (name) ON DELETE CASCADE,
    email TEXT NOT NULL,            -- in lower case
    role TEXT NOT NULL,             -- admin or viewer
    created_at TEXT NOT NULL,
    PRIMARY KEY (org, email)
) STRICT, WITHOUT ROWID;

-- One-time links and sessions of the console, as hashes. Without an org, the person is an operator.
CREATE TABLE sign_in_links (
    sha256 TEXT PRIMARY KEY,
    person TEXT NOT NULL,
    org TEXT REFERENCES orgs (name) ON DELETE CASCADE,
    expires_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE sessions (
    sha256 TEXT PRIMARY KEY,
    person TEXT NOT NULL,
    org TEXT REFERENCES orgs (name) ON DELETE CASCADE,
    expires_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;

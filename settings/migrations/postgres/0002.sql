-- The tables of settings/migrations/0005.sql.

CREATE TABLE admin_tokens (
    id TEXT COLLATE "C" PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    org TEXT COLLATE "C" REFERENCES orgs (name) ON DELETE CASCADE,
    prefix TEXT NOT NULL,
    sha256 TEXT COLLATE "C" NOT NULL UNIQUE,
    created_at TEXT COLLATE "C" NOT NULL,
    expires_at TEXT,
    revoked_at TEXT
);

CREATE TABLE replies (
    key TEXT COLLATE "C" PRIMARY KEY,
    request TEXT NOT NULL,
    status BIGINT NOT NULL,
    body TEXT NOT NULL,
    at TEXT COLLATE "C" NOT NULL
);
CREATE INDEX replies_by_time ON replies (at);

CREATE TABLE members (
    org TEXT COLLATE "C" NOT NULL REFERENCES orgs (name) ON DELETE CASCADE,
    email TEXT COLLATE "C" NOT NULL,
    role TEXT NOT NULL,
    created_at TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (org, email)
);

CREATE TABLE sign_in_links (
    sha256 TEXT COLLATE "C" PRIMARY KEY,
    person TEXT COLLATE "C" NOT NULL,
    org TEXT COLLATE "C" REFERENCES orgs (name) ON DELETE CASCADE,
    expires_at TEXT COLLATE "C" NOT NULL
);
CREATE TABLE sessions (
    sha256 TEXT COLLATE "C" PRIMARY KEY,
    person TEXT COLLATE "C" NOT NULL,
    org TEXT COLLATE "C" REFERENCES orgs (name) ON DELETE CASCADE,
    expires_at TEXT COLLATE "C" NOT NULL
);

-- The tables of settings/migrations/usage/0001.sql. They have no triggers: usage is no part of the policy.

CREATE TABLE usage_began (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    at TEXT NOT NULL
);

CREATE TABLE usage_gateways (
    gateway TEXT COLLATE "C" PRIMARY KEY,
    sequence BIGINT NOT NULL,
    hour BIGINT NOT NULL
);
CREATE INDEX usage_gateways_by_hour ON usage_gateways (hour);

CREATE TABLE usage_days (
    org TEXT COLLATE "C" NOT NULL,
    credential TEXT COLLATE "C" NOT NULL,
    day BIGINT NOT NULL,
    outcome TEXT COLLATE "C" NOT NULL,
    requests BIGINT NOT NULL,
    PRIMARY KEY (org, credential, day, outcome)
);
CREATE INDEX usage_days_by_day ON usage_days (day);

CREATE TABLE usage_org_days (
    org TEXT COLLATE "C" NOT NULL,
    day BIGINT NOT NULL,
    outcome TEXT COLLATE "C" NOT NULL,
    requests BIGINT NOT NULL,
    PRIMARY KEY (org, day, outcome)
);
CREATE INDEX usage_org_days_by_day ON usage_org_days (day);

CREATE TABLE usage_hours (
    org TEXT COLLATE "C" NOT NULL,
    hour BIGINT NOT NULL,
    allowed BIGINT NOT NULL,
    refused BIGINT NOT NULL,
    PRIMARY KEY (org, hour)
);
CREATE INDEX usage_hours_by_hour ON usage_hours (hour);

CREATE TABLE usage_last_used (
    org TEXT COLLATE "C" NOT NULL,
    credential TEXT COLLATE "C" NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (org, credential)
);

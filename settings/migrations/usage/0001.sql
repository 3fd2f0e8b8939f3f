-- The file of usage, beside the database. It is no part of the policy: it may be deleted, and then counts anew.
-- An outcome is 'allowed' or the reason of a refusal. Days and hours are counted since 1970 in UTC.

CREATE TABLE usage_began (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at TEXT NOT NULL                -- when collection began
) STRICT;

-- The last report of each thread of a gateway. A report counts only if its sequence is greater.
CREATE TABLE usage_gateways (
    gateway TEXT PRIMARY KEY,
    sequence INTEGER NOT NULL,
    hour INTEGER NOT NULL           -- of the last report, by the clock of the server
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_gateways_by_hour ON usage_gateways (hour);

CREATE TABLE usage_days (
    org TEXT NOT NULL,
    credential TEXT NOT NULL,       -- key/<id>, client/<id>, idp/<id>, other, or '-' for refusals without a known credential
    day INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    requests INTEGER NOT NULL,
    PRIMARY KEY (org, credential, day, outcome)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_days_by_day ON usage_days (day);

-- The sums of all credentials of an org, because an org may have half a million keys.
CREATE TABLE usage_org_days (
    org TEXT NOT NULL,
    day INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    requests INTEGER NOT NULL,
    PRIMARY KEY (org, day, outcome)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_org_days_by_day ON usage_org_days (day);

CREATE TABLE usage_hours (
    org TEXT NOT NULL,
    hour INTEGER NOT NULL,
    allowed INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    PRIMARY KEY (org, hour)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_hours_by_hour ON usage_hours (hour);

CREATE TABLE usage_last_used (
    org TEXT NOT NULL,
    credential TEXT NOT NULL,
    at INTEGER NOT NULL,            -- of the last allowed request, in seconds since 1970
    PRIMARY KEY (org, credential)
) STRICT, WITHOUT ROWID;

-- A random id. All copies of a database have the same, so a server notices that another database lies at its path.
CREATE TABLE identity (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    id TEXT NOT NULL
) STRICT;
INSERT INTO identity (only, id) VALUES (1, lower(hex(randomblob(16))));

-- The policy is served in parts, so that a change costs what it changes.

-- The parts with the version in which each changed last. A part that is gone stays for gateways that still have it.
CREATE TABLE parts (
    name TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    digest TEXT                     -- the SHA-256 of its text; null: it is gone
) STRICT, WITHOUT ROWID;
CREATE INDEX parts_by_version ON parts (version);

-- The last versions, each with a random tag: a version of a restored copy is another one than the lost one of the same number.
CREATE TABLE versions (
    version INTEGER PRIMARY KEY,
    tag TEXT NOT NULL
) STRICT;

-- The number of keys in force and of parts with keys, for each org that has keys. Triggers count the keys: an org may have half
-- a million.
CREATE TABLE key_parts (
    org TEXT PRIMARY KEY,
    keys INTEGER NOT NULL,
    parts INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO key_parts SELECT org, count(*), 0 FROM api_keys WHERE revoked_at IS NULL GROUP BY org;
CREATE TRIGGER api_keys_insert_counts AFTER INSERT ON api_keys WHEN NEW.revoked_at IS NULL BEGIN
    INSERT INTO key_parts SELECT NEW.org, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM key_parts WHERE org = NEW.org);
    UPDATE key_parts SET keys = keys + 1 WHERE org = NEW.org;
END;
CREATE TRIGGER api_keys_update_counts AFTER UPDATE ON api_keys BEGIN
    UPDATE key_parts SET keys = keys - 1 WHERE org = OLD.org AND OLD.revoked_at IS NULL;
    INSERT INTO key_parts SELECT NEW.org, 0, 0
        WHERE NEW.revoked_at IS NULL AND NOT EXISTS (SELECT 1 FROM key_parts WHERE org = NEW.org);
    UPDATE key_parts SET keys = keys + 1 WHERE org = NEW.org AND NEW.revoked_at IS NULL;
END;
CREATE TRIGGER api_keys_delete_counts AFTER DELETE ON api_keys WHEN OLD.revoked_at IS NULL BEGIN
    UPDATE key_parts SET keys = keys - 1 WHERE org = OLD.org;
END;

CREATE INDEX api_keys_in_force ON api_keys (org, sha256) WHERE revoked_at IS NULL;
CREATE INDEX api_keys_by_connectors ON api_keys (org, connectors) WHERE revoked_at IS NULL AND connectors IS NOT NULL;

-- What the transaction has changed. It is empty between transactions. Triggers write it, so that no change can be forgotten. A row may
-- stand there more than once: a trigger cannot choose how a conflict ends.
CREATE TABLE touched (
    kind TEXT NOT NULL,             -- org, client, key or signing
    org TEXT NOT NULL,              -- empty for a signing key
    id TEXT NOT NULL                -- the id of a client, or the hash of a key
) STRICT;

CREATE TRIGGER orgs_insert_touches AFTER INSERT ON orgs BEGIN
    INSERT INTO touched VALUES ('org', NEW.name, '');
END;
CREATE TRIGGER orgs_update_touches AFTER UPDATE ON orgs BEGIN
    INSERT INTO touched VALUES ('org', OLD.name, ''), ('org', NEW.name, '');
END;
CREATE TRIGGER orgs_delete_touches AFTER DELETE ON orgs BEGIN
    INSERT INTO touched VALUES ('org', OLD.name, '');
END;
CREATE TRIGGER api_keys_insert_touches AFTER INSERT ON api_keys BEGIN
    INSERT INTO touched VALUES ('key', NEW.org, NEW.sha256);
END;
CREATE TRIGGER api_keys_update_touches AFTER UPDATE ON api_keys BEGIN
    INSERT INTO touched VALUES ('key', OLD.org, OLD.sha256), ('key', NEW.org, NEW.sha256);
END;
CREATE TRIGGER api_keys_delete_touches AFTER DELETE ON api_keys BEGIN
    INSERT INTO touched VALUES ('key', OLD.org, OLD.sha256);
END;
CREATE TRIGGER oauth_clients_insert_touches AFTER INSERT ON oauth_clients BEGIN
    INSERT INTO touched VALUES ('client', NEW.org, NEW.client_id);
END;
CREATE TRIGGER oauth_clients_update_touches AFTER UPDATE ON oauth_clients BEGIN
    INSERT INTO touched VALUES ('client', OLD.org, OLD.client_id), ('client', NEW.org, NEW.client_id);
END;
CREATE TRIGGER oauth_clients_delete_touches AFTER DELETE ON oauth_clients BEGIN
    INSERT INTO touched VALUES ('client', OLD.org, OLD.client_id);
END;
CREATE TRIGGER client_secrets_insert_touches AFTER INSERT ON client_secrets BEGIN
    INSERT INTO touched SELECT 'client', org, client_id FROM oauth_clients WHERE client_id = NEW.client_id;
END;
CREATE TRIGGER client_secrets_update_touches AFTER UPDATE ON client_secrets BEGIN
    INSERT INTO touched SELECT 'client', org, client_id FROM oauth_clients WHERE client_id = OLD.client_id;
    INSERT INTO touched SELECT 'client', org, client_id FROM oauth_clients WHERE client_id = NEW.client_id;
END;
CREATE TRIGGER client_secrets_delete_touches AFTER DELETE ON client_secrets BEGIN
    INSERT INTO touched SELECT 'client', org, client_id FROM oauth_clients WHERE client_id = OLD.client_id;
END;
CREATE TRIGGER identity_providers_insert_touches AFTER INSERT ON identity_providers BEGIN
    INSERT INTO touched VALUES ('org', NEW.org, '');
END;
CREATE TRIGGER identity_providers_update_touches AFTER UPDATE ON identity_providers BEGIN
    INSERT INTO touched VALUES ('org', OLD.org, ''), ('org', NEW.org, '');
END;
CREATE TRIGGER identity_providers_delete_touches AFTER DELETE ON identity_providers BEGIN
    INSERT INTO touched VALUES ('org', OLD.org, '');
END;
CREATE TRIGGER signing_keys_insert_touches AFTER INSERT ON signing_keys BEGIN
    INSERT INTO touched VALUES ('signing', '', '');
END;
CREATE TRIGGER signing_keys_update_touches AFTER UPDATE ON signing_keys BEGIN
    INSERT INTO touched VALUES ('signing', '', '');
END;
CREATE TRIGGER signing_keys_delete_touches AFTER DELETE ON signing_keys BEGIN
    INSERT INTO touched VALUES ('signing', '', '');
END;
CREATE TRIGGER revoked_tokens_insert_touches AFTER INSERT ON revoked_tokens BEGIN
    INSERT INTO touched VALUES ('org', NEW.org, '');
END;
CREATE TRIGGER revoked_tokens_update_touches AFTER UPDATE ON revoked_tokens BEGIN
    INSERT INTO touched VALUES ('org', OLD.org, ''), ('org', NEW.org, '');
END;
CREATE TRIGGER revoked_tokens_delete_touches AFTER DELETE ON revoked_tokens BEGIN
    INSERT INTO touched VALUES ('org', OLD.org, '');
END;
CREATE TRIGGER revoked_clients_insert_touches AFTER INSERT ON revoked_clients BEGIN
    INSERT INTO touched VALUES ('org', NEW.org, '');
END;
CREATE TRIGGER revoked_clients_update_touches AFTER UPDATE ON revoked_clients BEGIN
    INSERT INTO touched VALUES ('org', OLD.org, ''), ('org', NEW.org, '');
END;
CREATE TRIGGER revoked_clients_delete_touches AFTER DELETE ON revoked_clients BEGIN
    INSERT INTO touched VALUES ('org', OLD.org, '');
END;

-- Everything is new.
INSERT INTO touched SELECT 'org', name, '' FROM orgs;
INSERT INTO touched SELECT 'key', org, sha256 FROM api_keys WHERE revoked_at IS NULL;
INSERT INTO touched SELECT 'client', org, client_id FROM oauth_clients WHERE revoked_at IS NULL;
INSERT INTO touched SELECT 'signing', '', '' FROM signing_keys;

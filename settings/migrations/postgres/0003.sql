-- The indices of settings/migrations/0006.sql.
DROP INDEX api_keys_by_org;
CREATE INDEX api_keys_by_org ON api_keys (org, created_at, id);
DROP INDEX oauth_clients_by_org;
CREATE INDEX oauth_clients_by_org ON oauth_clients (org, created_at, client_id);

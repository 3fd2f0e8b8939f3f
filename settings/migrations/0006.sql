-- Pages of a list: the rows of an org in the order of the list.
DROP INDEX api_keys_by_org;
CREATE INDEX api_keys_by_org ON api_keys (org, created_at, id);
DROP INDEX oauth_clients_by_org;
CREATE INDEX oauth_clients_by_org ON oauth_clients (org, created_at, client_id);

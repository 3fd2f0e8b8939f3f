-- The column of settings/migrations/0007.sql.
ALTER TABLE identity_providers ADD COLUMN allow_private_address BIGINT NOT NULL DEFAULT 0;
UPDATE identity_providers SET allow_private_address = 1 WHERE issuer LIKE 'http://%' OR jwks_uri LIKE 'http://%';

-- Whether an operator allowed the provider to have addresses outside of the public Internet, and http. Only operators could save
-- http before, so those providers have the permission.
ALTER TABLE identity_providers ADD COLUMN allow_private_address INTEGER NOT NULL DEFAULT 0;
UPDATE identity_providers SET allow_private_address = 1 WHERE issuer LIKE 'http://%' OR jwks_uri LIKE 'http://%';

ALTER TABLE identity_providers
    ADD COLUMN client_scopes TEXT;  -- a JSON array; null: the mcp scopes

-- Whom to tell what happens, and what happened.
CREATE TABLE webhooks (
    name TEXT PRIMARY KEY NOT NULL,
    -- JSON, model::webhook::Webhook.
    body TEXT NOT NULL,
    -- Its secret is made of this and the CA's key; no secret lies here.
    salt TEXT NOT NULL,
    -- The one before, good until then.
    older_salt TEXT,
    older_until BIGINT,
    -- The last event that it needs no more.
    passed BIGINT NOT NULL,
    -- JSON, model::webhook::Standing.
    standing TEXT NOT NULL
);
CREATE TABLE webhook_events (
    number BIGINT PRIMARY KEY NOT NULL,
    id TEXT NOT NULL,
    topic TEXT NOT NULL,
    -- JSON, as it is sent.
    body TEXT NOT NULL
);

-- Since when a host counts as lost; none if it does not.
ALTER TABLE hosts ADD COLUMN lost BIGINT;

-- Never changed once it was released: what comes later is another file. Times are milliseconds since 1970 UTC. No type
-- or clause that SQLite and PostgreSQL do not share.

-- Single values: the CA, its list's number, the newest intent.
CREATE TABLE facts (
    name TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);

CREATE TABLE hosts (
    name TEXT PRIMARY KEY NOT NULL,
    site TEXT NOT NULL,
    joined BIGINT NOT NULL,
    revoked BIGINT,
    seen BIGINT,
    -- JSON, model::host::Observed.
    observed TEXT
);

CREATE TABLE certificates (
    serial TEXT PRIMARY KEY NOT NULL,
    host TEXT NOT NULL,
    not_after BIGINT NOT NULL,
    revoked BIGINT
);
CREATE INDEX certificates_by_host ON certificates (host);

-- One-time tokens of hosts, by the SHA-256 of their secret.
CREATE TABLE join_tokens (
    digest TEXT PRIMARY KEY NOT NULL,
    site TEXT NOT NULL,
    -- The only host that may use it, if it is for one.
    host TEXT,
    expires BIGINT NOT NULL,
    used BIGINT,
    used_by TEXT
);

-- Tokens of people and programs, by the SHA-256 of their secret.
CREATE TABLE api_tokens (
    id TEXT PRIMARY KEY NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    made BIGINT NOT NULL,
    expires BIGINT,
    revoked BIGINT
);

CREATE TABLE migrations (
    id TEXT PRIMARY KEY NOT NULL,
    vm TEXT NOT NULL,
    source TEXT NOT NULL,
    destination TEXT NOT NULL,
    -- 1 while something may still happen to the VM because of it.
    holds_vm BIGINT NOT NULL,
    -- 1 when nothing will happen any more.
    ended BIGINT NOT NULL,
    created BIGINT NOT NULL,
    -- JSON, model::migration::Migration.
    body TEXT NOT NULL
);
CREATE INDEX migrations_open ON migrations (ended, source);
CREATE INDEX migrations_by_time ON migrations (created, id);
-- Two operators cannot move one VM at once.
CREATE UNIQUE INDEX migrations_one_a_vm ON migrations (source, vm) WHERE holds_vm = 1;

CREATE TABLE audit (
    number BIGINT PRIMARY KEY NOT NULL,
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    outcome TEXT NOT NULL,
    detail TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL
);

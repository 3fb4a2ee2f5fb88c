-- Plans, and hosts that take no VMs.
CREATE TABLE plans (
    id TEXT PRIMARY KEY NOT NULL,
    -- 1 when nothing will happen any more.
    ended BIGINT NOT NULL,
    -- 1 while its steps are done.
    runs BIGINT NOT NULL,
    created BIGINT NOT NULL,
    -- JSON, model::plan::Plan.
    body TEXT NOT NULL
);
CREATE INDEX plans_that_run ON plans (runs);
CREATE INDEX plans_by_time ON plans (created, id);

ALTER TABLE hosts ADD COLUMN cordoned BIGINT;

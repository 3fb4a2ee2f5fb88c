-- Requests with an Idempotency-Key, and what was answered. What is done is noted in the transaction that does it.
CREATE TABLE claims (
    caller TEXT NOT NULL,
    request_key TEXT NOT NULL,
    -- SHA-256 of the request.
    digest TEXT NOT NULL,
    -- The run of the coordinator that works on it: what another run left undone was not done.
    run TEXT NOT NULL,
    at BIGINT NOT NULL,
    -- 1 once it is done.
    done BIGINT NOT NULL,
    -- The answer; none if it held a secret.
    status BIGINT,
    body TEXT,
    PRIMARY KEY (caller, request_key)
);
CREATE INDEX claims_by_time ON claims (at);

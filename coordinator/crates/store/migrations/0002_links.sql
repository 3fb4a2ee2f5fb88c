-- Links between sites. Times are milliseconds since 1970 UTC.
CREATE TABLE links (
    name TEXT PRIMARY KEY NOT NULL,
    -- JSON, model::link::Link.
    body TEXT NOT NULL,
    -- model::link::State, and since when.
    state TEXT NOT NULL,
    since BIGINT,
    -- JSON, model::link::Measured: the last that came through.
    measured TEXT
);

-- The last probes of each link.
CREATE TABLE link_probes (
    link TEXT NOT NULL,
    at BIGINT NOT NULL,
    -- JSON, model::link::Measured; NULL when nothing came through.
    measured TEXT,
    PRIMARY KEY (link, at)
);

-- The registry of agents, and what is stopped: a row for each, as JSON, until
-- it is forgotten. `meta.rights`
-- is the newest version, so that who has read up to it need not read again.
CREATE TABLE rights (
    key text PRIMARY KEY,
    record bytea NOT NULL,
    until_ms bigint,
    version bigint NOT NULL
);
CREATE INDEX rights_version ON rights (version);
CREATE INDEX rights_end ON rights (until_ms) WHERE until_ms IS NOT NULL;
ALTER TABLE meta ADD COLUMN rights bigint NOT NULL DEFAULT 0;

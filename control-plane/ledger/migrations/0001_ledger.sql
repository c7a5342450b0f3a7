-- The ledger on PostgreSQL: one log per database. What each table is for, and
-- what one who can write it could do, is in docs/decisions/0007-postgresql-ledger.md.
-- Times are milliseconds since the Unix epoch, hashes are SHA-256.

-- Which log this is, and which server it was on when it was last written.
CREATE TABLE meta (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    log bytea NOT NULL CHECK (octet_length(log) = 16),
    format integer NOT NULL,
    epoch bigint NOT NULL,
    identity text NOT NULL,
    timeline text NOT NULL,
    suspended bytea
);

-- One row for each agent that ever got a token: what issuing locks, and what
-- takes an agent's rights away. `outstanding` is never less than the truth.
CREATE TABLE agents (
    agent text PRIMARY KEY,
    status text NOT NULL DEFAULT 'active',
    outstanding bigint NOT NULL DEFAULT 0
);

-- What can still be spent. Spending deletes the row; absence refuses.
CREATE TABLE tokens (
    hash bytea PRIMARY KEY,
    agent text NOT NULL,
    expires_ms bigint NOT NULL,
    record bytea NOT NULL,
    held_by text,
    held_since_ms bigint,
    request_id bytea
);
CREATE INDEX tokens_agent ON tokens (agent);
CREATE INDEX tokens_end ON tokens (expires_ms) WHERE held_by IS NULL;
CREATE INDEX tokens_held ON tokens (held_since_ms, hash) WHERE held_by IS NOT NULL;

-- The one use of a token: which attempt has it, and what became of it. `outcome`
-- is null while it is held, 0 unknown, positive an upstream status, -1 not
-- forwarded, -2 refused, -3 lapsed.
CREATE TABLE uses (
    hash bytea PRIMARY KEY,
    attempt text NOT NULL UNIQUE,
    record bytea NOT NULL,
    until_ms bigint NOT NULL,
    outcome integer,
    awaited boolean NOT NULL
) WITH (fillfactor = 90);
CREATE INDEX uses_end ON uses (until_ms);

-- Under which keys a piece of evidence was shown.
CREATE TABLE evidence (
    id bytea PRIMARY KEY,
    agent text NOT NULL,
    keys bytea NOT NULL,
    until_ms bigint NOT NULL
);
CREATE INDEX evidence_agent ON evidence (agent, until_ms);
CREATE INDEX evidence_end ON evidence (until_ms);

-- Approvals and discovered agents. They change in one order, in which `version`
-- counts, so that a replica can ask for what changed since.
CREATE SEQUENCE changes;
CREATE TABLE approvals (
    id text PRIMARY KEY,
    digest bytea NOT NULL,
    agent text NOT NULL,
    expires_ms bigint NOT NULL,
    record bytea NOT NULL,
    opened bigint NOT NULL,
    ended bigint,
    version bigint NOT NULL
);
CREATE INDEX approvals_open ON approvals (digest, opened) WHERE ended IS NULL;
CREATE INDEX approvals_open_agent ON approvals (agent) WHERE ended IS NULL;
CREATE INDEX approvals_ended ON approvals (ended) WHERE ended IS NOT NULL;
CREATE INDEX approvals_version ON approvals (version);
CREATE TABLE discovered (
    agent text PRIMARY KEY,
    at_ms bigint NOT NULL,
    version bigint NOT NULL
);
CREATE INDEX discovered_version ON discovered (version);

-- What was committed together. `token` is how a replica whose connection was cut
-- finds out. The sequencer gives a group its place: until then `first_index` is null.
CREATE SEQUENCE group_ids;
CREATE TABLE groups (
    id bigint PRIMARY KEY,
    token bytea NOT NULL UNIQUE,
    epoch bigint NOT NULL,
    time_ms bigint NOT NULL,
    count integer NOT NULL CHECK (count > 0),
    first_index bigint UNIQUE,
    line_time_ms bigint,
    prev bytea,
    leaves bytea,
    CHECK ((first_index IS NULL) = (leaves IS NULL)),
    CHECK (leaves IS NULL OR octet_length(leaves) = 32 * count)
);
CREATE INDEX groups_waiting ON groups (id) WHERE first_index IS NULL;

-- Entries: a line up to where its place goes, and what stands beside it.
CREATE TABLE entries (
    group_id bigint NOT NULL,
    n integer NOT NULL,
    kind text NOT NULL,
    head bytea NOT NULL,
    attached bytea NOT NULL,
    PRIMARY KEY (group_id, n)
) WITH (toast_tuple_target = 8160);
ALTER TABLE entries ALTER COLUMN head SET STORAGE EXTERNAL;
ALTER TABLE entries ALTER COLUMN attached SET STORAGE EXTERNAL;

-- Who gives places, under a fence that only grows, and how far it has come.
CREATE TABLE sequencer (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    fence bigint NOT NULL,
    holder bytea,
    until timestamptz NOT NULL,
    entries bigint NOT NULL,
    head bytea NOT NULL,
    time_ms bigint NOT NULL
);
INSERT INTO sequencer (fence, until, entries, head, time_ms)
VALUES (0, 'epoch', 0, decode(repeat('00', 32), 'hex'), 0);

-- Written to prove that all before it is as durable as was promised.
CREATE TABLE barriers (
    id integer PRIMARY KEY,
    n bigint NOT NULL
);

-- The log as its lines, for whoever reads the database with SQL.
CREATE VIEW log AS
SELECT g.first_index + e.n AS index,
       convert_from(e.head, 'UTF8')
       || ',"epoch":' || g.epoch
       || ',"i":' || (g.first_index + e.n)
       || ',"kind":"' || e.kind
       || '","prev":"' || encode(CASE WHEN e.n = 0 THEN g.prev
                                 ELSE substring(g.leaves FROM 32 * e.n - 31 FOR 32) END, 'hex')
       || '","t":' || g.line_time_ms || '}' AS line,
       substring(g.leaves FROM 32 * e.n + 1 FOR 32) AS leaf,
       e.attached
FROM groups g JOIN entries e ON e.group_id = g.id
WHERE g.first_index IS NOT NULL;

-- When agents were last seen, as replicas keep it every few minutes: beside the log, and
-- read by no decision.
CREATE TABLE seen (
    agent text PRIMARY KEY,
    seen_ms bigint NOT NULL
);

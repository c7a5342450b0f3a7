-- When agents were last seen, as replicas keep it every few minutes: beside the log, and
-- read by no decision. A replica asks for what was written since it last asked, by the
-- server's clock.
CREATE TABLE seen (
    agent text PRIMARY KEY,
    seen_ms bigint NOT NULL,
    written_ms bigint NOT NULL
);

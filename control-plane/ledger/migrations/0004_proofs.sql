-- Proofs of exchanges that were used, and by which: one that is here is not used again.
-- They are kept for as long as they would be taken.
CREATE TABLE proofs (
    id bytea PRIMARY KEY,
    used_by text NOT NULL,
    until_ms bigint NOT NULL
);
CREATE INDEX proofs_end ON proofs (until_ms);

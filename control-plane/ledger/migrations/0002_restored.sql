-- The last epoch that began because a backup, or what an earlier server had,
-- stands in for what was lost: what a replica remembers from before it is void.
ALTER TABLE meta ADD COLUMN restored bigint NOT NULL DEFAULT 0;

-- Nothing ever read it: whether an agent may act is the registry's to say.
ALTER TABLE agents DROP COLUMN status;

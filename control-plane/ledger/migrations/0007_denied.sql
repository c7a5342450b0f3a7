-- What a person said no to is kept apart from what ended otherwise.
ALTER TABLE approvals ADD COLUMN denied boolean NOT NULL DEFAULT false;
UPDATE approvals SET denied = true
  WHERE ended IS NOT NULL AND convert_from(record, 'UTF8')::jsonb ->> 'state' = 'denied';
-- Replicas of before would forget one for the other: they are to stop.
UPDATE meta SET format = 3;

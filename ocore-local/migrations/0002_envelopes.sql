-- Settings get the envelope of all stored forms: one that a newer ocore wrote can be told from a damaged one.
UPDATE lanes SET settings = '{"v":1,"is":' || settings || '}';

-- The deployment that is gone back to, by a rollback or by another try of one. It keeps old snapshots.
ALTER TABLE deployments ADD COLUMN target BLOB;
UPDATE deployments SET target = unhex(replace(record ->> '$.is.request.goal.rollback.to', '-', ''))
WHERE json_valid(record);
CREATE INDEX deployments_target ON deployments (target) WHERE target IS NOT NULL;

-- The order of acceptance over all lanes: ids follow clocks, which can be wrong.
ALTER TABLE deployments ADD COLUMN number INTEGER;
UPDATE deployments SET number = rowid;
CREATE UNIQUE INDEX deployments_number ON deployments (number);

PRAGMA user_version = 2;

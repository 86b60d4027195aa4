-- Who paused the environment last.
ALTER TABLE lanes ADD COLUMN paused_by TEXT;
UPDATE lanes SET paused_by = '' WHERE paused;

PRAGMA user_version = 3;

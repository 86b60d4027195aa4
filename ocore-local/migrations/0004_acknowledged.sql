-- The stranded deployments that were acknowledged since something last became Running: their ids, one after the other.
ALTER TABLE lanes ADD COLUMN acknowledged BLOB NOT NULL DEFAULT x'';

PRAGMA user_version = 4;

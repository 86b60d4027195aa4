-- Who keeps the snapshots of a deployment, whatever retention says. `ends_at` is NULL until somebody takes the pin away.
CREATE TABLE pins (
    environment TEXT NOT NULL REFERENCES lanes (name),
    deployment BLOB NOT NULL,
    pinned_by TEXT NOT NULL,
    why TEXT NOT NULL,
    pinned_at INTEGER NOT NULL,
    ends_at INTEGER,
    unpinned_by TEXT,
    PRIMARY KEY (environment, deployment),
    CHECK (unpinned_by IS NULL OR ends_at IS NOT NULL)
) STRICT, WITHOUT ROWID;

PRAGMA user_version = 5;

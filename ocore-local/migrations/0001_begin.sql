-- Times of the wall clock are nanoseconds since 1970; `due` and `lease_end` are nanoseconds of the machine's
-- monotonic clock since it was booted; ids are their 16 bytes; records are ocore's stored form.

CREATE TABLE machine (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    boot TEXT NOT NULL
) STRICT;

CREATE TABLE workers (
    id BLOB PRIMARY KEY,
    lease_end INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- An environment and its lane. A lane that can be claimed has a ticket: its place in the line.
CREATE TABLE lanes (
    name TEXT PRIMARY KEY,
    pool TEXT NOT NULL,
    settings TEXT NOT NULL,
    paused INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1)),
    attention BLOB,
    live TEXT,
    active BLOB,
    next BLOB,
    ticket INTEGER,
    due INTEGER NOT NULL DEFAULT 0,
    holder BLOB REFERENCES workers (id),
    lost_if_forgotten INTEGER NOT NULL DEFAULT 0 CHECK (lost_if_forgotten IN (0, 1)),
    fence INTEGER NOT NULL DEFAULT 0,
    seq INTEGER NOT NULL DEFAULT 0,
    CHECK (holder IS NULL OR active IS NOT NULL),
    CHECK (holder IS NULL OR ticket IS NULL),
    CHECK (next IS NULL OR (active IS NULL AND ticket IS NOT NULL))
) STRICT;

CREATE INDEX lanes_ticket ON lanes (ticket) WHERE ticket IS NOT NULL;
CREATE INDEX lanes_free ON lanes (pool, ticket) WHERE next IS NOT NULL;
CREATE INDEX lanes_waiting ON lanes (pool, due, ticket) WHERE active IS NOT NULL AND holder IS NULL;
CREATE INDEX lanes_held ON lanes (holder, name) WHERE holder IS NOT NULL;

CREATE TABLE deployments (
    id BLOB PRIMARY KEY,
    environment TEXT NOT NULL REFERENCES lanes (name),
    seq INTEGER NOT NULL,
    version INTEGER NOT NULL,
    phase TEXT NOT NULL CHECK (phase IN ('waiting', 'active', 'over')),
    status TEXT NOT NULL,
    trigger_kind TEXT NOT NULL,
    key TEXT,
    requested_at INTEGER NOT NULL,
    answers BLOB,
    recovers BLOB,
    replaced BLOB,
    record TEXT NOT NULL,
    -- What the last commit was answered, for when it is made again.
    receipt_worker BLOB,
    receipt_fence INTEGER,
    receipt_answer TEXT CHECK (receipt_answer IN ('continued', 'released', 'finished')),
    receipt_next BLOB,
    receipt_next_fence INTEGER,
    -- The log, in short.
    log_last INTEGER NOT NULL DEFAULT 0,
    log_head_bytes INTEGER NOT NULL DEFAULT 0,
    log_head_full INTEGER NOT NULL DEFAULT 0 CHECK (log_head_full IN (0, 1)),
    log_tail_bytes INTEGER NOT NULL DEFAULT 0,
    UNIQUE (environment, seq),
    CHECK ((phase = 'over') = (status IN ('Running', 'Failed', 'RolledBack', 'Cancelled'))),
    CHECK ((phase = 'waiting') = (status = 'Queued'))
) STRICT;

CREATE UNIQUE INDEX deployments_key ON deployments (environment, key) WHERE key IS NOT NULL;
CREATE UNIQUE INDEX deployments_active ON deployments (environment) WHERE phase = 'active';
CREATE INDEX deployments_waiting ON deployments (environment, seq) WHERE phase = 'waiting';
CREATE INDEX deployments_answers ON deployments (answers) WHERE answers IS NOT NULL;
CREATE INDEX deployments_replaced ON deployments (replaced) WHERE replaced IS NOT NULL;

-- `bytes` is above zero for the lines that may be cut: those after the head.
CREATE TABLE events (
    deployment BLOB NOT NULL REFERENCES deployments (id),
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    kind TEXT NOT NULL,
    PRIMARY KEY (deployment, seq)
) STRICT, WITHOUT ROWID;

CREATE INDEX events_tail ON events (deployment, seq, bytes) WHERE bytes > 0;

CREATE TABLE snapshots (
    environment TEXT NOT NULL REFERENCES lanes (name),
    reference TEXT NOT NULL,
    deployment BLOB NOT NULL,
    instance TEXT NOT NULL,
    taken_at INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    window TEXT,
    retired INTEGER NOT NULL DEFAULT 0 CHECK (retired IN (0, 1)),
    PRIMARY KEY (environment, reference)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER the_fence_never_falls BEFORE UPDATE OF fence ON lanes WHEN new.fence < old.fence
BEGIN SELECT raise(ABORT, 'the fence of a lane never falls'); END;

CREATE TRIGGER numbers_never_fall BEFORE UPDATE OF seq ON lanes WHEN new.seq < old.seq
BEGIN SELECT raise(ABORT, 'the numbers of a lane never fall'); END;

CREATE TRIGGER over_is_over BEFORE UPDATE OF phase, record, version ON deployments
WHEN old.phase = 'over' AND (new.phase <> 'over' OR new.record <> old.record OR new.version <> old.version)
BEGIN SELECT raise(ABORT, 'a deployment that is over does not change'); END;

CREATE TRIGGER versions_follow BEFORE UPDATE OF version ON deployments
WHEN new.version NOT IN (old.version, old.version + 1)
BEGIN SELECT raise(ABORT, 'a version follows the one before'); END;

-- "ocor" in ASCII: files of other programs are not touched.
PRAGMA application_id = 1868787570;
PRAGMA user_version = 1;

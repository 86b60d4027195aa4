-- Who keeps the snapshots of a deployment, whatever retention says. Times are nanoseconds since 1970; `ends_at` is null
-- until somebody takes the pin away.
CREATE TABLE ocore.pins (
    environment text COLLATE "C" NOT NULL REFERENCES ocore.environments (name),
    deployment uuid NOT NULL,
    pinned_by text NOT NULL,
    why text NOT NULL,
    pinned_at bigint NOT NULL,
    ends_at bigint,
    unpinned_by text,
    PRIMARY KEY (environment, deployment),
    CHECK (unpinned_by IS NULL OR ends_at IS NOT NULL)
);

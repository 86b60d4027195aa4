-- Seams: places at which a session waits until it may go on. The number of a seam is that of a lock which whoever steps the
-- session holds; who holds none lets it pass.

CREATE FUNCTION ocore.pause(kind text, place text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    session integer := current_setting('stepped.session');
    -- Of a sequence: it counts on when the transaction is rolled back.
    seam integer := nextval(format('ocore.seams_%s', session));
BEGIN
    IF NOT pg_try_advisory_lock_shared(session, seam) THEN
        -- Sent at once, before the wait.
        RAISE NOTICE 'seam % % %', seam, kind, place;
        PERFORM pg_advisory_lock_shared(session, seam);
    END IF;
    PERFORM pg_advisory_unlock_shared(session, seam);
END $$;

-- Before a statement, whose snapshot is not taken yet. One that locks rows which it has found waits once more, with its
-- snapshot, as a step of the kind `next_kind`: see `row_seam`.
CREATE FUNCTION ocore.seam(kind text, place text, next_kind text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(current_setting('stepped.session', true), '') <> '' THEN
        PERFORM ocore.pause(kind, place);
        PERFORM set_config('stepped.next_kind', next_kind, false);
    END IF;
END $$;

-- Within a statement that locks: its snapshot is taken, its first row is found, not locked and not looked at.
CREATE FUNCTION ocore.row_seam() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    kind text := coalesce(current_setting('stepped.next_kind', true), '');
BEGIN
    IF coalesce(current_setting('stepped.session', true), '') = '' THEN
        RETURN true;
    ELSIF kind = '' AND current_query() ~ '^\s*(UPDATE|INSERT|DELETE|WITH)|FOR UPDATE'
          AND current_setting('stepped.statement', true) IS DISTINCT FROM statement_timestamp()::text THEN
        kind := 'Locks(255)';
        PERFORM set_config('stepped.statement', statement_timestamp()::text, false);
    END IF;
    IF kind <> '' THEN
        PERFORM set_config('stepped.next_kind', '', false);
        PERFORM ocore.pause(kind, 'with its snapshot');
    END IF;
    RETURN true;
END $$;

ALTER TABLE ocore.workers ENABLE ROW LEVEL SECURITY;
ALTER TABLE ocore.lanes ENABLE ROW LEVEL SECURITY;
ALTER TABLE ocore.deployments ENABLE ROW LEVEL SECURITY;
CREATE POLICY seam ON ocore.workers USING (ocore.row_seam()) WITH CHECK (true);
CREATE POLICY seam ON ocore.lanes USING (ocore.row_seam()) WITH CHECK (true);
CREATE POLICY seam ON ocore.deployments USING (ocore.row_seam()) WITH CHECK (true);

-- A clock that stands still, and fences that do not follow it: the same steps lead to the same rows.
CREATE TABLE ocore.clock AS SELECT timestamptz '2000-01-01' AS now;
CREATE OR REPLACE FUNCTION ocore.now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT now FROM ocore.clock';
CREATE OR REPLACE FUNCTION ocore.fence_min() RETURNS bigint LANGUAGE sql VOLATILE AS 'SELECT 0::bigint';

-- Nothing makes other plans while sessions are stepped.
ALTER TABLE ocore.workers SET (autovacuum_enabled = off);
ALTER TABLE ocore.lanes SET (autovacuum_enabled = off);
ALTER TABLE ocore.deployments SET (autovacuum_enabled = off);

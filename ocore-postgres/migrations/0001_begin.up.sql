-- Times of the wall clock that the client's records hold are nanoseconds since 1970. Leases and waits go by the server's
-- clock alone. Records are ocore's stored form.

CREATE TABLE ocore.workers (
    id uuid PRIMARY KEY,
    lease_end timestamptz NOT NULL,
    -- Rescued or retired: refused for ever, whatever the clock says.
    over boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);

CREATE TABLE ocore.environments (
    name text COLLATE "C" PRIMARY KEY,
    settings text NOT NULL,
    live text,
    paused_by text
);

-- A lane is an environment's queue, and the unit of claiming. A lane that can be claimed has a ticket: its place in the line.
CREATE TABLE ocore.lanes (
    name text COLLATE "C" PRIMARY KEY REFERENCES ocore.environments (name),
    pool text COLLATE "C" NOT NULL,
    paused boolean NOT NULL DEFAULT false,
    attention uuid,
    acknowledged uuid[] NOT NULL DEFAULT '{}',
    active uuid,
    next uuid,
    ticket bigint,
    due timestamptz NOT NULL DEFAULT '-infinity',
    holder uuid,
    lost_if_forgotten boolean NOT NULL DEFAULT false,
    fence bigint NOT NULL DEFAULT 0,
    seq bigint NOT NULL DEFAULT 0,
    CHECK (holder IS NULL OR active IS NOT NULL),
    CHECK (holder IS NULL OR ticket IS NULL),
    CHECK (next IS NULL OR (active IS NULL AND ticket IS NOT NULL))
) WITH (fillfactor = 50);

CREATE INDEX lanes_free ON ocore.lanes (pool, ticket) WHERE next IS NOT NULL;
CREATE INDEX lanes_waiting ON ocore.lanes (pool, due, ticket) WHERE active IS NOT NULL AND holder IS NULL;
CREATE INDEX lanes_held ON ocore.lanes (holder, name) WHERE holder IS NOT NULL;

CREATE SEQUENCE ocore.tickets;

CREATE TABLE ocore.deployments (
    id uuid PRIMARY KEY,
    environment text COLLATE "C" NOT NULL REFERENCES ocore.environments (name),
    seq bigint NOT NULL,
    -- The order of acceptance over all lanes: ids follow clocks, which can be wrong.
    number bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    version bigint NOT NULL,
    begun boolean NOT NULL,
    cancel text,
    phase text NOT NULL CHECK (phase IN ('waiting', 'active', 'over')),
    status text NOT NULL,
    trigger_kind text NOT NULL,
    key text,
    requested_at bigint NOT NULL,
    answers uuid,
    recovers uuid,
    target uuid,
    replaced uuid,
    record text NOT NULL,
    -- What the last commit was answered, for when it is made again.
    receipt_worker uuid,
    receipt_fence bigint,
    receipt_answer text CHECK (receipt_answer IN ('continued', 'released', 'finished')),
    receipt_next uuid,
    receipt_next_fence bigint,
    -- The log, in short.
    log_last bigint NOT NULL DEFAULT 0,
    log_head_bytes bigint NOT NULL DEFAULT 0,
    log_head_full boolean NOT NULL DEFAULT false,
    log_tail_bytes bigint NOT NULL DEFAULT 0,
    UNIQUE (environment, seq),
    CHECK ((phase = 'over') = (status IN ('Running', 'Failed', 'RolledBack', 'Cancelled'))),
    CHECK ((phase = 'waiting') = (status = 'Queued'))
) WITH (fillfactor = 80);

CREATE UNIQUE INDEX deployments_key ON ocore.deployments (environment, key) WHERE key IS NOT NULL;
CREATE UNIQUE INDEX deployments_active ON ocore.deployments (environment) WHERE phase = 'active';
CREATE INDEX deployments_waiting ON ocore.deployments (environment, seq) WHERE phase = 'waiting';
CREATE INDEX deployments_answers ON ocore.deployments (answers) WHERE answers IS NOT NULL;
CREATE INDEX deployments_target ON ocore.deployments (target) WHERE target IS NOT NULL;
CREATE INDEX deployments_replaced ON ocore.deployments (replaced) WHERE replaced IS NOT NULL;

-- `bytes` is above zero for the lines that may be cut: those after the head.
CREATE TABLE ocore.events (
    deployment uuid NOT NULL,
    seq bigint NOT NULL,
    at bigint NOT NULL,
    bytes bigint NOT NULL,
    kind text NOT NULL,
    PRIMARY KEY (deployment, seq)
);

CREATE TABLE ocore.snapshots (
    environment text COLLATE "C" NOT NULL REFERENCES ocore.environments (name),
    reference text COLLATE "C" NOT NULL,
    deployment uuid NOT NULL,
    instance text NOT NULL,
    taken_at bigint NOT NULL,
    size_bytes bigint NOT NULL,
    lost_window text,
    retired boolean NOT NULL DEFAULT false,
    PRIMARY KEY (environment, reference)
);

-- The clock that decides about leases and waits.
CREATE FUNCTION ocore.now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()';

-- What a fence that is claimed is not below: the milliseconds of the wall clock. A database that is begun anew, or restored
-- from a backup, so goes on above every fence that was given before, which the world may remember.
CREATE FUNCTION ocore.fence_min() RETURNS bigint LANGUAGE sql VOLATILE
AS 'SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint';

-- The deployment that a lane starts next: the first one; while it needs a person, only the recovery of what it waits for; none
-- while another is under way or the environment is paused.
CREATE FUNCTION ocore.runnable(lane ocore.lanes) RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF lane.active IS NOT NULL THEN
        RETURN NULL;
    ELSIF lane.attention IS NOT NULL THEN
        RETURN (SELECT d.id FROM ocore.deployments d
                WHERE d.environment = lane.name AND d.phase = 'waiting' AND d.recovers = lane.attention
                ORDER BY d.seq LIMIT 1);
    ELSIF lane.paused THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT d.id FROM ocore.deployments d
            WHERE d.environment = lane.name AND d.phase = 'waiting' ORDER BY d.seq LIMIT 1);
END $$;

-- The place of a lane in the line, kept right by every change of it: `next` and `ticket` follow from the rest.
CREATE FUNCTION ocore.place_lane() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    was text := CASE WHEN old.ticket IS NULL THEN 'nowhere' WHEN old.active IS NULL THEN 'free' ELSE 'waiting' END;
    is_now text;
BEGIN
    IF new.fence < old.fence THEN
        RAISE EXCEPTION 'the fence of a lane never falls' USING ERRCODE = 'check_violation';
    ELSIF new.seq < old.seq THEN
        RAISE EXCEPTION 'the numbers of a lane never fall' USING ERRCODE = 'check_violation';
    END IF;
    new.next := ocore.runnable(new);
    is_now := CASE WHEN new.holder IS NOT NULL THEN 'nowhere' WHEN new.active IS NOT NULL THEN 'waiting'
                   WHEN new.next IS NOT NULL THEN 'free' ELSE 'nowhere' END;
    new.ticket := CASE WHEN is_now = 'nowhere' THEN NULL WHEN is_now = was THEN old.ticket
                       ELSE nextval('ocore.tickets') END;
    RETURN new;
END $$;

CREATE TRIGGER place BEFORE UPDATE ON ocore.lanes FOR EACH ROW EXECUTE FUNCTION ocore.place_lane();

CREATE FUNCTION ocore.guard_deployment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF old.phase = 'over' AND (new.phase, new.status, new.version, new.record, new.cancel)
            IS DISTINCT FROM (old.phase, old.status, old.version, old.record, old.cancel) THEN
        RAISE EXCEPTION 'a deployment that is over does not change' USING ERRCODE = 'check_violation';
    ELSIF old.phase = 'active' AND new.phase = 'waiting' AND new.version > 1 THEN
        RAISE EXCEPTION 'a deployment that was begun does not wait again' USING ERRCODE = 'check_violation';
    ELSIF new.version NOT IN (old.version, old.version + 1) THEN
        RAISE EXCEPTION 'a version follows the one before' USING ERRCODE = 'check_violation';
    END IF;
    RETURN new;
END $$;

CREATE TRIGGER guard BEFORE UPDATE ON ocore.deployments FOR EACH ROW EXECUTE FUNCTION ocore.guard_deployment();

-- Registers a worker or extends its lease; a row for each lane that it holds, or one without a lane.
CREATE FUNCTION ocore.heartbeat(me uuid, lease_micros bigint)
RETURNS TABLE (alive boolean, lane text, deployment uuid, fence bigint, is_cancelled boolean) LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz := ocore.now();
BEGIN
    INSERT INTO ocore.workers AS w (id, lease_end)
    VALUES (me, moment + lease_micros * interval '1 microsecond')
    ON CONFLICT (id) DO UPDATE SET lease_end = excluded.lease_end WHERE NOT w.over AND w.lease_end > moment;
    IF NOT FOUND THEN
        RETURN QUERY SELECT false, NULL::text, NULL::uuid, NULL::bigint, NULL::boolean;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT true, held.name, held.active, held.fence, held.cancel IS NOT NULL
    FROM (SELECT) AS one LEFT JOIN (
        SELECT l.name, l.active, l.fence, d.cancel
        FROM ocore.lanes l JOIN ocore.deployments d ON d.id = l.active WHERE l.holder = me
    ) AS held ON true
    ORDER BY held.name;
END $$;

-- What a worker is given with a lane.
CREATE TYPE ocore.work AS (
    lane text,
    deployment uuid,
    record text,
    seq bigint,
    version bigint,
    cancel text,
    settings text,
    live text,
    acknowledged uuid[],
    fence bigint,
    lost boolean,
    -- Whose lane it was, and whether the deployment waited in the queue: for when it is given back.
    holder_before uuid,
    waited boolean
);

CREATE FUNCTION ocore.work_on(lane ocore.lanes, lost boolean, holder_before uuid, waited boolean)
RETURNS ocore.work LANGUAGE sql VOLATILE AS $$
    SELECT (lane).name, d.id, d.record, d.seq, d.version, d.cancel, e.settings, e.live, (lane).acknowledged, (lane).fence,
           lost, holder_before, waited
    FROM ocore.deployments d, ocore.environments e WHERE d.id = (lane).active AND e.name = (lane).name
$$;

-- Marks the deployment that a worker takes as begun.
CREATE FUNCTION ocore.begin(it uuid) RETURNS void LANGUAGE sql VOLATILE AS $$
    UPDATE ocore.deployments SET begun = true, phase = 'active',
           status = CASE WHEN phase = 'waiting' THEN 'Building' ELSE status END
    WHERE id = it
$$;

-- Claims a lane: one that the worker holds and does not know of, an abandoned one, one whose wait is over, a free one.
CREATE FUNCTION ocore.claim(
    me uuid, pools text[], busy text[], skipped text[], OUT answer text, OUT next_micros bigint, OUT work ocore.work
) LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz := ocore.now();
    lane ocore.lanes;
    lost boolean;
    holder_before uuid;
    waited boolean;
BEGIN
    IF NOT EXISTS (SELECT FROM ocore.workers w WHERE w.id = me AND NOT w.over AND w.lease_end > moment) THEN
        answer := 'expired';
        RETURN;
    END IF;
    -- Lanes are locked alone, and what belongs to them is read afterwards: one statement would see the new lane with the
    -- deployments of before.
    SELECT l.* INTO lane FROM ocore.lanes l
    WHERE l.holder = me AND l.name <> ALL (busy) AND l.name <> ALL (skipped)
    ORDER BY l.name LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF lane.name IS NULL THEN
        SELECT l.* INTO lane FROM ocore.workers w JOIN ocore.lanes l ON l.holder = w.id
        WHERE w.id <> me AND (w.over OR w.lease_end <= moment) AND l.pool = ANY (pools) AND l.name <> ALL (skipped)
        ORDER BY w.lease_end, l.name LIMIT 1 FOR UPDATE OF w, l SKIP LOCKED;
        -- Its next heartbeat waits for this, and finds that it is over.
        UPDATE ocore.workers SET over = true WHERE id = lane.holder AND NOT over;
    END IF;
    IF lane.name IS NULL THEN
        SELECT l.* INTO lane FROM ocore.lanes l
        WHERE l.pool = ANY (pools) AND l.active IS NOT NULL AND l.holder IS NULL AND l.due <= moment
          AND l.name <> ALL (skipped)
        ORDER BY l.due, l.ticket LIMIT 1 FOR UPDATE SKIP LOCKED;
    END IF;
    IF lane.name IS NULL AND cardinality(pools) = 1 THEN
        SELECT l.* INTO lane FROM ocore.lanes l
        WHERE l.pool = pools[1] AND l.next IS NOT NULL AND l.name <> ALL (skipped)
        ORDER BY l.ticket LIMIT 1 FOR UPDATE SKIP LOCKED;
    ELSIF lane.name IS NULL THEN
        SELECT l.* INTO lane FROM ocore.lanes l
        WHERE l.pool = ANY (pools) AND l.next IS NOT NULL AND l.name <> ALL (skipped)
        ORDER BY l.ticket LIMIT 1 FOR UPDATE SKIP LOCKED;
    END IF;
    IF lane.name IS NULL THEN
        answer := 'idle';
        SELECT (extract(epoch FROM min(waits.until) - moment) * 1000000)::bigint INTO next_micros FROM (
            SELECT l.due AS until FROM ocore.lanes l
            WHERE l.pool = ANY (pools) AND l.active IS NOT NULL AND l.holder IS NULL AND l.due > '-infinity'
            UNION ALL
            SELECT w.lease_end FROM ocore.workers w JOIN ocore.lanes l ON l.holder = w.id
            WHERE w.id <> me AND l.pool = ANY (pools)
        ) AS waits;
        RETURN;
    END IF;
    answer := 'work';
    lost := lane.holder IS NOT NULL AND (lane.holder <> me OR lane.lost_if_forgotten);
    holder_before := lane.holder;
    waited := lane.active IS NULL;
    lane.active := coalesce(lane.active, lane.next);
    PERFORM ocore.begin(lane.active);
    UPDATE ocore.lanes SET active = lane.active, holder = me, lost_if_forgotten = lost,
           fence = greatest(fence + 1, ocore.fence_min())
    WHERE name = lane.name RETURNING * INTO lane;
    work := ocore.work_on(lane, lost, holder_before, waited);
END $$;

-- The log of a deployment in short, as it is counted.
CREATE TYPE ocore.log AS (last bigint, head_bytes bigint, head_full boolean, tail_bytes bigint);

-- Writes events and says what the log then holds; the caller keeps it. The tail is cut when it has outgrown its limit.
CREATE FUNCTION ocore.write_events(
    it uuid, log ocore.log, ats bigint[], sizes bigint[], kinds text[], head_max bigint, tail_keep bigint, tail_max bigint
) RETURNS ocore.log LANGUAGE plpgsql AS $$
DECLARE
    before bigint := log.last;
    cut record;
BEGIN
    IF cardinality(kinds) = 0 THEN
        RETURN log;
    END IF;
    FOR i IN 1 .. cardinality(kinds) LOOP
        CONTINUE WHEN sizes[i] = 0;
        log.head_full := log.head_full OR log.head_bytes + sizes[i] > head_max;
        IF log.head_full THEN
            log.tail_bytes := log.tail_bytes + sizes[i];
        ELSE
            log.head_bytes := log.head_bytes + sizes[i];
            -- What belongs to the head counts for nothing in the tail, and is never cut.
            sizes[i] := 0;
        END IF;
    END LOOP;
    INSERT INTO ocore.events (deployment, seq, at, bytes, kind)
    SELECT it, before + new.number, new.at, new.size, new.kind
    FROM unnest(ats, sizes, kinds) WITH ORDINALITY AS new (at, size, kind, number);
    log.last := before + cardinality(kinds);
    IF log.tail_bytes > tail_max THEN
        -- The newest line that goes is the first one, from the newest on, that does not fit any more.
        SELECT tail.seq, tail.total - tail.bytes AS rest INTO cut FROM (
            SELECT e.seq, e.bytes, sum(e.bytes) OVER (ORDER BY e.seq DESC) AS total
            FROM ocore.events e WHERE e.deployment = it AND e.bytes > 0
        ) AS tail WHERE tail.total > tail_keep ORDER BY tail.seq DESC LIMIT 1;
        IF FOUND THEN
            DELETE FROM ocore.events e WHERE e.deployment = it AND e.seq <= cut.seq AND e.bytes > 0;
            log.tail_bytes := cut.rest;
        END IF;
    END IF;
    RETURN log;
END $$;

-- Appends events to a deployment's log.
CREATE FUNCTION ocore.append(
    it uuid, ats bigint[], sizes bigint[], kinds text[], head_max bigint, tail_keep bigint, tail_max bigint
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    log ocore.log;
BEGIN
    SELECT d.log_last, d.log_head_bytes, d.log_head_full, d.log_tail_bytes INTO log
    FROM ocore.deployments d WHERE d.id = it;
    log := ocore.write_events(it, log, ats, sizes, kinds, head_max, tail_keep, tail_max);
    UPDATE ocore.deployments d SET log_last = log.last, log_head_bytes = log.head_bytes,
        log_head_full = log.head_full, log_tail_bytes = log.tail_bytes
    WHERE d.id = it;
END $$;

-- Writes a deployment's next state. `next_is` is 'continue', 'release' or 'finish'.
CREATE FUNCTION ocore.commit(
    it uuid, environment text, me uuid, with_fence bigint, new_version bigint,
    new_record text, new_status text, new_phase text, new_begun boolean, new_replaced uuid,
    next_is text, fresh_fence boolean, after_micros bigint,
    new_live text, needs_person boolean, claim_next boolean, verdict boolean,
    ats bigint[], sizes bigint[], kinds text[], head_max bigint, tail_keep bigint, tail_max bigint,
    snapshots jsonb,
    OUT answer text, OUT fence bigint, OUT is_cancelled boolean, OUT work ocore.work
) LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz;
    lane ocore.lanes;
    stored ocore.deployments;
    log ocore.log;
    next_fence bigint;
BEGIN
    answer := 'fenced';
    SELECT l.* INTO lane FROM ocore.lanes l WHERE l.name = commit.environment FOR UPDATE;
    SELECT d.* INTO stored FROM ocore.deployments d WHERE d.id = it AND d.environment = lane.name;
    IF stored.id IS NULL THEN
        RETURN;
    END IF;
    is_cancelled := stored.cancel IS NOT NULL;
    IF (stored.version, stored.receipt_worker, stored.receipt_fence) = (new_version, me, with_fence) THEN
        answer := stored.receipt_answer;
        fence := stored.receipt_next_fence;
        IF answer = 'continued' AND (lane.active, lane.holder, lane.fence) IS DISTINCT FROM (it, me, fence) THEN
            answer := 'fenced';
        ELSIF answer = 'finished' AND (lane.active, lane.holder, lane.fence) = (stored.receipt_next, me, fence)
              AND (SELECT d.receipt_worker IS NULL FROM ocore.deployments d WHERE d.id = lane.active) THEN
            work := ocore.work_on(lane, false, NULL, true);
        END IF;
        RETURN;
    END IF;
    IF (lane.active, lane.holder, lane.fence) IS DISTINCT FROM (it, me, with_fence)
       OR new_version <> stored.version + 1 THEN
        RETURN;
    END IF;
    IF is_cancelled AND verdict THEN
        answer := 'cancelled';
        RETURN;
    END IF;
    moment := ocore.now();
    log := ocore.write_events(
        it, (stored.log_last, stored.log_head_bytes, stored.log_head_full, stored.log_tail_bytes)::ocore.log,
        ats, sizes, kinds, head_max, tail_keep, tail_max
    );
    INSERT INTO ocore.snapshots AS s
        (environment, reference, deployment, instance, taken_at, size_bytes, lost_window, retired)
    SELECT lane.name, n.reference, n.deployment, n.instance, n.taken_at, n.size_bytes, n.lost_window, n.retired
    FROM jsonb_to_recordset(snapshots) AS n (
        reference text, deployment uuid, instance text, taken_at bigint, size_bytes bigint, lost_window text, retired boolean
    )
    ON CONFLICT ON CONSTRAINT snapshots_pkey DO UPDATE SET
        deployment = excluded.deployment, instance = excluded.instance, taken_at = excluded.taken_at,
        size_bytes = excluded.size_bytes, lost_window = excluded.lost_window, retired = excluded.retired;
    fence := lane.fence;
    CASE next_is
    WHEN 'continue' THEN
        answer := 'continued';
        IF fresh_fence THEN
            fence := greatest(lane.fence + 1, ocore.fence_min());
        END IF;
        next_fence := fence;
    WHEN 'release' THEN
        answer := 'released';
    WHEN 'finish' THEN
        answer := 'finished';
    END CASE;
    UPDATE ocore.deployments d SET
        version = new_version, begun = new_begun, phase = new_phase, status = new_status, replaced = new_replaced,
        record = new_record, receipt_worker = me, receipt_fence = with_fence, receipt_answer = answer,
        receipt_next = NULL, receipt_next_fence = next_fence, log_last = log.last,
        log_head_bytes = log.head_bytes, log_head_full = log.head_full, log_tail_bytes = log.tail_bytes
    WHERE d.id = it;
    CASE next_is
    WHEN 'continue' THEN
        IF fresh_fence OR NOT lane.lost_if_forgotten THEN
            UPDATE ocore.lanes l SET fence = commit.fence, lost_if_forgotten = true WHERE l.name = lane.name;
        END IF;
    WHEN 'release' THEN
        UPDATE ocore.lanes l SET holder = NULL, lost_if_forgotten = false,
            due = moment + CASE WHEN is_cancelled THEN 0 ELSE after_micros END * interval '1 microsecond'
        WHERE l.name = lane.name;
    WHEN 'finish' THEN
        IF new_live IS NOT NULL THEN
            UPDATE ocore.environments e SET live = new_live WHERE e.name = lane.name;
        END IF;
        lane.active := NULL;
        lane.holder := NULL;
        lane.lost_if_forgotten := false;
        lane.due := '-infinity';
        IF verdict THEN
            lane.acknowledged := '{}';
        END IF;
        IF needs_person IS NOT NULL THEN
            lane.attention := CASE WHEN needs_person THEN it END;
        END IF;
        IF claim_next AND EXISTS (SELECT FROM ocore.workers w WHERE w.id = me AND NOT w.over AND w.lease_end > moment) THEN
            lane.active := ocore.runnable(lane);
        END IF;
        IF lane.active IS NOT NULL THEN
            lane.holder := me;
            lane.fence := greatest(lane.fence + 1, ocore.fence_min());
            PERFORM ocore.begin(lane.active);
            UPDATE ocore.deployments d SET receipt_next = lane.active, receipt_next_fence = lane.fence WHERE d.id = it;
        END IF;
        UPDATE ocore.lanes l SET active = lane.active, holder = lane.holder, fence = lane.fence, due = lane.due,
            lost_if_forgotten = false, acknowledged = lane.acknowledged, attention = lane.attention
        WHERE l.name = lane.name RETURNING l.* INTO lane;
        IF lane.active IS NOT NULL THEN
            work := ocore.work_on(lane, false, NULL, true);
        END IF;
    END CASE;
END $$;

-- Puts a lane back as it was before a claim: its worker cannot read what it was given.
CREATE FUNCTION ocore.give_back(lane text, me uuid, with_fence bigint, holder_before uuid, waited boolean)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    it ocore.lanes;
BEGIN
    SELECT l.* INTO it FROM ocore.lanes l WHERE l.name = lane AND l.holder = me AND l.fence = with_fence FOR UPDATE;
    IF it.name IS NULL THEN
        RETURN;
    END IF;
    UPDATE ocore.deployments d SET begun = holder_before IS NOT NULL,
        phase = CASE WHEN waited THEN 'waiting' ELSE d.phase END, status = CASE WHEN waited THEN 'Queued' ELSE d.status END
    WHERE d.id = it.active;
    UPDATE ocore.lanes l SET holder = holder_before, lost_if_forgotten = false,
        active = CASE WHEN waited THEN NULL ELSE l.active END
    WHERE l.name = it.name;
END $$;

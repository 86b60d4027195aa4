-- Back to one commit per transaction.

DROP FUNCTION ocore.accept;
DROP FUNCTION ocore.enter;
DROP FUNCTION ocore.commit;
DROP FUNCTION ocore.refuse;
DROP FUNCTION ocore.append;
DROP FUNCTION ocore.write_events;
DROP FUNCTION ocore.cut_tail;
DROP TYPE ocore.accepted;
DROP TYPE ocore.committed;
DROP TYPE ocore.sent;
DROP TYPE ocore.log;

DROP INDEX ocore.lanes_waiting;
CREATE INDEX lanes_waiting ON ocore.lanes (pool, due, ticket) WHERE active IS NOT NULL AND holder IS NULL;

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

CREATE OR REPLACE FUNCTION ocore.place_lane() RETURNS trigger LANGUAGE plpgsql AS $$
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

DROP FUNCTION ocore.runnable(text, uuid, uuid, boolean);
DROP TRIGGER place ON ocore.lanes;
CREATE TRIGGER place BEFORE UPDATE ON ocore.lanes FOR EACH ROW EXECUTE FUNCTION ocore.place_lane();
DROP TRIGGER guard ON ocore.deployments;
CREATE TRIGGER guard BEFORE UPDATE ON ocore.deployments FOR EACH ROW EXECUTE FUNCTION ocore.guard_deployment();

CREATE OR REPLACE FUNCTION ocore.claim(
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

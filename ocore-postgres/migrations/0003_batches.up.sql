-- Commits of several lanes in one transaction; fewer calls of functions for rows that keep their place; fewer messages for a
-- request.

DROP FUNCTION ocore.commit;
DROP FUNCTION ocore.append;
DROP FUNCTION ocore.write_events;
DROP TYPE ocore.log;

-- The deployment that a lane starts next: the first one; while it needs a person, only the recovery of what it waits for; none
-- while another is under way or the environment is paused.
CREATE FUNCTION ocore.runnable(lane text, active uuid, attention uuid, paused boolean)
RETURNS uuid LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF active IS NOT NULL THEN
        RETURN NULL;
    ELSIF attention IS NOT NULL THEN
        RETURN (SELECT d.id FROM ocore.deployments d
                WHERE d.environment = lane AND d.phase = 'waiting' AND d.recovers = attention ORDER BY d.seq LIMIT 1);
    ELSIF paused THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT d.id FROM ocore.deployments d
            WHERE d.environment = lane AND d.phase = 'waiting' ORDER BY d.seq LIMIT 1);
END $$;

CREATE OR REPLACE FUNCTION ocore.place_lane() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    was text := CASE WHEN old.ticket IS NULL THEN 'nowhere' WHEN old.active IS NULL THEN 'free' ELSE 'waiting' END;
    is_now text;
BEGIN
    IF new.fence < old.fence THEN
        RAISE EXCEPTION 'the fence of a lane never falls' USING ERRCODE = 'check_violation';
    ELSIF new.seq < old.seq THEN
        RAISE EXCEPTION 'the numbers of a lane never fall' USING ERRCODE = 'check_violation';
    END IF;
    new.next := ocore.runnable(new.name, new.active, new.attention, new.paused);
    is_now := CASE WHEN new.holder IS NOT NULL THEN 'nowhere' WHEN new.active IS NOT NULL THEN 'waiting'
                   WHEN new.next IS NOT NULL THEN 'free' ELSE 'nowhere' END;
    new.ticket := CASE WHEN is_now = 'nowhere' THEN NULL WHEN is_now = was THEN old.ticket
                       ELSE nextval('ocore.tickets') END;
    RETURN new;
END $$;

DROP FUNCTION ocore.runnable(ocore.lanes);

-- A lane that is held, before and after, has no place in the line.
DROP TRIGGER place ON ocore.lanes;
CREATE TRIGGER place BEFORE UPDATE ON ocore.lanes FOR EACH ROW
WHEN (new.holder IS NULL OR new.active IS NULL OR new.next IS NOT NULL OR new.ticket IS NOT NULL
      OR new.fence < old.fence OR new.seq < old.seq)
EXECUTE FUNCTION ocore.place_lane();

DROP TRIGGER guard ON ocore.deployments;
CREATE TRIGGER guard BEFORE UPDATE ON ocore.deployments FOR EACH ROW
WHEN (old.phase = 'over' OR (old.phase = 'active' AND new.phase = 'waiting')
      OR new.version NOT IN (old.version, old.version + 1))
EXECUTE FUNCTION ocore.guard_deployment();

-- What a commit changes of a lane that stays held is in no index: the row stays where it is.
DROP INDEX ocore.lanes_waiting;
CREATE INDEX lanes_waiting ON ocore.lanes (pool, due, ticket) WHERE ticket IS NOT NULL AND next IS NULL;

-- Claims a lane: one that the worker holds and does not know of, an abandoned one, one whose wait is over, a free one.
CREATE OR REPLACE FUNCTION ocore.claim(
    me uuid, pools text[], busy text[], skipped text[], OUT answer text, OUT next_micros bigint, OUT work ocore.work
) LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
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
    WHERE l.holder = me AND l.name NOT IN (SELECT unnest(busy)) AND l.name <> ALL (skipped)
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
        WHERE l.pool = ANY (pools) AND l.ticket IS NOT NULL AND l.next IS NULL AND l.due <= moment
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
            WHERE l.pool = ANY (pools) AND l.ticket IS NOT NULL AND l.next IS NULL AND l.due > '-infinity'
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
    UPDATE ocore.lanes SET active = lane.active, holder = me, lost_if_forgotten = lost, next = NULL, ticket = NULL,
           fence = greatest(fence + 1, ocore.fence_min())
    WHERE name = lane.name RETURNING * INTO lane;
    work := ocore.work_on(lane, lost, holder_before, waited);
END $$;

-- The log of a deployment in short, as it is counted, and its limits; `number` is whose events are its.
CREATE TYPE ocore.log AS (
    number integer,
    deployment uuid,
    last bigint,
    head_bytes bigint,
    head_full boolean,
    tail_bytes bigint,
    head_max bigint,
    tail_keep bigint,
    tail_max bigint
);

-- Cuts a log whose tail has outgrown its limit, and says what the tail then holds.
CREATE FUNCTION ocore.cut_tail(log ocore.log) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    cut record;
BEGIN
    -- The newest line that goes is the first one, from the newest on, that does not fit any more.
    SELECT tail.seq, tail.total - tail.bytes AS rest INTO cut FROM (
        SELECT e.seq, e.bytes, sum(e.bytes) OVER (ORDER BY e.seq DESC) AS total
        FROM ocore.events e WHERE e.deployment = log.deployment AND e.bytes > 0
    ) AS tail WHERE tail.total > log.tail_keep ORDER BY tail.seq DESC LIMIT 1;
    IF NOT FOUND THEN
        RETURN log.tail_bytes;
    END IF;
    DELETE FROM ocore.events e WHERE e.deployment = log.deployment AND e.seq <= cut.seq AND e.bytes > 0;
    RETURN cut.rest;
END $$;

-- Writes events, each to the log whose number it has, and says what the logs then hold; the caller keeps that. Lines go to the
-- head until the first that does not fit; what belongs to the head counts for nothing in the tail, and is never cut.
CREATE FUNCTION ocore.write_events(logs ocore.log[], event_of integer[], ats bigint[], sizes bigint[], kinds text[])
RETURNS SETOF ocore.log LANGUAGE plpgsql AS $$
DECLARE
    log ocore.log;
BEGIN
    FOR log IN
        WITH placed AS (
            SELECT e.number, o.deployment, o.last + row_number() OVER so_far AS seq, e.at, e.size, e.kind,
                   e.size > 0 AND (o.head_full OR o.head_bytes + sum(e.size) OVER so_far > o.head_max) AS in_tail
            FROM unnest(event_of, ats, sizes, kinds) WITH ORDINALITY AS e (number, at, size, kind, place)
            JOIN unnest(logs) AS o ON o.number = e.number
            WINDOW so_far AS (PARTITION BY e.number ORDER BY e.place ROWS UNBOUNDED PRECEDING)
        ), written AS (
            INSERT INTO ocore.events (deployment, seq, at, bytes, kind)
            SELECT p.deployment, p.seq, p.at, CASE WHEN p.in_tail THEN p.size ELSE 0 END, p.kind FROM placed p
        )
        SELECT o.number, o.deployment, max(p.seq), o.head_bytes + sum(CASE WHEN p.in_tail THEN 0 ELSE p.size END)::bigint,
               o.head_full OR bool_or(p.in_tail), o.tail_bytes + sum(CASE WHEN p.in_tail THEN p.size ELSE 0 END)::bigint,
               o.head_max, o.tail_keep, o.tail_max
        FROM placed p JOIN unnest(logs) AS o ON o.number = p.number
        GROUP BY o.number, o.deployment, o.head_bytes, o.head_full, o.tail_bytes, o.head_max, o.tail_keep, o.tail_max
    LOOP
        IF log.tail_bytes > log.tail_max THEN
            log.tail_bytes := ocore.cut_tail(log);
        END IF;
        RETURN NEXT log;
    END LOOP;
END $$;

-- Appends events to a deployment's log.
CREATE FUNCTION ocore.append(
    it uuid, ats bigint[], sizes bigint[], kinds text[], head_max bigint, tail_keep bigint, tail_max bigint
) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    log ocore.log;
BEGIN
    SELECT 1, d.id, d.log_last, d.log_head_bytes, d.log_head_full, d.log_tail_bytes,
           append.head_max, append.tail_keep, append.tail_max INTO log
    FROM ocore.deployments d WHERE d.id = it;
    UPDATE ocore.deployments d SET log_last = w.last, log_head_bytes = w.head_bytes, log_head_full = w.head_full,
        log_tail_bytes = w.tail_bytes
    FROM ocore.write_events(ARRAY[log], array_fill(1, ARRAY[cardinality(kinds)]), ats, sizes, kinds) AS w
    WHERE d.id = it;
END $$;

-- A deployment's next state, as it is sent. `next` is 'continue', 'release' or 'finish'.
CREATE TYPE ocore.sent AS (
    number integer,
    it uuid,
    environment text,
    me uuid,
    fence bigint,
    version bigint,
    record text,
    status text,
    phase text,
    begun boolean,
    replaced uuid,
    next text,
    fresh_fence boolean,
    after_micros bigint,
    live text,
    attention boolean,
    claim_next boolean,
    verdict boolean,
    head_max bigint,
    tail_keep bigint,
    tail_max bigint
);

CREATE TYPE ocore.committed AS (number integer, answer text, fence bigint, is_cancelled boolean, work ocore.work);

-- What is written for a commit that is accepted.
CREATE TYPE ocore.accepted AS (
    number integer, is_cancelled boolean, attention uuid, fence bigint, successor uuid, log ocore.log
);

-- The answer to a commit that is not accepted, whose lane is locked: it is made again, a cancel came first, the lane is
-- another's.
CREATE FUNCTION ocore.refuse(sent ocore.sent) RETURNS ocore.committed LANGUAGE plpgsql AS $$
DECLARE
    lane ocore.lanes;
    stored ocore.deployments;
    answer ocore.committed;
BEGIN
    answer.number := sent.number;
    answer.answer := 'fenced';
    SELECT l.* INTO lane FROM ocore.lanes l WHERE l.name = sent.environment;
    SELECT d.* INTO stored FROM ocore.deployments d WHERE d.id = sent.it AND d.environment = lane.name;
    IF stored.id IS NULL THEN
        RETURN answer;
    END IF;
    answer.is_cancelled := stored.cancel IS NOT NULL;
    IF (stored.version, stored.receipt_worker, stored.receipt_fence) = (sent.version, sent.me, sent.fence) THEN
        answer.answer := stored.receipt_answer;
        answer.fence := stored.receipt_next_fence;
        IF answer.answer = 'continued'
           AND (lane.active, lane.holder, lane.fence) IS DISTINCT FROM (sent.it, sent.me, answer.fence) THEN
            answer.answer := 'fenced';
        ELSIF answer.answer = 'finished'
              AND (lane.active, lane.holder, lane.fence) = (stored.receipt_next, sent.me, answer.fence)
              AND (SELECT d.receipt_worker IS NULL FROM ocore.deployments d WHERE d.id = lane.active) THEN
            answer.work := ocore.work_on(lane, false, NULL, true);
        END IF;
    ELSIF (lane.active, lane.holder, lane.fence) = (sent.it, sent.me, sent.fence) AND sent.version = stored.version + 1
          AND answer.is_cancelled AND sent.verdict THEN
        answer.answer := 'cancelled';
    END IF;
    RETURN answer;
END $$;

-- Writes the next states of deployments of different lanes. One alone waits for its lane; of several, those whose lane is
-- locked are left out, and are to be sent alone: no lane waits for another one's.
CREATE FUNCTION ocore.commit(
    sent ocore.sent[], event_of integer[], ats bigint[], sizes bigint[], kinds text[], snapshots jsonb
) RETURNS SETOF ocore.committed LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
DECLARE
    moment timestamptz;
    fence_min bigint;
    locked text[];
    accepted ocore.accepted[];
    logs ocore.log[];
BEGIN
    IF cardinality(sent) = 1 THEN
        locked := ARRAY(SELECT l.name FROM ocore.lanes l WHERE l.name = sent[1].environment FOR UPDATE);
    ELSE
        locked := ARRAY(SELECT s.environment FROM unnest(sent) AS s);
        locked := ARRAY(SELECT l.name FROM ocore.lanes l WHERE l.name = ANY (locked) FOR UPDATE SKIP LOCKED);
    END IF;
    moment := ocore.now();
    fence_min := ocore.fence_min();
    -- With the locks held, in a statement of its own: see `claim`.
    accepted := ARRAY(
        SELECT ROW (c.number, c.is_cancelled, c.attention,
                    CASE WHEN c.fresh_fence OR c.successor IS NOT NULL THEN greatest(c.fence + 1, fence_min) ELSE c.fence END,
                    c.successor, c.log)::ocore.accepted
        FROM (
            SELECT s.number, s.fence, s.fresh_fence, d.cancel IS NOT NULL AS is_cancelled, after.attention,
                   CASE WHEN s.claim_next AND EXISTS (
                       SELECT FROM ocore.workers w WHERE w.id = s.me AND NOT w.over AND w.lease_end > moment
                   ) THEN ocore.runnable(l.name, NULL, after.attention, l.paused) END AS successor,
                   ROW (s.number, d.id, d.log_last, d.log_head_bytes, d.log_head_full, d.log_tail_bytes,
                        s.head_max, s.tail_keep, s.tail_max)::ocore.log AS log
            FROM unnest(sent) AS s
            JOIN ocore.lanes l ON l.name = s.environment
            JOIN ocore.deployments d ON d.id = s.it AND d.environment = l.name
            CROSS JOIN LATERAL (
                SELECT CASE WHEN s.attention IS NULL THEN l.attention WHEN s.attention THEN s.it END AS attention
            ) AS after
            WHERE s.environment = ANY (locked) AND (l.active, l.holder, l.fence) = (s.it, s.me, s.fence)
              AND s.version = d.version + 1 AND NOT (s.verdict AND d.cancel IS NOT NULL)
            OFFSET 0
        ) AS c
    );
    IF cardinality(kinds) > 0 THEN
        logs := ARRAY(SELECT a.log FROM unnest(accepted) AS a);
        logs := ARRAY(SELECT w FROM ocore.write_events(logs, event_of, ats, sizes, kinds) AS w);
    END IF;
    IF jsonb_array_length(snapshots) > 0 THEN
        INSERT INTO ocore.snapshots AS s
            (environment, reference, deployment, instance, taken_at, size_bytes, lost_window, retired)
        SELECT c.environment, n.reference, n.deployment, n.instance, n.taken_at, n.size_bytes, n.lost_window, n.retired
        FROM unnest(accepted) AS a JOIN unnest(sent) AS c ON c.number = a.number
        JOIN jsonb_to_recordset(snapshots) AS n (
            number integer, reference text, deployment uuid, instance text, taken_at bigint, size_bytes bigint,
            lost_window text, retired boolean
        ) ON n.number = a.number
        ON CONFLICT ON CONSTRAINT snapshots_pkey DO UPDATE SET
            deployment = excluded.deployment, instance = excluded.instance, taken_at = excluded.taken_at,
            size_bytes = excluded.size_bytes, lost_window = excluded.lost_window, retired = excluded.retired;
    END IF;
    UPDATE ocore.deployments d SET
        version = s.version, begun = s.begun, phase = s.phase, status = s.status, replaced = s.replaced, record = s.record,
        receipt_worker = s.me, receipt_fence = s.fence,
        receipt_answer = CASE s.next WHEN 'continue' THEN 'continued' WHEN 'release' THEN 'released' ELSE 'finished' END,
        receipt_next = a.successor,
        receipt_next_fence = CASE WHEN s.next = 'continue' OR a.successor IS NOT NULL THEN a.fence END,
        log_last = coalesce(w.last, d.log_last), log_head_bytes = coalesce(w.head_bytes, d.log_head_bytes),
        log_head_full = coalesce(w.head_full, d.log_head_full), log_tail_bytes = coalesce(w.tail_bytes, d.log_tail_bytes)
    FROM unnest(accepted) AS a JOIN unnest(sent) AS s ON s.number = a.number
    LEFT JOIN unnest(logs) AS w ON w.number = a.number
    WHERE d.id = s.it;
    UPDATE ocore.deployments d SET begun = true, phase = 'active', status = 'Building'
    FROM unnest(accepted) AS a WHERE d.id = a.successor;
    UPDATE ocore.environments e SET live = s.live
    FROM unnest(accepted) AS a JOIN unnest(sent) AS s ON s.number = a.number
    WHERE s.live IS NOT NULL AND e.name = s.environment;
    UPDATE ocore.lanes l SET
        active = CASE WHEN s.next = 'finish' THEN a.successor ELSE l.active END,
        holder = CASE WHEN s.next = 'continue' OR a.successor IS NOT NULL THEN l.holder END,
        fence = a.fence,
        due = CASE s.next
              WHEN 'release' THEN moment + CASE WHEN a.is_cancelled THEN 0 ELSE s.after_micros END * interval '1 microsecond'
              WHEN 'finish' THEN '-infinity' ELSE l.due END,
        lost_if_forgotten = s.next = 'continue',
        acknowledged = CASE WHEN s.verdict THEN '{}' ELSE l.acknowledged END,
        attention = a.attention
    FROM unnest(accepted) AS a JOIN unnest(sent) AS s ON s.number = a.number
    WHERE l.name = s.environment AND (s.next <> 'continue' OR s.fresh_fence OR NOT l.lost_if_forgotten);
    RETURN QUERY
        SELECT a.number, n.receipt_answer, a.fence, a.is_cancelled,
               CASE WHEN d.id IS NOT NULL THEN
                   ROW (d.environment, d.id, d.record, d.seq, d.version, d.cancel, e.settings, e.live, l.acknowledged, l.fence,
                        false, NULL, true)::ocore.work
               END
        FROM unnest(accepted) AS a JOIN unnest(sent) AS s ON s.number = a.number
        JOIN ocore.deployments n ON n.id = s.it
        LEFT JOIN ocore.deployments d ON d.id = a.successor
        LEFT JOIN ocore.environments e ON e.name = d.environment
        LEFT JOIN ocore.lanes l ON l.name = d.environment;
    IF cardinality(accepted) < cardinality(sent) THEN
        RETURN QUERY
            SELECT r.* FROM unnest(sent) AS s CROSS JOIN LATERAL ocore.refuse(s) AS r
            WHERE NOT EXISTS (SELECT FROM unnest(accepted) AS a WHERE a.number = s.number)
              AND (s.environment = ANY (locked) OR cardinality(sent) = 1);
    END IF;
END $$;

-- Locks a lane for a request, and then tells all that decides about it: the deployment that was made of the same request before;
-- or else the lane, its settings, how many wait. One statement would see the deployments as they were before the lock.
CREATE FUNCTION ocore.enter(
    lane text, it uuid, with_key text,
    OUT record text, OUT record_seq bigint, OUT version bigint, OUT begun boolean, OUT cancel text,
    OUT paused boolean, OUT attention uuid, OUT active uuid, OUT fence bigint, OUT seq bigint,
    OUT settings text, OUT waiting bigint
) LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
    SELECT l.paused, l.attention, l.active, l.fence, l.seq INTO paused, attention, active, fence, seq
    FROM ocore.lanes l WHERE l.name = lane FOR UPDATE;
    SELECT d.record, d.seq, d.version, d.begun, d.cancel INTO record, record_seq, version, begun, cancel
    FROM ocore.deployments d WHERE d.id = it;
    IF record IS NULL AND with_key IS NOT NULL THEN
        SELECT d.record, d.seq, d.version, d.begun, d.cancel INTO record, record_seq, version, begun, cancel
        FROM ocore.deployments d WHERE d.environment = lane AND d.key = with_key;
    END IF;
    IF record IS NULL AND seq IS NOT NULL THEN
        SELECT e.settings INTO settings FROM ocore.environments e WHERE e.name = lane;
        SELECT count(*) INTO waiting FROM ocore.deployments d WHERE d.environment = lane AND d.phase = 'waiting';
    END IF;
END $$;

-- Puts a deployment at the end of its lane, which is locked.
CREATE FUNCTION ocore.accept(
    it uuid, lane text, its_seq bigint, version bigint, begun boolean, phase text, status text, trigger_kind text, key text,
    requested_at bigint, answers uuid, recovers uuid, target uuid, record text, event_at bigint, event text
) RETURNS void LANGUAGE plpgsql SET enable_seqscan = off SET jit = off AS $$
BEGIN
    INSERT INTO ocore.deployments (id, environment, seq, version, begun, phase, status, trigger_kind, key, requested_at,
                                   answers, recovers, target, record, log_last)
    VALUES (it, lane, its_seq, version, begun, phase, status, trigger_kind, key, requested_at,
            answers, recovers, target, record, 1);
    INSERT INTO ocore.events (deployment, seq, at, bytes, kind) VALUES (it, 1, event_at, 0, event);
    UPDATE ocore.lanes l SET seq = its_seq WHERE l.name = lane;
END $$;

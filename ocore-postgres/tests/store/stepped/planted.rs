//! Mistakes that every store of this kind is tempted to make, each with calls that show it.

use super::calls::{Call, Scene};

/// A mistake in a function of the schema.
#[derive(Debug)]
pub(crate) enum Mistake {
    /// Another claim.
    Claim(&'static str),
    /// Another text in a function.
    Instead { function: &'static str, text: &'static str, wrong: &'static str },
}

pub(crate) const MISTAKES: [(Scene, [Call; 2], Mistake); 6] = [
    // Of two who claim at the same time, the second goes past the locked head of the lane.
    (Scene::Free, [Call::Claim(2), Call::Claim(3)], Mistake::Claim(NATURAL_CLAIM)),
    // It waits for nobody, and sees the lane after a commit with the deployment from before.
    (Scene::Expired, [Call::Claim(2), Call::Continue], Mistake::Claim(ONE_STATEMENT)),
    // What it has read of the lane may be over by the time it writes.
    (
        Scene::Expired,
        [Call::Claim(2), Call::Finish],
        Mistake::Instead { function: "claim", text: "FOR UPDATE OF w, l SKIP LOCKED", wrong: "" },
    ),
    // The lane that it looks at may be another's by the time it writes.
    (
        Scene::Expired,
        [Call::Claim(2), Call::Finish],
        Mistake::Instead {
            function: "commit",
            text: "WHERE l.name = sent[1].environment FOR UPDATE",
            wrong: "WHERE l.name = sent[1].environment",
        },
    ),
    // A cancel that comes between the look and the write is lost.
    (
        Scene::Held,
        [Call::Succeed, Call::Cancel(1)],
        Mistake::Instead {
            function: "commit",
            text: "WHERE l.name = sent[1].environment FOR UPDATE",
            wrong: "WHERE l.name = sent[1].environment",
        },
    ),
    // Two get the same place.
    (
        Scene::Free,
        [Call::Enqueue(4), Call::Enqueue(5)],
        Mistake::Instead {
            function: "enter",
            text: "WHERE l.name = lane FOR UPDATE",
            wrong: "WHERE l.name = lane",
        },
    ),
];

/// A queue's usual claim in one statement. Alone it does what ours does.
const NATURAL_CLAIM: &str = "
CREATE OR REPLACE FUNCTION ocore.claim(
    me uuid, pools text[], busy text[], skipped text[], OUT answer text, OUT next_micros bigint, OUT work ocore.work
) LANGUAGE plpgsql AS $$
DECLARE
    it ocore.deployments;
    lane ocore.lanes;
BEGIN
    UPDATE ocore.deployments SET begun = true, phase = 'active', status = 'Building'
    WHERE id = (SELECT d.id FROM ocore.deployments d JOIN ocore.lanes l ON l.name = d.environment
                WHERE d.phase = 'waiting' AND l.active IS NULL AND NOT l.paused AND l.pool = ANY (pools)
                ORDER BY d.number FOR UPDATE OF d SKIP LOCKED LIMIT 1)
    RETURNING * INTO it;
    IF it.id IS NULL THEN
        answer := 'idle';
        RETURN;
    END IF;
    UPDATE ocore.lanes SET active = it.id, holder = me, next = NULL, ticket = NULL, fence = fence + 1
    WHERE name = it.environment RETURNING * INTO lane;
    answer := 'work';
    work := ocore.work_on(lane, false, NULL, true);
END $$";

/// The rescue of a lane in one statement, which looks at everything as it was when it began.
const ONE_STATEMENT: &str = "
CREATE OR REPLACE FUNCTION ocore.claim(
    me uuid, pools text[], busy text[], skipped text[], OUT answer text, OUT next_micros bigint, OUT work ocore.work
) LANGUAGE plpgsql AS $$
BEGIN
    WITH lost AS MATERIALIZED (
        SELECT l.name, l.holder, l.active FROM ocore.workers w JOIN ocore.lanes l ON l.holder = w.id
        WHERE w.id <> me AND (w.over OR w.lease_end <= ocore.now()) AND l.pool = ANY (pools)
        ORDER BY w.lease_end LIMIT 1 FOR UPDATE OF w, l SKIP LOCKED
    ), over AS (
        UPDATE ocore.workers w SET over = true FROM lost WHERE w.id = lost.holder
    ), begun AS (
        UPDATE ocore.deployments d SET begun = true FROM lost WHERE d.id = lost.active
    ), taken AS (
        UPDATE ocore.lanes l SET holder = me, fence = l.fence + 1, lost_if_forgotten = true
        FROM lost WHERE l.name = lost.name RETURNING l.*
    )
    SELECT t.name, d.id, d.record, d.seq, d.version, d.cancel, e.settings, e.live, t.acknowledged, t.fence, true,
           lost.holder, false
    INTO work FROM lost, taken t, ocore.deployments d, ocore.environments e WHERE d.id = t.active AND e.name = t.name;
    answer := CASE WHEN work.lane IS NULL THEN 'idle' ELSE 'work' END;
END $$";

DROP FUNCTION ocore.give_back, ocore.commit, ocore.append, ocore.write_events, ocore.claim, ocore.begin, ocore.work_on, ocore.heartbeat;
DROP TYPE ocore.work, ocore.log;
DROP TABLE ocore.snapshots, ocore.events, ocore.deployments, ocore.lanes, ocore.environments, ocore.workers CASCADE;
DROP FUNCTION ocore.guard_deployment, ocore.place_lane, ocore.fence_min, ocore.now;
DROP SEQUENCE ocore.tickets;

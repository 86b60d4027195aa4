//! The history.

use super::{
    Fixture,
    commits::claim_all,
    lab::{Lab, at, fail, go_on, id, live, name, succeed},
};
use crate::{
    id::DeploymentId,
    machine::Status,
    port::{Enqueued, Filter, Finish},
    request::{Goal, RollbackMode, Trigger},
};

async fn history<F: Fixture>(lab: &Lab<F>, filter: &Filter, limit: usize) -> Vec<Vec<DeploymentId>> {
    let (mut pages, mut before) = (Vec::new(), None);
    loop {
        let page = lab.store.history(filter, before, limit).await.expect("the history can be read");
        assert!(page.deployments.len() <= limit && pages.len() < 100);
        pages.push(page.deployments.iter().map(|deployment| deployment.id).collect());
        assert!(page.next.is_none() || page.next == page.deployments.last().map(|last| last.id));
        match page.next {
            Some(next) => before = Some(next),
            None => return pages,
        }
    }
}

/// Newest first: by the place in the lane within an environment, else by the order of acceptance. Each page begins where the one before
/// it ended, and the last one says that it is.
pub async fn the_history_is_newest_first_and_paged(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let other = lab.lane("b").await;
    // Ids fall while places rise, as when clocks disagree.
    for (number, lane) in [(50, &lane), (40, &other), (30, &lane), (20, &other), (10, &lane)] {
        let mut new = lab.new_deployment(lane, Trigger::Manual);
        new.id = id(number);
        assert!(matches!(lab.try_enqueue(new).await, Enqueued::Accepted { .. }));
    }
    let ids = |numbers: &[u64]| numbers.iter().copied().map(id).collect::<Vec<_>>();
    let of_lane = Filter::environment(lane);
    assert_eq!(history(&lab, &of_lane, 10).await, [ids(&[10, 30, 50])]);
    assert_eq!(history(&lab, &of_lane, 2).await, [ids(&[10, 30]), ids(&[50])]);
    assert_eq!(history(&lab, &of_lane, 3).await, [ids(&[10, 30, 50])], "a full page can be the last");
    let all = Filter::default();
    assert_eq!(history(&lab, &all, 2).await, [ids(&[10, 20]), ids(&[30, 40]), ids(&[50])]);
    let nowhere = Filter::environment(name("nowhere"));
    assert_eq!(history(&lab, &nowhere, 2).await, [ids(&[])]);
    for filter in [of_lane, all] {
        let page = lab.store.history(&filter, Some(id(99)), 2).await.expect("the history can be read");
        assert_eq!(page.deployments, Vec::new(), "after what is not there comes nothing");
    }
}

/// Each part of a filter, alone and together with others, selects what [`Filter::matches`] says.
pub async fn the_history_is_filtered(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let other = lab.lane("b").await;
    let worker = lab.worker().await;
    let first = lab.manual(&lane).await;
    lab.make_live(&worker).await;
    let rollback = lab.enqueue(&lane, Trigger::Rollback { to: first }).await;
    let mut claim = lab.claim(&worker, &[]).await;
    lab.go_on(&worker, &mut claim).await;
    let mut commit = succeed(&worker, &claim, &live(&claim.environment, claim.deployment.id));
    commit.deployment.replaced = Some(first);
    lab.write(&commit).await;
    lab.enqueue(&lane, Trigger::Retry { of: first }).await;
    let claim = lab.claim(&worker, &[]).await;
    lab.write(&fail(&worker, &claim, Finish::default())).await;
    for trigger in [Trigger::Push, Trigger::Api] {
        lab.enqueue(&other, trigger).await;
    }
    let mut late = lab.new_deployment(&lane, Trigger::Push);
    late.request.key = Some("delivery".to_owned());
    lab.store.enqueue(late, at(100)).await.expect("an enqueue is answered");
    let later = lab.new_deployment(&lane, Trigger::Push);
    lab.store.enqueue(later, at(200)).await.expect("an enqueue is answered");
    let mut again = lab.new_deployment(&lane, Trigger::Retry { of: rollback });
    again.request.goal = Goal::Rollback { to: first, mode: RollbackMode::CodeAndData };
    lab.try_enqueue(again).await;
    for claim in claim_all(&lab, &worker).await {
        lab.write(&go_on(&worker, &claim)).await;
    }
    let mut all = lab.store.history(&Filter::default(), None, 100).await.expect("it can be read").deployments;
    assert_eq!(all.len(), 8);
    let accepted: Vec<DeploymentId> = all.iter().map(|it| it.id).collect();
    for filter in filters(first) {
        if filter.environment.is_some() {
            all.sort_by_key(|deployment| std::cmp::Reverse(deployment.kept_by_store.seq));
        } else {
            all.sort_by_key(|deployment| accepted.iter().position(|id| *id == deployment.id));
        }
        let expected = all.iter().filter(|it| filter.matches(it)).map(|it| it.id);
        let expected: Vec<DeploymentId> = expected.collect();
        let found: Vec<DeploymentId> = history(&lab, &filter, 2).await.concat();
        assert_eq!(found, expected, "{filter:?}");
    }
}

fn filters(first: DeploymentId) -> Vec<Filter> {
    let parts: Vec<fn(&mut Filter, DeploymentId)> = vec![
        |filter, _| filter.environment = Some(name("a")),
        |filter, _| filter.statuses = vec![Status::Running, Status::Building],
        |filter, _| filter.statuses = vec![Status::Failed],
        |filter, _| filter.triggers = vec!["push".to_owned(), "rollback".to_owned()],
        |filter, _| filter.since = Some(at(100)),
        |filter, _| filter.until = Some(at(100)),
        |filter, first| filter.answers = Some(first),
        |filter, _| filter.key = Some("delivery".to_owned()),
        |filter, first| filter.replaced = Some(first),
    ];
    let mut filters = vec![Filter::default()];
    for (number, part) in parts.iter().enumerate() {
        for other in &parts[number..] {
            let mut filter = Filter::default();
            part(&mut filter, first);
            other(&mut filter, first);
            filters.push(filter);
        }
    }
    filters
}

//! The deployments of all times.

use super::{Record, State};
use crate::{
    deployment::Deployment,
    id::DeploymentId,
    port::{Filter, Page},
};

impl State {
    pub(super) fn history(&self, filter: &Filter, before: Option<DeploymentId>, limit: usize) -> Page {
        if let Some(name) = &filter.environment {
            let Some(lane) = self.lanes.find(name) else { return Page::default() };
            let count = match before.map(|id| self.records.get(&id)) {
                None => lane.history.len(),
                Some(Some(record)) if record.deployment.environment == *name => {
                    usize::try_from(record.deployment.kept_by_store.seq.get() - 1).unwrap_or(usize::MAX)
                }
                Some(_) => 0,
            };
            let newest_first = lane.history[..count].iter().rev();
            page(newest_first.filter_map(|id| self.records.get(id)), filter, limit)
        } else {
            let count = match before.map(|id| self.records.get(&id)) {
                None => self.accepted.len(),
                Some(record) => record.map_or(0, |record| record.place),
            };
            let newest_first = self.accepted[..count].iter().rev();
            page(newest_first.filter_map(|id| self.records.get(id)), filter, limit)
        }
    }
}

fn page<'a>(records: impl Iterator<Item = &'a Record>, filter: &Filter, limit: usize) -> Page {
    let deployments = records.map(|record| &record.deployment);
    let mut matching = deployments.filter(|deployment| filter.matches(deployment));
    let deployments: Vec<Deployment> = matching.by_ref().take(limit).cloned().collect();
    let last = deployments.last().map(|deployment| deployment.id);
    let next = last.filter(|_| matching.next().is_some());
    Page::new(deployments, next)
}

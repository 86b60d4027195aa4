//! What the history says that the data must be.

use std::collections::BTreeMap;

use ocore_core::{
    deployment::Deployment,
    id::DeploymentId,
    machine::Status,
    request::{Goal, RollbackMode},
};
use ocore_examples::sample_app::Manifest;

/// The data of one instance, as the sample application keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Data {
    /// `None` if there is none at all.
    pub(crate) schema: Option<u32>,
    pub(crate) migrations: Vec<String>,
    pub(crate) releases: Vec<String>,
    /// What users have written.
    pub(crate) rows: Vec<String>,
}

impl Data {
    fn migrated(mut self, schema: u32, by: DeploymentId) -> Self {
        let from = self.schema.unwrap_or(0);
        assert!(from <= schema, "{by} ended Running on data of schema {from}, but it needs {schema}");
        if from < schema {
            self.migrations.push(format!("{from} to {schema} by {by}"));
            self.schema = Some(schema);
        }
        self
    }

    fn served_by(mut self, deployment: DeploymentId) -> Self {
        self.releases.push(deployment.to_string());
        self
    }
}

/// An environment after its history.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) data: Data,
    pub(crate) live: Option<(DeploymentId, Manifest)>,
    /// What each deployment that ended Running has left: its release, and its data as it was when it was replaced.
    left: BTreeMap<DeploymentId, (Manifest, Data)>,
}

impl Model {
    /// Only deployments that ended Running change anything; all others leave no trace.
    pub(crate) fn fold(
        mut self,
        deployment: &Deployment,
        commits: &BTreeMap<String, Manifest>,
        written: &BTreeMap<DeploymentId, Vec<String>>,
    ) -> Self {
        if deployment.status() != Status::Running {
            return self;
        }
        let id = deployment.id;
        let (manifest, data) = match &deployment.request.goal {
            Goal::Deploy(_) => {
                let commit = deployment.commit.as_ref().expect("what runs has a commit");
                let manifest = commits[&commit.sha].clone();
                assert!(manifest.healthy, "{id} ended Running, but its release is never healthy");
                let data = self.data.migrated(manifest.schema, id);
                (manifest, data)
            }
            Goal::Rollback { to, mode } => {
                let (manifest, data) = self.left[to].clone();
                (manifest, if *mode == RollbackMode::CodeOnly { self.data } else { data })
            }
            goal => panic!("{id} ended Running, but {goal:?} was asked for"),
        };
        assert_eq!(data.schema, Some(manifest.schema), "{id} runs on data of another schema");
        self.data = data.served_by(id);
        self.data.rows.extend(written.get(&id).into_iter().flatten().cloned());
        self.left.insert(id, (manifest.clone(), self.data.clone()));
        self.live = Some((id, manifest));
        self
    }
}

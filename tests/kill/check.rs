//! What must hold when everything has come to rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ocore_core::{
    deployment::Deployment,
    event::EventKind,
    machine::Status,
    port::{EnvironmentRecord, Filter, SnapshotState},
};
use ocore_examples::{
    Result, http,
    sample_app::{FIRST_ROWS, Store},
};
use sqlx::{Connection as _, sqlite::SqliteConnectOptions};

use crate::{
    Site, World,
    engine::CANARY,
    model::{Data, Model},
    processes,
};

/// Collects what is wrong, so that one run tells everything.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn expect(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.0.push(otherwise());
        }
    }
}

pub(crate) async fn everything(world: &World, kills: usize) -> Result<()> {
    let mut findings = Findings::default();
    let (mut counts, mut known) = (BTreeMap::<Status, usize>::new(), BTreeSet::new());
    let (mut recorded, mut takeovers) = (Recorded::default(), 0);
    for site in &world.sites {
        let record = world.engine.environment(site.name).await?;
        let deployments = history(world, site).await?;
        known.extend(deployments.iter().map(|it| it.id));
        for deployment in &deployments {
            *counts.entry(deployment.status()).or_default() += 1;
            recorded.images.extend(deployment.image.as_ref().map(|image| image.reference.clone()));
        }
        in_order(&deployments, &mut findings);
        let fold = |model: Model, it| model.fold(it, &site.commits, &world.written);
        let model = deployments.iter().fold(Model::default(), fold);
        takeovers += count_takeovers(world, &deployments).await?;
        serves(world, site, &record, &model, &mut findings);
        holds(world, site, &model.data, &mut findings)?;
        for snapshot in world.engine.snapshots(site.name).await? {
            findings
                .expect(snapshot.state == SnapshotState::Kept, || format!("{snapshot:?} was not removed"));
            recorded.snapshots.insert(snapshot.snapshot.reference);
        }
    }
    eprintln!("{} deployments: {counts:?}, {takeovers} taken over", known.len());
    findings.expect(takeovers > kills / 10, || {
        format!("{kills} kills, and only {takeovers} steps were taken over")
    });
    let shown = files_with(&world.home, CANARY);
    findings.expect(shown.is_empty(), || format!("a secret is in {shown:?}"));
    let findable = files_with(&world.home, "sample-app serve");
    findings.expect(!findable.is_empty(), || "the search for secrets finds nothing at all".to_owned());
    findings.expect(known == world.accepted, || "what was accepted is not what the history has".to_owned());
    for status in [Status::Running, Status::RolledBack, Status::Cancelled] {
        findings.expect(counts.contains_key(&status), || {
            format!("no deployment ended {status}: nothing was tested")
        });
    }
    let left = left_over(&world.home, &recorded, &mut findings);
    eprintln!("{} files and directories are left by calls that were killed: {left:?}", left.len());
    findings
        .expect(left.len() <= kills, || format!("{kills} kills have left {} things: {left:?}", left.len()));
    intact(&world.home, &mut findings).await?;
    if findings.0.is_empty() { Ok(()) } else { Err(findings.0.join("\n").into()) }
}

/// All deployments of an environment, oldest first.
async fn history(world: &World, site: &Site) -> Result<Vec<Deployment>> {
    let filter = Filter::environment(site.name.parse()?);
    let (mut deployments, mut before) = (Vec::new(), None);
    loop {
        let page = world.engine.history(&filter, before, 100).await?;
        deployments.extend(page.deployments);
        before = page.next;
        if before.is_none() {
            deployments.reverse();
            return Ok(deployments);
        }
    }
}

/// How many steps were begun again by another worker than the one that had begun them.
async fn count_takeovers(world: &World, deployments: &[Deployment]) -> Result<usize> {
    let mut count = 0;
    for deployment in deployments {
        let (mut watch, mut begun) = (world.engine.watch(deployment.id).await?, None);
        while let Some(event) = watch.next().await? {
            match event.kind {
                EventKind::Began { step } if begun.replace(step) == Some(step) => count += 1,
                EventKind::Retrying { .. } => begun = None,
                _ => {}
            }
        }
    }
    Ok(count)
}

/// The files that hold this text.
fn files_with(directory: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_with(&path, text)),
            Ok(kind) if kind.is_file() => {
                let content = fs::read(&path).unwrap_or_default();
                found.extend(
                    content.windows(text.len()).any(|window| window == text.as_bytes()).then_some(path),
                );
            }
            _ => {}
        }
    }
    found
}

/// Every deployment is over, and none began before the one ahead of it was.
fn in_order(deployments: &[Deployment], findings: &mut Findings) {
    let mut last = None;
    for deployment in deployments {
        let id = deployment.id;
        findings.expect(deployment.status().is_final(), || format!("{id} is {}", deployment.status()));
        let Some(started) = deployment.started_at else {
            findings.expect(deployment.status() == Status::Cancelled, || format!("{id} never began"));
            continue;
        };
        findings.expect(last.is_none_or(|(_, ended)| ended <= Some(started)), || {
            format!("{id} began at {started}, before the one ahead of it was over: {last:?}")
        });
        last = Some((id, deployment.finished_at));
    }
}

/// Exactly one process serves, and it is the live release's.
fn serves(world: &World, site: &Site, record: &EnvironmentRecord, model: &Model, findings: &mut Findings) {
    let name = site.name;
    let live = model.live.as_ref().map(|(id, _)| *id);
    let recorded = record.live.as_ref().map(|live| live.deployment);
    findings.expect(recorded == live, || format!("{name}: live is {recorded:?}, the history says {live:?}"));
    let processes = processes::below(&world.home);
    let data = data_directory(world, site);
    let own = processes.iter().filter(|it| it.variables.get("DATA_DIR").map(String::as_str) == data.to_str());
    let running: Vec<_> =
        own.filter(|it| it.is_application("serve") || it.is_application("migrate")).collect();
    let deployments: Vec<_> = running.iter().map(|it| it.variables["OCORE_DEPLOYMENT"].clone()).collect();
    let expected: Vec<_> = live.iter().map(ToString::to_string).collect();
    findings.expect(deployments == expected && running.iter().all(|it| it.is_serving()), || {
        format!("{name}: {expected:?} must run, and these do: {running:?}")
    });
    if let Some((_, manifest)) = &model.live {
        let served = http::get(site.port, "/version").unwrap_or_else(|error| error.to_string());
        findings.expect(served == manifest.version, || {
            format!("{name}: version {} must serve, and the answer is {served}", manifest.version)
        });
    }
}

/// The data is what the deployments that ended Running have made of it, and no migration was run twice.
fn holds(world: &World, site: &Site, expected: &Data, findings: &mut Findings) -> Result<()> {
    let name = site.name;
    let store = Store::new(data_directory(world, site));
    let found = Data {
        schema: store.schema()?,
        migrations: store.migrations()?,
        releases: store.releases()?,
        rows: expected.rows.clone(),
    };
    findings
        .expect(found == *expected, || format!("{name}: the data is {found:?}, and must be {expected:?}"));
    if let Some(schema) = expected.schema {
        let beside = tempfile::tempdir()?;
        let reference = Store::new(beside.path());
        reference.migrate(schema, "", || ())?;
        expected.rows.iter().try_for_each(|row| reference.add(row))?;
        let (rows, wanted) = (store.rows().map_err(|error| error.to_string()), reference.rows()?);
        findings.expect(
            rows.as_ref() == Ok(&wanted) && wanted.len() == FIRST_ROWS.len() + expected.rows.len(),
            || format!("{name}: the rows are {rows:?}, and must be {wanted:?}"),
        );
    }
    Ok(())
}

fn data_directory(world: &World, site: &Site) -> PathBuf {
    world.home.join("data").join(site.name)
}

/// What the store knows of.
#[derive(Default)]
struct Recorded {
    images: BTreeSet<String>,
    snapshots: BTreeSet<String>,
}

/// What is recorded is there; no release and no snapshot is there that is not; and what else killed calls have left is
/// at most one thing per kill.
///
/// A fetch that is killed for good, because its deployment is undone or cancelled before the call is made again, leaves
/// a checkout or a temporary file, which nobody else may remove while it could still be in use.
fn left_over(home: &Path, recorded: &Recorded, findings: &mut Findings) -> BTreeSet<PathBuf> {
    let local = home.join("local");
    for reference in &recorded.snapshots {
        let manifest = local.join("snapshots").join(reference).join("manifest");
        findings.expect(manifest.exists(), || format!("{} is recorded, but gone", manifest.display()));
    }
    for (kind, recorded) in [("releases", &recorded.images), ("snapshots", &recorded.snapshots)] {
        let found = entries(&local.join(kind));
        findings.expect(!found.is_empty(), || format!("there are no {kind} at all"));
        let is_orphan =
            |path: &&PathBuf| !path.file_name().is_some_and(|it| recorded.contains(&*it.to_string_lossy()));
        let orphans: Vec<_> = found.iter().filter(is_orphan).collect();
        findings.expect(orphans.is_empty(), || format!("{kind} that no record names: {orphans:?}"));
    }
    let mut left: BTreeSet<_> = entries(&home.join("git").join("checkouts")).into_iter().collect();
    walk(home, &mut left);
    let partial = left.iter().filter(|path| path.extension().is_some_and(|extension| extension == "partial"));
    let partial: Vec<_> = partial.collect();
    findings
        .expect(partial.is_empty(), || format!("half made by killed workers, and not removed: {partial:?}"));
    left
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn walk(directory: &Path, unfinished: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if [".partial", ".new", ".tmp"].iter().any(|end| name.ends_with(end)) {
            unfinished.insert(path.clone());
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, unfinished);
        }
    }
}

/// SQLite itself finds nothing wrong with the store.
async fn intact(home: &Path, findings: &mut Findings) -> Result<()> {
    let options = SqliteConnectOptions::new().filename(home.join("ocore.sqlite")).read_only(true);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await?;
    let answers: Vec<String> =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_all(&mut connection).await?;
    findings.expect(answers == ["ok"], || format!("the store's file is damaged: {answers:?}"));
    Ok(connection.close().await?)
}

/// After everything was stopped, no process of the test is left; those that are told to end get a moment for it.
pub(crate) fn nothing_runs(home: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = processes::below(home);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "processes are left: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

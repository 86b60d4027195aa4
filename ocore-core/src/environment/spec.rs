//! The unchecked form of an environment, as people write it, and the check with every reason at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{BranchPattern, Deadlines, Environment, Instance, Policy, Resource};
use crate::{
    name::{EnvironmentName, InstanceName, PoolName},
    request::Revision,
    retention::{Calendar, Retention},
    retry::RetryPolicy,
};

/// An environment as a person or a program writes it down. [`Environment::try_from`] checks it.
///
/// ```
/// use ocore_core::environment::{Environment, EnvironmentSpec, InstanceSpec};
/// let spec = EnvironmentSpec::new("production", "https://git.example.org/shop.git")
///     .branch("main")
///     .instance(InstanceSpec::new("web").port(8069).data_directory("/srv/shop"));
/// assert!(Environment::try_from(spec).is_ok());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct EnvironmentSpec {
    /// Unique in the store: 1 to 40 of `a-z`, `0-9` and `-`.
    pub name: String,
    /// The pool whose workers deploy it; `default` unless said otherwise.
    #[serde(default = "default_pool")]
    pub pool: String,
    /// Where the source comes from. Credentials do not belong here.
    pub repository: String,
    /// A branch, or a pattern with one `*`; `main` unless said otherwise.
    #[serde(default = "default_branch")]
    pub branch: String,
    /// At least one, at most 64.
    pub instances: Vec<InstanceSpec>,
    /// The rules.
    #[serde(default)]
    pub policy: Policy,
}

fn default_pool() -> String {
    PoolName::default().to_string()
}

fn default_branch() -> String {
    "main".to_owned()
}

impl EnvironmentSpec {
    /// An environment of the default pool, for the branch `main`, without instances so far.
    #[must_use]
    pub fn new(name: impl Into<String>, repository: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            pool: default_pool(),
            repository: repository.into(),
            branch: default_branch(),
            instances: Vec::new(),
            policy: Policy::default(),
        }
    }

    /// The same environment in another pool.
    #[must_use]
    pub fn pool(mut self, pool: impl Into<String>) -> Self {
        self.pool = pool.into();
        self
    }

    /// The same environment for another branch, or for a pattern of branches with one `*`.
    #[must_use]
    pub fn branch(mut self, branch: impl Into<String>) -> Self {
        self.branch = branch.into();
        self
    }

    /// The same environment with one more instance.
    #[must_use]
    pub fn instance(mut self, instance: InstanceSpec) -> Self {
        self.instances.push(instance);
        self
    }

    /// The same environment with its rules changed by `change`.
    #[must_use]
    pub fn policy(mut self, change: impl FnOnce(&mut Policy)) -> Self {
        change(&mut self.policy);
        self
    }
}

/// An instance as a person or a program writes it down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct InstanceSpec {
    /// Unique in the environment: 1 to 40 of `a-z`, `0-9` and `-`.
    pub name: String,
    /// The address that probes connect to; `127.0.0.1` unless said otherwise.
    #[serde(default = "default_host")]
    pub host: String,
    /// The TCP port that it listens on.
    #[serde(default)]
    pub port: Option<u16>,
    /// Its database, for adapters that manage one.
    #[serde(default)]
    pub database: Option<String>,
    /// The directory that holds its data, for adapters that manage one. Absolute.
    #[serde(default)]
    pub data_directory: Option<PathBuf>,
    /// Settings for the application. Not secret: they are stored and shown.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
}

fn default_host() -> String {
    "127.0.0.1".to_owned()
}

impl InstanceSpec {
    /// An instance on loopback, without port, database and data directory so far.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            host: default_host(),
            port: None,
            database: None,
            data_directory: None,
            variables: BTreeMap::new(),
        }
    }

    /// The same instance on this port.
    #[must_use]
    pub const fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The same instance with this database.
    #[must_use]
    pub fn database(mut self, database: impl Into<String>) -> Self {
        self.database = Some(database.into());
        self
    }

    /// The same instance with its data in this directory.
    #[must_use]
    pub fn data_directory(mut self, path: impl Into<PathBuf>) -> Self {
        self.data_directory = Some(path.into());
        self
    }

    /// The same instance with one more variable.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }
}

/// Everything that is wrong with an environment, at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the environment is not valid: {}", reasons.join("; "))]
#[non_exhaustive]
pub struct InvalidEnvironment {
    /// One sentence per mistake.
    pub reasons: Vec<String>,
}

impl TryFrom<EnvironmentSpec> for Environment {
    type Error = InvalidEnvironment;

    fn try_from(spec: EnvironmentSpec) -> Result<Self, InvalidEnvironment> {
        let mut reasons = Reasons::default();
        let name = reasons.keep(EnvironmentName::new(&spec.name));
        let pool = reasons.keep(PoolName::new(&spec.pool));
        check_repository(&spec.repository, &mut reasons);
        check_branch(&spec.branch, &mut reasons);
        check_policy(&spec.policy, &mut reasons);
        let instances = check_instances(spec.instances, &mut reasons);
        let (Some(name), Some(pool), []) = (name, pool, reasons.0.as_slice()) else {
            return Err(InvalidEnvironment { reasons: reasons.0 });
        };
        let (repository, branch) = (spec.repository, BranchPattern(spec.branch));
        Ok(Self { name, pool, repository, branch, instances, policy: spec.policy })
    }
}

impl From<Environment> for EnvironmentSpec {
    fn from(environment: Environment) -> Self {
        Self {
            name: environment.name.into(),
            pool: environment.pool.into(),
            repository: environment.repository,
            branch: environment.branch.0,
            instances: environment.instances.into_iter().map(InstanceSpec::from).collect(),
            policy: environment.policy,
        }
    }
}

impl From<Instance> for InstanceSpec {
    fn from(instance: Instance) -> Self {
        let Instance { name, host, port, database, data_directory, variables } = instance;
        Self { name: name.into(), host, port, database, data_directory, variables }
    }
}

/// What the variables of one instance may hold, names and values together, in bytes: they are written with every
/// state of a deployment.
const VARIABLES_BYTES_MAX: usize = 64 * 1024;

#[derive(Default)]
struct Reasons(Vec<String>);

impl Reasons {
    fn keep<T, E: ToString>(&mut self, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.0.push(error.to_string())).ok()
    }

    fn refuse_if(&mut self, wrong: bool, reason: impl Into<String>) {
        if wrong {
            self.0.push(reason.into());
        }
    }
}

fn check_repository(repository: &str, reasons: &mut Reasons) {
    let length = repository.len();
    reasons.refuse_if(repository.is_empty(), "the repository is empty; give a URL or a path");
    reasons.refuse_if(length > 2000, format!("the repository's URL has {length} bytes, more than 2000"));
    reasons
        .refuse_if(repository.chars().any(char::is_control), "the repository's URL has a control character");
    reasons.refuse_if(
        repository.starts_with('-'),
        "the repository's URL begins with a hyphen, as if it were an option",
    );
    let Some((scheme, rest)) = repository.split_once("://") else { return };
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or("");
    let userinfo = authority.rsplit_once('@').map(|(userinfo, _)| userinfo);
    // Over http a user's name alone is a token as often as not.
    let http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    reasons.refuse_if(
        userinfo.is_some_and(|userinfo| http || userinfo.contains(':')),
        "the repository's URL holds a password or a token before the @; give credentials to the Source instead",
    );
}

fn check_branch(branch: &str, reasons: &mut Reasons) {
    let shown = shown(branch);
    reasons.refuse_if(branch.matches('*').count() > 1, format!("the branch {shown:?} has more than one *"));
    // A pattern is a name with one character that git does not allow.
    reasons.keep(Revision::Branch(branch.replacen('*', "x", 1)).check());
}

fn check_policy(policy: &Policy, reasons: &mut Reasons) {
    reasons.refuse_if(
        !(1..=64).contains(&policy.parallel_instances),
        format!("policy.parallel_instances is {}, not 1 to 64", policy.parallel_instances),
    );
    reasons.refuse_if(
        !(1..=10_000).contains(&policy.queue_length_max),
        format!("policy.queue_length_max is {}, not 1 to 10000", policy.queue_length_max),
    );
    check_retry("retry", &policy.retry, reasons);
    check_retry("undo_retry", &policy.undo_retry, reasons);
    let health = &policy.health;
    reasons.refuse_if(health.passes == 0, "policy.health.passes is 0; at least 1 pass is needed");
    reasons.refuse_if(
        health.deadline.is_zero() || health.check_timeout.is_zero(),
        "policy.health.deadline and policy.health.check_timeout must be longer than zero",
    );
    reasons.refuse_if(
        health.healthy_time_min >= health.deadline,
        "policy.health.healthy_time_min must be shorter than policy.health.deadline",
    );
    reasons.refuse_if(
        health.interval_min.is_zero(),
        "policy.health.interval_min must be longer than zero: checks would follow each other without a pause",
    );
    reasons.refuse_if(
        health.interval_min > health.interval_max,
        "policy.health.interval_min is longer than policy.health.interval_max",
    );
    reasons.refuse_if(
        !health.path.starts_with('/') || !plain(&health.path, 2000),
        format!("policy.health.path {:?} must begin with / and have no space", shown(&health.path)),
    );
    let host = health.host.as_deref();
    reasons.refuse_if(
        host.is_some_and(|host| !plain(host, 255)),
        format!("policy.health.host {:?} is no host name", shown(host.unwrap_or_default())),
    );
    check_deadlines(&policy.deadlines, reasons);
    check_retention(&policy.retention, reasons);
}

fn check_retention(retention: &Retention, reasons: &mut Reasons) {
    let Calendar { hourly, daily, weekly, monthly, yearly, utc_offset_minutes } =
        retention.snapshots_calendar;
    for (name, number, least, most) in [
        ("snapshots_last", retention.snapshots_last, 0, 10_000),
        ("snapshots_calendar.hourly", hourly, 0, 10_000),
        ("snapshots_calendar.daily", daily, 0, 10_000),
        ("snapshots_calendar.weekly", weekly, 0, 10_000),
        ("snapshots_calendar.monthly", monthly, 0, 10_000),
        ("snapshots_calendar.yearly", yearly, 0, 10_000),
        ("snapshots_min", retention.snapshots_min, 1, 10_000),
        ("snapshots_removals_max", retention.snapshots_removals_max, 1, 10_000),
        ("images_last", retention.images_last, 0, 1000),
    ] {
        reasons.refuse_if(
            !(least..=most).contains(&number),
            format!("policy.retention.{name} is {number}, not {least} to {most}"),
        );
    }
    reasons.refuse_if(
        !(-840..=840).contains(&utc_offset_minutes),
        format!(
            "policy.retention.snapshots_calendar.utc_offset_minutes is {utc_offset_minutes}, not -840 to 840"
        ),
    );
    reasons.refuse_if(
        retention.snapshots_bytes_max == Some(0),
        "policy.retention.snapshots_bytes_max is 0; leave it out for no limit",
    );
}

fn check_deadlines(deadlines: &Deadlines, reasons: &mut Reasons) {
    let Deadlines { fetch, build, snapshot, stop, restore, update, start } = deadlines;
    for (name, deadline) in [
        ("fetch", fetch),
        ("build", build),
        ("snapshot", snapshot),
        ("stop", stop),
        ("restore", restore),
        ("update", update),
        ("start", start),
    ] {
        reasons.refuse_if(deadline.is_zero(), format!("policy.deadlines.{name} must be longer than zero"));
    }
}

/// Neither empty nor too long, and nothing that would end a line or a field.
fn plain(text: &str, length_max: usize) -> bool {
    (1..=length_max).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c == ' ')
}

/// As much of a text as a reason has room for.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

fn check_retry(name: &str, retry: &RetryPolicy, reasons: &mut Reasons) {
    reasons.refuse_if(
        !(1..=100).contains(&retry.attempts_max),
        format!("policy.{name}.attempts_max is {}, not 1 to 100", retry.attempts_max),
    );
    reasons.refuse_if(
        retry.delay_min > retry.delay_max,
        format!("policy.{name}.delay_min is longer than policy.{name}.delay_max"),
    );
    reasons.refuse_if(
        retry.elapsed_max.is_zero(),
        format!(
            "policy.{name}.elapsed_max must be longer than zero; for no second attempt set attempts_max to 1"
        ),
    );
}

fn check_instances(specs: Vec<InstanceSpec>, reasons: &mut Reasons) -> Vec<Instance> {
    reasons.refuse_if(specs.is_empty(), "there is no instance; at least one is needed");
    reasons.refuse_if(specs.len() > 64, format!("there are {} instances, more than 64", specs.len()));
    let instances: Vec<_> = specs.into_iter().filter_map(|spec| check_instance(spec, reasons)).collect();
    let (mut names, mut resources): (BTreeSet<_>, Vec<Resource>) = (BTreeSet::new(), Vec::new());
    for instance in &instances {
        reasons.refuse_if(
            !names.insert(instance.name.clone()),
            format!("two instances are named {}", instance.name),
        );
        for resource in instance.resources(&PoolName::default()) {
            match resources.iter().find(|other| resource.clash(other).is_some()) {
                Some(other) if *other == resource => {
                    reasons.refuse_if(true, format!("two instances share {}", resource.in_its_pool()));
                }
                Some(other) => reasons.refuse_if(
                    true,
                    format!(
                        "of {} and {} one lies in the other",
                        other.in_its_pool(),
                        resource.in_its_pool()
                    ),
                ),
                None => resources.push(resource),
            }
        }
    }
    instances
}

fn check_instance(spec: InstanceSpec, reasons: &mut Reasons) -> Option<Instance> {
    let name = reasons.keep(InstanceName::new(&spec.name));
    let who = spec.name.chars().take(40).collect::<String>();
    reasons.refuse_if(spec.port == Some(0), format!("the port of instance {who:?} is 0"));
    reasons.refuse_if(
        !plain(&spec.host, 255),
        format!("the host of instance {who:?} is no host name or address"),
    );
    if let Some(path) = &spec.data_directory {
        let parts = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
        reasons.refuse_if(
            !parts || path.parent().is_none(),
            format!("the data directory of instance {who:?} must be an absolute path below / without .."),
        );
    }
    reasons.refuse_if(
        spec.database.as_deref().is_some_and(|name| !valid_database(name)),
        format!("the database of instance {who:?} must be 1 to 63 of a-z, A-Z, 0-9, _ and -"),
    );
    for (variable, value) in &spec.variables {
        reasons.refuse_if(
            variable.is_empty() || variable.contains(['=', '\0']) || value.contains('\0'),
            format!("the variable {:?} of instance {who:?} cannot be set in an environment", shown(variable)),
        );
    }
    let size: usize = spec.variables.iter().map(|(variable, value)| variable.len() + value.len()).sum();
    reasons.refuse_if(
        size > VARIABLES_BYTES_MAX,
        format!("the variables of instance {who:?} have {size} bytes, more than {VARIABLES_BYTES_MAX}"),
    );
    let InstanceSpec { host, port, database, data_directory, variables, .. } = spec;
    // `/srv/shop` and `/srv//shop/` are one directory: compare and store what the components say.
    let data_directory = data_directory.map(|path| path.components().collect());
    Some(Instance { name: name?, host, port, database, data_directory, variables })
}

fn valid_database(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    (1..=63).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn valid() -> EnvironmentSpec {
        EnvironmentSpec::new("shop", "https://git.example.org/shop.git").instance(InstanceSpec::new("web"))
    }

    fn check(spec: EnvironmentSpec, expected: &[&str]) {
        let reasons = Environment::try_from(spec).map(|_| Vec::new()).unwrap_or_else(|error| error.reasons);
        assert_eq!(reasons.len(), expected.len(), "{reasons:#?}");
        for (reason, expected) in reasons.iter().zip(expected) {
            assert!(reason.contains(expected), "{reason:?} does not say {expected:?}");
        }
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        check(valid(), &[]);
        check(EnvironmentSpec::new("a/b", ""), &["not allowed", "repository is empty", "no instance"]);
        let shared = |name| InstanceSpec::new(name).port(80).data_directory("/srv//shop/");
        check(
            valid().instance(shared("a")).instance(shared("b")),
            &["share port 80", "share data directory"],
        );
        let nested = |name, path| InstanceSpec::new(name).data_directory(path);
        check(
            valid().instance(nested("a", "/srv/shop/./b")).instance(nested("b", "/srv//shop")),
            &["of data directory /srv/shop/b and data directory /srv/shop one lies in the other"],
        );
        check(valid().instance(nested("a", "/srv/shop")).instance(nested("b", "/srv/shop2")), &[]);
        check(valid().instance(InstanceSpec::new("web")), &["named web"]);
        check(valid().branch("a*b*"), &["more than one *", "names no branch"]);
        check(valid().policy(|policy| policy.health.passes = 0), &["passes is 0"]);
        check(valid().instance(InstanceSpec::new("x").data_directory("srv")), &["absolute"]);
        check(valid().instance(InstanceSpec::new("x").data_directory("/")), &["absolute"]);
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        let spec = EnvironmentSpec { repository: "https://u:s3cr3t@example.org/x".into(), ..valid() };
        let error = Environment::try_from(spec).unwrap_err().to_string();
        assert!(error.contains("holds a password") && !error.contains("s3cr3t"), "{error}");
        for url in
            ["HTTPS://s3cr3t@example.org/x", "http://s3cr3t@example.org?x", "ssh://git:s3cr3t@example.org/x"]
        {
            let spec = EnvironmentSpec { repository: url.into(), ..valid() };
            let error = Environment::try_from(spec).unwrap_err().to_string();
            assert!(error.contains("holds a password or a token") && !error.contains("s3cr3t"), "{error}");
        }
        check(EnvironmentSpec { repository: "ssh://git@example.org/x".into(), ..valid() }, &[]);
        check(EnvironmentSpec { repository: "https://example.org/@scope/x".into(), ..valid() }, &[]);
    }

    #[test]
    fn what_could_not_work_is_refused() {
        let refused = |change: fn(&mut Policy), expected: &str| check(valid().policy(change), &[expected]);
        refused(|it| it.health.host = Some("a\nb".into()), "policy.health.host \"a\\nb\" is no host name");
        refused(|it| it.health.host = Some(String::new()), "policy.health.host");
        refused(
            |it| it.health.interval_min = Duration::ZERO,
            "policy.health.interval_min must be longer than zero",
        );
        refused(|it| it.health.interval_max = Duration::from_millis(1), "interval_min is longer than");
        refused(|it| it.deadlines.build = Duration::ZERO, "policy.deadlines.build must be longer than zero");
        refused(|it| it.undo_retry.elapsed_max = Duration::ZERO, "policy.undo_retry.elapsed_max");
        refused(|it| it.retention.images_last = 1001, "policy.retention.images_last is 1001, not 0 to 1000");
        refused(|it| it.retention.snapshots_last = 10_001, "policy.retention.snapshots_last is 10001");
        refused(|it| it.retention.snapshots_min = 0, "policy.retention.snapshots_min is 0, not 1 to 10000");
        refused(|it| it.retention.snapshots_removals_max = 0, "policy.retention.snapshots_removals_max is 0");
        refused(
            |it| it.retention.snapshots_bytes_max = Some(0),
            "policy.retention.snapshots_bytes_max is 0;",
        );
        refused(
            |it| it.retention.snapshots_calendar.weekly = 10_001,
            "policy.retention.snapshots_calendar.weekly is 10001",
        );
        refused(
            |it| it.retention.snapshots_calendar.utc_offset_minutes = 841,
            "policy.retention.snapshots_calendar.utc_offset_minutes is 841, not -840 to 840",
        );
        let all = |it: &mut Policy| {
            let Deadlines { fetch, build, snapshot, stop, restore, update, start } = &mut it.deadlines;
            for deadline in [fetch, build, snapshot, stop, restore, update, start] {
                *deadline = Duration::ZERO;
            }
        };
        check(
            valid().policy(all),
            &["fetch", "build", "snapshot", "stop", "restore", "update", "start"]
                .map(|step| ["policy.deadlines.", step].concat())
                .each_ref()
                .map(String::as_str),
        );
        let large = valid().instance(InstanceSpec::new("x").variable("A", "x".repeat(VARIABLES_BYTES_MAX)));
        check(large, &["the variables of instance \"x\" have 65537 bytes, more than 65536"]);
    }

    #[test]
    fn a_reason_quotes_no_more_than_a_line() {
        let long = "x\n".repeat(100_000);
        let instance = InstanceSpec::new(&long).data_directory(&long).variable(long.clone() + "=", "");
        let spec =
            EnvironmentSpec::new(&long, &long).branch(format!("**{long}")).instance(instance).pool(&long);
        let error = Environment::try_from(spec.policy(|it| it.health.path.clone_from(&long))).unwrap_err();
        assert!(error.reasons.iter().all(|reason| reason.len() < 400), "{error}");
        assert!(error.reasons.len() > 8, "{error}");
    }

    #[test]
    fn an_environment_survives_the_way_through_json() {
        let environment = Environment::try_from(valid()).unwrap();
        let json = serde_json::to_string(&environment).unwrap();
        assert_eq!(serde_json::from_str::<Environment>(&json).unwrap(), environment);
    }
}

//! `odoo.conf`: what an instance is started with.

use std::{collections::BTreeMap, fmt::Write as _};

use ocore_core::secret::Secret;

use super::Series;

/// The first series that calls its second port `gevent_port`; before, it was `longpolling_port`.
const GEVENT_SINCE: u16 = 16;
/// The first series whose demonstration data is named by `with_demo`; before, it was there unless `without_demo` said no.
const WITH_DEMO_SINCE: u16 = 19;

/// Options that this crate writes itself, or that Odoo must not find in a file that it serves with: each with why.
const RESERVED: [(&str, &str); 16] = [
    ("addons_path", "it follows from the image"),
    ("admin_passwd", "it is a secret of its own: set admin_password"),
    ("data_dir", "set data_directory"),
    ("db_host", "set database"),
    ("db_name", "set database"),
    ("db_password", "set database"),
    ("db_port", "set database"),
    ("db_user", "set database"),
    ("dbfilter", "one instance serves one database, and its filter follows from the name"),
    ("gevent_port", "set gevent_port of the configuration, whatever the series"),
    ("init", "modules are installed before the instance serves, never by it"),
    ("list_db", "an instance never lists databases, and offers nobody to make or remove one"),
    ("longpolling_port", "set gevent_port of the configuration, whatever the series"),
    ("update", "modules are updated before the instance serves, never by it"),
    ("without_demo", "an instance has no demonstration data"),
    ("with_demo", "an instance has no demonstration data"),
];

/// Options that Odoo does not know any more, and reads over without a word: each with its present name.
const OBSOLETE: [(&str, &str); 4] = [
    ("xmlrpc_interface", "http_interface"),
    ("xmlrpc_port", "http_port"),
    ("xmlrpc", "http_enable"),
    ("dbname", "db_name"),
];

/// The database of an instance, as Odoo reaches it from its container.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Database {
    /// The server's name or address.
    pub host: String,
    /// The server's port.
    pub port: u16,
    /// The role. Odoo refuses `postgres`.
    pub user: String,
    /// The role's password.
    pub password: Secret,
    /// The database's name.
    pub name: String,
}

impl Database {
    /// A database on port 5432.
    #[must_use]
    pub fn new(
        host: impl Into<String>,
        user: impl Into<String>,
        password: Secret,
        name: impl Into<String>,
    ) -> Self {
        Self { host: host.into(), port: 5432, user: user.into(), password, name: name.into() }
    }
}

/// What `odoo.conf` says. [`render`](Self::render) writes it, or names everything in it that Odoo would misread.
///
/// Its defaults are those that Odoo's documentation advises for production: processes instead of threads, no list of
/// databases, no demonstration data. Sizes are in bytes, times in seconds.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Configuration {
    /// The series of the image.
    pub series: Series,
    /// The database.
    pub database: Database,
    /// Opens Odoo's own administration of databases, which `list_db = False` closes as well: a random one for each instance.
    pub admin_password: Secret,
    /// The folders that hold modules, in the order of precedence.
    pub addons_path: Vec<String>,
    /// The directory of the filestore and the sessions. The image's volume: without it Odoo would take another, and what was
    /// attached would be gone with the container.
    pub data_directory: String,
    /// The port for HTTP: 8069.
    pub http_port: u16,
    /// The port for websockets, or long polling before 16.0, which serves only if there are workers: 8072.
    pub gevent_port: u16,
    /// How many processes serve: 2. With none, one process serves with threads.
    pub workers: u16,
    /// How many threads run scheduled jobs: 1.
    pub cron_threads: u16,
    /// A process that has more ends after its request: 2 GiB.
    pub limit_memory_soft_bytes: u64,
    /// A process never has more: 2.5 GiB.
    pub limit_memory_hard_bytes: u64,
    /// How much processor time a request may take: 60 s.
    pub limit_time_cpu_seconds: u32,
    /// How long a request may take: 120 s.
    pub limit_time_real_seconds: u32,
    /// Whether a proxy stands before it, whose `X-Forwarded-…` are believed. Without one, anybody's would be.
    pub proxy_mode: bool,
    /// Modules that are loaded whatever the database: `base` and `web`.
    pub server_wide_modules: Vec<String>,
    /// Other options, written as they are.
    pub options: BTreeMap<String, String>,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration of Odoo is not valid: {}", reasons.join("; "))]
#[non_exhaustive]
pub struct InvalidConfiguration {
    /// One sentence per mistake. No secret is in it.
    pub reasons: Vec<String>,
}

impl Configuration {
    /// The configuration of an instance, with defaults for the rest.
    #[must_use]
    pub fn new(series: Series, database: Database, admin_password: Secret) -> Self {
        Self {
            series,
            database,
            admin_password,
            addons_path: Vec::new(),
            data_directory: "/var/lib/odoo".to_owned(),
            http_port: 8069,
            gevent_port: 8072,
            workers: 2,
            cron_threads: 1,
            limit_memory_soft_bytes: 2 << 30,
            limit_memory_hard_bytes: (5 << 30) / 2,
            limit_time_cpu_seconds: 60,
            limit_time_real_seconds: 120,
            proxy_mode: false,
            server_wide_modules: vec!["base".to_owned(), "web".to_owned()],
            options: BTreeMap::new(),
        }
    }

    /// What all its processes may have together before each ends by itself, in bytes: a container that is limited to less is
    /// killed, and looks like an unhealthy release.
    #[must_use]
    pub fn memory_max_bytes(&self) -> u64 {
        // With workers: those, one for each scheduled job, and one for websockets. Without: one that does it all.
        let processes =
            if self.workers == 0 { 1 } else { u64::from(self.workers) + u64::from(self.cron_threads) + 1 };
        processes.saturating_mul(self.limit_memory_soft_bytes)
    }

    /// The file's text, which holds secrets.
    ///
    /// # Errors
    ///
    /// Values that Odoo would read as something else (line ends, spaces at an end, `True`, `None`), options that are written
    /// here already or that it does not know any more, and a role that it refuses.
    pub fn render(&self) -> Result<Secret, InvalidConfiguration> {
        let entries = self.entries();
        let is_own = |key: &str| entries.iter().filter(|(other, _)| *other == key).count() > 1;
        let mut reasons = self.own_faults();
        reasons.extend(entries.iter().filter_map(|(key, value)| value_fault(key, value)));
        reasons.extend(self.options.keys().filter_map(|key| key_fault(key, is_own(key))));
        if !reasons.is_empty() {
            return Err(InvalidConfiguration { reasons });
        }
        let mut text = "[options]\n".to_owned();
        for (key, value) in entries {
            writeln!(text, "{key} = {value}").expect("a string takes every text");
        }
        Ok(Secret::new(text))
    }

    fn own_faults(&self) -> Vec<String> {
        let is_twice = self.workers > 0 && self.http_port == self.gevent_port;
        let paths = self.addons_path.iter().chain([&self.data_directory]);
        let wrong_paths = paths.filter(|path| !path.starts_with('/') || path.contains(','));
        let faults = [
            (self.database.user == "postgres")
                .then(|| "Odoo refuses the role postgres: give the database another".to_owned()),
            self.database
                .name
                .is_empty()
                .then(|| "the database has no name: Odoo would serve every one it sees".to_owned()),
            self.database
                .host
                .is_empty()
                .then(|| "the database has no host: Odoo would look in its own container".to_owned()),
            self.addons_path.is_empty().then(|| "the addons path is empty".to_owned()),
            is_twice.then(|| format!("the ports for HTTP and for websockets are both {}", self.http_port)),
            (self.limit_memory_soft_bytes > self.limit_memory_hard_bytes)
                .then(|| "the soft limit of memory is above the hard one".to_owned()),
        ];
        let wrong_paths =
            wrong_paths.map(|path| format!("{path:?} must be an absolute path without a comma"));
        faults.into_iter().flatten().chain(wrong_paths).collect()
    }

    fn entries(&self) -> Vec<(&str, String)> {
        let database = &self.database;
        let major = self.series.major();
        let gevent_port = if major < GEVENT_SINCE { "longpolling_port" } else { "gevent_port" };
        let demo = if major < WITH_DEMO_SINCE { ("without_demo", "all") } else { ("with_demo", "False") };
        let own = [
            ("addons_path", self.addons_path.join(",")),
            ("admin_passwd", self.admin_password.expose().to_owned()),
            ("data_dir", self.data_directory.clone()),
            ("db_host", database.host.clone()),
            ("db_name", database.name.clone()),
            ("db_password", database.password.expose().to_owned()),
            ("db_port", database.port.to_string()),
            ("db_user", database.user.clone()),
            ("dbfilter", format!("^{}$", literally(&database.name))),
            (gevent_port, self.gevent_port.to_string()),
            ("http_port", self.http_port.to_string()),
            ("limit_memory_hard", self.limit_memory_hard_bytes.to_string()),
            ("limit_memory_soft", self.limit_memory_soft_bytes.to_string()),
            ("limit_time_cpu", self.limit_time_cpu_seconds.to_string()),
            ("limit_time_real", self.limit_time_real_seconds.to_string()),
            ("list_db", "False".to_owned()),
            ("max_cron_threads", self.cron_threads.to_string()),
            ("proxy_mode", if self.proxy_mode { "True" } else { "False" }.to_owned()),
            ("server_wide_modules", self.server_wide_modules.join(",")),
            (demo.0, demo.1.to_owned()),
            ("workers", self.workers.to_string()),
        ];
        let options = self.options.iter().map(|(key, value)| (key.as_str(), value.clone()));
        own.into_iter().chain(options).collect()
    }
}

/// A name as a regular expression of Python that is matched by nothing else.
fn literally(name: &str) -> String {
    let mut pattern = String::new();
    for next in name.chars() {
        // `%h` and `%d` are the request's host to Odoo, before it is an expression.
        if next == '%' {
            pattern.push_str("\\x25");
            continue;
        }
        if !next.is_alphanumeric() && next != '_' {
            pattern.push('\\');
        }
        pattern.push(next);
    }
    pattern
}

/// Why Odoo would not read a value as it is written. The value itself is not shown: it may be a secret.
fn value_fault(key: &str, value: &str) -> Option<String> {
    let is_own_text = key.starts_with("db_") || key == "admin_passwd";
    // The names of truth are values of another type to Odoo, whatever the option.
    let is_word = matches!(value.to_ascii_lowercase().as_str(), "true" | "false" | "none");
    if value.chars().any(char::is_control) {
        return Some(format!("{key} has a control character: each option is one line"));
    }
    if value != value.trim() {
        return Some(format!("{key} begins or ends with a space, which Odoo does not read"));
    }
    if is_own_text && is_word {
        return Some(format!("{key} is True, False or None to Odoo and no text: choose another"));
    }
    (is_own_text && value.is_empty()).then(|| format!("{key} is empty"))
}

/// Why an option cannot be one of the user's.
fn key_fault(key: &str, is_own: bool) -> Option<String> {
    if let Some((_, reason)) = RESERVED.iter().find(|(name, _)| *name == key) {
        return Some(format!("the option {key} cannot be set: {reason}"));
    }
    if is_own {
        return Some(format!("the option {key} cannot be set: the configuration has it already"));
    }
    if let Some((_, present)) = OBSOLETE.iter().find(|(name, _)| *name == key) {
        return Some(format!("Odoo does not know the option {key} any more, it is {present}"));
    }
    let is_name = key.starts_with(|first: char| first.is_ascii_lowercase())
        && key.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (!is_name).then(|| format!("{key:?} is no option's name: letters from a to z, digits and _ are possible"))
}

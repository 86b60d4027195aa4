//! What is written into `odoo.conf` is what Odoo reads: with Python's `RawConfigParser`, as here.

use std::collections::BTreeMap;

use ocore_core::secret::Secret;
use ocore_docker::odoo::{Configuration, Database, Series};
use proptest::prelude::*;

use crate::program::asked;

fn series(text: &str) -> Series {
    text.parse().unwrap()
}

fn configuration(password: &str, name: &str) -> Configuration {
    let database = Database::new("db.example.org", "shop", Secret::new(password), name);
    let mut configuration = Configuration::new(series("17.0"), database, Secret::new("master"));
    configuration.addons_path = vec!["/opt/ocore/addons/shop".to_owned(), "/opt/odoo/addons".to_owned()];
    configuration
}

fn read(configuration: &Configuration) -> BTreeMap<String, String> {
    let program = "import configparser, json, re, sys\n\
        parser = configparser.RawConfigParser()\n\
        parser.read_string(sys.stdin.buffer.read().decode())\n\
        options = dict(parser.items('options'))\n\
        serves = re.compile(options['dbfilter'].replace('%h', 'host').replace('%d', 'domain')).match\n\
        assert serves(options['db_name'])\n\
        assert not serves('x' + options['db_name']) and not serves(options['db_name'] + 'x')\n\
        json.dump(options, sys.stdout)";
    let text = configuration.render().unwrap();
    serde_json::from_slice(&asked("python3", &["-c", program], text.expose().as_bytes())).unwrap()
}

fn reasons(configuration: &Configuration) -> Vec<String> {
    configuration.render().map_or_else(|invalid| invalid.reasons, |_| Vec::new())
}

#[test]
fn what_is_written_is_read() {
    let mut configuration = configuration("#p%(x)s;ä = \\", "shop-1");
    configuration.options.insert("log_level".to_owned(), "warn".to_owned());
    configuration.options.insert("limit_request".to_owned(), "8192".to_owned());
    let read = read(&configuration);
    let expected = [
        ("addons_path", "/opt/ocore/addons/shop,/opt/odoo/addons"),
        ("admin_passwd", "master"),
        ("data_dir", "/var/lib/odoo"),
        ("db_host", "db.example.org"),
        ("db_name", "shop-1"),
        ("db_password", "#p%(x)s;ä = \\"),
        ("db_port", "5432"),
        ("db_user", "shop"),
        ("dbfilter", "^shop\\-1$"),
        ("gevent_port", "8072"),
        ("http_port", "8069"),
        ("limit_memory_hard", "2684354560"),
        ("limit_memory_soft", "2147483648"),
        ("limit_request", "8192"),
        ("limit_time_cpu", "60"),
        ("limit_time_real", "120"),
        ("list_db", "False"),
        ("log_level", "warn"),
        ("max_cron_threads", "1"),
        ("proxy_mode", "False"),
        ("server_wide_modules", "base,web"),
        ("without_demo", "all"),
        ("workers", "2"),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(read, BTreeMap::from(expected));
}

#[test]
fn options_have_the_names_of_their_series() {
    let check = |text: &str, there: &[&str], not_there: &[&str]| {
        let mut configuration = configuration("password", "shop");
        configuration.series = series(text);
        let read = read(&configuration);
        assert!(there.iter().all(|key| read.contains_key(*key)), "{text}");
        assert!(!not_there.iter().any(|key| read.contains_key(*key)), "{text}");
    };
    check("15.0", &["longpolling_port", "without_demo"], &["gevent_port", "with_demo"]);
    check("16.0", &["gevent_port", "without_demo"], &["longpolling_port", "with_demo"]);
    check("19.0", &["gevent_port", "with_demo"], &["longpolling_port", "without_demo"]);
}

#[test]
fn what_odoo_would_misread_is_refused() {
    let check = |change: &dyn Fn(&mut Configuration), expected: &[&str]| {
        let mut configuration = configuration("password", "shop");
        change(&mut configuration);
        assert_eq!(reasons(&configuration), expected);
    };
    check(&|_| {}, &[]);
    let control = "db_password has a control character: each option is one line";
    check(&|it| it.database.password = Secret::new("a\nlist_db = True"), &[control]);
    let space = "db_password begins or ends with a space, which Odoo does not read";
    check(&|it| it.database.password = Secret::new(" a"), &[space]);
    let word = "db_password is True, False or None to Odoo and no text: choose another";
    check(&|it| it.database.password = Secret::new("true"), &[word]);
    check(&|it| it.database.password = Secret::new(""), &["db_password is empty"]);
    check(
        &|it| it.database.user = "postgres".to_owned(),
        &["Odoo refuses the role postgres: give the database another"],
    );
    check(&|it| it.http_port = 8072, &["the ports for HTTP and for websockets are both 8072"]);
    check(&|it| (it.http_port, it.workers) = (8072, 0), &[]);
    check(&|it| it.addons_path.clear(), &["the addons path is empty"]);
    check(&|it| it.addons_path.push("a,b".to_owned()), &["\"a,b\" must be an absolute path without a comma"]);
    check(&|it| it.limit_memory_soft_bytes <<= 1, &["the soft limit of memory is above the hard one"]);
}

#[test]
fn options_that_do_harm_are_refused_with_the_reason() {
    let check = |key: &str, expected: &str| {
        let mut configuration = configuration("password", "shop");
        configuration.options.insert(key.to_owned(), "1".to_owned());
        assert_eq!(reasons(&configuration), [expected]);
    };
    check("xmlrpc_port", "Odoo does not know the option xmlrpc_port any more, it is http_port");
    check(
        "update",
        "the option update cannot be set: modules are updated before the instance serves, never by it",
    );
    check("db_name", "the option db_name cannot be set: set database");
    check("workers", "the option workers cannot be set: the configuration has it already");
    check("a\nb", "\"a\\nb\" is no option's name: letters from a to z, digits and _ are possible");
    check("Workers", "\"Workers\" is no option's name: letters from a to z, digits and _ are possible");
}

#[test]
fn no_secret_is_shown() {
    let mut configuration = configuration("s3cr3t\n", "shop");
    configuration.admin_password = Secret::new("m4ster ");
    let shown = format!("{configuration:?} {:?}", configuration.render());
    assert!(!shown.contains("s3cr3t") && !shown.contains("m4ster"), "{shown}");
}

#[test]
fn the_memory_of_all_processes_is_known() {
    let check = |workers: u16, cron_threads: u16, expected: u64| {
        let mut configuration = configuration("password", "shop");
        (configuration.workers, configuration.cron_threads) = (workers, cron_threads);
        assert_eq!(configuration.memory_max_bytes(), expected << 31);
    };
    check(0, 2, 1);
    check(4, 2, 7);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    /// Whatever is not refused is read as it was meant.
    #[test]
    fn every_password_and_name_is_read_or_refused(password in "[ -~äé\u{a0}\n]{1,12}", name in "[a-zA-Z0-9_.% $-]{1,12}") {
        let configuration = configuration(&password, &name);
        if configuration.render().is_ok() {
            let read = read(&configuration);
            prop_assert_eq!(&read["db_password"], &password);
            prop_assert_eq!(&read["db_name"], &name);
        }
    }
}

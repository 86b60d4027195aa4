use std::{
    fs,
    net::TcpListener,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use ocore_examples::{http, sample_app::Manifest};
use rustix::process::{Signal, kill_process};

use crate::program::{CANARY, Ran, Running, Site, contains, process_of, program, wait_until};

#[test]
fn deployments_go_on_top_of_each_other_and_can_be_rolled_back() {
    let site = Site::new();
    site.commit(&Manifest::new("1", 1));
    site.deploy().expect(0, "Running after");
    http::post(site.port, "/rows", "Grace Hopper").unwrap();
    site.commit(&Manifest::new("2", 2));
    // Everything but what is new is remembered.
    site.run(&["--ref", "main"]).expect(0, "Running after");
    assert_eq!(site.version(), "2");
    assert_eq!(site.data().rows().unwrap().len(), 3);
    site.run(&["status"]).expect(0, "it answers");

    let first = site.history()[0].0.clone();
    site.run(&["rollback", &first]).expect(0, "will be lost");
    assert_eq!((site.version(), site.data().schema().unwrap()), ("1".to_owned(), Some(1)));
    assert_eq!(site.data().rows().unwrap().len(), 3);

    // The data of schema 1 is nothing for version 2: the release refuses it, and everything is as before.
    let second = site.history()[1].0.clone();
    site.run(&["rollback", &second, "--code-only"]).expect(1, "needs data of schema 2, but it has schema 1");
    assert_eq!(site.version(), "1");
    assert_eq!(site.statuses(), ["Running", "Running", "Running", "RolledBack"]);
    site.run(&["stop"]).expect(0, "is stopped");
    assert!(http::get(site.port, "/version").is_err());
}

#[test]
fn a_failed_health_check_leaves_the_old_version_and_shows_why() {
    let site = Site::new();
    site.commit(&Manifest::new("1", 1));
    site.deploy().expect(0, "Running after");
    site.commit(&Manifest::new("2", 2).unhealthy());
    let failed = site.deploy().expect(1, "503 Service Unavailable");
    assert!(failed.text.contains("RolledBack after") && failed.text.contains("downtime"), "{}", failed.text);
    assert_eq!((site.version(), site.data().schema().unwrap()), ("1".to_owned(), Some(1)));
    let id = &site.history()[1].0;
    let logs = site.run(&["logs", id]).expect(0, "health check: the payment service does not answer");
    assert!(logs.text.contains("data migrated from schema 1 to 2"), "{}", logs.text);
}

#[test]
fn a_machine_that_stands_still_for_two_seconds_breaks_nothing_off() {
    let site = Site::new();
    site.commit(&Manifest::new("1", 1));
    site.deploy().expect(0, "Running after");
    site.commit(&Manifest::new("2", 2).slow_migration(300));
    let running = site.start_slow();
    running.signal(Signal::STOP);
    let stopped = Instant::now();
    wait_until("two seconds are over", || stopped.elapsed() > Duration::from_secs(2));
    running.signal(Signal::CONT);
    let (code, text) = running.wait();
    assert_eq!(code, Some(0), "{text}");
    assert!(!text.contains("broken off") && !text.contains("trying again"), "{text}");
}

#[test]
fn what_ctrl_c_interrupts_the_next_call_finishes() {
    check_interruption(Signal::INT, Some(130));
}

#[test]
fn what_kill_9_interrupts_the_next_call_finishes() {
    check_interruption(Signal::KILL, None);
}

fn check_interruption(signal: Signal, code: Option<i32>) {
    let site = Site::new();
    site.commit(&Manifest::new("1", 1));
    site.deploy().expect(0, "Running after");
    site.commit(&Manifest::new("2", 2).slow_migration(300));
    let running = site.start_slow();
    running.signal(signal);
    let (ended, text) = running.wait();
    assert_eq!(ended, code, "{text}");
    site.commit(&Manifest::new("3", 3));
    site.run(&["--ref", "main"]).expect(0, "is not over; going on with it first");
    assert_eq!(site.version(), "3");
    assert_eq!(site.statuses(), ["Running", "Running", "Running"]);
    let migrations = site.data().migrations().unwrap();
    let steps: Vec<_> = migrations.iter().map(|line| line.split(" by ").next().unwrap()).collect();
    assert_eq!(steps, ["0 to 1", "1 to 2", "2 to 3"]);
}

/// A site whose version 1 is stopped: somebody pressed Ctrl-C in the migration to version 2.
fn interrupted() -> Site {
    let site = Site::new();
    site.commit(&Manifest::new("1", 1));
    site.deploy().expect(0, "Running after");
    site.commit(&Manifest::new("2", 2).slow_migration(300));
    let running = site.start_slow();
    running.signal(Signal::INT);
    assert_eq!(running.wait().0, Some(130));
    site
}

#[test]
fn a_call_for_one_environment_leaves_no_other_half_done() {
    let site = interrupted();
    assert!(http::get(site.port, "/version").is_err(), "it was interrupted in its migration");
    site.commit(&Manifest::new("3", 3));
    let port = http::free_port().unwrap().to_string();
    let staging = site.run(&["--name", "staging", "--repository", "repository", "--port", &port]);
    site.run(&["stop", "--name", "staging"]).expect(0, "is stopped");
    // It says that it goes on until production is over, unless that was quicker.
    let text = staging.expect(0, "Running after").text;
    assert_eq!((site.version(), site.statuses()), ("2".into(), vec!["Running".into(); 2]), "{text}");
}

#[test]
fn what_was_asked_for_in_vain_is_not_remembered() {
    let site = Site::new();
    site.commit(&Manifest::new("1", 1));
    site.deploy().expect(0, "Running after");
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken = taken.local_addr().map(|address| (taken, address.port().to_string())).unwrap();
    site.run(&["--port", &taken.1, "--health-path", "/nowhere"]).expect(1, "is in use");
    site.run(&["--repository", "nowhere"]).expect(1, "nowhere");
    site.commit(&Manifest::new("2", 2));
    site.run(&["--ref", "main"]).expect(0, "Running after");
    assert_eq!(site.version(), "2");
    let first = site.history()[0].0.clone();
    site.run(&["rollback", &first]).expect(0, "Running after");
    assert_eq!(site.version(), "1");
}

#[test]
fn a_second_ctrl_c_ends_the_program_at_once() {
    let site = Site::new();
    site.commit(&Manifest::new("1", 1));
    site.deploy().expect(0, "Running after");
    // What does not react is killed after the grace period: until then the step cannot be interrupted.
    let serving = process_of(&site.path(""), "serve");
    kill_process(serving, Signal::STOP).unwrap();
    site.commit(&Manifest::new("2", 2));
    let running = Running::start(site.command(&[]), &site.path("output"));
    running.wait_for_line("  stop      …");
    running.signal(Signal::INT);
    running.signal_until_it_ends(Signal::INT);
    let (code, text) = running.wait();
    assert_eq!(code, Some(130), "{text}");
    assert!(text.contains("stopped at once"), "{text}");
    kill_process(serving, Signal::CONT).unwrap();
    site.run(&["--ref", "main"]).expect(0, "is not over; going on with it first");
    assert_eq!((site.version(), site.statuses()), ("2".into(), vec!["Running".into(); 3]));
}

#[test]
fn a_terminal_gets_bars_and_a_pipe_gets_lines() {
    let site = Site::new();
    site.commit(&Manifest::new("1", 1).slow_migration(200));
    let piped = site.deploy().expect(0, "  fetch     …\n  fetch     done").text;
    assert!(!piped.contains('\u{1b}'), "{piped}");
    site.commit(&Manifest::new("2", 2).slow_migration(200));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command"]);
    script.arg(format!("'{}' --ref main", program("deploy").display())).arg("/dev/null");
    script.current_dir(site.path("")).env("TERM", "xterm").stdin(Stdio::null());
    let drawn = Ran::from(script.output().unwrap()).expect(0, "✓ update").text;
    // The spinner beside the step that goes on, drawn over what was there before.
    let spins = |tick: char| drawn.contains(&format!("{tick} update"));
    assert!("⠁⠂⠄⡀⢀⠠⠐⠈".chars().any(spins) && drawn.contains("\u{1b}["), "{drawn:?}");
}

#[test]
fn logs_of_an_abandoned_deployment_are_followed_to_its_end() {
    let site = interrupted();
    let id = site.history()[1].0.clone();
    site.run(&["logs", &id, "--follow"]).expect(0, "data migrated from schema 1 to 2");
    assert_eq!((site.version(), site.statuses()), ("2".into(), vec!["Running".into(); 2]));
}

#[test]
fn a_deployment_is_cancelled_from_another_terminal() {
    let site = Site::new();
    site.commit(&Manifest::new("1", 1));
    site.deploy().expect(0, "Running after");
    site.commit(&Manifest::new("2", 2).slow_migration(2000));
    let running = site.start_slow();
    let id = site.history()[1].0.clone();
    site.run(&["cancel", &id]).expect(0, "Cancelled after");
    let (code, text) = running.wait();
    assert_eq!(code, Some(1), "{text}");
    assert_eq!(site.version(), "1");
    assert_eq!(site.data().schema().unwrap(), Some(1));
    site.run(&["cancel", &id]).expect(2, "is over: Cancelled");
}

#[test]
fn logs_follow_a_deployment_to_its_end() {
    let site = Site::new();
    site.commit(&Manifest::new("1", 1).slow_migration(100));
    site.deploy().expect(0, "Running after");
    site.commit(&Manifest::new("2", 2).slow_migration(500));
    let running = site.start_slow();
    let id = site.history()[1].0.clone();
    let following = Running::start(site.command(&["logs", &id, "--follow"]), &site.path("followed"));
    following.wait_for_line("fetch ");
    assert_eq!(running.wait().0, Some(0));
    let (code, text) = following.wait();
    assert!(code == Some(0) && text.contains("data migrated from schema 1 to 2"), "{text}");
}

#[test]
fn a_key_for_ssh_comes_from_a_file_together_with_the_hosts_own() {
    let site = Site::new();
    let url = "git@git.example.org:acme/shop.git";
    let with = |arguments: &[&str]| site.run(&[&["--repository", url], arguments].concat());
    with(&["--ssh-key", "key"]).expect(2, "--host-keys");
    with(&["--ssh-key", "key", "--host-keys", "hosts"]).expect(2, "key cannot be read");
    fs::write(site.path("key"), CANARY).unwrap();
    fs::write(site.path("hosts"), "# git.example.org\n@revoked git.example.org ssh-ed25519 AAAA\n").unwrap();
    with(&["--ssh-key", "key", "--host-keys", "hosts"]).expect(2, "begins with a marker");
    assert!(grep(&site.path(".ocore"), CANARY.as_bytes()).is_empty());
}

#[test]
fn a_token_is_nowhere_on_the_disk() {
    let site = Site::new();
    site.commit(&Manifest::new("1", 1));
    site.deploy().expect(0, "Running after");
    let found = grep(&site.path(".ocore"), CANARY.as_bytes());
    assert!(found.is_empty(), "a secret is in {found:?}");
    let known = grep(&site.path(".ocore"), b"sample-app serve");
    assert!(!known.is_empty(), "the search finds nothing at all");
}

fn grep(directory: &std::path::Path, part: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(grep(&path, part));
        } else if fs::read(&path).is_ok_and(|bytes| contains(&bytes, part)) {
            found.push(path);
        }
    }
    found
}

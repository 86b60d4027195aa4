use std::process::Command;

use rustix::process::Signal;

use crate::program::{Running, processes, program, rows};

#[test]
fn the_story_ends_as_it_must_also_in_a_path_with_blanks() {
    let directory = tempfile::Builder::new().prefix("quick start ").tempdir().unwrap();
    let mut command = Command::new(program("quickstart"));
    command.arg("--keep").arg(directory.path().join("kept here"));
    let (code, text) = Running::start(command, &directory.path().join("output")).wait();
    assert_eq!(code, Some(0), "{text}");
    let statuses: Vec<_> = rows(&text).into_iter().map(|(_, status)| status).collect();
    assert_eq!(statuses, ["Running", "Running", "RolledBack", "Running", "Cancelled"], "{text}");
    assert!(text.contains("| the payment service does not answer"), "the reason is not shown: {text}");
    assert_eq!(processes(directory.path(), ""), 0);
}

#[test]
fn after_ctrl_c_nothing_runs_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(program("quickstart"));
    command.arg("--keep").arg(directory.path().join("kept"));
    let running = Running::start(command, &directory.path().join("output"));
    running.wait_for_line("3. The third version");
    running.wait_for_line("broken off");
    running.signal(Signal::INT);
    let (code, text) = running.wait();
    assert_eq!(code, Some(130), "{text}");
    assert_eq!(processes(directory.path(), ""), 0, "{text}");
}

//! Programs that adapters run.

use std::{fs, path::Path, process::Command, sync::Arc};

use ocore_core::{
    environment::{Environment, EnvironmentSpec, InstanceSpec},
    port::ErrorKind,
    program,
    testing::laws::caller::{Caller, eventually},
};
use tokio_util::sync::CancellationToken;

fn caller() -> Caller {
    let spec = EnvironmentSpec::new("sample", "https://git.example.org/sample.git");
    let environment = Environment::try_from(spec.instance(InstanceSpec::new("web")));
    Caller::new(Arc::new(environment.expect("the environment is valid")))
}

fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]);
    shell
}

/// A shell with a child that sleeps, whose number is in the file as soon as it runs.
fn with_a_child(file: &Path) -> Command {
    shell(&format!("sleep 1000 & echo $! > {}; wait", file.display()))
}

fn sleeps(file: &Path) -> bool {
    let pid = fs::read_to_string(file).unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.contains("(sleep)") && !stat.contains(") Z ")
}

#[tokio::test]
async fn any_output_is_shown_and_no_more_of_it_kept_than_helps() {
    let caller = caller();
    let loud = shell("printf '\\377 odd\\n'; seq 100000; head -c 200000 /dev/zero >&2; exit 7");
    let error = program::run(&caller.call(1, 1), loud).await.unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.kind()),
        ("sh failed: exit status: 7", ErrorKind::Permanent)
    );
    let kept: usize = error.detail().iter().map(String::len).sum();
    assert!(error.detail().len() <= 50 && kept <= 64 * 1024, "{kept} bytes are kept");
    assert!(caller.lines().iter().any(|(_, line)| line == "\u{fffd} odd"), "a line is not shown");
    assert!(caller.lines().iter().any(|(_, line)| line == "100000"), "the last line is not shown");
}

#[tokio::test]
async fn what_cannot_be_started_says_so() {
    let error = program::run(&caller().call(1, 1), Command::new("no-such-program")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(error.to_string().contains("start no-such-program: is it installed?"), "{error}");
}

#[tokio::test]
async fn a_program_that_is_dropped_ends_with_all_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let context = caller().call(1, 1);
    tokio::select! {
        result = program::run(&context, with_a_child(&file)) => panic!("it has ended: {result:?}"),
        () = eventually("it has started its child", || async { sleeps(&file) }) => {}
    }
    eventually("the child has ended", || async { !sleeps(&file) }).await;
}

#[tokio::test]
async fn a_program_that_is_cancelled_has_ended_with_all_its_children() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let (caller, cancellation) = (caller(), CancellationToken::new());
    let context = caller.cancellable(1, 1, &cancellation);
    let (result, ()) = tokio::join!(program::run(&context, with_a_child(&file)), async {
        eventually("it has started its child", || async { sleeps(&file) }).await;
        cancellation.cancel();
    });
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
    eventually("the child has ended", || async { !sleeps(&file) }).await;
}

#[tokio::test]
async fn what_a_program_leaves_behind_ends_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let leaves = shell(&format!("sleep 1000 & echo $! > {}", file.display()));
    program::run(&caller().call(1, 1), leaves).await.unwrap();
    eventually("the child has ended", || async { !sleeps(&file) }).await;
}

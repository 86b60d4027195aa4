//! Instances as processes: the laws, and what is special about processes. All of them are real.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::{
    env, fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chrono::DateTime;
use ocore_core::{
    environment::{Environment, EnvironmentSpec, InstanceSpec},
    id::DeploymentId,
    name::EnvironmentName,
    port::{Builder, Checkout, Error, ErrorKind, Observation, Runtime},
    release::{Commit, LiveInstance, Release, Started},
    secret::Secret,
    testing::laws::{
        caller::{Caller, eventually},
        runtime::{Program, RuntimeFixture, WORDS},
    },
};
use ocore_local::{LocalBuilder, LocalRuntime};
use rustix::{
    fs::FlockOperation,
    process::{Pid, Signal},
};
use tempfile::TempDir;

struct Fixture {
    root: TempDir,
    runtime: LocalRuntime,
}

fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let runtime = LocalRuntime::new(root.path()).grace(Duration::from_secs(5));
    Fixture { root, runtime }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for (pid, _) in processes(self.root.path()) {
            let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }
}

/// The processes that were started with something below `root` in their environment, with the end of their mark.
fn processes(root: &Path) -> Vec<(i32, String)> {
    let directory = format!("RELEASE_DIR={}/", root.display());
    let pids = fs::read_dir("/proc").unwrap();
    let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let ours = pids.filter_map(|pid| {
        let environment = String::from_utf8_lossy(&environment_of(pid)?).into_owned();
        let mut variables = environment.split('\0');
        let kind =
            variables.clone().find_map(|line| line.strip_prefix("OCORE_PROCESS="))?.rsplit(':').next()?;
        variables.any(|line| line.starts_with(&directory)).then(|| (pid, kind.to_owned()))
    });
    ours.collect()
}

/// The environment of a process; that of one which is just being started comes in a moment.
fn environment_of(pid: i32) -> Option<Vec<u8>> {
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
    let is_program = || fs::read_link(format!("/proc/{pid}/exe")).is_ok();
    loop {
        let environment = read("environ")?;
        if !environment.is_empty() {
            return Some(environment);
        }
        if !(read("cmdline")?.is_empty() && is_program()) {
            return read("environ");
        }
        thread::yield_now();
    }
}

/// Whether a process with these arguments runs.
fn runs(arguments: &str) -> bool {
    let pids = fs::read_dir("/proc").unwrap();
    pids.filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .any(|line| String::from_utf8_lossy(&line).replace('\0', " ").trim_end() == arguments)
}

fn spec() -> InstanceSpec {
    InstanceSpec::new("web")
}

fn environment(instance: InstanceSpec) -> Arc<Environment> {
    let spec = EnvironmentSpec::new("test", "https://git.example.org/test.git");
    Arc::new(spec.instance(instance).try_into().unwrap())
}

fn caller() -> Caller {
    Caller::new(environment(spec()))
}

/// A release with this script as `bin/run`, and with the lines of this `Procfile`, also where the builder refuses them.
async fn release_of(root: &Path, procfile: &str, script: &str) -> Release {
    let checkout = tempfile::tempdir().unwrap();
    fs::create_dir(checkout.path().join("bin")).unwrap();
    fs::write(checkout.path().join("Procfile"), "web: bin/run\n").unwrap();
    let program = checkout.path().join("bin/run");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let commit = Commit::new(&"a".repeat(40), "commit", "author", DateTime::UNIX_EPOCH);
    let caller = caller();
    let checkout = Checkout::new(checkout.path().to_owned(), commit.clone());
    let image = LocalBuilder::new(root).build(&caller.call(1, 1), &checkout).await.unwrap();
    let lines = procfile.lines().filter_map(|line| line.split_once(": "));
    let image = lines.fold(image, |image, (kind, command)| image.with_setting(kind, command));
    let image = image.with_update(procfile.contains("release: "));
    Release::new(DeploymentId::from_u128(1), commit, image)
}

impl Fixture {
    async fn script(&self, script: &str) -> Release {
        release_of(self.root.path(), "web: bin/run\nrelease: bin/run\n", script).await
    }

    async fn start(&self, caller: &Caller, script: &str) -> Started {
        let release = self.script(script).await;
        self.runtime.start(&caller.call(1, 1), caller.instance(), &release).await.unwrap()
    }

    async fn withdraw(&self, caller: &Caller) {
        self.runtime.withdraw(&caller.call(1, 9), caller.instance()).await.unwrap();
        assert_eq!(processes(self.root.path()), []);
    }

    fn state(&self) -> PathBuf {
        self.root.path().join("instances/test/web")
    }

    fn record(&self) -> PathBuf {
        let files = fs::read_dir(self.state()).unwrap().map(|entry| entry.unwrap().path());
        files.into_iter().find(|path| path.extension().is_some_and(|end| end == "json")).unwrap()
    }
}

#[async_trait]
impl RuntimeFixture for Fixture {
    fn runtime(&self) -> &dyn Runtime {
        &self.runtime
    }
    fn environment(&self) -> Arc<Environment> {
        environment(spec())
    }
    async fn release(&self, program: Program) -> Release {
        let script = match program {
            Program::Serves => format!("echo {WORDS}; [ $1 = release ] || exec sleep 1000"),
            Program::Ends => format!("echo {WORDS}; exit 3"),
            _ => format!("echo {WORDS}; [ $1 = web ] || sleep 1000"),
        };
        release_of(self.root.path(), "web: bin/run web\nrelease: bin/run release\n", &script).await
    }
    async fn serving(&self) -> usize {
        // A process that is just being started shares the lock until it is its own program.
        if let Ok(lock) = fs::File::open(self.state().join("lock")) {
            let began = Instant::now();
            let free = || rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
            while !free() && began.elapsed() < Duration::from_secs(5) {
                tokio::task::yield_now().await;
            }
        }
        // Each start makes a process group: its leaders are counted, and not their children.
        let leads =
            |pid| rustix::process::getpgid(Pid::from_raw(pid)).is_ok_and(|group| group.as_raw_pid() == pid);
        processes(self.root.path()).iter().filter(|(pid, kind)| kind == "web" && leads(*pid)).count()
    }
    async fn updating(&self) -> usize {
        // The script and its child count as one.
        usize::from(processes(self.root.path()).iter().any(|(_, kind)| kind == "release"))
    }
    fn refuses_older_fences(&self) -> bool {
        true
    }
}

ocore_core::runtime_laws!(fixture());

#[tokio::test]
async fn a_process_gets_a_clean_environment() {
    let fixture = fixture();
    let data = fixture.root.path().join("my data");
    let spec = spec().port(1).data_directory(&data).variable("COLOUR", "dark red");
    let caller = Caller::new(environment(spec.port(free_port())));
    let port = caller.instance().port.unwrap().to_string();
    let procfile = "web: bin/run $COLOUR \"$PORT\" '$PORT' x${DATA_DIR}\n";
    let release = release_of(
        fixture.root.path(),
        procfile,
        "env | sort > \"$DATA_DIR/env\"; pwd > \"$DATA_DIR/rest\"
         for word; do echo \"$word\" >> \"$DATA_DIR/rest\"; done
         cat >> \"$DATA_DIR/rest\"; touch \"$DATA_DIR/done\"; exec sleep 1000",
    )
    .await;
    fixture.runtime.start(&caller.call(7, 3), caller.instance(), &release).await.unwrap();
    let done = || async { data.join("done").exists() };
    eventually("the program has told its environment", done).await;
    let tree = fixture.root.path().join("releases").join(&release.image.reference).join("tree");
    let (tree, data_text) = (tree.display(), data.display());
    let rest = fs::read_to_string(data.join("rest")).unwrap();
    assert_eq!(rest, format!("{tree}\ndark red\n{port}\n$PORT\nx{data_text}\n"));
    let environment = fs::read_to_string(data.join("env")).unwrap();
    let names: Vec<&str> = environment.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let mut expected = vec![
        "COLOUR",
        "DATA_DIR",
        "HOME",
        "LANG",
        "OCORE_DEPLOYMENT",
        "OCORE_ENVIRONMENT",
        "OCORE_INSTANCE",
        "OCORE_PROCESS",
        "PATH",
        "PORT",
        "PWD",
        "RELEASE_DIR",
    ];
    // Some shells add these themselves.
    expected.extend(["OLDPWD", "SHLVL", "_"].iter().filter(|name| names.contains(name)));
    expected.sort_unstable();
    let mut names = names.clone();
    names.sort_unstable();
    assert_eq!(names, expected);
    fixture.runtime.withdraw(&caller.call(7, 9), caller.instance()).await.unwrap();
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn a_port_in_use_is_refused_and_its_holder_is_named() {
    let fixture = fixture();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let caller = Caller::new(environment(spec().port(port)));
    let release = fixture.script("exec sleep 1000").await;
    let start = async || fixture.runtime.start(&caller.call(1, 1), caller.instance(), &release).await;
    let error = start().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    let expected = format!("port {port} is in use by process {} (", std::process::id());
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert_eq!(processes(fixture.root.path()), []);
    drop(listener);
    start().await.unwrap();
    fixture.withdraw(&caller).await;
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let fixture = fixture();
    let root = fixture.root.path();
    let cases = [
        ("web: bin/none\n", spec(), "the release has no program bin/none"),
        ("web: no-such-program\n", spec(), "there is no program \"no-such-program\""),
        ("web: ./Procfile\n", spec(), "./Procfile is no executable file"),
        ("web: bin/run $PORT\n", spec(), "the command uses $PORT, but the instance has no port"),
        (
            "web: bin/run $DATA_DIR\n",
            spec(),
            "the command uses $DATA_DIR, but the instance has no data directory",
        ),
        ("web: bin/run $TOKEN\n", spec(), "the command uses $TOKEN, which is a secret"),
        ("web: bin/run $OTHER\n", spec(), "the command uses $OTHER, which is not set"),
        ("web: bin/run\n", spec().data_directory(root.join("no/such")), "make the data directory"),
        ("web: bin/run\n", spec().data_directory(root.join("file")), "is not a directory"),
    ];
    fs::write(root.join("file"), "x").unwrap();
    let name = EnvironmentName::new("test").unwrap();
    let runtime = fixture.runtime.clone().secret(name, "TOKEN", Secret::new("hush-hush"));
    for (procfile, spec, expected) in cases {
        let release = release_of(root, procfile, "exec sleep 1000").await;
        let caller = Caller::new(environment(spec));
        let error = runtime.start(&caller.call(1, 1), caller.instance(), &release).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permanent, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        LocalBuilder::new(root).remove(&caller.call(1, 1), &release.image).await.unwrap();
        let error = runtime.start(&caller.call(1, 1), caller.instance(), &release).await.unwrap_err();
        assert!(error.to_string().contains("is not there: deploy it again"), "{error}");
    }
    assert_eq!(processes(root), []);
}

#[tokio::test]
async fn secrets_are_given_and_never_written() {
    const VALUE: &str = "hush-hush-48151623";
    let fixture = fixture();
    let data = fixture.root.path().join("data");
    let caller = Caller::new(environment(spec().data_directory(&data)));
    let name = EnvironmentName::new("test").unwrap();
    let runtime = fixture.runtime.clone().secret(name, "TOKEN", Secret::new(VALUE));
    assert!(!format!("{runtime:?}").contains(VALUE));
    let script = "echo \"$TOKEN\" | wc -c > \"$DATA_DIR/length\"; exec sleep 1000";
    let release = fixture.script(script).await;
    runtime.start(&caller.call(1, 1), caller.instance(), &release).await.unwrap();
    let length = || async { fs::read_to_string(data.join("length")).is_ok_and(|text| !text.is_empty()) };
    eventually("the program has seen the secret", length).await;
    assert_eq!(fs::read_to_string(data.join("length")).unwrap().trim(), (VALUE.len() + 1).to_string());
    assert_eq!(caller.hidden(), [VALUE]);
    let found = Command::new("grep").args(["-r", VALUE]).arg(fixture.root.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    assert!(caller.lines().iter().all(|(_, line)| !line.contains(VALUE)));
    fixture.withdraw(&caller).await;
}

#[tokio::test]
async fn an_exit_code_and_a_signal_are_told() {
    for (script, expected) in [("exit 7", "exit code 7"), ("kill -9 $$", "signal 9")] {
        let (fixture, caller) = (fixture(), caller());
        let started = fixture.start(&caller, script).await;
        let mut reason = String::new();
        let began = Instant::now();
        while began.elapsed().as_secs() < 20 && reason.is_empty() {
            let seen = fixture.runtime.inspect(&caller.call(1, 1), caller.instance(), &started).await;
            if let Observation::Down { reason: seen, .. } = seen.unwrap() {
                reason = seen;
            }
        }
        assert!(reason.contains(expected), "{reason}");
        fixture.withdraw(&caller).await;
    }
}

#[tokio::test]
async fn who_ignores_the_request_to_end_is_killed() {
    let (mut fixture, caller) = (fixture(), caller());
    fixture.runtime = fixture.runtime.clone().grace(Duration::from_millis(300));
    let ready = fixture.root.path().join("ready");
    let script = format!("trap '' TERM; touch {}; while :; do sleep 1; done", ready.display());
    let started = fixture.start(&caller, &script).await;
    eventually("the program runs", || async { ready.exists() }).await;
    let live = LiveInstance::new(caller.instance().clone(), started);
    let began = Instant::now();
    fixture.runtime.stop(&caller.call(2, 2), &live).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300), "no grace was given");
    assert_eq!(processes(fixture.root.path()), []);
}

#[tokio::test]
async fn who_ends_when_asked_is_not_killed() {
    let (fixture, caller) = (fixture(), caller());
    let (ready, ended) = (fixture.root.path().join("ready"), fixture.root.path().join("ended"));
    let script = format!(
        "trap 'touch {}; exit 0' TERM; touch {}; while :; do sleep 0.01; done",
        ended.display(),
        ready.display()
    );
    fixture.start(&caller, &script).await;
    eventually("the program runs", || async { ready.exists() }).await;
    fixture.withdraw(&caller).await;
    assert!(ended.exists(), "the program was not asked to end");
}

#[tokio::test]
async fn children_that_hide_are_found() {
    let (mut fixture, caller) = (fixture(), caller());
    fixture.runtime = fixture.runtime.clone().grace(Duration::from_millis(100));
    let number = std::process::id();
    let sleeps: Vec<String> = (1..=5).map(|child| format!("sleep {number}.{child}")).collect();
    let [plain, session, marked, logging, cleared] = sleeps.as_slice() else { unreachable!() };
    let script = format!(
        "{plain} &
         setsid {session} &
         (setsid {marked} >/dev/null 2>&1 &)
         (env -i setsid {logging} &)
         env -i setsid {cleared} >/dev/null 2>&1 &
         wait"
    );
    let started = fixture.start(&caller, &script).await;
    eventually("all children run", || async { sleeps.iter().all(|sleep| runs(sleep)) }).await;
    let live = LiveInstance::new(caller.instance().clone(), started);
    fixture.runtime.stop(&caller.call(2, 2), &live).await.unwrap();
    let left: Vec<&String> = sleeps.iter().filter(|sleep| runs(sleep)).collect();
    assert!(left.is_empty(), "still running: {left:?}");
}

/// The state that a worker leaves which is killed between the start and the record.
#[tokio::test]
async fn a_process_without_a_record_is_found() {
    let (fixture, caller) = (fixture(), caller());
    fixture.start(&caller, "exec sleep 1000").await;
    fs::remove_file(fixture.record()).unwrap();
    fs::write(fixture.state().join(".x.json.tmp"), "").unwrap();
    eventually("it serves", || async { fixture.serving().await == 1 }).await;
    let release = fixture.script("exec sleep 1000").await;
    fixture.runtime.start(&caller.call(1, 2), caller.instance(), &release).await.unwrap();
    assert_eq!(fixture.serving().await, 1, "it runs twice");
    let left = fs::read_dir(fixture.state()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter_map(|name| Some(name.to_str()?.split_once('.')?.0.to_owned())).collect();
    assert!(left.iter().all(|stem| stem.ends_with("-2-web")), "of the first start there is still {left:?}");
    fs::remove_file(fixture.record()).unwrap();
    let context = caller.call(2, 3);
    let started = fixture.runtime.start(&context, caller.instance(), &release).await.unwrap();
    assert_eq!(fixture.serving().await, 1, "two deployments run in one instance");
    let seen = fixture.runtime.inspect(&context, caller.instance(), &started).await.unwrap();
    assert_eq!(seen, Observation::Up);
    fixture.runtime.withdraw(&context, caller.instance()).await.unwrap();
    assert_eq!(processes(fixture.root.path()), []);
}

#[tokio::test]
async fn a_process_that_has_got_the_number_of_another_is_left_alone() {
    let (fixture, caller) = (fixture(), caller());
    let started = fixture.start(&caller, "exec sleep 1000").await;
    let text = fs::read_to_string(fixture.record()).unwrap();
    let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut other =
        Command::new("sleep").arg("1000").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for name in ["process", "log_keeper"] {
        record[name]["pid"] = other.id().into();
        // The clock of the kernel's records has steps of 10 milliseconds: both may have been started in one.
        record[name]["started"] = (record[name]["started"].as_u64().unwrap() - 1).into();
    }
    fs::write(fixture.record(), record.to_string()).unwrap();
    let seen = fixture.runtime.inspect(&caller.call(1, 1), caller.instance(), &started).await.unwrap();
    assert!(matches!(seen, Observation::Down { .. }), "another process is taken for the instance");
    fixture.withdraw(&caller).await;
    assert_eq!(other.try_wait().unwrap(), None, "another process was ended");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn a_log_stays_within_its_limit() {
    let (mut fixture, caller) = (fixture(), caller());
    let limit = 1 << 20;
    fixture.runtime = fixture.runtime.clone().log_size(limit);
    let script = "yes 'a line of a talkative program' | head -c 30000000; echo the end; exec sleep 1000";
    let started = fixture.start(&caller, script).await;
    let context = caller.call(1, 1);
    let last = async || fixture.runtime.tail(&context, caller.instance(), &started, 1).await.unwrap();
    eventually("the program has written all", || async { last().await == ["the end"] }).await;
    let files = fs::read_dir(fixture.state()).unwrap().map(|entry| entry.unwrap());
    let logs = files.filter(|file| file.file_name().to_string_lossy().contains(".log"));
    let kept: u64 = logs.map(|file| file.metadata().unwrap().len()).sum();
    assert!(kept > limit && kept <= 2 * (limit + (4 << 20)), "{kept} bytes are kept");
    fixture.withdraw(&caller).await;
}

#[tokio::test]
async fn a_start_that_fails_leaves_no_dead_child() {
    let (fixture, caller) = (fixture(), caller());
    let release = fixture.script("").await;
    let program = fixture.root.path().join("releases").join(&release.image.reference).join("tree/bin/run");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&program, "#!/no/such/interpreter\n").unwrap();
    let result = fixture.runtime.start(&caller.call(1, 1), caller.instance(), &release).await;
    let error = result.unwrap_err();
    assert!(error.to_string().contains("is the interpreter in its first line there?"), "{error}");
    let own = std::process::id();
    let dead = || {
        let stats = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok());
        stats.filter(|stat| stat.contains(&format!(") Z {own} "))).count()
    };
    eventually("every child has been waited for", || async { dead() == 0 }).await;
}

#[tokio::test]
async fn a_port_that_is_taken_while_the_old_version_comes_back_may_become_free() {
    let fixture = fixture();
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let spec = spec().port(taken.local_addr().unwrap().port());
    let caller = Caller::new(environment(spec));
    let release = fixture.script("exec sleep 1000").await;
    let started = Started::new(format!("{}-1", DeploymentId::from_u128(1)));
    let live = LiveInstance::new(caller.instance().clone(), started);
    let error = fixture.runtime.revive(&caller.call(2, 2), &live, &release).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error}");
    drop(taken);
    fixture.runtime.revive(&caller.call(2, 3), &live, &release).await.unwrap();
    let context = caller.call(1, 4);
    fixture.runtime.withdraw(&context, caller.instance()).await.unwrap();
}

#[tokio::test]
async fn a_corrupt_record_is_an_error_that_says_what_to_do() {
    let (fixture, caller) = (fixture(), caller());
    fixture.start(&caller, "exec sleep 1000").await;
    fs::write(fixture.record(), "{").unwrap();
    let result = fixture.runtime.withdraw(&caller.call(1, 2), caller.instance()).await;
    let error: Error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permanent);
    assert!(error.to_string().contains("look for the process it names"), "{error}");
}

#[tokio::test]
async fn nothing_is_kept_of_what_was_withdrawn() {
    let (fixture, caller) = (fixture(), caller());
    fixture.start(&caller, "echo x; exec sleep 1000").await;
    fixture.withdraw(&caller).await;
    let mut names: Vec<_> = fs::read_dir(fixture.state())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["fence", "lock"]);
}

const WORKER_ROOT: &str = "OCORE_TEST_WORKER_ROOT";
const WORKER_RELEASE: &str = "OCORE_TEST_WORKER_RELEASE";

/// Not a test: the worker of the next tests. It starts the release and ends, or is killed.
#[test]
fn as_worker_that_starts() {
    let (Ok(root), Ok(release)) = (env::var(WORKER_ROOT), env::var(WORKER_RELEASE)) else { return };
    let release: Release = serde_json::from_str(&release).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let caller = caller();
        let local = LocalRuntime::new(PathBuf::from(&root));
        fs::write(Path::new(&root).join("ready"), "").unwrap();
        drop(local.start(&caller.call(1, 1), caller.instance(), &release).await.unwrap());
    });
}

fn worker(fixture: &Fixture, release: &Release) -> std::process::Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "as_worker_that_starts", "--test-threads=1"])
        .env(WORKER_ROOT, fixture.root.path())
        .env(WORKER_RELEASE, serde_json::to_string(release).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_process_outlives_its_worker_and_is_found_by_the_next() {
    let (fixture, caller) = (fixture(), caller());
    let release = fixture.script("echo before; sleep 0.5; echo after; exec sleep 1000").await;
    assert!(worker(&fixture, &release).wait().unwrap().success());
    let again = fixture.runtime.start(&caller.call(1, 1), caller.instance(), &release).await.unwrap();
    assert_eq!(fixture.serving().await, 1, "it was started twice");
    let inspect =
        async || fixture.runtime.inspect(&caller.call(1, 1), caller.instance(), &again).await.unwrap();
    assert_eq!(inspect().await, Observation::Up);
    let log = async || fixture.runtime.tail(&caller.call(1, 1), caller.instance(), &again, 9).await.unwrap();
    eventually("the log goes on without the worker", || async { log().await == ["before", "after"] }).await;
    for (pid, _) in processes(fixture.root.path()) {
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    eventually("the end is seen", || async { inspect().await != Observation::Up }).await;
    let Observation::Down { reason, log_tail } = inspect().await else { panic!("it is up") };
    assert!(reason.contains("its exit code is not known"), "{reason}");
    assert_eq!(log_tail, ["before", "after"]);
}

#[tokio::test]
async fn a_worker_killed_while_it_starts_leaves_nothing_that_is_not_found() {
    let (fixture, caller) = (fixture(), caller());
    let release = fixture.script("exec sleep 1000").await;
    let mut running = 0;
    for round in 0..60_u64 {
        let mut worker = worker(&fixture, &release);
        let ready = fixture.root.path().join("ready");
        eventually("the worker is at work", || async { ready.exists() }).await;
        fs::remove_file(ready).unwrap();
        thread::sleep(Duration::from_micros(round * 1_237 % 40_000));
        worker.kill().unwrap();
        worker.wait().unwrap();
        let fence = round + 2;
        let context = caller.call(1, fence);
        running += fixture.serving().await;
        fixture.runtime.withdraw(&context, caller.instance()).await.unwrap();
        assert_eq!(processes(fixture.root.path()), [], "round {round}");
        let started = fixture.runtime.start(&context, caller.instance(), &release).await.unwrap();
        eventually("it serves, once", || async { fixture.serving().await == 1 }).await;
        let seen = fixture.runtime.inspect(&context, caller.instance(), &started).await.unwrap();
        assert_eq!(seen, Observation::Up, "round {round}");
        fixture.runtime.withdraw(&context, caller.instance()).await.unwrap();
        // The worker's fence is always 1: without this it would be refused.
        fs::remove_file(fixture.state().join("fence")).unwrap();
    }
    assert!(running > 0, "no worker was killed late enough to have started anything");
}

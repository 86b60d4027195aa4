//! The steps of `cargo xtask test`, in the order in which they are cheapest to fail.

use std::{
    env,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::tools;

/// How many random schedules CI runs.
const SEEDS: &str = "100000";

/// Runs a command with a private PostgreSQL cluster that all tests share, and that is gone with it.
const WITH_POSTGRES: &str = "run --quiet -p ocore-test-postgres --bin shared-postgres --";

/// One command, with a name for the headlines.
pub(crate) struct Step {
    name: &'static str,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
}

impl Step {
    fn new(name: &'static str, arguments: &str) -> Self {
        let arguments = arguments.split_whitespace().map(str::to_owned).collect();
        Self { name, arguments, variables: Vec::new() }
    }

    /// With a private PostgreSQL cluster.
    pub(crate) fn with_postgres(name: &'static str, arguments: &str) -> Self {
        Self::new(name, &format!("{WITH_POSTGRES} cargo {arguments}"))
    }

    const fn called(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    pub(crate) fn with(mut self, arguments: Vec<String>) -> Self {
        self.arguments.extend(arguments);
        self
    }

    pub(crate) fn variable(mut self, name: &'static str, value: impl ToString) -> Self {
        self.variables.push((name, value.to_string()));
        self
    }

    fn command_line(&self) -> String {
        let variables = self.variables.iter().map(|(name, value)| format!("{name}={value:?} "));
        format!("{}cargo {}", variables.collect::<String>(), self.arguments.join(" "))
    }

    /// Runs the command in the workspace's root.
    ///
    /// # Errors
    /// How it ended, unless it ended well.
    pub(crate) fn run(&self) -> Result<(), String> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace");
        let mut command = Command::new(cargo);
        command.args(&self.arguments).current_dir(root).envs(self.variables.iter().cloned());
        let status = command.status().map_err(|error| format!("cannot run cargo: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("`{}` ended with {status}", self.command_line())) }
    }
}

/// Everything that CI runs.
///
/// # Errors
/// What is missing, or which step failed.
pub(crate) fn test() -> Result<(), String> {
    tools::check()?;
    let steps = all(tools::has_nextest());
    let (begun, count) = (Instant::now(), steps.len());
    for (n, step) in (1..).zip(&steps) {
        eprintln!("\n━━ {n}/{count} {}: {}", step.name, step.command_line());
        let step_begun = Instant::now();
        step.run().map_err(|reason| {
            let took = seconds(begun.elapsed());
            format!("FAILED at step {n} of {count} ({}) after {took}: {reason}", step.name)
        })?;
        eprintln!("━━ {n}/{count} {}: passed in {}", step.name, seconds(step_begun.elapsed()));
    }
    eprintln!("\nxtask: all {count} steps PASSED in {}", seconds(begun.elapsed()));
    Ok(())
}

fn all(has_nextest: bool) -> Vec<Step> {
    let tests = if has_nextest {
        Step::with_postgres("tests", "nextest run --workspace --all-features")
    } else {
        Step::with_postgres("tests", "test --workspace --all-features --tests")
    };
    vec![
        Step::new("format", "fmt --all --check"),
        Step::new("lints", "clippy --workspace --all-targets --all-features -- -D warnings"),
        Step::new("docs", "doc --workspace --no-deps --all-features").variable("RUSTDOCFLAGS", "-D warnings"),
        // Tests run the example programs, and only nextest would build them by itself.
        Step::new("examples", "build --workspace --all-features --examples"),
        tests,
        Step::new("doc tests", "test --doc --workspace --all-features"),
        simulate(Vec::new()).called("simulation, every single fault"),
        simulate(vec!["--seeds".to_owned(), SEEDS.to_owned()]).called("simulation, random schedules"),
        simulate(vec!["--mutants".to_owned()]).called("simulation, every planted bug is found"),
        Step::new("quickstart", "run --release --example quickstart"),
    ]
}

/// The simulated world; without options every single fault of every scenario. What runs for an hour is worth a minute
/// more of building.
pub(crate) fn simulate(options: Vec<String>) -> Step {
    let profile = if options.iter().any(|it| it == "--pairs") { "simulation" } else { "release" };
    Step::new("simulation", &format!("run --quiet --profile {profile} --bin simulate --")).with(options)
}

/// The benches: a program that runs us and our peers side by side, or else those of `cargo bench`.
pub(crate) fn bench(mut arguments: Vec<String>) -> Step {
    match arguments.first().map(String::as_str) {
        Some(program @ ("store" | "snapshot")) => {
            let line = format!("run --quiet --release -p ocore-benches --bin {program} --");
            arguments.remove(0);
            Step::new("bench", &line).with(arguments)
        }
        _ => Step::new("benches", "bench -p ocore-benches").with(arguments),
    }
}

/// The kill test on PostgreSQL, with so many deployments.
pub(crate) fn kill(deployments: u32) -> Step {
    let test = "test --release -p ocore-kill-tests --test kill_postgres -- --nocapture";
    Step::new("kill", test).variable("OCORE_DEPLOYMENTS", deployments)
}

fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::{Step, all, bench, kill, simulate};

    #[test]
    fn tests_run_with_and_without_nextest() {
        let lines = |has_nextest| all(has_nextest).iter().map(Step::command_line).collect::<Vec<_>>();
        let examples = "cargo build --workspace --all-features --examples";
        assert_eq!(lines(true)[3], examples);
        assert!(lines(true)[4].ends_with("shared-postgres -- cargo nextest run --workspace --all-features"));
        assert!(
            lines(false)[4].ends_with("shared-postgres -- cargo test --workspace --all-features --tests")
        );
    }

    #[test]
    fn options_reach_the_simulation() {
        let step = simulate(vec!["--seeds".into(), "7".into()]);
        assert!(step.command_line().ends_with("--bin simulate -- --seeds 7"), "{}", step.command_line());
    }

    #[test]
    fn a_bench_beside_peers_is_a_program() {
        let line = |words: &str| bench(words.split_whitespace().map(str::to_owned).collect()).command_line();
        assert!(line("store --quick").ends_with("--release -p ocore-benches --bin store -- --quick"));
        assert!(line("snapshot").ends_with("--release -p ocore-benches --bin snapshot --"));
        assert_eq!(line("--bench engine"), "cargo bench -p ocore-benches --bench engine");
        assert!(kill(7).command_line().starts_with("OCORE_DEPLOYMENTS=\"7\" cargo test"));
    }

    #[test]
    fn a_step_that_fails_says_which() {
        let error = Step::new("nothing", "no-such-command-of-cargo").run().unwrap_err();
        assert!(error.contains("`cargo no-such-command-of-cargo` ended with"), "{error}");
    }
}

//! What people and CI run: `cargo xtask help`.

mod postgres;
mod steps;
mod tools;

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

const HELP: &str = "\
What people and CI run.

    cargo xtask test                   everything that CI runs, stopping at the first failure
    cargo xtask simulate [OPTION …]    the simulated world, optimised: every single fault, or else
        --seeds N                      so many random schedules
        --pairs                        every pair of faults
                                       (all options: cargo xtask simulate --help)
    cargo xtask bench store [OPTION …] the stores beside their peers, on a PostgreSQL server of its own
    cargo xtask bench snapshot [OPTION …]  snapshots beside pg_dump, pg_restore, zstd and cp, likewise
    cargo xtask bench [ARGUMENT …]     the other benches; arguments go to `cargo bench`, as in: --bench engine
    cargo xtask kill [DEPLOYMENTS]     workers are killed and servers restarted during so many deployments, 5000 by
                                       default, on PostgreSQL
    cargo xtask postgres VERSION       the tests of ocore-postgres on a server of this major version, 16 or 18
    cargo xtask help                   this text
";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    Help,
    Test,
    Simulate(Vec<String>),
    Bench(Vec<String>),
    Kill(u32),
    Postgres(u32),
}

impl Task {
    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut arguments = arguments.into_iter();
        let name = arguments.next();
        let rest: Vec<String> = arguments.collect();
        match (name.as_deref(), rest.as_slice()) {
            (None | Some("help" | "--help" | "-h"), []) => Ok(Self::Help),
            (Some("test"), []) => Ok(Self::Test),
            (Some("test"), [first, ..]) => Err(format!("`test` takes no arguments, but got {first:?}")),
            (Some("simulate"), _) => Ok(Self::Simulate(rest)),
            (Some("bench"), _) => Ok(Self::Bench(rest)),
            (Some("kill"), []) => Ok(Self::Kill(5000)),
            (Some("kill"), [count]) => {
                count.parse().map(Self::Kill).map_err(|_| format!("{count:?} is no number of deployments"))
            }
            (Some("postgres"), [version]) => {
                version.parse().map(Self::Postgres).map_err(|_| format!("{version:?} is no major version"))
            }
            (name, _) => Err(format!("there is no task {:?}", name.unwrap_or("help with arguments"))),
        }
    }
}

fn main() -> ExitCode {
    let done = match Task::parse(env::args().skip(1)) {
        Ok(Task::Help) => return print(HELP),
        Ok(Task::Test) => steps::test(),
        Ok(Task::Simulate(options)) => steps::simulate(options).run(),
        Ok(Task::Bench(arguments)) => steps::bench(arguments).run(),
        Ok(Task::Kill(deployments)) => steps::kill(deployments).run(),
        Ok(Task::Postgres(version)) => postgres::test(version),
        Err(mistake) => {
            eprintln!("xtask: {mistake}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("xtask: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn print(text: &str) -> ExitCode {
    // A reader that went away, as in `cargo xtask help | head -1`, is no failure.
    drop(io::stdout().write_all(text.as_bytes()));
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::Task;

    #[track_caller]
    fn check(arguments: &str, expected: Result<Task, &str>) {
        let found = Task::parse(arguments.split_whitespace().map(str::to_owned));
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
            (found, expected) => panic!("{arguments:?} gives {found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        check("", Ok(Task::Help));
        check("help", Ok(Task::Help));
        check("test", Ok(Task::Test));
        check("test --fast", Err("takes no arguments"));
        check("tset", Err("no task \"tset\""));
        let options = ["--seeds", "7", "--pairs"].map(str::to_owned).to_vec();
        check("simulate --seeds 7 --pairs", Ok(Task::Simulate(options)));
        check("bench", Ok(Task::Bench(Vec::new())));
        check("kill", Ok(Task::Kill(5000)));
        check("kill 7", Ok(Task::Kill(7)));
        check("kill all", Err("no number"));
        check("postgres 18", Ok(Task::Postgres(18)));
        check("postgres new", Err("no major version"));
    }
}

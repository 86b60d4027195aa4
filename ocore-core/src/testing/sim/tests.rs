use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::mpsc;

use super::*;
use crate::executor::Executor;

const HOUR: Duration = Duration::from_secs(3600);

/// Ten tasks that count, sleep and write down in which order they did so.
fn run(seed: u64) -> (Trace, Vec<u64>) {
    let sim = Sim::new(SimOptions::seed(seed));
    let order = Arc::new(Mutex::new(Vec::new()));
    for n in 0..10 {
        let (process, order) = (sim.process("p"), order.clone());
        let executor = process.executor();
        process.spawn(async move {
            for _ in 0..5 {
                yield_now().await;
                order.lock().unwrap().push(n);
                let random = executor.random();
                executor.sleep(Duration::from_millis(random % 5)).await;
            }
        });
    }
    assert_eq!(sim.run_until(HOUR, || false), Ended::Idle);
    let order = order.lock().unwrap().clone();
    (sim.trace(), order)
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    assert_ne!(run(1).1, run(2).1);
}

#[test]
fn a_killed_process_never_goes_on_and_starts_nothing() {
    let sim = Sim::new(SimOptions::seed(1));
    let process = sim.process("victim");
    let steps = Arc::new(AtomicU64::new(0));
    process.spawn({
        let steps = steps.clone();
        async move {
            loop {
                steps.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        }
    });
    process.kill_at(7);
    assert_eq!(sim.run_until(HOUR, || false), Ended::Idle);
    assert_eq!(steps.load(Ordering::Relaxed), 7);
    assert!(process.is_dead());
    process.spawn(async { panic!("a dead process starts nothing") });
    assert_eq!(sim.run_until(HOUR, || false), Ended::Idle);
    assert_eq!(Arc::strong_count(&steps), 1, "its tasks are dropped");
}

#[test]
fn a_frozen_process_goes_on_later_with_what_it_believed() {
    let sim = Sim::new(SimOptions::seed(1));
    let process = sim.process("zombie");
    let executor = process.executor();
    let woken_at = Arc::new(Mutex::new(None));
    process.spawn({
        let woken_at = woken_at.clone();
        async move {
            executor.sleep(Duration::from_secs(1)).await;
            *woken_at.lock().unwrap() = Some(executor.now());
        }
    });
    process.freeze_at(1, Duration::from_secs(60));
    assert_eq!(sim.run_until(HOUR, || false), Ended::Idle);
    assert_eq!(*woken_at.lock().unwrap(), Some(Duration::from_secs(61)));
}

#[test]
fn a_dropped_sleep_does_not_move_the_clock() {
    let sim = Sim::new(SimOptions::seed(1));
    let process = sim.process("p");
    let executor = process.executor();
    process.spawn(async move {
        let (long, short) = (executor.sleep(HOUR), executor.sleep(Duration::from_secs(1)));
        futures::future::select(long, short).await;
    });
    assert_eq!(sim.run_until(HOUR * 2, || false), Ended::Idle);
    assert_eq!(sim.now(), Duration::from_secs(1));
}

#[test]
fn newest_first_polls_the_work_before_the_lease() {
    let count = |order| {
        let sim = Sim::new(SimOptions::seed(3).order(order));
        let process = sim.process("p");
        let polls = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        for n in 0..2 {
            let polls = polls.clone();
            process.spawn(async move {
                for _ in 0..100 {
                    polls[n].fetch_add(1, Ordering::Relaxed);
                    yield_now().await;
                }
            });
        }
        sim.run_until(HOUR, || polls.iter().any(|n| n.load(Ordering::Relaxed) == 100));
        polls[0].load(Ordering::Relaxed)
    };
    assert!(count(Order::NewestFirst) < 20);
    assert_eq!(count(Order::OldestFirst), 100);
}

#[test]
fn tokio_channels_and_a_moment_by_polls_work_across_processes() {
    let sim = Sim::new(SimOptions::seed(1));
    let (sender, mut receiver) = mpsc::channel(1);
    let (a, b) = (sim.process("a"), sim.process("b"));
    a.spawn(async move {
        for n in 0..100_u32 {
            let _ = sender.send(n).await;
        }
    });
    let moment = a.poll_reached(2);
    let received = Arc::new(AtomicU64::new(0));
    let counter = received.clone();
    b.spawn(async move {
        moment.await;
        while receiver.recv().await.is_some() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_eq!(sim.run_until(HOUR, || false), Ended::Idle);
    assert_eq!(received.load(Ordering::Relaxed), 100);
}

#[test]
fn dropping_a_simulation_drops_its_tasks() {
    let sim = Sim::new(SimOptions::seed(1));
    let process = sim.process("p");
    let (executor, kept) = (process.executor(), Arc::new(()));
    process.spawn({
        let kept = kept.clone();
        async move {
            executor.sleep(HOUR).await;
            drop(kept);
        }
    });
    sim.run_until(Duration::from_secs(1), || false);
    drop(sim);
    assert_eq!(Arc::strong_count(&kept), 1);
}

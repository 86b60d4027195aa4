//! The log of a deployment.

use super::{
    Fixture,
    lab::{Lab, began, go_on, line},
};
use crate::{
    event::{Event, EventKind},
    id::EventSeq,
    machine::Step,
    port::{Claim, LogLimit},
};

/// Events are numbered from 1 without gaps, whoever appended them, and are read from any number on, in order.
pub async fn events_come_in_order(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let id = lab.manual(&lane).await;
    let mut claim = lab.claim(&worker, &[]).await;
    append(&lab, &claim, &["one", "two"], LogLimit::DEFAULT).await;
    let mut commit = go_on(&worker, &claim);
    commit.events = vec![line("three"), began(Step::Fetch)];
    lab.write(&commit).await;
    claim.deployment = commit.deployment;
    append(&lab, &claim, &["five"], LogLimit::DEFAULT).await;
    let events = lab.events(id).await;
    let numbers: Vec<_> = events.iter().map(|event| event.seq.get()).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6]);
    assert_eq!(events[0].kind, EventKind::Queued);
    assert_eq!(texts(&events), ["one", "two", "three", "five"]);
    assert_eq!(events[4].kind, EventKind::Began { step: Step::Fetch });
    let store = &lab.store;
    let part = store.events(id, EventSeq::new(2), 3).await.expect("events can be read");
    assert_eq!(part, events[2..5]);
    let rest = store.events(id, EventSeq::new(6), 3).await.expect("events can be read");
    assert_eq!(rest, Vec::new());
}

async fn append<F: Fixture>(lab: &Lab<F>, claim: &Claim, texts: &[&str], limit: LogLimit) {
    assert!(try_append(lab, claim, texts, limit).await, "the holder's lines are refused");
}

async fn try_append<F: Fixture>(lab: &Lab<F>, claim: &Claim, texts: &[&str], limit: LogLimit) -> bool {
    let events = texts.iter().map(|text| line(text)).collect();
    let (lane, id) = (&claim.deployment.environment, claim.deployment.id);
    lab.store.append(lane, id, claim.fence, events, limit).await.expect("an append is answered")
}

fn texts(events: &[Event]) -> Vec<&str> {
    let kinds = events.iter().map(|event| &event.kind);
    kinds
        .filter_map(|kind| if let EventKind::Log(line) = kind { Some(line.text.as_str()) } else { None })
        .collect()
}

/// Only the holder's fence appends, and only to the deployment that is under way.
pub async fn an_append_needs_the_fence_of_the_active_deployment(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let (first, second) = (lab.manual(&lane).await, lab.manual(&lane).await);
    let old = lab.claim(&worker, &[]).await;
    let mut claim = lab.claim(&worker, &[]).await;
    assert!(!try_append(&lab, &old, &["late"], LogLimit::DEFAULT).await);
    let waiting = Claim { deployment: lab.deployment(second).await, ..claim.clone() };
    assert!(!try_append(&lab, &waiting, &["early"], LogLimit::DEFAULT).await);
    claim.fence = claim.fence.next();
    assert!(!try_append(&lab, &claim, &["from nowhere"], LogLimit::DEFAULT).await);
    claim.fence = lab.environment(&lane).await.fence;
    lab.finish(&worker, &claim).await;
    assert!(!try_append(&lab, &claim, &["over"], LogLimit::DEFAULT).await);
    for id in [first, second] {
        assert_eq!(texts(&lab.events(id).await), Vec::<&str>::new());
    }
}

/// Of a long log the first lines stay, and the newest, each within its limit; milestones always stay; numbers are
/// not given anew.
pub async fn a_long_log_keeps_head_tail_and_milestones(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let id = lab.manual(&lane).await;
    let mut claim = lab.claim(&worker, &[]).await;
    // A line of 68 characters counts for 100 bytes: three in the head, ten to twelve in the tail.
    let limit = LogLimit::new(350, 1000);
    let text = |number: u64| format!("{number:068}");
    for number in 0..40 {
        let mut commit = go_on(&worker, &claim);
        commit.log_limit = limit;
        if number % 10 == 9 {
            commit.events.push(began(Step::Fetch));
            commit.events.push(line(&text(number)));
            let crate::port::Committed::Continued { fence, .. } = lab.write(&commit).await else {
                panic!("it goes on")
            };
            (claim.deployment, claim.fence) = (commit.deployment, fence);
        } else {
            append(&lab, &claim, &[&text(number)], limit).await;
        }
        check_within(&lab.events(id).await, number, limit, text);
    }
    let events = lab.events(id).await;
    let milestones = events.iter().filter(|event| event.kind.log_bytes() == 0).count();
    assert_eq!(milestones, 5, "one of the enqueue and four of the commits");
    assert_eq!(events.last().map(|event| event.seq), Some(EventSeq::new(45)));
    assert!(events.is_sorted_by(|a, b| a.seq < b.seq));
}

fn check_within(events: &[Event], last: u64, limit: LogLimit, text: impl Fn(u64) -> String) {
    let kept = texts(events);
    let head: Vec<String> = (0..=last.min(2)).map(&text).collect();
    assert_eq!(kept[..head.len()], head);
    let tail = &kept[head.len()..];
    let written = last + 1 - head.len() as u64;
    let newest = (last + 1 - tail.len() as u64..=last).map(text).collect::<Vec<_>>();
    assert_eq!(tail, newest, "the tail is the newest lines");
    let bytes = tail.len() as u64 * 100;
    assert!(bytes <= limit.tail_bytes_max(), "{bytes} bytes in the tail");
    assert!(
        tail.len() as u64 >= written.min(limit.tail_bytes / 100),
        "too much was cut: {bytes} bytes are left"
    );
}

/// Once a line did not fit into the head, no later one goes there, however short: the head is the beginning.
pub async fn the_head_of_a_log_is_its_beginning(fixture: impl Fixture) {
    let (lab, lane) = Lab::with_lane(fixture).await;
    let worker = lab.worker().await;
    let id = lab.manual(&lane).await;
    let claim = lab.claim(&worker, &[]).await;
    let long = "x".repeat(168);
    let limit = LogLimit::new(150, 200);
    append(&lab, &claim, &["begin", &long, "short"], limit).await;
    let later: Vec<String> = (10..40).map(|number| format!("later {number}")).collect();
    for text in &later {
        append(&lab, &claim, &[text], limit).await;
    }
    let events = lab.events(id).await;
    let kept = texts(&events);
    let tail = &kept[1..];
    assert_eq!(kept[0], "begin");
    assert_eq!(tail, &later[later.len() - tail.len()..], "only the beginning and the newest are left");
    assert!(events.iter().any(|event| event.seq == EventSeq::new(1) && event.kind == EventKind::Queued));
}

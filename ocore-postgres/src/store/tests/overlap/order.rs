//! The search for an order of calls that explains their answers (Wing and Gong; what was seen is not searched again, as Lowe
//! does).

use std::{collections::HashSet, sync::Arc};

use futures::FutureExt as _;
use ocore_core::testing::memory::MemoryStore;

use super::{Call, Made, NOTHING, clock};

/// Whether there is an order in which the model gives each answer, and in which a call that had ended before another began
/// comes before it.
pub(super) fn explain(model: &MemoryStore, made: &[Made]) -> bool {
    let mut search = Search { made, seen: HashSet::new() };
    search.go_on(&mut vec![false; made.len()], model, 0)
}

struct Search<'a> {
    made: &'a [Made],
    /// What was done, and how the lane was afterwards: from there no order was found.
    seen: HashSet<(Vec<bool>, String)>,
}

impl Search<'_> {
    fn go_on(&mut self, done: &mut Vec<bool>, model: &MemoryStore, first: usize) -> bool {
        let Some(first) = (first..self.made.len()).find(|at| !done[*at]) else { return true };
        let open = || (first..self.made.len()).filter(|at| !done[*at]);
        // Whoever began after the end of one that is not done yet comes after it.
        let end = open().map(|at| self.made[at].ended).min().unwrap_or(u64::MAX);
        let next: Vec<usize> = open().take_while(|at| self.made[*at].began < end).collect();
        for at in next {
            let made = &self.made[at];
            let after = model.fork(Arc::new(clock(made.round)));
            let answer = answer(&made.call, &after);
            let is_right = answer == made.answer;
            // Past a lane that another has locked a claim finds nothing.
            let is_past = made.answer == NOTHING && self.overlaps(made);
            if !is_right && !is_past {
                continue;
            }
            done[at] = true;
            let after = if is_right { &after } else { model };
            if self.seen.insert((done.clone(), after.contents())) && self.go_on(done, after, first) {
                return true;
            }
            done[at] = false;
        }
        false
    }

    fn overlaps(&self, made: &Made) -> bool {
        self.made
            .iter()
            .any(|other| other.client != made.client && other.began < made.ended && made.began < other.ended)
    }
}

fn answer(call: &Call, model: &MemoryStore) -> String {
    let made = call.make(model).now_or_never().expect("the model does not wait");
    made.expect("the model answers").0
}

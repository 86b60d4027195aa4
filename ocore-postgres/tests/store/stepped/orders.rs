//! Every order of several sessions' steps, but for those that differ in nothing that a session could notice.

/// Of which tables rows are locked: a bit for each.
pub(crate) type Tables = u8;

/// What a step has to do with the other sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Takes a snapshot: sees what has been committed by then.
    Looks,
    /// Takes locks, or meets those of others; writes what nobody sees yet.
    Locks(Tables),
    /// Both, in one step.
    LooksAndLocks(Tables),
    /// Ends the transaction: all that it wrote is seen, all that it locked is free.
    Ends,
}

impl Kind {
    /// Whether two steps that follow each other could as well change places.
    const fn is_independent(self, other: Self) -> bool {
        match (self, other) {
            (Self::Ends, _) | (_, Self::Ends) => false,
            (Self::Looks, _) | (_, Self::Looks) => true,
            (
                Self::Locks(of) | Self::LooksAndLocks(of),
                Self::Locks(others) | Self::LooksAndLocks(others),
            ) => of & others == 0,
        }
    }
}

/// A session that can go on, and what its next step is.
pub(crate) type Ready = (usize, Kind);

/// Orders to run, one after the other.
#[derive(Debug)]
pub(crate) enum Orders {
    Every(Tree),
    /// So many more, by chance. Most steps are made by who has made the last one: else short calls would always end first.
    Some {
        left: usize,
        chance: u64,
        last: usize,
    },
}

impl Orders {
    pub(crate) fn every() -> Self {
        Self::Every(Tree::default())
    }

    pub(crate) const fn some(count: usize, seed: u64) -> Self {
        Self::Some { left: count.saturating_sub(1), chance: seed, last: 0 }
    }

    /// Who makes the next step of this run. `None` if the rest was seen in other runs.
    pub(crate) fn choose(&mut self, ready: &[Ready]) -> Option<usize> {
        match self {
            Self::Every(tree) => tree.choose(ready),
            Self::Some { chance, last, .. } => {
                // Knuth's linear congruential generator; its high bits.
                *chance =
                    chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let drawn = usize::try_from(*chance >> 33).unwrap_or_default();
                let goes_on = drawn % 8 > 0 && ready.iter().any(|(session, _)| session == last);
                if !goes_on {
                    *last = ready[drawn / 8 % ready.len()].0;
                }
                Some(*last)
            }
        }
    }

    /// Prepares the next run. `false` if there is no other order.
    pub(crate) fn advance(&mut self) -> bool {
        match self {
            Self::Every(tree) => tree.advance(),
            Self::Some { left, .. } => {
                let is_left = *left > 0;
                *left = left.saturating_sub(1);
                is_left
            }
        }
    }
}

/// Goes through all orders: depth first, with sleep sets (Godefroid), so that of all orders that differ only in the places of
/// independent steps one is run.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    path: Vec<Turn>,
    depth: usize,
}

/// A place in the present order.
#[derive(Debug)]
struct Turn {
    ready: Vec<Ready>,
    /// Whose step here leads to nothing new: it was tried before, or its place with an earlier one's exchanged.
    asleep: Vec<usize>,
    chosen: usize,
}

impl Turn {
    fn choose(ready: &[Ready], asleep: Vec<usize>) -> Option<Self> {
        let (chosen, _) = *ready.iter().find(|(session, _)| !asleep.contains(session))?;
        Some(Self { ready: ready.to_vec(), asleep, chosen })
    }

    fn kind(&self, session: usize) -> Kind {
        let found = self.ready.iter().find(|(ready, _)| *ready == session);
        found.expect("only those who were ready are chosen or asleep").1
    }

    /// Who still sleeps after the chosen step.
    fn asleep_after(&self) -> Vec<usize> {
        let chosen = self.kind(self.chosen);
        let still = |session: &&usize| self.kind(**session).is_independent(chosen);
        self.asleep.iter().filter(still).copied().collect()
    }
}

impl Tree {
    fn choose(&mut self, ready: &[Ready]) -> Option<usize> {
        if self.depth == self.path.len() {
            let asleep = self.path.last().map(Turn::asleep_after).unwrap_or_default();
            self.path.push(Turn::choose(ready, asleep)?);
        }
        let turn = &self.path[self.depth];
        assert_eq!(turn.ready, ready, "the same steps lead to the same place");
        self.depth += 1;
        Some(turn.chosen)
    }

    fn advance(&mut self) -> bool {
        self.depth = 0;
        while let Some(mut turn) = self.path.pop() {
            turn.asleep.push(turn.chosen);
            if let Some(turn) = Turn::choose(&turn.ready, turn.asleep) {
                self.path.push(turn);
                return true;
            }
        }
        false
    }
}

/// All orders of sessions of these steps.
#[cfg(test)]
fn all(sessions: &[&[Kind]]) -> Vec<Vec<usize>> {
    let (mut orders, mut found) = (Orders::every(), Vec::new());
    loop {
        let (mut done, mut order) = (vec![0; sessions.len()], Vec::new());
        let is_whole = loop {
            let steps = sessions.iter().zip(&done).enumerate();
            let ready: Vec<Ready> =
                steps.filter_map(|(session, (steps, done))| Some((session, *steps.get(*done)?))).collect();
            if ready.is_empty() {
                break true;
            }
            let Some(session) = orders.choose(&ready) else { break false };
            done[session] += 1;
            order.push(session);
        };
        found.extend(is_whole.then_some(order));
        if !orders.advance() {
            return found;
        }
    }
}

#[test]
fn steps_that_notice_each_other_are_made_in_every_order() {
    use Kind::{Ends, Locks, LooksAndLocks};
    for kind in [Locks(1), LooksAndLocks(2), Ends] {
        // Six steps of two sessions: 20; of three sessions: 90.
        assert_eq!(all(&[&[kind; 3], &[kind; 3]]).len(), 20);
        assert_eq!(all(&[&[kind; 2], &[kind; 2], &[kind; 2]]).len(), 90);
    }
}

#[test]
fn of_the_orders_of_steps_that_do_not_notice_each_other_one_is_made() {
    use Kind::{Ends, Locks, Looks};
    assert_eq!(all(&[&[Looks; 3], &[Looks; 3]]).len(), 1);
    assert_eq!(all(&[&[Locks(1); 3], &[Looks; 3]]).len(), 1);
    assert_eq!(all(&[&[Locks(1); 3], &[Locks(2); 3]]).len(), 1);
    // What matters is between which of its looks the other ends.
    assert_eq!(all(&[&[Looks; 3], &[Locks(1), Locks(1), Ends]]).len(), 4);
}

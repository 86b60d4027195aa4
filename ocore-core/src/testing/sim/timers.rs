use std::time::Duration;

/// Timers, in slots. Few are set at any moment, and nearly all are cleared before they are due: so setting and
/// clearing cost nothing to speak of, and only a jump of the clock looks at all of them.
pub(super) struct Timers<T> {
    slots: Vec<Option<Timer<T>>>,
    free: Vec<usize>,
    /// How many were ever set: those that are due at one moment fire in the order in which they were set.
    count: u64,
}

struct Timer<T> {
    due: Duration,
    number: u64,
    what: T,
}

/// Names a timer that was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimerKey {
    slot: usize,
    number: u64,
}

impl<T> Timers<T> {
    pub(super) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), count: 0 }
    }

    pub(super) fn set(&mut self, due: Duration, what: T) -> TimerKey {
        self.count += 1;
        let timer = Some(Timer { due, number: self.count, what });
        let slot = if let Some(slot) = self.free.pop() {
            self.slots[slot] = timer;
            slot
        } else {
            self.slots.push(timer);
            self.slots.len() - 1
        };
        TimerKey { slot, number: self.count }
    }

    /// Takes a timer out, unless it has fired.
    pub(super) fn clear(&mut self, key: TimerKey) -> Option<T> {
        let timer = self.slots.get_mut(key.slot)?.take_if(|timer| timer.number == key.number)?;
        self.free.push(key.slot);
        Some(timer.what)
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Duration> {
        self.slots.iter().flatten().map(|timer| timer.due).min()
    }

    /// Takes out all that are due, in order.
    pub(super) fn take_due(&mut self, now: Duration) -> impl Iterator<Item = T> + use<T> {
        let mut due = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(timer) = slot.take_if(|timer| timer.due <= now) {
                self.free.push(index);
                due.push(timer);
            }
        }
        if due.len() > 1 {
            due.sort_unstable_by_key(|timer| (timer.due, timer.number));
        }
        due.into_iter().map(|timer| timer.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_by_time_and_then_in_the_order_in_which_they_were_set() {
        let (second, mut timers) = (Duration::from_secs(1), Timers::new());
        timers.set(second * 2, "third");
        let cleared = timers.set(second, "cleared");
        timers.set(second, "first");
        assert_eq!(timers.clear(cleared), Some("cleared"));
        // Takes the slot that has become free, before that of the first.
        timers.set(second, "second");
        assert_eq!(timers.clear(cleared), None, "the slot belongs to another by now");
        timers.set(second * 9, "later");
        assert_eq!(timers.next_due(), Some(second));
        assert!(timers.take_due(second * 2).eq(["first", "second", "third"]));
        assert_eq!(timers.next_due(), Some(second * 9));
    }
}

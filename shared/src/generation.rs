//! Fencing: which of two wishes about an instance is the newer one.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Orders two wishes about the same instance. Every explicit change (create, start, stop, restart,
/// delete, another node) gets a higher one; a node never acts on a lower one than it has seen.
///
/// The epoch rises when a coordinator starts from an older state (`recover`), so that what it says
/// afterwards outranks everything said before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Generation {
    /// Raised by `recover` and when a node knows a higher generation than the store.
    pub epoch: u32,
    /// Raised by every change within an epoch.
    pub counter: u64,
}

impl Generation {
    /// The next one in the same epoch.
    #[must_use]
    pub fn next(self) -> Self {
        Self {
            epoch: self.epoch,
            counter: self.counter + 1,
        }
    }

    /// The same order as a number: what counts wishes of one kind rises with it, also across epochs.
    pub fn rank(self) -> u64 {
        (u64::from(self.epoch) << 32) | (self.counter & 0xffff_ffff)
    }

    /// The first one of the next epoch.
    #[must_use]
    pub fn next_epoch(self) -> Self {
        Self {
            epoch: self.epoch + 1,
            counter: 0,
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.epoch, self.counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation__should_put_the_epoch_before_the_counter() {
        let old = Generation { epoch: 1, counter: 900 };
        assert!(old.next() > old);
        assert!(old.next_epoch() > old.next());
        assert!(old.next_epoch().rank() > old.next().rank() && old.next().rank() > old.rank());
    }
}

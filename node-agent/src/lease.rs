//! How long an instance may run without a word from the coordinator. Only what the node itself stops
//! in time may be started elsewhere, so every doubt here ends in a stop.
//!
//! Time is the machine's own since its boot (`CLOCK_BOOTTIME`): it goes on while the machine sleeps,
//! and nobody can set it.

use std::{
    fs,
    sync::{Arc, LazyLock},
    time::Duration,
};

use crabshack_shared::agent_api::v1::{Desired, InstanceOrder, OnDisconnect};
use prometheus_client::metrics::counter::Counter;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::ledger::Ledger;

/// What the report says of an instance that was stopped by its lease.
pub(crate) const REASON: &str = "stopped by its lease: the coordinator has not answered for too long";

/// The longest sleep of the watch: a machine that was suspended notices by then.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);

/// Which boot this is: the same as long as the process lives.
static BOOT: LazyLock<String> = LazyLock::new(|| {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
});

/// A point in time that outlives the process, though not the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moment {
    /// Which boot; empty: unknown, and then comparable to nothing.
    boot: String,
    /// Since then, time asleep included.
    milliseconds: u64,
}

impl Moment {
    /// Now.
    pub(crate) fn now() -> Self {
        let since_boot = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(since_boot.tv_sec).unwrap_or_default();
        let nanoseconds = u64::try_from(since_boot.tv_nsec).unwrap_or_default();
        Self {
            boot: BOOT.clone(),
            milliseconds: seconds * 1000 + nanoseconds / 1_000_000,
        }
    }

    /// Since the boot.
    pub(crate) fn seconds(&self) -> i64 {
        i64::try_from(self.milliseconds / 1000).unwrap_or(i64::MAX)
    }

    /// A moment of a boot, for tests.
    #[cfg(test)]
    pub(crate) fn at(boot: &str, seconds: u64) -> Self {
        Self {
            boot: boot.to_owned(),
            milliseconds: seconds * 1000,
        }
    }

    /// How long ago `earlier` was; none: nobody can say, since the machine was off in between.
    fn since(&self, earlier: &Self) -> Option<Duration> {
        let comparable = !self.boot.is_empty() && self.boot == earlier.boot;
        comparable.then(|| Duration::from_millis(self.milliseconds.saturating_sub(earlier.milliseconds)))
    }

    /// The later of two; one of another boot than this is the earlier one.
    pub(crate) fn is_after(&self, other: &Self) -> bool {
        self.boot != other.boot || self.milliseconds > other.milliseconds
    }
}

/// How long the coordinator has been silent. None: it has not answered since the machine was
/// started, which is longer than any lease.
pub(crate) type Silence = Option<Duration>;

/// The silence at `now` after the last answer.
pub(crate) fn silence(last_answer: Option<&Moment>, now: &Moment) -> Silence {
    now.since(last_answer?)
}

/// How much longer an instance may run; none: as long as it likes.
fn remaining(order: &InstanceOrder, silence: Silence) -> Option<Duration> {
    let OnDisconnect::StopAfter { seconds } = order.on_disconnect else {
        return None;
    };
    let allowed = Duration::from_secs(u64::from(seconds));
    Some(silence.map_or(Duration::ZERO, |silence| allowed.saturating_sub(silence)))
}

/// Whether the lease of an instance that should run is over.
pub(crate) fn is_over(order: &InstanceOrder, silence: Silence) -> bool {
    order.desired == Desired::Running && remaining(order, silence).is_some_and(|remaining| remaining.is_zero())
}

/// What is to be done about an order now: one whose lease is over is an order to stop. Its generation
/// stays, so that it counts again as soon as the coordinator answers.
pub(crate) fn effective(order: &InstanceOrder, silence: Silence) -> Desired {
    if is_over(order, silence) {
        Desired::Stopped
    } else {
        order.desired
    }
}

/// The shortest lease among these orders; none: no instance has one.
pub(crate) fn shortest<'a>(orders: impl Iterator<Item = &'a InstanceOrder>) -> Option<Duration> {
    let leases = orders.filter_map(|order| match order.on_disconnect {
        OnDisconnect::StopAfter { seconds } => Some(Duration::from_secs(u64::from(seconds))),
        OnDisconnect::Keep => None,
    });
    leases.min()
}

/// Wakes the reconciler whenever a lease ends or begins again, and counts those that end.
pub(crate) async fn watch(ledger: Arc<Ledger>, wake: Arc<Notify>, expiries: Counter) {
    let mut over = ledger.leases_over();
    loop {
        let next = ledger
            .leased()
            .iter()
            .filter(|order| order.desired == Desired::Running)
            .filter_map(|order| remaining(order, ledger.silence()))
            .filter(|remaining| !remaining.is_zero())
            .min();
        // A little later than due: never a millisecond too early only to sleep again.
        let sleep = next.map_or(LONGEST_SLEEP, |next| (next + Duration::from_millis(1)).min(LONGEST_SLEEP));
        tokio::select! {
            () = tokio::time::sleep(sleep) => {}
            () = ledger.answered() => {}
        }
        let now = ledger.leases_over();
        for id in now.difference(&over) {
            expiries.inc();
            tracing::warn!(instance = %id, "its lease is over: the coordinator has not answered for too long; it is stopped until it does");
        }
        for id in over.difference(&now) {
            tracing::info!(instance = %id, "its lease counts again");
        }
        if now != over {
            over = now;
            wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    fn leased(desired: Desired, seconds: u32) -> InstanceOrder {
        InstanceOrder {
            on_disconnect: OnDisconnect::StopAfter { seconds },
            ..fixtures::order(desired, 1)
        }
    }

    #[test]
    fn lease__should_stop_only_what_has_one_and_only_when_it_is_over() {
        let second = Duration::from_secs(1);
        let order = leased(Desired::Running, 60);
        assert_eq!(effective(&order, Some(59 * second)), Desired::Running);
        assert_eq!(effective(&order, Some(60 * second)), Desired::Stopped);
        assert_eq!(remaining(&order, Some(20 * second)), Some(40 * second));
        let kept = fixtures::order(Desired::Running, 1);
        // A coordinator that is away for a week costs such a one nothing.
        for silence in [None, Some(Duration::ZERO), Some(7 * 86_400 * second)] {
            assert_eq!(effective(&kept, silence), Desired::Running);
        }
        let deleted = leased(Desired::Deleted { purge: true }, 60);
        assert_eq!(effective(&deleted, None), Desired::Deleted { purge: true });
    }

    #[test]
    fn lease__should_be_over_after_a_reboot_until_the_coordinator_answers() {
        let order = leased(Desired::Running, 3600);
        let before = Moment::at("first boot", 100);
        assert_eq!(
            effective(&order, silence(Some(&before), &Moment::at("first boot", 200))),
            Desired::Running
        );
        assert_eq!(
            effective(&order, silence(Some(&before), &Moment::at("second boot", 200))),
            Desired::Stopped
        );
        assert_eq!(effective(&order, silence(None, &before)), Desired::Stopped);
    }

    #[test]
    fn moment__should_never_go_back_and_not_be_the_wall_clock() {
        let earlier = Moment::now();
        let now = Moment::now();
        assert!(now.since(&earlier).is_some_and(|passed| passed < Duration::from_secs(5)));
        assert!(!earlier.is_after(&now));
        assert!(Moment::at("b", 1).is_after(&Moment::at("a", 2)), "another boot is later");
        let unknown = Moment::at("", 1);
        assert_eq!(unknown.since(&unknown), None, "an unknown boot is comparable to nothing");
    }

    #[test]
    fn shortest__should_be_that_of_the_instance_with_the_least_patience() {
        let orders = [
            leased(Desired::Running, 60),
            leased(Desired::Stopped, 20),
            fixtures::order(Desired::Running, 1),
        ];
        assert_eq!(shortest(orders.iter()), Some(Duration::from_secs(20)));
        assert_eq!(shortest(orders[2..].iter()), None);
    }
}

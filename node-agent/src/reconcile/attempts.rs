//! How often something went wrong lately, and how long to wait before the next try. Times are
//! monotonic, so that a clock that jumps neither hurries nor delays anything.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crabshack_shared::generation::Generation;

use crate::recipe::Member;

/// After so many exits in a row an instance counts as crash-looping.
const CRASH_LOOP_EXITS: u32 = 3;
/// After so many failed tries the instance needs a person.
const TOLERATED_FAILURES: u32 = 3;
/// Having run that long, earlier exits are forgiven.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);
/// So long a killed process of a running instance is worth a word.
const MEMORY_KILL_TOLD: Duration = Duration::from_secs(600);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The memory of one instance's troubles. A new order wipes it: whoever asks again gets a try.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempts {
    generation: Generation,
    failures: u32,
    failed_at: Option<Instant>,
    reason: Option<String>,
    needs_person: bool,
    endings: BTreeMap<Member, Endings>,
    memory_kill: Option<Instant>,
}

/// How often one container ended lately.
#[derive(Debug, Clone, Default)]
struct Endings {
    exits: u32,
    last_exit: Option<(String, Instant)>,
    running_since: Option<Instant>,
}

impl Endings {
    fn is_known(&self, ending: &str) -> bool {
        self.last_exit.as_ref().is_some_and(|(known, _)| known == ending)
    }

    fn is_crash_loop(&self) -> bool {
        self.exits >= CRASH_LOOP_EXITS
    }
}

impl Attempts {
    /// Starts anew when the order is a new one.
    pub(crate) fn note_order(&mut self, generation: Generation) {
        if self.generation != generation {
            *self = Self {
                generation,
                ..Self::default()
            };
        }
    }

    /// An action failed. `needs_person`: trying again will not help by itself.
    pub(crate) fn note_failure(&mut self, reason: String, needs_person: bool) {
        self.failures += 1;
        self.failed_at = Some(Instant::now());
        self.reason = Some(reason);
        self.needs_person = needs_person || self.failures >= TOLERATED_FAILURES;
    }

    /// Everything that was planned has been done.
    pub(crate) fn note_success(&mut self) {
        self.failures = 0;
        self.failed_at = None;
        self.reason = None;
        self.needs_person = false;
    }

    /// What stood in the way may be gone: the next try is now. What went wrong is told until it works.
    pub(crate) fn try_again(&mut self) {
        self.failures = 0;
        self.failed_at = None;
    }

    /// A container has ended; the same ending (of that container at that time) counts once.
    pub(crate) fn note_exit(&mut self, member: Member, container: &str, finished_at: &str) {
        let ending = ending(container, finished_at);
        let of = self.endings.entry(member).or_default();
        if !of.is_known(&ending) {
            if of.running_since.take().is_some_and(|since| since.elapsed() >= FORGIVEN_AFTER) {
                of.exits = 0;
            }
            of.exits += 1;
            of.last_exit = Some((ending, Instant::now()));
            self.memory_kill = None;
        }
    }

    /// A container has ended because the node stopped it, to start it again later: no failure of its own.
    pub(crate) fn note_stopped(&mut self, member: Member, container: &str, finished_at: &str) {
        let ending = ending(container, finished_at);
        let of = self.endings.entry(member).or_default();
        if !of.is_known(&ending) {
            *of = Endings {
                last_exit: Some((ending, Instant::now())),
                ..Endings::default()
            };
            self.memory_kill = None;
        }
    }

    /// It was the node that ended the main container.
    pub(crate) fn was_stopped(&self) -> bool {
        let main = self.endings.get(&Member::Main);
        main.is_some_and(|of| of.exits == 0 && of.last_exit.is_some())
    }

    /// A container runs.
    pub(crate) fn note_running(&mut self, member: Member) {
        let of = self.endings.entry(member).or_default();
        of.running_since.get_or_insert_with(Instant::now);
    }

    /// The kernel killed a process of it at its memory limit.
    pub(crate) fn note_memory_kill(&mut self) {
        self.memory_kill = Some(Instant::now());
    }

    /// A process of it was killed lately, and it runs on.
    pub(crate) fn has_memory_kill(&self) -> bool {
        self.memory_kill.is_some_and(|at| at.elapsed() < MEMORY_KILL_TOLD)
    }

    /// How long to leave it alone after a failed action.
    pub(crate) fn wait_after_failure(&self) -> Option<Duration> {
        remaining(self.failed_at?, delay(self.failures))
    }

    /// How long to leave a container alone after it ended by itself.
    pub(crate) fn wait_after_exit(&self, member: Member) -> Option<Duration> {
        let of = self.endings.get(&member)?;
        let (_, at) = of.last_exit.as_ref()?;
        remaining(*at, delay(of.exits))
    }

    /// The main container ended several times in a row.
    pub(crate) fn is_crash_loop(&self) -> bool {
        self.endings.get(&Member::Main).is_some_and(Endings::is_crash_loop)
    }

    /// It is in a crash loop, and its current run has not lasted long enough to end it.
    pub(crate) fn is_looping_now(&self) -> bool {
        self.endings
            .get(&Member::Main)
            .is_some_and(|of| of.is_crash_loop() && of.running_since.is_none_or(|since| since.elapsed() < FORGIVEN_AFTER))
    }

    /// It failed so that trying again will not help by itself.
    pub(crate) fn needs_person(&self) -> bool {
        self.needs_person
    }

    /// What went wrong last.
    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

fn ending(container: &str, finished_at: &str) -> String {
    format!("{container} {finished_at}")
}

/// 1, 2, 4 ... 60 seconds.
fn delay(count: u32) -> Duration {
    Duration::from_secs(1 << count.saturating_sub(1).min(6)).min(LONGEST_WAIT)
}

fn remaining(since: Instant, delay: Duration) -> Option<Duration> {
    delay.checked_sub(since.elapsed()).filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts__should_wait_longer_each_time_and_count_an_ending_once() {
        let mut attempts = Attempts::default();
        for ending in 1..=3 {
            attempts.note_exit(Member::Main, "c", &ending.to_string());
            attempts.note_exit(Member::Main, "c", &ending.to_string());
        }
        assert!(attempts.is_crash_loop());
        assert!(
            attempts
                .wait_after_exit(Member::Main)
                .is_some_and(|wait| wait > Duration::from_secs(3))
        );
        assert_eq!(delay(1), Duration::from_secs(1));
        assert_eq!(delay(40), LONGEST_WAIT);
    }

    #[test]
    fn attempts__should_remember_a_killed_process_until_the_end_of_the_container() {
        let mut attempts = Attempts::default();
        attempts.note_exit(Member::Main, "c", "1");
        attempts.note_memory_kill();
        attempts.note_exit(Member::Main, "c", "1");
        assert!(attempts.has_memory_kill());
        attempts.note_exit(Member::Main, "c", "2");
        assert!(!attempts.has_memory_kill());
    }

    #[test]
    fn attempts__should_not_count_a_stop_by_the_node() {
        let mut attempts = Attempts::default();
        attempts.note_exit(Member::Main, "c", "1");
        assert!(!attempts.was_stopped());
        attempts.note_stopped(Member::Main, "c", "2");
        attempts.note_exit(Member::Main, "c", "2");
        assert!(attempts.was_stopped());
        attempts.note_exit(Member::Main, "c", "3");
        assert!(!attempts.was_stopped() && !attempts.is_crash_loop());
    }

    #[test]
    fn attempts__should_try_at_once_after_docker_was_away_and_still_say_why_it_failed() {
        let mut attempts = Attempts::default();
        for _ in 0..6 {
            attempts.note_failure("Docker reserves the port".to_owned(), true);
        }
        attempts.try_again();
        assert!(attempts.wait_after_failure().is_none());
        assert!(attempts.needs_person() && attempts.reason().is_some());
        attempts.note_failure("again".to_owned(), true);
        assert!(
            attempts
                .wait_after_failure()
                .is_some_and(|wait| wait <= Duration::from_secs(1))
        );
    }

    #[test]
    fn attempts__should_be_wiped_by_a_new_order() {
        let mut attempts = Attempts::default();
        attempts.note_order(Generation { epoch: 1, counter: 1 });
        attempts.note_failure("no image".to_owned(), true);
        assert!(attempts.needs_person() && attempts.wait_after_failure().is_some());
        attempts.note_order(Generation { epoch: 1, counter: 1 });
        assert!(attempts.needs_person());
        attempts.note_order(Generation { epoch: 1, counter: 2 });
        assert!(!attempts.needs_person() && attempts.wait_after_failure().is_none());
    }
}

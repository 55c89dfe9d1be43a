//! What an instance uses: Docker's numbers, with the kernel's own where Docker finds none.

mod cgroup;

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crabshack_shared::{agent_api::v1::Stats, ids::InstanceId};
use futures_util::future::try_join_all;

use crate::{
    docker::{Docker, DockerError, Usage},
    recipe::Member,
};

/// A sample up to this old still tells what is used "now" ...
const OLDEST_SAMPLE: Duration = Duration::from_secs(15);
/// ... and a younger one than this is too close for a percentage.
const CLOSEST_SAMPLE: Duration = Duration::from_millis(200);

/// Processor time at a moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    cpu_nanoseconds: u64,
    at: Instant,
}

/// Reads what instances use, and remembers the last sample of each for the percentage.
#[derive(Debug)]
pub(crate) struct StatsReader {
    docker: Docker,
    /// By Docker's container id.
    samples: Mutex<HashMap<String, Sample>>,
}

impl StatsReader {
    pub(crate) fn new(docker: Docker) -> Self {
        Self {
            docker,
            samples: Mutex::default(),
        }
    }

    /// What these containers use together; all zero when they do not run. The volume's part is the caller's.
    pub(crate) async fn read(&self, instance: InstanceId, members: Vec<Member>) -> Result<Stats, DockerError> {
        let parts = try_join_all(members.into_iter().map(|member| self.one(instance, member))).await?;
        Ok(parts.into_iter().reduce(sum).unwrap_or_default())
    }

    async fn one(&self, instance: InstanceId, member: Member) -> Result<Stats, DockerError> {
        let Some(mut usage) = self.docker.usage(instance, member).await? else {
            return Ok(Stats::default());
        };
        let mut now = Sample {
            cpu_nanoseconds: usage.cpu_nanoseconds,
            at: Instant::now(),
        };
        let earlier = match self.exchange(&usage.docker_id, now) {
            Some(earlier) => earlier,
            // Nobody asked lately: one short look, instead of the engine's long one.
            None => {
                let first = now;
                tokio::time::sleep(CLOSEST_SAMPLE).await;
                let Some(second) = self.docker.usage(instance, member).await? else {
                    return Ok(Stats::default());
                };
                usage = second;
                now = Sample {
                    cpu_nanoseconds: usage.cpu_nanoseconds,
                    at: Instant::now(),
                };
                first
            }
        };
        if usage.disk.is_none()
            && let Some(process) = self.docker.process_id(instance, member).await?
        {
            usage.disk = cgroup::disk(process).await;
        }
        Ok(stats(&usage, percent(earlier, now)))
    }

    /// The usable earlier sample, if there is one; notes this one.
    fn exchange(&self, docker_id: &str, now: Sample) -> Option<Sample> {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.retain(|_, sample| now.at.duration_since(sample.at) <= OLDEST_SAMPLE);
        match samples.get(docker_id) {
            // Two askers at once: the second takes its own look.
            Some(earlier) if now.at.duration_since(earlier.at) < CLOSEST_SAMPLE => None,
            // Less than before: it was started again.
            Some(earlier) if earlier.cpu_nanoseconds <= now.cpu_nanoseconds => {
                let earlier = *earlier;
                samples.insert(docker_id.to_owned(), now);
                Some(earlier)
            }
            _ => {
                samples.insert(docker_id.to_owned(), now);
                None
            }
        }
    }
}

fn sum(one: Stats, other: Stats) -> Stats {
    Stats {
        cpu_nanoseconds: one.cpu_nanoseconds + other.cpu_nanoseconds,
        cpu_percent: one.cpu_percent + other.cpu_percent,
        memory_used: one.memory_used + other.memory_used,
        memory_limit: one.memory_limit + other.memory_limit,
        pids: one.pids + other.pids,
        network_received: one.network_received + other.network_received,
        network_sent: one.network_sent + other.network_sent,
        disk_read: one.disk_read + other.disk_read,
        disk_written: one.disk_written + other.disk_written,
        ..one
    }
}

/// Percent of one processor.
fn percent(earlier: Sample, now: Sample) -> f64 {
    let passed = now.at.duration_since(earlier.at).as_nanos() as f64;
    let used = now.cpu_nanoseconds.saturating_sub(earlier.cpu_nanoseconds) as f64;
    if passed > 0.0 {
        (used / passed * 1000.0).round() / 10.0
    } else {
        0.0
    }
}

fn stats(usage: &Usage, cpu_percent: f64) -> Stats {
    let (disk_read, disk_written) = usage.disk.unwrap_or_default();
    Stats {
        cpu_nanoseconds: usage.cpu_nanoseconds,
        cpu_percent,
        memory_used: usage.memory_used,
        memory_limit: usage.memory_limit,
        pids: usage.pids,
        network_received: usage.network_received,
        network_sent: usage.network_sent,
        disk_read,
        disk_written,
        volume_used: None,
        volume_limit: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent__should_be_of_one_processor() {
        let at = Instant::now();
        let earlier = Sample {
            cpu_nanoseconds: 1_000,
            at,
        };
        let sample = |cpu_nanoseconds| Sample {
            cpu_nanoseconds,
            at: at + Duration::from_secs(1),
        };
        assert!((percent(earlier, sample(1_500_001_000)) - 150.0).abs() < f64::EPSILON);
        assert!(percent(earlier, sample(0)).abs() < f64::EPSILON);
        assert!(percent(earlier, earlier).abs() < f64::EPSILON);
    }
}

//! What is compared of the machine itself: Docker's settings, clock, certificate, private files.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

use crabshack_shared::agent_api::v1::Finding;

use super::found;
use crate::{docker::DockerFacts, facts, pool};

pub(super) const DOCKER: &str = "Docker";
pub(super) const KERNEL: &str = "kernel features";
pub(super) const CLOCK: &str = "clock";
pub(super) const CERTIFICATE: &str = "certificate";
pub(super) const POOL: &str = "pool";
pub(super) const FILES: &str = "private files";

/// Nobody's clock is exact to the second; certificates are backdated by minutes.
const TOLERATED_OFFSET: u64 = 60;
/// Files of the data folder that hold keys.
const PRIVATE: [&str; 2] = ["seal.key", "node.key"];

/// What is wrong with the Docker that answers.
pub(super) fn docker(facts: &DockerFacts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(unsupported) = facts::check(facts) {
        findings.push(found(DOCKER, None, unsupported.to_string()));
    }
    if !facts.live_restore {
        findings.push(found(
            DOCKER,
            None,
            "instances end when Docker is restarted: set \"live-restore\": true in /etc/docker/daemon.json and run `systemctl reload docker`"
                .to_owned(),
        ));
    }
    let missing = facts.unbounded().into_iter().chain(facts.unfiltered());
    findings.extend(missing.map(|text| found(KERNEL, None, text)));
    findings
}

/// What is wrong with the clock: set back or forth since the last look, or another than the coordinator's.
pub(super) fn clock(jump: i64, offset: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    if jump.unsigned_abs() > TOLERATED_OFFSET {
        let text = format!(
            "it was set {} by {} s; leases, waits and restarts do not depend on it",
            direction(jump),
            jump.unsigned_abs()
        );
        // Nothing is left to do about it.
        findings.push(Finding {
            repaired: true,
            ..found(CLOCK, None, text)
        });
    }
    if offset.unsigned_abs() > TOLERATED_OFFSET {
        let (minutes, ahead) = (offset.unsigned_abs() / 60, if offset > 0 { "ahead of" } else { "behind" });
        findings.push(found(
            CLOCK,
            None,
            format!("it is {minutes} min {ahead} the coordinator's: synchronise both, or certificates are refused"),
        ));
    }
    findings
}

fn direction(jump: i64) -> &'static str {
    if jump < 0 { "back" } else { "forward" }
}

/// What is wrong with a certificate of this life.
pub(super) fn certificate(not_before: SystemTime, not_after: SystemTime, now: SystemTime) -> Option<Finding> {
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let text = if now >= not_after {
        "it has expired: the node renews it as soon as the coordinator answers"
    } else if now < not_before {
        "it is not valid yet: the node's clock, or that of the coordinator, was set back; set it right"
    } else if not_after.duration_since(now).unwrap_or(Duration::ZERO) < life / 3 {
        "more than two thirds of its life are over and it could not be renewed: see whether the coordinator can be reached"
    } else {
        return None;
    };
    Some(found(CERTIFICATE, None, text.to_owned()))
}

/// The disk of all volumes is not where it should be.
pub(super) fn pool(data: &Path) -> Option<Finding> {
    let error = pool::check_mounted(data).err()?;
    Some(found(POOL, None, error.to_string()))
}

/// Closes files that somebody else could read.
pub(super) fn private_files(data: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    let folder = [(data.to_owned(), 0o700)].into_iter();
    for (path, mode) in folder.chain(PRIVATE.map(|name| (data.join(name), 0o600))) {
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.permissions().mode() & 0o077 == 0 {
            continue;
        }
        let closed = fs::set_permissions(&path, fs::Permissions::from_mode(mode));
        let text = match &closed {
            Ok(()) => format!("{} was open to others and was closed", path.display()),
            Err(error) => format!("{} is open to others and cannot be closed: {error}", path.display()),
        };
        findings.push(Finding {
            repaired: closed.is_ok(),
            ..found(FILES, None, text)
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock__should_matter_from_a_minute_on() {
        assert!(clock(59, -60).is_empty());
        assert!(clock(-3600, 0)[0].text.contains("back by 3600 s"));
        assert!(clock(0, 7200)[0].text.contains("120 min ahead of"));
        assert!(clock(0, -120)[0].text.contains("2 min behind"));
    }

    #[test]
    fn certificate__should_be_renewed_before_the_last_third_of_its_life() {
        let at = |days: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400);
        let on = |day| certificate(at(10), at(100), at(day)).map(|finding| finding.text);
        assert_eq!(on(11), None);
        assert_eq!(on(69), None);
        assert!(on(71).unwrap().contains("two thirds"));
        assert!(on(101).unwrap().contains("expired"));
        assert!(on(9).unwrap().contains("not valid yet"));
    }

    #[test]
    fn private_files__should_be_closed() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("seal.key");
        fs::write(&key, "").unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let findings = private_files(folder.path());
        assert!(findings.len() == 1 && findings[0].repaired);
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(private_files(folder.path()).is_empty());
    }
}

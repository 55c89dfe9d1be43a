//! What one look found, for people and for the coordinator.

use chrono::{DateTime, Utc};
use crabshack_shared::{agent_api::v1::Finding, ids::InstanceId, telemetry::Chain};
use serde::{Deserialize, Serialize};

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkup {
    /// When, by the node's clock.
    pub(crate) at: DateTime<Utc>,
    /// Everything that was looked at.
    pub(crate) subjects: Vec<String>,
    /// What was not as it should be.
    pub(crate) findings: Vec<Finding>,
}

impl Checkup {
    pub(super) fn new(subjects: &[&str], findings: Vec<Finding>) -> Self {
        Self {
            at: Utc::now(),
            subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect(),
            findings,
        }
    }

    /// Nothing is left for a person to do.
    pub(crate) fn is_ok(&self) -> bool {
        self.findings.iter().all(|finding| finding.repaired)
    }
}

/// A finding that is not repaired.
pub(super) fn found(subject: &str, instance: Option<InstanceId>, text: String) -> Finding {
    Finding {
        subject: subject.to_owned(),
        instance,
        text,
        repaired: false,
    }
}

pub(super) fn unknown(subject: &str, error: &dyn std::error::Error) -> Finding {
    found(subject, None, format!("it cannot be looked at: {}", DisplayChain(error)))
}

/// [`Chain`] over a borrowed trait object.
struct DisplayChain<'a>(&'a (dyn std::error::Error + 'a));

impl std::fmt::Display for DisplayChain<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Chain(self.0).fmt(formatter)
    }
}

/// Both are about the same.
pub(super) fn is_same(one: &Finding, other: &Finding) -> bool {
    one.subject == other.subject && one.instance == other.instance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkup__should_be_in_order_when_everything_was_repaired() {
        let repaired = Finding {
            repaired: true,
            ..found("egress", None, String::new())
        };
        assert!(Checkup::new(&["egress", "disk"], vec![repaired.clone()]).is_ok());
        assert!(!Checkup::new(&["egress", "disk"], vec![repaired, found("disk", None, String::new())]).is_ok());
    }
}

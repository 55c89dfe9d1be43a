//! Compares what should be true of this node with what is. What is ours is put right, the rest is
//! explained; the coordinator shows both. It looks at what a pass of the reconciler does not: that one
//! makes and mends instances, this one distrusts everybody, us included.

mod checkup;
pub(crate) mod command;
mod container;
mod damage;
mod instances;
mod leftovers;
mod machine;
pub(crate) mod outside;
mod repairs;

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use chrono::Utc;
use crabshack_shared::{agent_api::v1::Finding, telemetry::Chain};
use tokio::sync::{Mutex, Notify, watch};

pub(crate) use self::{checkup::Checkup, repairs::Repairs};
use self::{
    checkup::{found, is_same, unknown},
    leftovers::{LEFTOVERS, Real},
};
use crate::{
    docker::{DockerError, DockerState},
    identity::NodeIdentity,
    lease::Moment,
    ledger::Ledger,
    link::BRIDGE_PREFIX,
    node::Node,
    uplink::client::Client,
};

/// How often everything is looked at.
const PERIOD: Duration = Duration::from_secs(60);
/// A check-up this young is good enough for whoever asks next.
const FRESH: Duration = Duration::from_secs(1);
/// How long a repair stays worth a word.
const REPAIR_TOLD: Duration = Duration::from_secs(600);
/// How long the coordinator may be silent before that is a finding.
const SILENCE: Duration = Duration::from_secs(60);

const EGRESS: &str = "egress ruleset";
const DISK: &str = "disk";
const COORDINATOR: &str = "coordinator";

/// Everything that is looked at, in the order in which people read it.
const SUBJECTS: [&str; 20] = [
    machine::DOCKER,
    machine::KERNEL,
    EGRESS,
    container::FLAGS,
    container::LIMITS,
    container::NETWORK,
    container::MOUNTS,
    container::PORTS,
    damage::STATE,
    damage::LINK,
    damage::POLICY,
    damage::CONTENT,
    damage::VOLUME,
    DISK,
    machine::POOL,
    machine::CLOCK,
    machine::CERTIFICATE,
    machine::FILES,
    COORDINATOR,
    LEFTOVERS,
];

/// What the doctor works with.
pub(crate) struct Doctor {
    node: Node,
    ledger: Arc<Ledger>,
    data: PathBuf,
    /// Starts a pass of the reconciler.
    wake: Arc<Notify>,
    connected: watch::Receiver<bool>,
    /// Known once the node is enrolled.
    uplink: OnceLock<(Arc<NodeIdentity>, Arc<Client>)>,
    repairs: Arc<Repairs>,
    findings: watch::Sender<Vec<Finding>>,
    memory: Mutex<Memory>,
}

/// What is remembered from one look to the next.
#[derive(Default)]
struct Memory {
    last: Option<(Instant, Arc<Checkup>)>,
    /// Seconds between the wall clock and the machine's own.
    clock: Option<i64>,
    /// Since when the coordinator has not answered.
    alone: Option<Instant>,
    /// What the last look found, without what the reconciler tells.
    own: Vec<Finding>,
    repairs: Vec<(Instant, Finding)>,
}

impl Doctor {
    /// `data` is the node agent's folder.
    pub(crate) fn new(
        node: Node,
        ledger: Arc<Ledger>,
        data: PathBuf,
        wake: Arc<Notify>,
        connected: watch::Receiver<bool>,
    ) -> Self {
        Self {
            node,
            ledger,
            data,
            wake,
            connected,
            uplink: OnceLock::new(),
            repairs: Arc::default(),
            findings: watch::channel(Vec::new()).0,
            memory: Mutex::default(),
        }
    }

    /// From now on the certificate and the coordinator's clock are looked at too.
    pub(crate) fn watch_uplink(&self, identity: Arc<NodeIdentity>, client: Arc<Client>) {
        // Set once, when the node is enrolled.
        drop(self.uplink.set((identity, client)));
    }

    /// Where the reconciler tells what it puts right.
    pub(crate) fn repairs(&self) -> Arc<Repairs> {
        Arc::clone(&self.repairs)
    }

    /// What the last check-up found, whenever it changes.
    pub(crate) fn findings(&self) -> watch::Receiver<Vec<Finding>> {
        self.findings.subscribe()
    }

    /// Looks at everything once a period, from when the node has been seen once.
    pub(crate) async fn run(self: Arc<Self>, mut adopted: watch::Receiver<bool>) {
        if adopted.wait_for(|adopted| *adopted).await.is_err() {
            return;
        }
        let mut mended = self.repairs.changed();
        let mut next = tokio::time::Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => {
                    drop(self.check_up().await);
                    next = tokio::time::Instant::now() + PERIOD;
                }
                Ok(()) = mended.changed() => drop(self.publish(&self.memory.lock().await.own)),
            }
        }
    }

    /// Looks at everything now, and has put right what is ours.
    pub(crate) async fn check_up(&self) -> Arc<Checkup> {
        let mut memory = self.memory.lock().await;
        if let Some((at, last)) = &memory.last
            && at.elapsed() < FRESH
        {
            return Arc::clone(last);
        }
        let findings = self.look(&mut memory).await;
        memory.own = memory.with_earlier_repairs(findings);
        let checkup = Arc::new(Checkup::new(&SUBJECTS, self.publish(&memory.own)));
        memory.last = Some((Instant::now(), Arc::clone(&checkup)));
        checkup
    }

    /// Adds what the reconciler put right by itself, and sends all of it out when it is another.
    fn publish(&self, own: &[Finding]) -> Vec<Finding> {
        let is_told = |repair: &Finding| own.iter().any(|finding| is_same(finding, repair));
        let repairs = self.repairs.findings().into_iter().filter(|repair| !is_told(repair));
        let findings: Vec<Finding> = own.iter().cloned().chain(repairs).collect();
        self.findings.send_if_modified(|known| {
            let differs = *known != findings;
            for finding in findings.iter().filter(|finding| !known.contains(finding)) {
                let Finding {
                    subject, text, repaired, ..
                } = finding;
                let instance = finding.instance.map(|id| id.to_string());
                tracing::warn!(subject, instance, repaired, "the doctor found: {text}");
            }
            known.clone_from(&findings);
            differs
        });
        findings
    }

    async fn look(&self, memory: &mut Memory) -> Vec<Finding> {
        let mut findings = Vec::new();
        let state = match self.docker().await {
            Ok((found, state)) => {
                findings.extend(found);
                Some(state)
            }
            Err(error) => {
                findings.push(unknown(machine::DOCKER, &error));
                None
            }
        };
        findings.extend(self.egress().await);
        if let Some(state) = state {
            findings.extend(self.containers(&state).await);
            findings.extend(self.leftovers(&state).await);
        }
        findings.extend(self.node.disks.warnings().into_iter().map(|text| found(DISK, None, text)));
        findings.extend(machine::pool(&self.data));
        findings.extend(machine::private_files(&self.data));
        findings.extend(self.clock(memory));
        if let Some((identity, _)) = self.uplink.get() {
            let (not_before, not_after) = identity.validity();
            findings.extend(machine::certificate(not_before, not_after, SystemTime::now()));
        }
        findings.extend(self.coordinator(memory));
        findings
    }

    async fn docker(&self) -> Result<(Vec<Finding>, DockerState), DockerError> {
        let facts = self.node.docker.facts().await?;
        Ok((machine::docker(&facts), self.node.docker.observe().await?))
    }

    async fn egress(&self) -> Vec<Finding> {
        let repaired = match self.node.egress.repair().await {
            Ok(_) => self.node.egress.take_repairs(),
            Err(error) => return vec![unknown(EGRESS, &error)],
        };
        let mut findings: Vec<Finding> = repaired
            .into_iter()
            .map(|what| Finding {
                repaired: true,
                ..found(EGRESS, None, format!("{what}: it was missing or changed, and was put back"))
            })
            .collect();
        match self.node.egress.rules_in_the_way().await {
            Ok(rules) => findings.extend(rules.into_iter().map(|rule| {
                let text =
                    format!("a rule of somebody else comes before ours and may cut instances off: `{rule}`; move it behind ours");
                found(EGRESS, None, text)
            })),
            Err(error) => findings.push(unknown(EGRESS, &error)),
        }
        findings
    }

    async fn leftovers(&self, state: &DockerState) -> Vec<Finding> {
        let armed = match self.node.egress.bridges().await {
            Ok(armed) => armed,
            Err(error) => return vec![unknown(LEFTOVERS, &error)],
        };
        let folders = match self.node.volumes.list().await {
            Ok(folders) => folders.into_keys().collect(),
            Err(error) => return vec![unknown(LEFTOVERS, &error)],
        };
        let strangers = match self.node.docker.strangers().await {
            Ok(strangers) => strangers,
            Err(error) => return vec![unknown(LEFTOVERS, &error)],
        };
        // Last: what the reconciler is making right now is in the ledger before anything of it is there.
        let ordered = self.ledger.entries().iter().map(|entry| entry.order.id).collect();
        let real = Real {
            containers: state.containers.keys().map(|(id, _)| *id).collect(),
            networks: state.networks.keys().copied().collect(),
            strangers,
            bridges: bridges(),
            armed,
            folders,
        };
        let (mut findings, armed) = leftovers::find(&ordered, |id| self.ledger.is_kept(id), &real);
        for bridge in armed {
            let forgotten = self.node.egress.forget_bridge(&bridge).await;
            let text = match &forgotten {
                Ok(()) => format!("the ruleset let {bridge} out, which belongs to no instance; it was taken out"),
                Err(error) => format!(
                    "the ruleset lets {bridge} out, which belongs to no instance: {}",
                    Chain(error)
                ),
            };
            findings.push(Finding {
                repaired: forgotten.is_ok(),
                ..found(LEFTOVERS, None, text)
            });
        }
        findings
    }

    fn clock(&self, memory: &mut Memory) -> Vec<Finding> {
        let now = Utc::now().timestamp() - Moment::now().seconds();
        let jump = memory.clock.replace(now).map_or(0, |before| now - before);
        let offset = self.uplink.get().map_or(0, |(_, client)| client.clock_offset());
        machine::clock(jump, offset)
    }

    fn coordinator(&self, memory: &mut Memory) -> Option<Finding> {
        if *self.connected.borrow() {
            memory.alone = None;
            return None;
        }
        let since = memory.alone.get_or_insert_with(Instant::now);
        (since.elapsed() >= SILENCE).then(|| {
            let text = "it has not answered for more than a minute; the node goes on alone: see whether it runs, and what CRABSHACK_COORDINATOR names";
            found(COORDINATOR, None, text.to_owned())
        })
    }
}

impl Memory {
    /// Adds the repairs of the last minutes, so that whoever looks later hears of them too.
    fn with_earlier_repairs(&mut self, findings: Vec<Finding>) -> Vec<Finding> {
        self.repairs.retain(|(at, repair)| {
            let superseded = findings.iter().any(|finding| is_same(finding, repair));
            at.elapsed() < REPAIR_TOLD && !superseded
        });
        let earlier: Vec<Finding> = self.repairs.iter().map(|(_, repair)| repair.clone()).collect();
        let repairs = findings.iter().filter(|finding| finding.repaired);
        self.repairs.extend(repairs.map(|finding| (Instant::now(), finding.clone())));
        findings.into_iter().chain(earlier).collect()
    }
}

/// Interfaces that carry our prefix, in the network that we are in (sysfs shows that of its mount).
fn bridges() -> BTreeSet<String> {
    let interfaces = fs::read_dir("/proc/sys/net/ipv4/conf").into_iter().flatten().flatten();
    let names = interfaces.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(BRIDGE_PREFIX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs__should_be_told_for_a_while_and_give_way_to_what_is_worse() {
        let mut memory = Memory::default();
        let repair = Finding {
            repaired: true,
            ..found(EGRESS, None, "table".to_owned())
        };
        assert_eq!(
            memory.with_earlier_repairs(vec![repair.clone()]),
            std::slice::from_ref(&repair)
        );
        assert_eq!(memory.with_earlier_repairs(Vec::new()), [repair]);
        let worse = found(EGRESS, None, "a rule in the way".to_owned());
        assert_eq!(memory.with_earlier_repairs(vec![worse.clone()]), [worse]);
        assert!(memory.with_earlier_repairs(Vec::new()).is_empty());
    }
}

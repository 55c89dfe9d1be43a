//! Nothing leaves an instance that its policy does not allow, from the first packet on.

use std::{fs, process::ExitCode};

use anyhow::{Context as _, ensure};
use crabshack_tests::{
    client::{Answer, stub, stub_with},
    cluster::{Cluster, Who},
    command,
    machine::Machine,
    measure::egress_first,
    must::{PATIENCE, become_true},
    suite,
};
use reqwest::Method;

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("flood__should_not_escape_from_the_first_packet_on", flood);
        suite.test("foreign_flush__should_be_repaired", foreign_flush);
        suite.test("foreign_changes__should_be_repaired", foreign_changes);
        suite.test("many_ports__should_not_fill_the_nodes_table_of_connections", many_ports);
        suite.test("many_lives__should_not_wear_out_connection_tracking", many_lives);
    })
}

async fn flood(machine: &Machine) -> anyhow::Result<()> {
    let figures = egress_first::figures(machine, 3).await?;
    let text = figures.render("egress-first");
    ensure!(
        figures.number("attempted_packets") > 10_000,
        "too few attempts to show anything: {text}"
    );
    ensure!(figures.number("late_rule_packets") > 0, "the detector sees nothing: {text}");
    ensure!(figures.number("escaped_packets") == 0, "packets escaped: {text}");
    for truth in ["allowed_works", "forbidden_closed", "unprivileged_refused"] {
        ensure!(figures.holds(truth), "not `{truth}`: {text}");
    }
    Ok(())
}

async fn foreign_flush(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("flushed")).await?;
        let works = async || {
            let answer = cluster
                .client
                .get("/gateway/flushed/connect?to=203.0.113.1:443&ms=700")
                .await?
                .success()?;
            Ok(answer["result"] == "ok")
        };
        ensure!(works().await?, "443 is closed");
        command::run("nft delete table inet crabshack")?;
        become_true("the rules are back", PATIENCE, works).await?;
        let closed = cluster
            .client
            .get("/gateway/flushed/connect?to=169.254.169.254:80&ms=700")
            .await?
            .success()?;
        ensure!(closed["result"] != "ok", "{closed}");
        ensure!(cluster.log(Who::NodeAgent).exists());
        Ok(())
    })
    .await
}

/// A rule exchanged for another one, and a set emptied: as many rules as before.
async fn foreign_changes(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("changed")).await?;
        command::run("nft flush set inet crabshack private4")?;
        let private = async || Ok(command::run("nft list set inet crabshack private4")?.contains("10.0.0.0/8"));
        become_true("the private networks are back", PATIENCE, private).await?;
        let rules = command::run("nft -a list chain inet crabshack tohost")?;
        let last = rules.lines().rfind(|line| line.contains("# handle")).context("no rule")?;
        let handle = last.rsplit(' ').next().context("no handle")?;
        command::run(&format!("nft replace rule inet crabshack tohost handle {handle} accept"))?;
        let closed = async || {
            let rules = command::run("nft list chain inet crabshack tohost")?;
            Ok(!rules.lines().any(|line| line.trim() == "accept") && rules.contains("goto deny"))
        };
        become_true("the rule is back", PATIENCE, closed).await?;
        let works = cluster.client.get("/gateway/changed/connect?to=203.0.113.1:443&ms=700");
        ensure!(works.await?.success()?["result"] == "ok", "443 is closed");
        Ok(())
    })
    .await
}

/// Questions for names, each from a port of its own.
async fn many_ports(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let target = format!("{}:53", egress_first::SERVICE);
        let flood = [
            ("STUB_FLOOD", target.as_str()),
            ("STUB_FLOOD_MS", "2000"),
            ("STUB_FLOOD_PORTS", "1"),
        ];
        let before = connections()?;
        cluster.client.create(&stub_with("flooder", &flood)).await?;
        let attempts = egress_first::flooded(cluster).await?;
        let tracked = connections()?;
        ensure!(attempts > 5_000, "too few attempts to show anything: {attempts}");
        ensure!(tracked > 0, "nothing is tracked, so this shows nothing");
        ensure!(
            tracked < before + 500,
            "{attempts} packets brought {before} connections to {tracked}"
        );
        egress_first::allowed_works(cluster).await
    })
    .await
}

/// A kernel may count what rules and sets need of connection tracking wrongly; at zero it goes, and
/// every answer to an instance with it.
async fn many_lives(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("flooder")).await?;
        // Deleting comes last: what a create adds to the ruleset would bring the count above zero again.
        for life in 0..12 {
            let name = format!("life-{life}");
            cluster.client.create(&stub(&name)).await?;
            let gone = cluster
                .client
                .request(Method::DELETE, &format!("/instances/{name}?purge=true"));
            Answer::read(gone.send().await?).await?;
        }
        egress_first::allowed_works(cluster).await
    })
    .await
}

/// What the node's table of connections holds.
fn connections() -> anyhow::Result<u64> {
    let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?;
    Ok(count.trim().parse()?)
}

//! Nothing leaves an instance that its policy does not allow, from the first packet on.

use std::process::ExitCode;

use anyhow::ensure;
use crabshack_tests::{
    client::stub,
    cluster::{Cluster, Who},
    command,
    machine::Machine,
    measure::egress_first,
    must::{PATIENCE, become_true},
    suite,
};

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("flood__should_not_escape_from_the_first_packet_on", flood);
        suite.test("foreign_flush__should_be_repaired", foreign_flush);
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

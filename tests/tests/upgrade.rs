//! What a restart with other settings or another build changes: settings of instances, and no container.

use std::process::ExitCode;

use anyhow::ensure;
use crabshack_tests::{
    client::stub,
    cluster::{Cluster, Who},
    engine, image,
    machine::Machine,
    measure::{density, product_upgrade},
    must::{PATIENCE, become_true, text},
    suite,
};

/// Another port than the one that is served: what stands before the coordinator may have any.
const OTHER_URL: &str = "https://localhost:8443";

fn main() -> ExitCode {
    suite::run_after(image::build_changed_agent, |suite| {
        suite.test("public_url__should_reach_running_instances_without_a_restart", public_url);
        suite.test("upgrade__should_make_no_container_again_and_refuse_nobody", upgrade);
        suite.test("node_agent__should_be_frugal_and_soon_back", frugal);
    })
}

async fn public_url(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        for name in ["moves", "along"] {
            cluster.client.create(&stub(name)).await?;
        }
        let docker = machine.dockerd.engine();
        let id = text(&cluster.client.instance("moves").await?, "instance_id")?.to_owned();
        let before = engine::container(docker, &id).await?;
        let managed = cluster
            .data(Who::NodeAgent)
            .join("instances")
            .join(&id)
            .join("etc/managed.json");
        ensure!(std::fs::read_to_string(&managed)?.contains("http://moves.localhost:3000"));

        cluster.stop(Who::Coordinator).await?;
        cluster.set(Who::Coordinator, "CRABSHACK_PUBLIC_URL", OTHER_URL);
        cluster.start(Who::Coordinator)?;
        cluster.ready(Who::Coordinator).await?;
        for name in ["moves", "along"] {
            let origin = format!("https://{name}.localhost:8443");
            become_true("the workload allows the new origin only", PATIENCE, async || {
                let settings = cluster.client.get(&format!("/gateway/{name}/managed")).await?.success()?;
                Ok(settings["gateway"]["controlUi"]["allowedOrigins"] == serde_json::json!([origin]))
            })
            .await?;
            let instance = cluster.client.instance(name).await?;
            ensure!(text(&instance, "instance_url")?.starts_with(&origin), "{instance}");
            ensure!(instance["pending_change"] == false, "it waits for a restart: {instance}");
        }
        let file = std::fs::read_to_string(&managed)?;
        ensure!(
            file.contains("https://moves.localhost:8443") && !file.contains(":3000"),
            "{file}"
        );
        let after = engine::container(docker, &id).await?;
        ensure!(
            after.id == before.id && engine::started_at(&after) == engine::started_at(&before),
            "it was restarted for that"
        );
        Ok(())
    })
    .await
}

async fn upgrade(machine: &Machine) -> anyhow::Result<()> {
    let figures = product_upgrade::figures(machine, 2).await?;
    let text = figures.render("product-upgrade");
    for zero in ["containers_recreated", "requests_refused"] {
        ensure!(figures.number(zero) == 0, "{zero}: {text}");
    }
    ensure!(figures.number("requests") > 20, "too few requests to show anything: {text}");
    Ok(())
}

async fn frugal(machine: &Machine) -> anyhow::Result<()> {
    let figures = density::figures(machine, density::Size::SMALL).await?;
    let text = figures.render("density");
    // Processor time is measured with release builds on a machine that does nothing else.
    ensure!(figures.number("reconcile_ms") < 5000, "{text}");
    ensure!(figures.number("containers_restarted") == 0, "{text}");
    Ok(())
}

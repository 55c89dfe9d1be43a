//! What somebody breaks on a node by hand is put right where it is ours, and explained where it is not.

use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, ensure};
use bollard::models::{ContainerUpdateBody, NetworkConnectRequest, NetworkCreateRequest, RestartPolicy, RestartPolicyNameEnum};
use crabshack_tests::{
    client::stub,
    cluster::{AGENT_HEALTH, Cluster, Who},
    command, engine,
    machine::Machine,
    must::{PATIENCE, become_true, eventually, text},
    observed::{CHECK_UP, check_up},
    suite,
};
use serde_json::Value;

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("ruleset__should_be_put_back_and_told", ruleset);
        suite.test("container__should_be_put_right_without_a_restart", container);
        suite.test("stopped_container__should_be_started_again_and_told", stopped);
        suite.test("foreign_things__should_be_explained_and_left_alone", foreign);
        suite.test("dead_node_agent__should_be_said_by_the_subcommand", from_outside);
    })
}

/// Waits until one finding about this says these words, repaired or not.
async fn finds(subject: &str, instance: Option<&str>, words: &str, repaired: bool) -> anyhow::Result<Value> {
    let what = format!("`{subject}` is found with `{words}`, repaired: {repaired}");
    eventually(&what, PATIENCE, async || {
        let findings = check_up().await?;
        let is_it = |finding: &&Value| {
            finding["subject"] == subject
                && finding["instance"].as_str() == instance
                && finding["repaired"] == repaired
                && finding["text"].as_str().is_some_and(|text| text.contains(words))
        };
        match findings.iter().find(is_it) {
            Some(finding) => Ok(Some(finding.clone())),
            None => anyhow::bail!("{findings:?}"),
        }
    })
    .await
}

async fn create(cluster: &Cluster<'_>, name: &str) -> anyhow::Result<String> {
    cluster.client.create(&stub(name)).await?;
    let instance = cluster.client.instance(name).await?;
    let id = text(&instance, "instance_id")?.to_owned();
    let findings = check_up().await?;
    let about = |finding: &&Value| finding["instance"] == instance["instance_id"];
    ensure!(
        !findings.iter().any(|finding| about(&finding)),
        "a healthy instance: {findings:?}"
    );
    ensure!(
        findings
            .iter()
            .all(|finding| finding["subject"] != "leftovers" && finding["subject"] != "egress ruleset"),
        "a fresh node: {findings:?}"
    );
    Ok(id)
}

async fn ruleset(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let id = create(cluster, "ruled").await?;
        let bridge = format!("cs-{}", &id[..12]);
        let set = "nft list set inet crabshack ports";
        let web = format!("\"{bridge}\" . tcp . 443");
        ensure!(command::run(set)?.contains(&web), "{}", command::run(set)?);
        let delete = format!("delete element inet crabshack ports {{ {web} }}");
        command::run_with_input("nft -f -", &delete)?;
        finds("instance egress", Some(&id), "missing from the ruleset", true).await?;
        ensure!(command::run(set)?.contains(&web), "it was not put back");

        let accept = "DOCKER-USER -i cs-+ -j ACCEPT";
        command::run(&format!("iptables -D {accept}"))?;
        finds("egress ruleset", None, "Docker's accepts", true).await?;
        command::run(&format!("iptables -C {accept}"))?;

        // Somebody's own rule is not ours to move.
        let rule = "DOCKER-USER -s 192.0.2.0/24 -j DROP";
        command::run(&format!("iptables -I {rule}"))?;
        finds("egress ruleset", None, "192.0.2.0/24", false).await?;
        command::run(&format!("iptables -C {rule}"))?;
        command::run(&format!("iptables -D {rule}"))?;

        // Elements of a bridge that belongs to nothing let nobody out.
        let stray = "add element inet crabshack ok { \"cs-0123456789ab\" }";
        command::run_with_input("nft -f -", stray)?;
        finds("leftovers", None, "cs-0123456789ab", true).await?;
        ensure!(!command::run("nft list set inet crabshack ok")?.contains("cs-0123456789ab"));
        scraped("crabshack_node_findings{subject=\"instance egress\",repaired=\"true\"}").await?;
        scraped("crabshack_node_reconcile_seconds_count").await?;
        scraped("crabshack_node_events_waiting").await?;
        told_to_coordinator(cluster, "instance egress").await
    })
    .await
}

/// Waits until the figures hold this.
async fn scraped(words: &str) -> anyhow::Result<()> {
    become_true(&format!("the metrics hold {words}"), PATIENCE, async || {
        let http = reqwest::Client::builder().no_proxy().build()?;
        let text = http.get(format!("{AGENT_HEALTH}/metrics")).send().await?.text().await?;
        Ok(text.contains(words))
    })
    .await
}

async fn told_to_coordinator(cluster: &Cluster<'_>, subject: &str) -> anyhow::Result<()> {
    let nodes = cluster.client.get("/nodes").await?.success()?;
    let node = text(&nodes[0], "id")?.to_owned();
    become_true("the coordinator shows the findings", PATIENCE, async || {
        let node = cluster.client.get(&format!("/nodes/{node}")).await?.success()?;
        let findings = node["findings"].as_array().context("no array `findings`")?;
        Ok(findings.iter().any(|finding| finding["subject"] == subject))
    })
    .await
}

async fn container(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (engine, id) = (machine.dockerd.engine(), create(cluster, "bounded").await?);
        let name = format!("cs-{id}");
        let before = engine::container(engine, &id).await?;
        let loosened = ContainerUpdateBody {
            memory: Some(2 << 30),
            memory_swap: Some(2 << 30),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::ALWAYS),
                ..RestartPolicy::default()
            }),
            ..ContainerUpdateBody::default()
        };
        engine.update_container(&name, loosened).await?;
        let into = NetworkConnectRequest {
            container: name.clone(),
            ..NetworkConnectRequest::default()
        };
        engine.connect_network("bridge", into).await?;
        finds("container limits", Some(&id), "", true).await?;
        finds("container flags", Some(&id), "", true).await?;
        let after = engine::container(engine, &id).await?;
        let host = after.host_config.clone().context("no host config")?;
        ensure!(host.memory == Some(1 << 30), "{host:?}");
        let policy = host.restart_policy.and_then(|policy| policy.name);
        ensure!(policy == Some(RestartPolicyNameEnum::NO), "{policy:?}");
        let networks = after
            .network_settings
            .clone()
            .and_then(|settings| settings.networks)
            .unwrap_or_default();
        ensure!(networks.len() == 1 && networks.contains_key(&name), "{networks:?}");
        ensure!(
            engine::started_at(&before) == engine::started_at(&after),
            "it was started again"
        );
        let works = cluster.client.get("/gateway/bounded/healthz").await?.status;
        ensure!(works.is_success(), "{works}");
        Ok(())
    })
    .await
}

async fn stopped(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (engine, id) = (machine.dockerd.engine(), create(cluster, "halted").await?);
        let before = engine::container(engine, &id).await?;
        engine.stop_container(&format!("cs-{id}"), None).await?;
        finds("container state", Some(&id), "it should run", true).await?;
        let after = engine::container(engine, &id).await?;
        ensure!(engine::is_running(&after) && before.id == after.id);
        engine::remove_container(engine, &format!("cs-{id}")).await?;
        finds("container state", Some(&id), "removed its container", true).await?;
        // What its owner asks for is nobody's damage.
        cluster.client.act("halted", "stop").await?;
        let findings = check_up().await?;
        ensure!(
            findings
                .iter()
                .all(|finding| finding["instance"] != id.as_str() || finding["repaired"] == true),
            "{findings:?}"
        );
        Ok(())
    })
    .await
}

async fn foreign(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let engine = machine.dockerd.engine();
        create(cluster, "neighbour").await?;
        let network = NetworkCreateRequest {
            name: "cs-stray".to_owned(),
            ..NetworkCreateRequest::default()
        };
        engine.create_network(network).await?;
        command::run("ip link add cs-strayed type bridge")?;
        let folder = cluster
            .data(Who::NodeAgent)
            .join("instances")
            .join("00112233445566778899aabbccddeeff");
        std::fs::create_dir(&folder)?;
        let result = async {
            finds("leftovers", None, "docker network rm cs-stray", false).await?;
            finds("leftovers", None, "ip link delete cs-strayed", false).await?;
            finds(
                "leftovers",
                Some("00112233445566778899aabbccddeeff"),
                "somebody's data",
                false,
            )
            .await?;
            let (code, said) = subcommand(cluster, &[]).await?;
            ensure!(
                code == Some(1) && said.contains("docker network rm cs-stray"),
                "{code:?}: {said}"
            );
            ensure!(
                said.lines()
                    .any(|line| line.starts_with("ok") && line.contains("container limits")),
                "{said}"
            );
            ensure!(
                folder.exists() && engine.inspect_network("cs-stray", None).await.is_ok(),
                "it was removed"
            );
            anyhow::Ok(())
        }
        .await;
        engine.remove_network("cs-stray").await?;
        command::run("ip link delete cs-strayed")?;
        std::fs::remove_dir(&folder)?;
        result?;
        become_true("nothing is left to say of it", PATIENCE, async || {
            Ok(check_up().await?.iter().all(|finding| finding["subject"] != "leftovers"))
        })
        .await
    })
    .await
}

async fn from_outside(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (code, said) = subcommand(cluster, &["--json"]).await?;
        let checkup: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let findings = checkup["findings"].as_array().context("no array `findings`")?;
        let all_right = findings.iter().all(|finding| finding["repaired"] == true);
        ensure!(code == Some(i32::from(!all_right)), "{code:?}: {said}");
        cluster.kill9(Who::NodeAgent).await?;
        let (code, said) = subcommand(cluster, &[]).await?;
        let problem = |line: &str| line.starts_with("PROBLEM") && line.contains("node agent") && line.contains("nobody answers");
        ensure!(code == Some(1) && said.lines().any(problem), "{code:?}: {said}");
        ensure!(
            said.lines()
                .any(|line| line.starts_with("ok") && line.contains("certificate")),
            "{said}"
        );
        Ok(())
    })
    .await
}

/// Runs the subcommand; its exit code and what it printed.
async fn subcommand(cluster: &Cluster<'_>, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let mut command = cluster.command(Who::NodeAgent)?;
    command
        .arg("doctor")
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let output = tokio::time::timeout(CHECK_UP, command.output())
        .await
        .context("it does not end")??;
    Ok((output.status.code(), String::from_utf8(output.stdout)?))
}

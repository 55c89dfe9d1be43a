//! Who may talk to whom: certificates, join tokens, renewal.

use std::{fs, path::Path, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use crabshack_shared::tls::{self, JoinToken};
use crabshack_tests::{
    client::{Answer, stub},
    cluster::{AGENT_HEALTH, Cluster, Who},
    machine::Machine,
    must::{PATIENCE, become_true, text},
    suite,
    trust::{Authority, agent_listener, talk},
};
use reqwest::Method;
use rustls::pki_types::CertificateDer;

const DATA_PLANE: &str = "127.0.0.1:7702";

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("foreign_certificate__should_be_refused_on_both_listeners", foreign);
        suite.test("join_token__should_work_once", join_token);
        suite.test("join_token__should_not_work_after_its_time", expired_token);
        suite.test("node__should_only_get_its_own_orders", own_orders);
        suite.test("restart__should_need_no_network", restart_alone);
        suite.test("certificate__should_be_renewed_before_and_after_it_expires", renewal);
        suite.test("configuration__should_end_with_64_and_the_variables_name", configuration);
    })
}

async fn authority(cluster: &Cluster<'_>) -> anyhow::Result<CertificateDer<'static>> {
    let token = cluster.client.join_token().await?;
    Ok(JoinToken::decode(&token.into())?.authority)
}

async fn foreign(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let real = authority(cluster).await?;
        let stranger = Authority::new()?;
        for name in [tls::COORDINATOR_NAME, "node-0123456789ab.nodes.crabshack"] {
            let identity = stranger.identity(name)?;
            let config = Arc::new(tls::client(&real, Some(identity))?);
            let node = node_name(cluster).await?;
            for (address, server, path) in [
                (agent_listener(), tls::COORDINATOR_NAME, "/v1/orders?revision=0"),
                (DATA_PLANE.to_owned(), &*node, "/v1/instances/x/logs"),
            ] {
                let answer = talk(&address, server, Arc::clone(&config), path).await;
                ensure!(answer.is_err(), "{address} answered a foreign {name}: {answer:?}");
            }
        }
        // Without any certificate: nothing but enrolment, and not on the data plane.
        let bare = Arc::new(tls::client(&real, None)?);
        let orders = talk(
            &agent_listener(),
            tls::COORDINATOR_NAME,
            Arc::clone(&bare),
            "/v1/orders?revision=0",
        )
        .await?;
        ensure!(
            orders.starts_with("HTTP/1.1 401") || orders.starts_with("HTTP/1.1 403"),
            "{orders}"
        );
        let node = node_name(cluster).await?;
        ensure!(
            talk(DATA_PLANE, &node, bare, "/v1/instances/x/logs").await.is_err(),
            "the data plane serves strangers"
        );
        Ok(())
    })
    .await
}

async fn node_name(cluster: &Cluster<'_>) -> anyhow::Result<String> {
    let nodes = cluster.client.get("/nodes").await?.success()?;
    let id = nodes[0]["id"].as_str().context("no node")?;
    Ok(tls::node_name(&id.parse()?))
}

async fn join_token(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let token = cluster.client.join_token().await?;
        let secret = JoinToken::decode(&token.clone().into())?.secret;
        // The agent of the cluster enrolled already: a second node takes the token.
        let enrol = async |secret: &str| cluster_enrol(cluster, secret).await;
        ensure!(
            enrol(secret.expose()).await?.starts_with("HTTP/1.1 200"),
            "a fresh token was refused"
        );
        let again = enrol(secret.expose()).await?;
        ensure!(
            again.starts_with("HTTP/1.1 401") || again.starts_with("HTTP/1.1 403"),
            "it worked twice: {again}"
        );
        let wrong = enrol("0000").await?;
        ensure!(
            wrong.starts_with("HTTP/1.1 401") || wrong.starts_with("HTTP/1.1 403"),
            "{wrong}"
        );
        let log = fs::read_to_string(cluster.log(Who::Coordinator))?;
        ensure!(log.contains("join token"), "the refusal is not in the log");
        Ok(())
    })
    .await
}

async fn expired_token(machine: &Machine) -> anyhow::Result<()> {
    let mut cluster = Cluster::new(machine)?;
    let result = refused_when_late(&mut cluster).await;
    let wiped = cluster.wipe().await;
    result.and(wiped)
}

async fn refused_when_late(cluster: &mut Cluster<'_>) -> anyhow::Result<()> {
    cluster.set(Who::Coordinator, "CRABSHACK_JOIN_TOKEN_SECONDS", "1");
    cluster.start(Who::Coordinator)?;
    cluster.ready(Who::Coordinator).await?;
    let answer = cluster
        .client
        .post("/nodes/join-token", &serde_json::Value::Null)
        .await?
        .success()?;
    let expires_at: chrono::DateTime<chrono::Utc> = text(&answer, "expires_at")?.parse()?;
    become_true("its time is over", PATIENCE, async || Ok(chrono::Utc::now() > expires_at)).await?;
    cluster.set(Who::NodeAgent, "CRABSHACK_JOIN_TOKEN", text(&answer, "token")?);
    cluster.start(Who::NodeAgent)?;
    let status = cluster.process(Who::NodeAgent)?.wait(PATIENCE).await?;
    ensure!(!status.success(), "the node agent ended as if all were well");
    let said = cluster.process(Who::NodeAgent)?.log_end(5);
    ensure!(said.contains("does not let this node in"), "{said}");
    let log = fs::read_to_string(cluster.log(Who::Coordinator))?;
    ensure!(
        log.lines()
            .any(|line| line.contains("refused to enrol a node") && line.contains("expired")),
        "the refusal is not in the log"
    );
    let nodes = cluster.client.get("/nodes").await?.success()?;
    ensure!(nodes.as_array().is_some_and(Vec::is_empty), "{nodes}");
    Ok(())
}

async fn cluster_enrol(cluster: &Cluster<'_>, secret: &str) -> anyhow::Result<String> {
    let config = Arc::new(tls::client(&authority(cluster).await?, None)?);
    let body = serde_json::json!({"join_secret": secret, "request": Authority::request()?, "hostname": "second"});
    crabshack_tests::trust::post(&agent_listener(), tls::COORDINATOR_NAME, config, "/v1/enrol", &body).await
}

async fn own_orders(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("mine")).await?;
        let instance = cluster.client.instance("mine").await?;
        let id = instance["instance_id"].as_str().context("no id")?.to_owned();
        // A second node, enrolled by hand, with a key of its own.
        let second = crabshack_tests::trust::Node::enrol(cluster).await?;
        let orders = second.get("/v1/orders?revision=0").await?;
        ensure!(
            orders.starts_with("HTTP/1.1 200") || orders.starts_with("HTTP/1.1 204"),
            "{orders}"
        );
        ensure!(
            !orders.contains(&id) && !orders.contains("sk-agent"),
            "another node's orders: {orders}"
        );
        // It claims that the first node's instance is gone.
        let report = second.report(&id, "deleted").await?;
        ensure!(report.starts_with("HTTP/1.1 2"), "{report}");
        ensure!(
            cluster.client.status("mine").await?.as_deref() == Some("running"),
            "a foreign report was believed"
        );
        become_true("the foreign report is in the log", PATIENCE, async || {
            let log = fs::read_to_string(cluster.log(Who::Coordinator))?;
            Ok(log
                .lines()
                .any(|line| line.contains("WARN") && line.contains(&id) && line.contains(second.id.as_str())))
        })
        .await?;
        // A node is no coordinator.
        let node = node_name(cluster).await?;
        let answer = second.dial(DATA_PLANE, &node, &format!("/v1/instances/{id}/logs")).await?;
        ensure!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        // Revoked: nothing any more.
        let path = format!("/nodes/{}", second.id);
        let revoked = Answer::read(cluster.client.request(Method::DELETE, &path).send().await?).await?;
        ensure!(revoked.status.is_success(), "{revoked:?}");
        let refused = second.get("/v1/orders?revision=0").await?;
        ensure!(refused.starts_with("HTTP/1.1 403"), "{refused}");
        Ok(())
    })
    .await
}

async fn restart_alone(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("alone")).await?;
        cluster.kill9(Who::Coordinator).await?;
        cluster.crash_and_restart(Who::NodeAgent).await?;
        let ready = reqwest::get(format!("{AGENT_HEALTH}/health")).await?;
        ensure!(ready.status().is_success());
        Ok(())
    })
    .await
}

async fn renewal(machine: &Machine) -> anyhow::Result<()> {
    const LIFE: u64 = 9;
    let life = LIFE.to_string();
    Cluster::with_settings(
        machine,
        &[(Who::Coordinator, "CRABSHACK_CERTIFICATE_SECONDS", &life)],
        async |cluster| {
            cluster.client.create(&stub("renewed")).await?;
            let works = async || Ok(cluster.client.get("/gateway/renewed/healthz").await?.status.is_success());
            // Three lives: without renewal in time this would end.
            crabshack_tests::must::stay_true("the gateway answers", Duration::from_secs(3 * LIFE), works).await?;
            cluster.kill9(Who::NodeAgent).await?;
            tokio::time::sleep(Duration::from_secs(LIFE + 1)).await;
            cluster.start(Who::NodeAgent)?;
            cluster.ready(Who::NodeAgent).await?;
            let client = cluster.client.clone();
            become_true("an expired node renewed itself", PATIENCE, async || {
                Ok(client.get("/gateway/renewed/healthz").await?.status.is_success())
            })
            .await?;
            // An expired certificate may do nothing but renew.
            let second = crabshack_tests::trust::Node::enrol(cluster).await?;
            tokio::time::sleep(Duration::from_secs(LIFE + 1)).await;
            let refused = second.get("/v1/orders?revision=0").await?;
            ensure!(
                refused.starts_with("HTTP/1.1 401") || refused.starts_with("HTTP/1.1 403"),
                "{refused}"
            );
            let renewed = second.renew().await?;
            ensure!(renewed.starts_with("HTTP/1.1 200"), "{renewed}");
            Ok(())
        },
    )
    .await
}

async fn configuration(machine: &Machine) -> anyhow::Result<()> {
    let mut cluster = Cluster::new(machine)?;
    let cases = [
        (Who::Coordinator, "CRABSHACK_ADMIN_SECRET", "short"),
        (Who::Coordinator, "CRABSHACK_PORT", "70000"),
        (Who::Coordinator, "CRABSHACK_PUBLIC_URL", "ftp://x"),
        (Who::Coordinator, "CRABSHACK_AGENT_LISTEN", "everywhere"),
        (Who::NodeAgent, "CRABSHACK_POOL", "8.8.8.0/24"),
        (Who::NodeAgent, "CRABSHACK_COORDINATOR", "no port"),
        (Who::NodeAgent, "CRABSHACK_DATA_PLANE", "x"),
    ];
    for (who, variable, value) in cases {
        let output = tokio::time::timeout(PATIENCE, cluster.command(who)?.env(variable, value).output()).await??;
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.code() == Some(64) && text.contains(variable),
            "{variable}={value}: {}: {text}",
            output.status
        );
    }
    if Path::new(&cluster.data(Who::Coordinator)).exists() {
        bail!("a bad configuration made a data folder");
    }
    let listens = tokio::net::TcpStream::connect("127.0.0.1:7700").await;
    ensure!(listens.is_err(), "something listens");
    cluster.wipe().await
}

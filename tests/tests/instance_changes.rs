//! What may be changed of an instance while it lives, and what is left of it after its deletion.

use std::{fs, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use crabshack_tests::{
    client::{Answer, Client, Event, Events, stub, stub_with},
    cluster::{Cluster, Who},
    engine,
    machine::Machine,
    must::{PATIENCE, become_true, eventually, text},
    suite,
};
use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl tests";
/// After a rotation nothing of the old token is open for longer.
const CLOSING: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("patch__should_change_limits_and_the_ssh_key_under_a_running_instance", live);
        suite.test(
            "patch__should_let_the_environment_wait_for_a_restart_or_apply_it_now",
            waiting,
        );
        suite.test("patch__should_leave_a_stopped_instance_stopped", patch_of_a_stopped_one);
        suite.test("rotated_token__should_close_what_the_old_one_opened", rotation);
        suite.test("deleted_instance__should_come_back_with_its_disk", undelete);
        suite.test("deleted_instance__should_be_purged_by_its_id_or_by_time", purge);
    })
}

async fn patch(client: &Client, path: &str, body: &Value) -> anyhow::Result<Value> {
    client.patch(path, body).await?.success()
}

async fn live(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("grows")).await?;
        let id = text(&cluster.client.instance("grows").await?, "instance_id")?.to_owned();
        let docker = machine.dockerd.engine();
        let before = engine::container(docker, &id).await?;
        let body = json!({"mem_limit": "2g", "cpus": "0.5", "ssh_pubkey": KEY, "protected": true, "image": null});
        let details = patch(&cluster.client, "/instances/grows", &body).await?;
        ensure!(details["mem_limit"] == "2g" && details["protected"] == true, "{details}");
        ensure!(details["pending_change"] == false, "it waits for nothing: {details}");
        become_true("the limits are the container's", PATIENCE, async || {
            let limits = engine::container(docker, &id).await?.host_config.context("no host config")?;
            Ok(limits.memory == Some(2 << 30) && limits.cpu_quota == Some(50_000))
        })
        .await?;
        let keys = cluster
            .data(Who::NodeAgent)
            .join("instances")
            .join(&id)
            .join("etc/authorized_keys");
        become_true("the key may log in", PATIENCE, async || {
            Ok(fs::read_to_string(&keys)?.contains(KEY))
        })
        .await?;
        let after = engine::container(docker, &id).await?;
        ensure!(
            after.id == before.id && engine::started_at(&after) == engine::started_at(&before),
            "it was restarted for that"
        );

        let refused = cluster
            .client
            .request(Method::DELETE, "/instances/grows?purge=true")
            .send()
            .await?;
        let said = Answer::read(refused).await?.problem(409, "conflict")?;
        ensure!(said.contains("protected"), "{said}");
        patch(&cluster.client, "/instances/grows", &json!({"protected": false})).await?;
        cluster.client.delete("grows", true).await?;
        Ok(())
    })
    .await
}

async fn environment(client: &Client, name: &str) -> anyhow::Result<Value> {
    Ok(client.get(&format!("/gateway/{name}/env")).await?.success()?["environment"].clone())
}

async fn pending(client: &Client, name: &str, wanted: bool) -> anyhow::Result<()> {
    become_true("its pending change", PATIENCE, async || {
        Ok(client.instance(name).await?["pending_change"] == wanted)
    })
    .await
}

async fn waiting(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        client.create(&stub_with("learns", &[("STAYS", "1"), ("GOES", "2")])).await?;
        let change = json!({"extra_env": {"GOES": null, "COMES": "3"}});
        let details = patch(client, "/instances/learns", &change).await?;
        ensure!(details["pending_change"] == true, "{details}");
        // Also once its node has seen it.
        become_true("the node has seen it", PATIENCE, async || {
            let details = client.instance("learns").await?;
            Ok(details["phase"] == "ready" && details["pending_change"] == true)
        })
        .await?;
        ensure!(
            environment(client, "learns").await?["GOES"] == "2",
            "it was restarted for that"
        );
        client.act("learns", "restart").await?;
        pending(client, "learns", false).await?;
        let now = environment(client, "learns").await?;
        ensure!(now["STAYS"] == "1" && now["COMES"] == "3" && now["GOES"].is_null(), "{now}");

        patch(client, "/instances/learns?apply=now", &json!({"extra_env": {"COMES": "4"}})).await?;
        become_true("it has the change without a wish for a restart", PATIENCE, async || {
            Ok(environment(client, "learns").await?["COMES"] == "4")
        })
        .await?;
        pending(client, "learns", false).await
    })
    .await
}

async fn patch_of_a_stopped_one(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        client.create(&stub("rests")).await?;
        client.act("rests", "stop").await?;
        let details = patch(
            client,
            "/instances/rests?apply=now",
            &json!({"mem_limit": "2g", "extra_env": {"NEW": "1"}}),
        )
        .await?;
        ensure!(details["status"] == "stopped", "{details}");
        client.act("rests", "start").await?;
        ensure!(environment(client, "rests").await?["NEW"] == "1");
        pending(client, "rests", false).await
    })
    .await
}

async fn rotation(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        for name in ["turns", "neighbour"] {
            client.create(&stub(name)).await?;
        }
        let old = text(&client.instance("turns").await?, "token")?.to_owned();
        let mut visitor = cluster.browser("turns")?;
        visitor.log_in(&old).await?;
        let mut beside = cluster.browser("neighbour")?;
        beside.log_in(text(&client.instance("neighbour").await?, "token")?).await?;
        let mut socket = visitor.websocket("/ws").await?;
        let other = beside.websocket("/ws").await?;
        let stream = visitor.request(Method::GET, "/sse?n=1000&ms=50", &[]).send().await?;
        let mut stream = stream.bytes_stream();
        stream.next().await.context("no first event")??;

        let rotated = client.post("/instances/turns/token/rotate", &Value::Null).await?.success()?;
        let token = text(&rotated, "token")?;
        ensure!(token != old && rotated["pending_change"] == true, "{rotated}");
        let closed = timeout(CLOSING, async {
            while let Some(Ok(_)) = socket.next().await {}
            while let Some(Ok(_)) = stream.next().await {}
        });
        closed.await.context("the old token's connections are still open")?;
        drop(other);
        ensure!(
            beside.get("/headers", &[]).await?.status.is_success(),
            "its neighbour was touched"
        );
        // Neither cookie nor token open it any more; the new one does.
        ensure!(visitor.get("/headers", &[]).await?.status.as_u16() == 401);
        let bearer = format!("Bearer {old}");
        let mut stranger = cluster.browser("turns")?;
        ensure!(stranger.get("/headers", &[("authorization", &bearer)]).await?.status.as_u16() == 401);
        stranger.log_in(token).await?;
        ensure!(stranger.get("/headers", &[]).await?.status.is_success());
        Ok(())
    })
    .await
}

async fn deleted(client: &Client) -> anyhow::Result<Vec<Value>> {
    let list = client.get("/instances?deleted=true").await?.success()?;
    list["instances"].as_array().cloned().context("no list")
}

async fn ends(mut events: Events, end: &str) -> anyhow::Result<()> {
    let events: Vec<Event> = events.rest().await?;
    ensure!(events.last().is_some_and(|last| last.name == end), "{events:?}");
    Ok(())
}

async fn undelete(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        client.create(&stub("phoenix")).await?;
        let first = client.instance("phoenix").await?;
        let id = text(&first, "instance_id")?.to_owned();
        let home = cluster.data(Who::NodeAgent).join("instances").join(&id).join("home");
        fs::write(home.join("mine"), "kept")?;
        client.delete("phoenix", false).await?;
        let list = deleted(client).await?;
        ensure!(list.len() == 1 && list[0]["instance_id"] == id.as_str(), "{list:?}");
        text(&list[0], "purge_at")?;

        // Somebody else has its name, and perhaps its port, by now.
        client.create(&stub("phoenix")).await?;
        let path = format!("/instances/{id}/undelete");
        client.post(&path, &Value::Null).await?.problem(409, "name_taken")?;
        ends(client.events(&path, &json!({"name": "risen"})).await?, "ready").await?;
        let again = client.instance("risen").await?;
        for key in ["instance_id", "token", "ssh_fingerprint", "created_at"] {
            ensure!(again[key] == first[key], "{key}: {again}");
        }
        ensure!(fs::read_to_string(home.join("mine"))? == "kept");
        ensure!(again["ssh_port"] != client.instance("phoenix").await?["ssh_port"]);
        ensure!(client.get("/gateway/risen/healthz").await?.status.is_success());
        ensure!(deleted(client).await?.is_empty());
        Ok(())
    })
    .await
}

async fn purge(machine: &Machine) -> anyhow::Result<()> {
    let settings = [(Who::Coordinator, "CRABSHACK_DELETE_GRACE", "3s")];
    Cluster::with_settings(machine, &settings, async |cluster| {
        let folder = cluster.data(Who::NodeAgent).join("instances");
        cluster.client.create(&stub("forgotten")).await?;
        let id = text(&cluster.client.instance("forgotten").await?, "instance_id")?.to_owned();
        cluster.client.delete("forgotten", false).await?;
        ensure!(folder.join(&id).exists(), "its disk went at once");
        become_true("its disk goes when the grace is over", PATIENCE, async || {
            Ok(!folder.join(&id).exists() && deleted(&cluster.client).await?.is_empty())
        })
        .await?;

        cluster.stop(Who::Coordinator).await?;
        cluster.set(Who::Coordinator, "CRABSHACK_DELETE_GRACE", "7d");
        cluster.start(Who::Coordinator)?;
        cluster.ready(Who::Coordinator).await?;
        eventually("a new one", PATIENCE, async || {
            Ok(cluster.client.create(&stub("unwanted")).await.ok())
        })
        .await?;
        let id = text(&cluster.client.instance("unwanted").await?, "instance_id")?.to_owned();
        cluster.client.delete("unwanted", false).await?;
        cluster.client.delete(&id, true).await?;
        ensure!(!folder.join(&id).exists(), "its disk is still there");
        ensure!(deleted(&cluster.client).await?.is_empty());
        let gone = cluster.client.request(Method::DELETE, &format!("/instances/{id}?purge=true"));
        Answer::read(gone.send().await?).await?.problem(404, "not_found")?;
        Ok(())
    })
    .await
}

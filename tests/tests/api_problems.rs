//! Bad input is refused before the first byte of a stream, says what is wrong, and changes nothing.

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use crabshack_tests::{
    client::{Answer, stub},
    cluster::Cluster,
    leftovers,
    machine::Machine,
    suite,
};
use reqwest::Method;
use serde_json::{Value, json};

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("creation__should_refuse_bad_input_and_create_nothing", bad_creations);
        suite.test("request__should_be_refused_without_the_secret", wrong_credentials);
        suite.test("capacity__should_be_refused_before_the_stream", no_capacity);
        suite.test("actions__should_take_empty_bodies_and_refuse_unknown_names", actions);
    })
}

/// One field replaced, the code of the refusal, and a word that its text must hold.
fn bad_fields() -> Vec<(&'static str, Value, u16, &'static str, &'static str)> {
    let invalid = |field: &'static str, value: Value, word: &'static str| (field, value, 400, "invalid_request", word);
    vec![
        invalid("service_type", json!("teapot"), "teapot"),
        invalid("service_type", Value::Null, "service_type"),
        invalid("image", json!(""), "image"),
        invalid("image", json!("UPPER CASE"), "image"),
        invalid("image", json!("x\nUSER root"), "image"),
        invalid("nearai_api_key", Value::Null, "nearai_api_key"),
        invalid("nearai_api_url", json!("ftp://example.org"), "nearai_api_url"),
        invalid("nearai_api_url", json!("http://example.org/\nX=1"), "nearai_api_url"),
        invalid("name", json!("../../etc"), "name"),
        invalid("name", json!("a/b"), "name"),
        invalid("name", json!("-x"), "name"),
        invalid("name", json!("UPPER"), "name"),
        invalid("name", json!("x".repeat(64)), "name"),
        invalid("name", json!("api"), "reserved"),
        invalid("name", json!("admin"), "reserved"),
        invalid("name", json!(["a"]), "name"),
        invalid("mem_limit", json!("-1g"), "mem_limit"),
        invalid("mem_limit", json!("0"), "mem_limit"),
        invalid("mem_limit", json!("64m"), "mem_limit"),
        invalid("mem_limit", json!("99999999999999999999g"), "mem_limit"),
        invalid("mem_limit", json!("lots"), "mem_limit"),
        invalid("cpus", json!("-1"), "cpus"),
        invalid("cpus", json!("0"), "cpus"),
        invalid("cpus", json!("NaN"), "cpus"),
        invalid("cpus", json!("100000"), "cpus"),
        invalid("storage_size", json!("-10G"), "storage_size"),
        invalid("ssh_pubkey", json!("ssh-ed25519 not-a-key"), "ssh_pubkey"),
        invalid("ssh_pubkey", json!("command=\"id\" ssh-ed25519 AAAA"), "ssh_pubkey"),
        invalid("extra_env", json!({"A": "x\ny"}), "A"),
        invalid("extra_env", json!({"A=B": "x"}), "A=B"),
        invalid("extra_env", json!({"PATH": "/evil"}), "PATH"),
        invalid("extra_env", json!({"INSTANCE_TOKEN": "mine"}), "INSTANCE_TOKEN"),
        invalid("extra_env", json!("text"), "extra_env"),
        ("name", json!("taken"), 409, "name_taken", "taken"),
    ]
}

async fn bad_creations(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        client.create(&stub("taken")).await?;
        let mut failures = Vec::new();
        for (field, value, status, code, word) in bad_fields() {
            let mut body = stub("fresh");
            body[field] = value.clone();
            let outcome = client
                .post("/instances", &body)
                .await?
                .problem(status, code)
                .and_then(|text| {
                    ensure!(text.contains(word), "the text does not name `{word}`: {text}");
                    Ok(())
                });
            failures.extend(outcome.err().map(|error| format!("{field} = {value}: {error:#}")));
        }
        let send = async |body: &str| {
            Answer::read(
                client
                    .request(Method::POST, "/instances")
                    .body(body.to_owned())
                    .send()
                    .await?,
            )
            .await
        };
        for body in ["{", "", "[]", "null", "\"x\"", "{\"name\": \"fresh\""] {
            let outcome = send(body).await?.problem(400, "invalid_request");
            failures.extend(outcome.err().map(|error| format!("body `{body}`: {error:#}")));
        }
        let missing = send("{}").await?.problem(400, "invalid_request")?;
        let all = "Missing required fields: service_type, image, mem_limit, cpus, nearai_api_key, nearai_api_url";
        ensure!(missing.starts_with(all), "{missing}");
        let large = format!("{{\"name\": \"fresh\", \"filler\": \"{}\"}}", "x".repeat(2 << 20));
        failures.extend(
            send(&large)
                .await?
                .problem(413, "too_large")
                .err()
                .map(|error| format!("2 MiB: {error:#}")),
        );
        ensure!(
            failures.is_empty(),
            "{} of the refusals are wrong:\n{}",
            failures.len(),
            failures.join("\n")
        );

        let names: Vec<_> = client
            .instances()
            .await?
            .into_iter()
            .map(|instance| instance["name"].clone())
            .collect();
        ensure!(names == ["taken"], "created: {names:?}");
        client.delete("taken", true).await?;
        let left = leftovers::find(cluster).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}

async fn wrong_credentials(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        client.create(&stub("secret")).await?;
        let routes = [
            (Method::GET, "/instances"),
            (Method::POST, "/instances"),
            (Method::GET, "/instances/secret"),
            (Method::DELETE, "/instances/secret?purge=true"),
            (Method::POST, "/instances/secret/stop"),
            (Method::POST, "/instances/secret/start"),
            (Method::POST, "/instances/secret/restart"),
            (Method::GET, "/instances/secret/ssh"),
            (Method::GET, "/instances/secret/logs"),
            (Method::GET, "/gateway/secret/env"),
            (Method::GET, "/nodes"),
            (Method::POST, "/nodes/join-token"),
        ];
        for (method, path) in routes {
            for credential in [
                None,
                Some("Bearer wrong"),
                Some("Bearer "),
                Some("Basic eDp5"),
                Some("garbage"),
            ] {
                let mut request = client.bare(method.clone(), path);
                if let Some(credential) = credential {
                    request = request.header("authorization", credential);
                }
                let answer = Answer::read(request.send().await?).await?;
                answer
                    .problem(401, "unauthorized")
                    .with_context(|| format!("{method} {path} with {credential:?}"))?;
            }
        }
        ensure!(
            client.status("secret").await?.as_deref() == Some("running"),
            "a stranger changed something"
        );
        let lower = client
            .bare(Method::GET, "/instances")
            .header("authorization", format!("bearer {}", crabshack_tests::cluster::SECRET));
        ensure!(lower.send().await?.status().is_success(), "the scheme's case matters");
        for path in ["/health", "/metrics"] {
            ensure!(
                client.bare(Method::GET, path).send().await?.status().is_success(),
                "{path} wants a secret"
            );
        }
        let health = Answer::read(client.bare(Method::GET, "/health").send().await?)
            .await?
            .success()?;
        ensure!(health["status"] == "ok", "{health}");
        client.get("/no-such-route").await?.problem(404, "not_found")?;
        let wrong_method = Answer::read(client.request(Method::PUT, "/instances").send().await?).await?;
        wrong_method.problem(405, "method_not_allowed")?;
        Ok(())
    })
    .await
}

async fn no_capacity(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let mut body = stub("huge");
        body["mem_limit"] = "900000g".into();
        cluster.client.post("/instances", &body).await?.problem(409, "no_capacity")?;
        ensure!(cluster.client.instances().await?.is_empty());
        Ok(())
    })
    .await
}

async fn actions(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let client = &cluster.client;
        for action in ["stop", "start", "restart"] {
            client
                .post(&format!("/instances/nobody/{action}"), &Value::Null)
                .await?
                .problem(404, "not_found")?;
            client
                .post(&format!("/instances/..%2f..%2fetc/{action}"), &Value::Null)
                .await?
                .problem(404, "not_found")?;
        }
        client.get("/instances/nobody").await?.problem(404, "not_found")?;
        client.get("/instances/nobody/ssh").await?.problem(404, "not_found")?;
        client.get("/instances/nobody/logs").await?.problem(404, "not_found")?;
        client.get("/gateway/nobody/x").await?.problem(404, "not_found")?;
        Answer::read(client.request(Method::DELETE, "/instances/nobody").send().await?)
            .await?
            .problem(404, "not_found")?;

        // What real clients send: nulls, unknown fields, numbers for limits, sizes in both cases.
        let body = json!({
            "name": null, "ssh_pubkey": null, "user_id": "u", "node_policy": {"version": 1}, "service_type": "openclaw",
            "image": crabshack_tests::image::STUB, "mem_limit": "2G", "cpus": 1, "storage_size": "10g",
            "nearai_api_key": "sk-agent-1", "nearai_api_url": "https://cloud-api.near.ai/v1",
        });
        let events = client.create(&body).await?;
        let name = events[0].data["name"].as_str().context("no name")?.to_owned();
        ensure!(name.len() == "agent-".len() + 8 && name.starts_with("agent-"), "{name}");
        client
            .post(&format!("/instances/{name}/restart"), &json!({"image": "other/image:2"}))
            .await?
            .problem(400, "invalid_request")?;
        client.post(&format!("/instances/{name}/stop"), &json!("text")).await?;
        ensure!(
            client
                .get("/nodes")
                .await?
                .success()?
                .as_array()
                .is_some_and(|nodes| nodes.len() == 1)
        );
        Ok(())
    })
    .await
}

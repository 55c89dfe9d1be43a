//! How a stub instance looks from everywhere: the API, Docker, and its own inside.

use anyhow::{Context as _, ensure};
use bollard::models::ContainerInspectResponse;
use serde_json::{Value, json};

use crate::must::text;

/// The API shows everything of a running `keeper`.
pub fn check_fields(instance: &Value) -> anyhow::Result<()> {
    for key in [
        "name",
        "status",
        "service_type",
        "image",
        "mem_limit",
        "cpus",
        "storage_size",
        "token",
        "node_id",
        "gateway_address",
        "ssh_address",
        "ssh_command",
        "ssh_fingerprint",
        "ssh_pubkey",
        "image_digest",
        "instance_id",
        "instance_url",
        "dashboard_url",
        "owner",
        "created_at",
    ] {
        text(instance, key)?;
    }
    ensure!(
        instance["image"] == "crabshack/stub-agent:1" && instance["gateway_port"] == 18789,
        "{instance}"
    );
    let url = format!("http://keeper.localhost:3000/?token={}", text(instance, "token")?);
    ensure!(
        instance["instance_url"] == url.as_str() && instance["dashboard_url"] == url.as_str(),
        "{instance}"
    );
    Ok(())
}

/// It is the same instance as before.
pub fn same(before: &Value, after: &Value) -> anyhow::Result<()> {
    for key in [
        "token",
        "ssh_port",
        "ssh_fingerprint",
        "instance_id",
        "gateway_address",
        "image",
        "created_at",
        "status",
    ] {
        ensure!(
            before[key] == after[key],
            "`{key}` changed from {} to {}",
            before[key],
            after[key]
        );
    }
    Ok(())
}

/// Docker holds its container as tightly as it should, and shows no secret.
pub fn check_container(container: &ContainerInspectResponse, instance: &Value, token: &str) -> anyhow::Result<()> {
    let whole = serde_json::to_string(container)?;
    ensure!(
        !whole.contains(token) && !whole.contains("sk-agent"),
        "a secret in docker inspect"
    );
    let host = serde_json::to_value(container.host_config.as_ref().context("no host config")?)?;
    let expected = json!({
        "Init": true, "ReadonlyRootfs": true, "CapDrop": ["ALL"], "PidsLimit": 512, "OomKillDisable": false,
        "Memory": 1_u64 << 30, "MemorySwap": 1_u64 << 30, "CpuPeriod": 100_000, "CpuQuota": 100_000, "Privileged": false,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
    });
    for (key, value) in expected.as_object().into_iter().flatten() {
        // Newer engines write an absent flag as null.
        let given = if host[key].is_null() {
            &Value::Bool(false)
        } else {
            &host[key]
        };
        let given = if key == "RestartPolicy" {
            &json!({"Name": given["Name"], "MaximumRetryCount": 0})
        } else {
            given
        };
        ensure!(given == value, "`{key}` is {given} instead of {value}");
    }
    let security = host["SecurityOpt"].to_string();
    ensure!(
        security.contains("no-new-privileges") && security.contains("seccomp={"),
        "{security}"
    );
    ensure!(host["CapAdd"].as_array().is_none_or(Vec::is_empty), "{}", host["CapAdd"]);
    let published = host["PortBindings"].as_object().context("no ports")?;
    let ports: Vec<_> = published.keys().map(String::as_str).collect();
    ensure!(ports == ["2222/tcp"], "published: {ports:?}");
    let port = instance["ssh_port"].to_string();
    ensure!(published["2222/tcp"][0]["HostPort"] == port.as_str(), "{published:?}");
    let networks = container
        .network_settings
        .as_ref()
        .and_then(|settings| settings.networks.as_ref())
        .context("no networks")?;
    let names: Vec<_> = networks.keys().cloned().collect();
    ensure!(
        names == [format!("cs-{}", text(instance, "instance_id")?)],
        "networks: {names:?}"
    );
    Ok(())
}

/// So do the processes inside see it.
pub fn check_inside(report: &Value, token: &str) -> anyhow::Result<()> {
    ensure!(report["uid"] == "1000\t1000\t1000\t1000", "{report}");
    ensure!(
        report["capabilities"] == "0000000000000000" && report["no_new_privileges"] == "1",
        "{report}"
    );
    ensure!(
        report["root_writable"] == false && report["contract_writable"] == false,
        "{report}"
    );
    ensure!(report["home_writable"] == true && report["tmp_writable"] == true, "{report}");
    ensure!(
        report["environment"]["INSTANCE_TOKEN"] == token,
        "the token is not in the environment file"
    );
    Ok(())
}

//! OpenClaw: one gateway port for HTTP, WebSocket and its UI, with sshd beside it.
//!
//! The gateway trusts the user header of the proxy (mode `trusted-proxy`), and takes it from the
//! bridge's own address only, where nobody but the node agent can come from.

use std::{collections::BTreeMap, time::Duration};

use crabshack_shared::{
    environment,
    resources::{Bytes, Resources},
    secret::Secret,
};
use serde_json::json;

use super::{ContainerSpec, Files, Limits, Member, MemberRecipe, Mount, Published, Recipe, RecipeInput, SSH_PORT, Tmpfs};

const GATEWAY_PORT: u16 = 18789;
const HOME: &str = "/home/agent";
const STOP_GRACE: Duration = Duration::from_secs(30);
/// The user that the proxy says is there. The proxy has checked who it is.
const OWNER: &str = "crabshack-owner";

pub(super) const RECIPE: Recipe = Recipe {
    ports: &[GATEWAY_PORT],
    gateway_port: GATEWAY_PORT,
    health_path: "/healthz",
    stop_grace: STOP_GRACE,
    reconfigure: &["crabshack-configure"],
    minimum_memory: Bytes::gibibytes(1),
    // "The configuration or the state cannot be used": a further start ends the same way.
    never_restart_exit: &[78],
    members: &[MemberRecipe {
        member: Member::Main,
        limits,
        container,
    }],
    files,
};

fn limits(resources: &Resources) -> Limits {
    Limits {
        memory: resources.memory,
        cpus: resources.cpus,
        pids: 512,
    }
}

fn container(input: &RecipeInput<'_>) -> ContainerSpec {
    let order = input.order;
    ContainerSpec {
        instance: order.id,
        member: Member::Main,
        hostname: order.name.clone(),
        image: order.spec.image.clone(),
        environment: environment(input),
        // The whole home: the root of the container is read-only and the workload writes dot files.
        mounts: vec![
            Mount {
                source: input.folder.home.clone(),
                target: HOME,
                read_only: false,
            },
            Mount {
                source: input.folder.etc.clone(),
                target: "/etc/crabshack",
                read_only: true,
            },
        ],
        tmpfs: vec![Tmpfs {
            target: "/tmp",
            size: Bytes::mebibytes(256),
        }],
        link: input.link.clone(),
        published: vec![Published {
            container_port: SSH_PORT,
            host_address: input.ssh_bind,
            host_port: order.spec.ssh_port,
        }],
        dns: input.service_address,
        stop_signal: "SIGTERM",
        stop_grace: STOP_GRACE,
        runtime: None,
        limits: limits(&order.spec.resources),
        restarts: order.restarts,
        spec_revision: order.spec_revision,
        generation: order.generation,
        recipe: String::new(),
    }
    .hashed()
}

fn environment(input: &RecipeInput<'_>) -> BTreeMap<String, String> {
    [
        ("HOME", HOME.to_owned()),
        ("TERM", "xterm-256color".to_owned()),
        ("XDG_CACHE_HOME", format!("{HOME}/.cache")),
        ("OPENCLAW_DISABLE_BONJOUR", "1".to_owned()),
        // An update inside stays in the process that the init watches.
        ("OPENCLAW_NO_RESPAWN", "1".to_owned()),
        ("INSTANCE_NAME", input.order.name.to_string()),
        ("GATEWAY_PORT", GATEWAY_PORT.to_string()),
        ("SSH_PORT", SSH_PORT.to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

fn files(input: &RecipeInput<'_>) -> Files {
    let spec = &input.order.spec;
    Files {
        managed: managed(input),
        environment: secret_environment(input),
        authorized_keys: spec.ssh_pubkey.as_deref().map(|key| format!("{}\n", key.trim())),
        ssh: true,
    }
}

fn managed(input: &RecipeInput<'_>) -> serde_json::Value {
    json!({
        "gateway": {
            "mode": "local",
            "bind": "lan",
            "port": GATEWAY_PORT,
            "auth": {
                "mode": "trusted-proxy",
                "identityScopes": { OWNER: ["operator.admin"] },
                "trustedProxy": {
                    "userHeader": "x-forwarded-user",
                    "requiredHeaders": ["x-forwarded-proto", "x-forwarded-host"],
                    "allowUsers": [OWNER],
                    "deviceAutoApprove": { "enabled": true },
                },
            },
            "trustedProxies": [input.link.gateway],
            "controlUi": { "allowedOrigins": [input.order.spec.public_origin] },
        },
        "update": { "checkOnStart": false },
    })
}

fn secret_environment(input: &RecipeInput<'_>) -> BTreeMap<String, Secret> {
    let secrets = &input.order.secrets;
    let public = environment(input);
    let mut all: BTreeMap<String, Secret> = secrets
        .extra_env
        .iter()
        .filter(|(key, _)| !environment::is_managed(key) && !public.contains_key(*key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    // Ours come last, so they win.
    let model_api = Secret::from(input.order.spec.nearai_api_url.clone());
    for (key, value) in [
        ("INSTANCE_TOKEN", &secrets.token),
        ("GATEWAY_AUTH_TOKEN", &secrets.token),
        // For command line calls inside the container: they do not come through the proxy.
        ("OPENCLAW_GATEWAY_PASSWORD", &secrets.token),
        ("NEARAI_API_KEY", &secrets.nearai_api_key),
        // No secret by itself, but here it also reaches SSH sessions and may change in place.
        ("NEARAI_API_URL", &model_api),
    ] {
        all.insert(key.to_owned(), value.clone());
    }
    if let Some(key) = &input.order.spec.ssh_pubkey {
        all.insert("SSH_PUBKEY".to_owned(), Secret::from(key.trim().to_owned()));
    }
    all
}

#[cfg(test)]
pub(crate) mod tests;

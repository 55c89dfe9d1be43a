//! OpenClaw: one gateway port for HTTP, WebSocket and its UI, with sshd beside it.
//!
//! The gateway trusts the user header of the proxy (mode `trusted-proxy`), and takes it from the
//! bridge's own address only, where nobody but the node agent can come from.

use std::{collections::BTreeMap, time::Duration};

use crabshack_shared::{
    secret::Secret,
    services::{OPENCLAW, OWNER, Profile},
};
use serde_json::json;

use super::{
    ContainerSpec, Files, Member, MemberRecipe, Recipe, RecipeInput, SSH_PORT, Stop,
    parts::{self, HOME},
};

const STOP: Stop = Stop {
    signal: "SIGTERM",
    grace: Duration::from_secs(30),
    repeated: false,
};

pub(super) const STRICT: Recipe = Recipe {
    service: OPENCLAW,
    profile: Profile::Strict,
    reconfigure: &["crabshack-configure"],
    // "The configuration or the state cannot be used": a further start ends the same way.
    never_restart_exit: &[78],
    members: &[MemberRecipe {
        member: Member::Main,
        limits: parts::whole,
        stop: STOP,
        container,
    }],
    files,
};

/// A published image has its own configuration, and an SSH server of its own.
pub(super) const COMPATIBLE: Recipe = Recipe {
    profile: Profile::Compatible,
    reconfigure: &[],
    files: published_files,
    ..STRICT
};

fn container(input: &RecipeInput<'_>) -> ContainerSpec {
    ContainerSpec {
        environment: environment(input),
        published: vec![parts::ssh_port(input)],
        ..parts::container(input, Member::Main, STOP, parts::whole(&input.order.spec.resources))
    }
    .hashed()
}

fn environment(input: &RecipeInput<'_>) -> BTreeMap<String, String> {
    parts::variables([
        ("HOME", HOME.to_owned()),
        ("TERM", "xterm-256color".to_owned()),
        ("XDG_CACHE_HOME", format!("{HOME}/.cache")),
        ("OPENCLAW_DISABLE_BONJOUR", "1".to_owned()),
        // An update inside stays in the process that the init watches.
        ("OPENCLAW_NO_RESPAWN", "1".to_owned()),
        ("INSTANCE_NAME", input.order.name.to_string()),
        ("GATEWAY_PORT", OPENCLAW.gateway_port.to_string()),
        ("SSH_PORT", SSH_PORT.to_string()),
    ])
}

fn files(input: &RecipeInput<'_>) -> Files {
    Files {
        managed: managed(input),
        environment: secret_environment(input),
        authorized_keys: parts::authorized_keys(input.order),
        ssh: true,
    }
}

fn published_files(input: &RecipeInput<'_>) -> Files {
    let (order, secrets) = (input.order, &input.order.secrets);
    let token = secrets.agent_token();
    let text = |text: &str| Secret::from(text.to_owned());
    let ours = [
        ("INSTANCE_TOKEN", token.clone()),
        ("OPENCLAW_GATEWAY_TOKEN", token.clone()),
        ("NEARAI_API_KEY", secrets.nearai_api_key.clone()),
        ("NEARAI_API_URL", text(&order.spec.nearai_api_url)),
        ("OPENCLAW_GATEWAY_BIND", text("lan")),
        ("OPENCLAW_AUTO_APPROVE_DEVICES", text("1")),
        ("SERVICE_TYPE", text(OPENCLAW.name)),
    ];
    Files {
        managed: json!({}),
        environment: parts::secrets(order, &environment(input), ours),
        authorized_keys: parts::authorized_keys(order),
        // Its own one, with a key of its own.
        ssh: false,
    }
}

fn managed(input: &RecipeInput<'_>) -> serde_json::Value {
    json!({
        "gateway": {
            "mode": "local",
            "bind": "lan",
            "port": OPENCLAW.gateway_port,
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
    let (order, secrets) = (input.order, &input.order.secrets);
    let ours = [
        ("INSTANCE_TOKEN", secrets.token.clone()),
        ("GATEWAY_AUTH_TOKEN", secrets.token.clone()),
        // For command line calls inside the container: they do not come through the proxy.
        ("OPENCLAW_GATEWAY_PASSWORD", secrets.token.clone()),
        ("NEARAI_API_KEY", secrets.nearai_api_key.clone()),
        // No secret by itself, but here it also reaches SSH sessions and may change in place.
        ("NEARAI_API_URL", Secret::from(order.spec.nearai_api_url.clone())),
    ];
    parts::secrets(order, &environment(input), ours)
}

#[cfg(test)]
pub(crate) mod tests;

//! IronClaw: the worker, whose gateway asks for a token of its own, and SSH in a container beside it on
//! the same home. Published images bring their own SSH server, one of them a Docker as well.

use std::{collections::BTreeMap, time::Duration};

use crabshack_shared::{
    secret::Secret,
    services::{IRONCLAW, IRONCLAW_DIND, Profile, SYSBOX},
};
use serde_json::json;

use super::{
    ContainerSpec, Files, Member, MemberRecipe, Mount, Recipe, RecipeInput, SSH_PORT, Stop,
    parts::{self, HOME},
};

/// A signal that comes while it handles a message is lost.
const STOP: Stop = Stop {
    signal: "SIGINT",
    grace: Duration::from_secs(30),
    repeated: true,
};
/// Nobody answers there: it gives up at once instead of asking for a name that may not resolve.
const NOWHERE: &str = "http://localhost:9";

pub(super) const STRICT: Recipe = Recipe {
    service: IRONCLAW,
    profile: Profile::Strict,
    reconfigure: &[],
    // Exit code 0 is its wish to be started again.
    never_restart_exit: &[],
    members: &[
        MemberRecipe {
            member: Member::Main,
            limits: parts::beside_ssh,
            stop: STOP,
            container: worker,
        },
        parts::SSH,
    ],
    files,
};

pub(super) const COMPATIBLE: Recipe = Recipe {
    profile: Profile::Compatible,
    members: &[MemberRecipe {
        member: Member::Main,
        limits: parts::whole,
        stop: STOP,
        container: published,
    }],
    files: published_files,
    ..STRICT
};

pub(super) const WITH_DOCKER: Recipe = Recipe {
    service: IRONCLAW_DIND,
    members: &[MemberRecipe {
        member: Member::Main,
        limits: parts::whole,
        stop: STOP,
        container: with_docker,
    }],
    ..COMPATIBLE
};

fn worker(input: &RecipeInput<'_>) -> ContainerSpec {
    ContainerSpec {
        environment: environment(input),
        ..parts::container(input, Member::Main, STOP, parts::beside_ssh(&input.order.spec.resources))
    }
    .hashed()
}

fn published(input: &RecipeInput<'_>) -> ContainerSpec {
    unhashed(input).hashed()
}

fn with_docker(input: &RecipeInput<'_>) -> ContainerSpec {
    let mut spec = ContainerSpec {
        runtime: Some(SYSBOX),
        ..unhashed(input)
    };
    // What the inner Docker keeps, apart from the home: it goes with the container.
    spec.mounts.push(Mount {
        source: input.folder.inner.clone(),
        target: "/var/lib/docker",
        read_only: false,
    });
    // This one makes its user itself, and maps nothing.
    spec.environment.insert("IRONCLAW_USER".to_owned(), "agent".to_owned());
    spec.environment.insert("SANDBOX_ENABLED".to_owned(), "true".to_owned());
    spec.environment
        .insert("SANDBOX_PULL_IF_MISSING".to_owned(), "false".to_owned());
    spec.hashed()
}

fn unhashed(input: &RecipeInput<'_>) -> ContainerSpec {
    ContainerSpec {
        environment: environment(input),
        published: vec![parts::ssh_port(input)],
        ..parts::container(input, Member::Main, STOP, parts::whole(&input.order.spec.resources))
    }
}

fn environment(input: &RecipeInput<'_>) -> BTreeMap<String, String> {
    let base = format!("{HOME}/.ironclaw");
    parts::variables([
        ("HOME", HOME),
        ("TERM", "xterm-256color"),
        ("INSTANCE_NAME", input.order.name.as_str()),
        ("SSH_PORT", &SSH_PORT.to_string()),
        ("IRONCLAW_BASE_DIR", &base),
        ("DATABASE_BACKEND", "libsql"),
        ("LIBSQL_PATH", &format!("{base}/ironclaw.db")),
        ("GATEWAY_ENABLED", "true"),
        ("GATEWAY_HOST", "0.0.0.0"),
        ("GATEWAY_PORT", &IRONCLAW.gateway_port.to_string()),
        // There is no terminal, and nobody who could answer its questions.
        ("CLI_ENABLED", "false"),
        ("ONBOARD_COMPLETED", "true"),
        ("SANDBOX_ENABLED", "false"),
        ("HEARTBEAT_ENABLED", "false"),
        ("EMBEDDING_ENABLED", "false"),
        // It may end itself to be started again: that is our work.
        ("IRONCLAW_IN_DOCKER", "true"),
        // Else it does not start where names do not resolve; keys need no log-in.
        ("NEARAI_AUTH_URL", NOWHERE),
        ("RUST_LOG", "ironclaw=info"),
    ])
}

fn files(input: &RecipeInput<'_>) -> Files {
    Files {
        managed: json!({}),
        environment: secret_environment(input),
        authorized_keys: parts::authorized_keys(input.order),
        ssh: true,
    }
}

/// A published image has an SSH server of its own, with a key of its own.
fn published_files(input: &RecipeInput<'_>) -> Files {
    let mut files = Files {
        ssh: false,
        ..files(input)
    };
    let order = input.order;
    for (key, value) in [
        ("SERVICE_TYPE", order.spec.service_type.to_string()),
        ("NEARAI_API_URL", order.spec.nearai_api_url.clone()),
        ("ENGINE_V2", "true".to_owned()),
        ("IRONCLAW_INSTANCE_NAME", order.name.to_string()),
        ("IRONCLAW_INSTANCE_ID", order.id.to_string()),
        ("OPENCLAW_INSTANCE_NAME", order.name.to_string()),
    ] {
        files.environment.insert(key.to_owned(), Secret::from(value));
    }
    files
}

fn secret_environment(input: &RecipeInput<'_>) -> BTreeMap<String, Secret> {
    let (order, secrets) = (input.order, &input.order.secrets);
    // It is asked for with the agent's own token only: visitors show us the instance's.
    let token = secrets.agent_token();
    let ours = [
        ("INSTANCE_TOKEN", token.clone()),
        ("GATEWAY_AUTH_TOKEN", token.clone()),
        ("OPENCLAW_GATEWAY_TOKEN", token.clone()),
        ("NEARAI_API_KEY", secrets.nearai_api_key.clone()),
        // It adds the version to the path itself.
        ("NEARAI_BASE_URL", Secret::from(without_version(&order.spec.nearai_api_url))),
        ("NEARAI_MODEL", Secret::from("auto".to_owned())),
    ];
    let key = secrets.master_key.iter().map(|key| ("SECRETS_MASTER_KEY", key.clone()));
    parts::secrets(order, &environment(input), ours.into_iter().chain(key))
}

fn without_version(url: &str) -> String {
    let url = url.trim_end_matches('/');
    url.strip_suffix("/v1").unwrap_or(url).to_owned()
}

#[cfg(test)]
mod tests;

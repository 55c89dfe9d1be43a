use std::path::Path;

use crabshack_shared::{
    agent_api::v1::{Desired, InstanceOrder, InstanceSecrets, InstanceSpec},
    generation::Generation,
    ids::InstanceId,
    instance::ServiceType,
    resources::{Bytes, Resources},
};

use super::*;
use crate::{
    link::{Link, Pool},
    recipe::recipe,
    volume::InstanceFolder,
};

/// An order with a value of its own for every secret.
pub(crate) fn order() -> InstanceOrder {
    InstanceOrder {
        id: "00112233445566778899aabbccddeeff".parse().unwrap(),
        name: "agent-1".parse().unwrap(),
        generation: Generation { epoch: 1, counter: 1 },
        desired: Desired::Running,
        restarts: 2,
        spec_revision: 0,
        on_disconnect: crabshack_shared::agent_api::v1::OnDisconnect::Keep,
        spec: InstanceSpec {
            service_type: ServiceType::new(ServiceType::OPENCLAW),
            image: "crabshack/openclaw:1".parse().unwrap(),
            resources: Resources {
                memory: Bytes::gibibytes(2),
                cpus: "1.5".parse().unwrap(),
                storage: Bytes::gibibytes(10),
            },
            ssh_port: 19001,
            ssh_pubkey: Some("ssh-ed25519 AAAA me@example".to_owned()),
            nearai_api_url: "https://models.example/v1".to_owned(),
            profile: Default::default(),
            public_origin: "http://agent-1.localhost:3000".to_owned(),
        },
        secrets: InstanceSecrets {
            token: Secret::from("the-token".to_owned()),
            nearai_api_key: Secret::from("the-model-key".to_owned()),
            extra_env: [
                ("EXTRA_KEY", "the-extra-key"),
                ("NEARAI_API_KEY", "the-overriding-key"),
                ("OPENCLAW_GATEWAY_TOKEN", "the-breaking-token"),
                ("HOME", "/elsewhere"),
            ]
            .map(|(key, value)| (key.to_owned(), Secret::from(value.to_owned())))
            .into(),
            workload_token: Some(Secret::from("the-agents-own-token".to_owned())),
            master_key: Some(Secret::from("the-master-key".to_owned())),
        },
    }
}

pub(crate) fn link(instance: InstanceId) -> Link {
    Pool::new("10.201.0.0/16".parse().unwrap())
        .unwrap()
        .link(instance, 1)
        .unwrap()
}

pub(crate) fn with_input<T>(order: &InstanceOrder, run: impl FnOnce(&RecipeInput<'_>) -> T) -> T {
    let folder = InstanceFolder::new(Path::new("/data/instances"), order.id);
    run(&RecipeInput {
        order,
        link: &link(order.id),
        folder: &folder,
        service_address: "10.201.0.1".parse().unwrap(),
        ssh_bind: "0.0.0.0".parse().unwrap(),
        ssh_image: &"crabshack/ssh:1".parse().unwrap(),
    })
}

pub(crate) fn spec(order: &InstanceOrder) -> ContainerSpec {
    with_input(order, recipe(&order.spec).unwrap().members[0].container)
}

fn files_of(order: &InstanceOrder) -> Files {
    with_input(order, recipe(&order.spec).unwrap().files)
}

#[test]
fn openclaw__should_be_made_as_written_down() {
    let order = order();
    let spec = spec(&order);
    let written: serde_json::Value = serde_json::from_str(include_str!("../openclaw.expected.json")).unwrap();
    let made = json!({
        "container": spec,
        "managed": files_of(&order).managed,
        // A changed hash makes every running instance say `pending_change`: that is a decision.
        "recipe": spec.recipe,
    });
    assert_eq!(made, written, "made:\n{made:#}");
}

#[test]
fn openclaw__should_keep_secrets_out_of_the_container_spec() {
    let order = order();
    let text = format!("{:?}", spec(&order));
    let secrets = &order.secrets;
    for secret in [&secrets.token, &secrets.nearai_api_key]
        .into_iter()
        .chain(secrets.extra_env.values())
    {
        assert!(!text.contains(secret.expose()), "{}", secret.expose());
    }
    assert!(!format!("{:?}", files_of(&order)).contains("the-"));
}

#[test]
fn openclaw__should_not_let_further_environment_override_ours() {
    let environment = files_of(&order()).environment;
    assert_eq!(environment["NEARAI_API_KEY"].expose(), "the-model-key");
    assert_eq!(environment["EXTRA_KEY"].expose(), "the-extra-key");
    for key in ["OPENCLAW_GATEWAY_TOKEN", "HOME"] {
        assert!(!environment.contains_key(key), "{key}");
    }
}

#[test]
fn recipe_hash__should_change_with_what_the_container_is_made_from_only() {
    let first = spec(&order());
    assert_eq!(first.recipe, spec(&order()).recipe);

    let mut restarted = order();
    restarted.restarts += 1;
    restarted.spec_revision += 1;
    restarted.spec.resources.memory = Bytes::gibibytes(3);
    restarted.spec.resources.cpus = "2".parse().unwrap();
    restarted.generation = restarted.generation.next();
    restarted.secrets.token = Secret::from("another-token".to_owned());
    restarted.spec.ssh_pubkey = None;
    restarted.spec.public_origin = "https://agent-1.example".to_owned();
    assert_eq!(first.recipe, spec(&restarted).recipe);
    assert_eq!(spec(&restarted).restarts, 3);

    let mut upgraded = order();
    upgraded.spec.image = "crabshack/openclaw:2".parse().unwrap();
    assert_ne!(first.recipe, spec(&upgraded).recipe);
}

#[test]
fn recipe__should_be_unknown_for_other_service_types() {
    let mut order = order();
    order.spec.service_type = ServiceType::new("something");
    assert!(recipe(&order.spec).is_none());
}

use crabshack_shared::{instance::ServiceType, resources::Bytes, services::Profile};

use super::*;
use crate::recipe::{
    openclaw_fixture::{link, order as openclaw, with_input},
    recipe,
};

fn order(service_type: &str, profile: Profile) -> crabshack_shared::agent_api::v1::InstanceOrder {
    let mut order = openclaw();
    order.spec.service_type = ServiceType::new(service_type);
    order.spec.image = "crabshack/ironclaw:1".parse().unwrap();
    order.spec.profile = profile;
    order
}

/// Everything that is made for an order, secrets in words.
fn made(order: &crabshack_shared::agent_api::v1::InstanceOrder) -> serde_json::Value {
    let recipe = recipe(&order.spec).unwrap();
    let specs: Vec<ContainerSpec> = recipe
        .members
        .iter()
        .map(|member| with_input(order, member.container))
        .collect();
    let files = with_input(order, recipe.files);
    let shown: BTreeMap<&String, &str> = files.environment.iter().map(|(key, value)| (key, value.expose())).collect();
    let limits: Vec<_> = specs
        .iter()
        .map(|spec| json!([spec.limits.memory, spec.limits.cpus, spec.limits.pids]))
        .collect();
    let hashes: Vec<&String> = specs.iter().map(|spec| &spec.recipe).collect();
    json!({ "containers": specs, "limits": limits, "environment": shown, "recipes": hashes })
}

#[test]
fn ironclaw__should_be_made_as_written_down() {
    let all = json!({
        "ironclaw": made(&order("ironclaw", Profile::Strict)),
        "ironclaw, compatible": made(&order("ironclaw", Profile::Compatible)),
        "ironclaw-dind": made(&order("ironclaw-dind", Profile::Compatible)),
    });
    let written: serde_json::Value = serde_json::from_str(include_str!("../ironclaw.expected.json")).unwrap();
    assert_eq!(all, written, "made:\n{all:#}");
}

#[test]
fn ironclaw__should_never_be_given_the_instances_token() {
    for profile in [Profile::Strict, Profile::Compatible] {
        let order = order("ironclaw", profile);
        let text = made(&order).to_string();
        assert!(!text.contains(order.secrets.token.expose()), "{profile:?}");
        assert!(text.contains("the-agents-own-token") && text.contains("the-master-key"));
    }
}

#[test]
fn ironclaw__should_share_what_is_ordered_between_its_containers() {
    let order = order("ironclaw", Profile::Strict);
    let recipe = recipe(&order.spec).unwrap();
    let limits: Vec<_> = recipe
        .members
        .iter()
        .map(|member| (member.limits)(&order.spec.resources))
        .collect();
    let memory: u64 = limits.iter().map(|limits| limits.memory.get()).sum();
    let cpus: u32 = limits.iter().map(|limits| limits.cpus.milli()).sum();
    assert_eq!((memory, cpus), (Bytes::gibibytes(2).get(), 1500));
    let specs: Vec<ContainerSpec> = recipe
        .members
        .iter()
        .map(|member| with_input(&order, member.container))
        .collect();
    assert_eq!(specs[0].mounts, specs[1].mounts, "one home");
    assert!(specs[0].published.is_empty() && specs[1].published.len() == 1);
    assert_eq!(link(order.id).address_at(1).to_string(), "10.201.0.11");
}

#[test]
fn url__should_lose_its_version() {
    for (url, base) in [
        ("https://a.example/v1", "https://a.example"),
        ("https://a.example/v1/", "https://a.example"),
        ("https://a.example/api", "https://a.example/api"),
    ] {
        assert_eq!(without_version(url), base);
    }
}

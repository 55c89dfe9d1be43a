use std::collections::BTreeSet;

use super::*;
use crate::recipe::openclaw_fixture::{order, spec};

fn security() -> Vec<String> {
    ["no-new-privileges", "seccomp={}"].map(str::to_owned).into()
}

/// A container that is held as the fixture's order says.
fn held(spec: &ContainerSpec) -> Hardening {
    let ports: BTreeSet<PortFound> = spec
        .published
        .iter()
        .map(|port| PortFound {
            inside: format!("{}/tcp", port.container_port),
            address: Some(port.host_address),
            port: port.host_port,
        })
        .collect();
    Hardening {
        recipe: spec.recipe.clone(),
        user: "1000:1000".to_owned(),
        read_only_root: true,
        capabilities_dropped: vec!["ALL".to_owned()],
        security_options: security(),
        limits: AppliedLimits::of(&spec.limits),
        networks: BTreeSet::from([docker_name(spec.instance)]),
        mounts: spec
            .mounts
            .iter()
            .map(|mount| MountFound {
                kind: "bind".to_owned(),
                source: mount.source.clone(),
                target: mount.target.to_owned(),
                writable: !mount.read_only,
            })
            .collect(),
        wanted_ports: ports.clone(),
        ports,
        ..Hardening::default()
    }
}

fn drifts(change: impl FnOnce(&mut Hardening)) -> Vec<(&'static str, Cure)> {
    drifts_in(Profile::Strict, change)
}

fn drifts_in(profile: Profile, change: impl FnOnce(&mut Hardening)) -> Vec<(&'static str, Cure)> {
    let order = order();
    let spec = ContainerSpec { profile, ..spec(&order) };
    let security = if profile == Profile::Strict { security() } else { Vec::new() };
    let folder = spec.mounts[0].source.parent().unwrap().to_owned();
    let expected = Expected {
        instance: spec.instance,
        spec: &spec,
        limits: AppliedLimits::of(&spec.limits),
        security: &security,
        folder: &folder,
    };
    let mut found = held(&spec);
    found.security_options.clone_from(&security);
    change(&mut found);
    compare(&expected, &found)
        .into_iter()
        .map(|drift| (drift.subject, drift.cure))
        .collect()
}

#[test]
fn container__should_be_in_order_as_the_recipe_makes_it() {
    assert_eq!(drifts(|_| {}), []);
}

#[test]
fn container__should_not_be_held_more_loosely_by_anybody() {
    let loosened: [fn(&mut Hardening); 11] = [
        |found| found.privileged = true,
        |found| found.read_only_root = false,
        |found| found.capabilities_dropped.clear(),
        |found| found.capabilities_added.push("NET_ADMIN".to_owned()),
        |found| found.security_options.retain(|option| option != "no-new-privileges"),
        |found| found.security_options.truncate(1),
        |found| found.security_options[1].push(' '),
        |found| found.security_options.push("seccomp=unconfined".to_owned()),
        |found| found.shared_namespaces.push("pid host".to_owned()),
        |found| found.devices = 1,
        |found| found.user.clear(),
    ];
    for (index, loosen) in loosened.into_iter().enumerate() {
        assert_eq!(drifts(loosen), [(FLAGS, Cure::Restart)], "{index}");
    }
}

#[test]
fn container__should_be_root_with_few_capabilities_only_in_its_profile() {
    let become_root = |found: &mut Hardening| {
        found.user.clear();
        found.read_only_root = false;
        found.capabilities_added = ["SETUID", "CAP_CHOWN"].map(str::to_owned).into();
    };
    assert_eq!(drifts_in(Profile::Compatible, become_root), []);
    let loosened: [fn(&mut Hardening); 4] = [
        |found| found.capabilities_added.push("NET_ADMIN".to_owned()),
        |found| found.capabilities_dropped.clear(),
        |found| found.privileged = true,
        |found| found.security_options.push("seccomp=unconfined".to_owned()),
    ];
    for (index, loosen) in loosened.into_iter().enumerate() {
        let found = drifts_in(Profile::Compatible, |found| {
            become_root(found);
            loosen(found);
        });
        assert_eq!(found, [(FLAGS, Cure::Restart)], "{index}");
    }
}

#[test]
fn container__should_be_put_right_where_docker_can() {
    assert_eq!(drifts(|found| found.restarts_itself = true), [(FLAGS, Cure::Reconcile)]);
    assert_eq!(drifts(|found| found.limits.pids = 0), [(LIMITS, Cure::Reconcile)]);
    let joined = drifts(|found| found.networks.extend(["bridge".to_owned()]));
    assert_eq!(joined, [(NETWORK, Cure::Reconcile)]);
}

#[test]
fn container__should_see_only_its_own_folders_and_ports() {
    let root = |found: &mut Hardening| found.mounts[0].source = "/".into();
    assert_eq!(drifts(root), [(MOUNTS, Cure::Restart)]);
    let neighbour = |found: &mut Hardening| {
        let name = found.mounts[0].source.parent().unwrap().display().to_string();
        found.mounts[0].source = format!("{name}-other/home").into();
    };
    assert_eq!(drifts(neighbour), [(MOUNTS, Cure::Restart)]);
    assert_eq!(drifts(|found| found.mounts[1].writable = true), [(MOUNTS, Cure::Restart)]);
    assert_eq!(drifts(|found| found.ports.clear()), [(PORTS, Cure::Restart)]);
    let extra = PortFound {
        inside: "18789/tcp".to_owned(),
        address: None,
        port: 80,
    };
    let publish = |found: &mut Hardening| {
        found.wanted_ports.insert(extra.clone());
        found.ports.insert(extra);
    };
    assert_eq!(drifts(publish), [(PORTS, Cure::Restart)]);
    let earlier = |found: &mut Hardening| {
        found.recipe = "earlier".to_owned();
        found.security_options.truncate(1);
    };
    assert_eq!(drifts(earlier), []);
}

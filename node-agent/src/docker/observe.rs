//! Everything of ours that Docker has, in few questions.

use std::collections::{HashMap, HashSet};

use bollard::{
    models::{ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary, ContainerSummaryStateEnum},
    query_parameters::{ListContainersOptionsBuilder, ListNetworksOptionsBuilder},
};
use chrono::{DateTime, Utc};
use crabshack_shared::ids::InstanceId;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    AppliedLimits, Container, ContainerState, Docker, DockerError, DockerState, Known, NORMAL, docker_name, hardening,
    labels::{self, MadeFrom},
    networks,
};

/// Questions at the same time.
const CONCURRENCY: usize = 8;

/// What only an inspection says.
struct Details {
    state: ContainerState,
    limits: AppliedLimits,
    confined: bool,
    published: Option<u16>,
}

impl Details {
    /// Of a container that is as good as gone.
    fn only(state: ContainerState) -> Self {
        Self {
            state,
            limits: AppliedLimits::default(),
            confined: true,
            published: None,
        }
    }
}

impl Docker {
    /// Every container and network that carries our label and our name: two lists, and one question
    /// per container that is new, in another state, or was forgotten.
    pub(crate) async fn observe(&self) -> Result<DockerState, DockerError> {
        let filters = HashMap::from([("label", vec![labels::INSTANCE])]);
        let networks = ListNetworksOptionsBuilder::default().filters(&filters).build();
        let containers = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let (containers, networks) = tokio::try_join!(
            self.call(NORMAL, |client| async move { client.list_containers(Some(containers)).await }),
            self.call(NORMAL, |client| async move { client.list_networks(Some(networks)).await }),
        )
        .map_err(|error| DockerError::of("list containers and networks", error))?;

        self.forget_others(&containers);
        let containers: Vec<Option<Container>> = stream::iter(containers)
            .map(|summary| self.read(summary))
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .await?;
        Ok(DockerState {
            containers: containers
                .into_iter()
                .flatten()
                .map(|container| ((container.instance, container.member), container))
                .collect(),
            networks: networks
                .iter()
                .filter_map(networks::read)
                .map(|network| (network.instance, network))
                .collect(),
        })
    }

    /// None: not ours, or gone since it was listed.
    async fn read(&self, summary: ContainerSummary) -> Result<Option<Container>, DockerError> {
        let name = summary.names.iter().flatten().next().map_or("", String::as_str);
        let Some((instance, member)) = labels::container(name, summary.labels.as_ref()) else {
            return Ok(None);
        };
        let docker_id = summary.id.clone().unwrap_or_default();
        let Details {
            state,
            limits,
            confined,
            published,
        } = match summary.state {
            Some(ContainerSummaryStateEnum::REMOVING) => Details::only(ContainerState::Removing),
            Some(ContainerSummaryStateEnum::DEAD) => Details::only(ContainerState::Dead),
            listed => match self.details(instance, &docker_id, listed).await? {
                Some(details) => details,
                None => return Ok(None),
            },
        };
        let MadeFrom {
            recipe,
            restarts,
            generation,
            spec_revision,
        } = labels::made_from(summary.labels.as_ref());
        Ok(Some(Container {
            address: address(&summary, instance),
            image_id: summary.image_id.unwrap_or_default(),
            docker_id,
            instance,
            member,
            recipe,
            restarts,
            generation,
            spec_revision,
            limits,
            confined,
            state,
            published,
        }))
    }

    /// What an inspection says, or said before; none: gone since it was listed.
    async fn details(
        &self,
        instance: InstanceId,
        docker_id: &str,
        listed: Option<ContainerSummaryStateEnum>,
    ) -> Result<Option<Details>, DockerError> {
        if let Some(known) = self.known().get(docker_id).filter(|known| Some(known.listed) == listed) {
            return Ok(Some(Details {
                state: known.state.clone(),
                limits: known.limits,
                confined: known.confined,
                published: known.published,
            }));
        }
        let Some(found) = self.inspect(docker_id).await? else {
            return Ok(None);
        };
        let Some(state) = state(&found) else { return Ok(None) };
        let limits = AppliedLimits::read(found.host_config.as_ref());
        let confined = hardening::is_confined(&found, instance);
        let published = published(&found);
        // A state that changed since the list is not kept: the next list may look the same again.
        if let Some(listed) = listed.filter(|listed| Some(*listed) == as_listed(&state)) {
            let known = Known {
                instance,
                listed,
                state: state.clone(),
                limits,
                confined,
                published,
            };
            self.known().insert(docker_id.to_owned(), known);
        }
        Ok(Some(Details {
            state,
            limits,
            confined,
            published,
        }))
    }

    fn forget_others(&self, listed: &[ContainerSummary]) {
        let listed: HashSet<&str> = listed.iter().filter_map(|summary| summary.id.as_deref()).collect();
        self.known().retain(|docker_id, _| listed.contains(docker_id.as_str()));
    }
}

/// The list's word for a state; none: not one whose details are worth keeping.
fn as_listed(state: &ContainerState) -> Option<ContainerSummaryStateEnum> {
    match state {
        ContainerState::Created => Some(ContainerSummaryStateEnum::CREATED),
        ContainerState::Running { .. } => Some(ContainerSummaryStateEnum::RUNNING),
        ContainerState::Paused => Some(ContainerSummaryStateEnum::PAUSED),
        ContainerState::Exited { .. } => Some(ContainerSummaryStateEnum::EXITED),
        ContainerState::Removing | ContainerState::Dead => None,
    }
}

/// End of what Docker says of a start that its containerd refuses, since a start that was cut short left a
/// task under that container's id. It never starts again; a container of another id does.
const LEFT_OVER: &str = ": already exists";

/// Reads the state out of a full record; none: Docker does not say.
fn state(found: &ContainerInspectResponse) -> Option<ContainerState> {
    let state = found.state.as_ref()?;
    let time = |text: &Option<String>| text.as_ref()?.parse::<DateTime<Utc>>().ok();
    let refused = state.error.as_deref().unwrap_or_default();
    if refused.ends_with(LEFT_OVER)
        && matches!(
            state.status?,
            ContainerStateStatusEnum::CREATED | ContainerStateStatusEnum::EXITED
        )
    {
        return Some(ContainerState::Dead);
    }
    match state.status? {
        ContainerStateStatusEnum::CREATED => Some(ContainerState::Created),
        ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::RESTARTING | ContainerStateStatusEnum::STOPPING => {
            Some(ContainerState::Running {
                started_at: time(&state.started_at),
            })
        }
        ContainerStateStatusEnum::PAUSED => Some(ContainerState::Paused),
        ContainerStateStatusEnum::REMOVING => Some(ContainerState::Removing),
        ContainerStateStatusEnum::EXITED => Some(ContainerState::Exited {
            code: state.exit_code.unwrap_or_default(),
            oom: state.oom_killed.unwrap_or_default(),
            finished_at: time(&state.finished_at).unwrap_or_default(),
        }),
        ContainerStateStatusEnum::DEAD => Some(ContainerState::Dead),
        ContainerStateStatusEnum::EMPTY => None,
    }
}

/// The port of the node that its record names. The list names it only while the container runs, but
/// one that is down takes it again when it is started.
fn published(found: &ContainerInspectResponse) -> Option<u16> {
    let ports = found.host_config.as_ref()?.port_bindings.as_ref()?;
    ports
        .values()
        .flatten()
        .flatten()
        .find_map(|binding| binding.host_port.as_ref()?.parse().ok())
}

fn address(summary: &ContainerSummary, instance: InstanceId) -> Option<std::net::Ipv4Addr> {
    let networks = summary.network_settings.as_ref()?.networks.as_ref()?;
    networks.get(&docker_name(instance))?.ip_address.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state__should_be_read_from_dockers_record() {
        let read = |text: &str| state(&serde_json::from_str(text).unwrap());
        assert_eq!(
            read(
                r#"{"State":{"Status":"exited","ExitCode":137,"OOMKilled":true,"FinishedAt":"2026-01-02T03:04:05.123456789Z"}}"#
            ),
            Some(ContainerState::Exited {
                code: 137,
                oom: true,
                finished_at: "2026-01-02T03:04:05.123456789Z".parse().unwrap()
            })
        );
        assert_eq!(
            read(r#"{"State":{"Status":"running","StartedAt":"x"}}"#),
            Some(ContainerState::Running { started_at: None })
        );
        assert_eq!(read("{}"), None);
    }

    #[test]
    fn state__should_be_dead_when_the_id_is_spoilt() {
        let read = |text: &str| state(&serde_json::from_str(text).unwrap());
        for (status, error, expected) in [
            ("created", "task 7c1d: already exists", ContainerState::Dead),
            (
                "created",
                "Bind for 0.0.0.0:19001 failed: port is already allocated",
                ContainerState::Created,
            ),
            (
                "running",
                "task 7c1d: already exists",
                ContainerState::Running { started_at: None },
            ),
        ] {
            let text = format!(r#"{{"State":{{"Status":"{status}","Error":"{error}"}}}}"#);
            assert_eq!(read(&text), Some(expected), "{text}");
        }
    }

    #[test]
    fn published__should_be_known_of_a_container_that_is_down() {
        let read = |text: &str| published(&serde_json::from_str(text).unwrap());
        assert_eq!(
            read(r#"{"HostConfig":{"PortBindings":{"2222/tcp":[{"HostIp":"0.0.0.0","HostPort":"19001"}]}}}"#),
            Some(19_001)
        );
        for text in ["{}", r#"{"HostConfig":{"PortBindings":{"2222/tcp":null}}}"#] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}

//! The containers of instances: make, start, stop, remove.

use std::time::{Duration, Instant};

use bollard::{
    models::{ContainerInspectResponse, ContainerStateStatusEnum},
    query_parameters::{
        CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptionsBuilder, ListContainersOptions,
        RemoveContainerOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
    },
};
use crabshack_shared::{ids::InstanceId, services::Profile};

use super::{
    Docker, DockerError, NORMAL, body, container_name,
    error::{RESERVED, message, status},
    labels,
};
use crate::recipe::{ContainerSpec, Member, Stop};

/// What the engine needs beyond an instance's own grace: killing, unmounting, the network.
const STOP_MARGIN: Duration = Duration::from_secs(15);
/// A signal that is not heard is sent again after so long; in between it is looked whether it was.
const SIGNAL_PERIOD: Duration = Duration::from_secs(1);
const SIGNAL_LOOK: Duration = Duration::from_millis(100);
/// How often it is looked whether a removal by somebody else is over.
const REMOVAL_PERIOD: Duration = Duration::from_millis(200);

/// A volume that the image declares where we put nothing: Docker would make one without a limit.
fn stray_volume(declared: impl IntoIterator<Item = String>, spec: &ContainerSpec) -> Option<String> {
    let mounted = |path: &String| {
        spec.mounts.iter().any(|mount| mount.target == path) || spec.tmpfs.iter().any(|tmpfs| tmpfs.target == path)
    };
    declared.into_iter().find(|path| !mounted(path))
}

impl Docker {
    /// Makes the container of a spec, and does not start it. Idempotent: one of the same recipe, revision
    /// and restarts is success, any other under its name is a conflict and stays.
    pub(crate) async fn create_container(&self, spec: &ContainerSpec) -> Result<(), DockerError> {
        let no_image = || DockerError::NoImage {
            image: spec.image.clone(),
        };
        let image = self.find_image(&spec.image).await?.ok_or_else(no_image)?;
        let config = image.details.config.unwrap_or_default();
        if let Some(path) = stray_volume(config.volumes.unwrap_or_default(), spec) {
            return Err(DockerError::ImageVolume {
                image: spec.image.clone(),
                path,
            });
        }
        let options = CreateContainerOptionsBuilder::default()
            .name(&container_name(spec.instance, spec.member))
            .build();
        let mut request = body::container(spec, image.name, self.body_options());
        if spec.profile == Profile::Compatible {
            let (entrypoint, command) = (config.entrypoint.unwrap_or_default(), config.cmd.unwrap_or_default());
            body::bring_environment(&mut request, entrypoint, command);
        }
        let result = self
            .call(NORMAL, |client| async move {
                client.create_container(Some(options), request).await
            })
            .await;
        match result {
            Ok(answer) => {
                for warning in answer.warnings {
                    tracing::warn!(instance = %spec.instance, warning, "Docker warns about the container it made");
                }
                Ok(())
            }
            Err(error) if status(&error) == Some(409) => self.accept_same(spec, message(&error)).await,
            Err(error) if status(&error) == Some(404) && message(&error).contains("No such image") => Err(no_image()),
            Err(error) => Err(DockerError::of("create the container", error)),
        }
    }

    /// Starts the container. Idempotent.
    pub(crate) async fn start_container(&self, instance: InstanceId, member: Member) -> Result<(), DockerError> {
        let name = container_name(instance, member);
        let result = self
            .call(NORMAL, |client| async move {
                client.start_container(&name, None::<StartContainerOptions>).await
            })
            .await;
        // It may be the same container as before, with another start time.
        self.forget(|known| known == instance);
        let Err(error) = result else { return Ok(()) };
        let text = message(&error);
        match status(&error) {
            Some(404) if text.starts_with("No such container") => Err(DockerError::NoSuchContainer { instance }),
            Some(404) if text.starts_with("network ") => Err(DockerError::NoSuchNetwork { instance }),
            Some(_) if text.ends_with("Address already in use") => Err(DockerError::AddressInUse { instance, message: text }),
            _ => match DockerError::of("start the container", error) {
                DockerError::PortTaken { port } if text.ends_with(RESERVED) && !self.is_published(port).await? => {
                    Err(DockerError::PortLeftOver { port })
                }
                error => Err(error),
            },
        }
    }

    /// Whether a running container, ours or not, has this port of the node.
    async fn is_published(&self, port: u16) -> Result<bool, DockerError> {
        let running = self
            .call(NORMAL, |client| async move {
                client.list_containers(None::<ListContainersOptions>).await
            })
            .await
            .map_err(|error| DockerError::of("list containers", error))?;
        let mut ports = running.iter().flat_map(|container| container.ports.iter().flatten());
        Ok(ports.any(|published| published.public_port == Some(port)))
    }

    /// Asks a container to end, and kills it after its grace. Idempotent; no container is success.
    pub(crate) async fn stop_container(&self, instance: InstanceId, member: Member, stop: Stop) -> Result<(), DockerError> {
        let name = container_name(instance, member);
        let grace = if stop.repeated {
            self.ask_again_and_again(&name, stop).await?;
            Duration::ZERO
        } else {
            stop.grace
        };
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        let result = self
            .call(grace + STOP_MARGIN, |client| async move {
                client.stop_container(&name, Some(options)).await
            })
            .await;
        match result {
            Ok(()) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            Err(error) => Err(DockerError::of("stop the container", error)),
        }
    }

    /// Sends the signal once a second until the container is down or its grace is over.
    async fn ask_again_and_again(&self, name: &str, stop: Stop) -> Result<(), DockerError> {
        let deadline = Instant::now() + stop.grace;
        while Instant::now() < deadline {
            let options = KillContainerOptionsBuilder::default().signal(stop.signal).build();
            let result = self
                .call(
                    NORMAL,
                    |client| async move { client.kill_container(name, Some(options)).await },
                )
                .await;
            match result {
                Ok(()) => {}
                // It is gone, or down.
                Err(error) if matches!(status(&error), Some(404 | 409)) => return Ok(()),
                Err(error) => return Err(DockerError::of("send a signal to the container", error)),
            }
            let asked = Instant::now();
            while asked.elapsed() < SIGNAL_PERIOD {
                tokio::time::sleep(SIGNAL_LOOK).await;
                let found = self.inspect(name).await?;
                let runs = found.and_then(|found| found.state?.running).unwrap_or_default();
                if !runs {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Lets a paused container go on. Idempotent; one that is not paused is success.
    pub(crate) async fn unpause_container(&self, instance: InstanceId, member: Member) -> Result<(), DockerError> {
        let name = container_name(instance, member);
        let result = self
            .call(NORMAL, |client| async move { client.unpause_container(&name).await })
            .await;
        self.forget(|known| known == instance);
        match result {
            Ok(()) => Ok(()),
            Err(error) if status(&error) == Some(404) => Err(DockerError::NoSuchContainer { instance }),
            // Old engines answer 500, newer ones 409.
            Err(error)
                if ["is not paused", "is not running"]
                    .iter()
                    .any(|text| message(&error).contains(text)) =>
            {
                Ok(())
            }
            Err(error) => Err(DockerError::of("unpause the container", error)),
        }
    }

    /// Removes the container, running or not, with what it wrote outside its volume. Idempotent.
    pub(crate) async fn remove_container(&self, instance: InstanceId, member: Member) -> Result<(), DockerError> {
        let Some(found) = self.inspect(&container_name(instance, member)).await? else {
            return Ok(());
        };
        if owner(&found) != Some((instance, member)) {
            return Err(DockerError::Conflict {
                operation: "remove the container",
                instance,
                message: "a container of its name does not carry our label; remove it by hand if it may go".to_owned(),
            });
        }
        // By Docker's id, so that a container made meanwhile under the name is not hit.
        let docker_id = found.id.unwrap_or_default();
        let options = RemoveContainerOptionsBuilder::default().v(true).force(true).build();
        let id = docker_id.clone();
        let result = self
            .call(
                NORMAL,
                |client| async move { client.remove_container(&id, Some(options)).await },
            )
            .await;
        match result {
            Ok(()) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            Err(error) if status(&error) == Some(409) && message(&error).contains("already in progress") => {
                self.until_gone(&docker_id).await
            }
            Err(error) => Err(DockerError::of("remove the container", error)),
        }
    }

    /// Docker's full record of a container; none: no such container.
    pub(super) async fn inspect(&self, name: &str) -> Result<Option<ContainerInspectResponse>, DockerError> {
        let result = self
            .call(NORMAL, |client| async move {
                client.inspect_container(name, None::<InspectContainerOptions>).await
            })
            .await;
        match result {
            Ok(found) => Ok(Some(found)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(DockerError::of("inspect the container", error)),
        }
    }

    /// Decides about a container that has the name already.
    async fn accept_same(&self, spec: &ContainerSpec, refusal: String) -> Result<(), DockerError> {
        let conflict = |message| {
            Err(DockerError::Conflict {
                operation: "create the container",
                instance: spec.instance,
                message,
            })
        };
        let Some(found) = self.inspect(&container_name(spec.instance, spec.member)).await? else {
            return conflict(refusal);
        };
        if owner(&found) != Some((spec.instance, spec.member)) {
            return conflict("a container of its name does not carry our label; remove it by hand if it may go".to_owned());
        }
        let status = found.state.as_ref().and_then(|state| state.status);
        if matches!(
            status,
            Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD)
        ) {
            return conflict("the one before is still being removed".to_owned());
        }
        let labels = found.config.as_ref().and_then(|config| config.labels.as_ref());
        let made_from = labels::made_from(labels);
        let made_for = (made_from.restarts, made_from.spec_revision);
        if made_from.recipe == spec.recipe && made_for == (spec.restarts, spec.spec_revision) {
            Ok(())
        } else {
            conflict("one of another recipe is there".to_owned())
        }
    }

    async fn until_gone(&self, docker_id: &str) -> Result<(), DockerError> {
        let wait = async {
            while self.inspect(docker_id).await?.is_some() {
                tokio::time::sleep(REMOVAL_PERIOD).await;
            }
            Ok(())
        };
        tokio::time::timeout(NORMAL, wait).await.unwrap_or(Err(DockerError::Timeout {
            operation: "remove the container",
        }))
    }
}

fn owner(found: &ContainerInspectResponse) -> Option<(InstanceId, Member)> {
    let labels = found.config.as_ref()?.labels.as_ref();
    labels::container(found.name.as_deref().unwrap_or_default(), labels)
}

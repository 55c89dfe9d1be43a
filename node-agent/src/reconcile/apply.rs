//! Does one step. No decisions: each step is one call into the room that owns it, and may be run
//! again at any time.

use std::time::Duration;

use crabshack_shared::instance::ServiceType;

use super::{observe::ArmedCache, plan::Action};
use crate::{
    docker::DockerError,
    egress::EgressError,
    files::{self, FilesError},
    ledger::Entry,
    logs,
    node::Node,
    recipe::{self, Member, MemberRecipe, Recipe, Stop},
    volume::VolumeError,
};

/// How an instance of a type that is no longer known is asked to end.
const STRANGERS_STOP: Stop = Stop {
    signal: "SIGTERM",
    grace: Duration::from_secs(30),
    repeated: false,
};

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    #[error("Docker refused")]
    Docker(#[from] DockerError),
    #[error("the egress ruleset cannot be changed")]
    Egress(#[from] EgressError),
    #[error("the volume cannot be changed")]
    Volume(#[from] VolumeError),
    #[error("the instance's files cannot be written")]
    Files(#[from] FilesError),
    #[error("this node knows no recipe for the service type `{0}`: update its node agent")]
    NoRecipe(ServiceType),
    #[error("`{command}` ended with code {code}: {output}")]
    Command { command: String, code: i64, output: String },
}

impl ApplyError {
    /// Trying again will not help before a person does something.
    pub(crate) fn needs_person(&self) -> bool {
        match self {
            Self::Docker(error) => error.needs_person(),
            Self::NoRecipe(_) => true,
            Self::Egress(_) | Self::Volume(_) | Self::Files(_) | Self::Command { .. } => false,
        }
    }
}

/// Does one step.
pub(crate) async fn apply(node: &Node, armed: &ArmedCache, entry: &Entry, action: Action) -> Result<(), ApplyError> {
    let id = entry.order.id;
    let folder = node.folder(entry);
    match action {
        Action::CreateVolume => node.volumes.ensure(id, entry.order.spec.resources.storage).await?,
        Action::LimitVolume => node.volumes.limit(id, entry.order.spec.resources.storage).await?,
        Action::WriteFiles => files::write(&folder, &(recipe_of(entry)?.files)(&node.recipe_input(entry, &folder))).await?,
        Action::CreateNetwork => node.docker.create_network(&entry.link).await?,
        Action::ArmEgress => {
            node.egress.arm(&entry.link).await?;
            armed.note(&entry.link, true);
        }
        Action::PullImage(member) => {
            let spec = (member_of(entry, member)?.container)(&node.recipe_input(entry, &folder));
            node.images.pull(&spec.image).await?;
        }
        Action::CreateContainer(member) => {
            let spec = (member_of(entry, member)?.container)(&node.recipe_input(entry, &folder));
            if spec.mounts.iter().any(|mount| mount.source == folder.inner) {
                node.volumes.renew_inner(id, entry.order.spec.resources.storage).await?;
            }
            node.docker.create_container(&spec).await?;
        }
        Action::UpdateLimits(member) => {
            let limits = (member_of(entry, member)?.limits)(&entry.order.spec.resources);
            node.docker.update_limits(id, member, &limits).await?;
        }
        Action::Confine(member) => node.docker.confine(id, member).await?,
        Action::Unpause(member) => node.docker.unpause_container(id, member).await?,
        Action::StartContainer(member) => {
            node.docker.start_container(id, member).await?;
            if member.is_main() {
                // It reads its files as it starts.
                files::configure_done(&folder)?;
            }
        }
        Action::Reconfigure => reconfigure(node, entry).await?,
        Action::StopContainer(member) => node.docker.stop_container(id, member, stop(entry, member)).await?,
        Action::SaveLog => logs::save(&node.docker, &folder, id).await,
        Action::RemoveContainer(member) => node.docker.remove_container(id, member).await?,
        Action::DisarmEgress => {
            node.egress.disarm(&entry.link).await?;
            armed.note(&entry.link, false);
        }
        Action::RemoveNetwork => {
            node.docker.remove_network(id).await?;
            node.egress.remove_bridge(&entry.link).await?;
        }
        Action::RemoveVolume => node.volumes.remove(id).await?,
    }
    Ok(())
}

async fn reconfigure(node: &Node, entry: &Entry) -> Result<(), ApplyError> {
    let command = recipe_of(entry)?.reconfigure;
    if command.is_empty() {
        files::configure_done(&node.folder(entry))?;
        return Ok(());
    }
    let result = node.docker.exec(entry.order.id, command).await?;
    if result.code == 0 {
        files::configure_done(&node.folder(entry))?;
        return Ok(());
    }
    Err(ApplyError::Command {
        command: command.join(" "),
        code: result.code,
        output: logs::last_words(&result.output),
    })
}

/// An instance of a type that is no longer known can still be stopped.
fn stop(entry: &Entry, member: Member) -> Stop {
    let recipe = recipe::recipe(&entry.order.spec).and_then(|recipe| recipe.member(member));
    recipe.map_or(STRANGERS_STOP, |recipe| recipe.stop)
}

/// Only asked of what the recipe has.
fn member_of(entry: &Entry, member: Member) -> Result<&'static MemberRecipe, ApplyError> {
    let no_recipe = || ApplyError::NoRecipe(entry.order.spec.service_type.clone());
    recipe_of(entry)?.member(member).ok_or_else(no_recipe)
}

fn recipe_of(entry: &Entry) -> Result<&'static Recipe, ApplyError> {
    let spec = &entry.order.spec;
    recipe::recipe(spec).ok_or_else(|| ApplyError::NoRecipe(spec.service_type.clone()))
}

//! Images: is it here, which one is it, get it, let it go.

use std::{
    collections::{BTreeSet, HashMap},
    future::ready,
    time::Duration,
};

use bollard::{
    auth::DockerCredentials,
    errors::Error,
    models::{CreateImageInfo, ImageInspect, ImageSummary},
    query_parameters::{
        CreateImageOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptions,
        RemoveImageOptionsBuilder,
    },
};
use crabshack_shared::{
    agent_api::v1::{HeldImage, RegistryLogin},
    image::{DEFAULT_REGISTRY, ImageReference},
};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};

use super::{
    Docker, DockerError, NORMAL,
    error::{PullProblem, message, status},
};

/// A pull may take as long as it likes while something moves.
const PULL_PATIENCE: Duration = Duration::from_secs(600);
/// Under which Docker knows its own registry.
const DEFAULT_SERVER: &str = "https://index.docker.io/v1/";
/// A node that has more names than this tells of the first ones only.
const MOST_HELD: usize = 500;

/// An image of the node.
pub(super) struct Found {
    /// How Docker finds it: the reference, or its id when only that fits.
    pub(super) name: String,
    pub(super) details: ImageInspect,
}

/// Every image on the node, under its names.
#[derive(Debug, Default)]
pub(crate) struct ImageList(Vec<ImageSummary>);

impl ImageList {
    /// What the coordinator should know of them.
    pub(crate) fn held(&self) -> Vec<HeldImage> {
        let all: BTreeSet<HeldImage> = self.0.iter().flat_map(held).collect();
        all.into_iter().take(MOST_HELD).collect()
    }

    /// Id and names of each.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&str, Vec<ImageReference>)> {
        self.0.iter().map(|image| {
            let names = image.repo_tags.iter().chain(&image.repo_digests);
            // `<none>:<none>` is no reference.
            (image.id.as_str(), names.filter_map(|name| name.parse().ok()).collect())
        })
    }
}

impl Docker {
    /// `sha256:...` of an image: the registry's digest, or its id when it was built or imported
    /// here. None: not on this node.
    pub(crate) async fn image_digest(&self, image: &ImageReference) -> Result<Option<String>, DockerError> {
        let found = self.find_image(image).await?;
        Ok(found.and_then(|found| digest(image, &found.details)))
    }

    /// Gets an image from its registry. It may take minutes; ends after ten without progress, and when
    /// `go_on`, which hears of every line of Docker's, says no.
    pub(crate) async fn pull(
        &self,
        image: &ImageReference,
        login: Option<&RegistryLogin>,
        mut go_on: impl FnMut(&CreateImageInfo) -> bool,
    ) -> Result<(), DockerError> {
        let (repository, tag) = split(image);
        let options = CreateImageOptionsBuilder::default().from_image(repository).tag(tag).build();
        let client = self
            .client(PULL_PATIENCE)
            .map_err(|error| DockerError::of("pull the image", error))?;
        let mut progress = client.create_image(Some(options), None, login.map(credentials));
        loop {
            match tokio::time::timeout(PULL_PATIENCE, progress.try_next()).await {
                // Docker stops a pull that nobody listens to.
                Ok(Ok(Some(line))) if !go_on(&line) => return Err(no_room(image)),
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => break,
                Ok(Err(Error::DockerStreamError { error: message })) => return Err(refused(image, message)),
                Ok(Err(error)) if status(&error).is_some() => return Err(refused(image, message(&error))),
                Ok(Err(Error::RequestTimeoutError)) | Err(_) => {
                    return Err(DockerError::PullStalled {
                        image: image.clone(),
                        limit: PULL_PATIENCE,
                    });
                }
                Ok(Err(error)) => return Err(DockerError::of("pull the image", error)),
            }
        }
        match self.find_image(image).await? {
            Some(_) => Ok(()),
            None => Err(DockerError::Pull {
                image: image.clone(),
                problem: PullProblem::Differs,
                message: "the registry gave another image".to_owned(),
            }),
        }
    }

    /// Every image there is.
    pub(crate) async fn list_images(&self) -> Result<ImageList, DockerError> {
        let list = self
            .call(
                NORMAL,
                |client| async move { client.list_images(None::<ListImagesOptions>).await },
            )
            .await
            .map_err(|error| DockerError::of("list its images", error))?;
        Ok(ImageList(list))
    }

    /// Ids of the images of all containers, whoever made them.
    pub(crate) async fn used_images(&self) -> Result<BTreeSet<String>, DockerError> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let list = self
            .call(NORMAL, |client| async move { client.list_containers(Some(options)).await })
            .await
            .map_err(|error| DockerError::of("list its containers", error))?;
        Ok(list.into_iter().filter_map(|container| container.image_id).collect())
    }

    /// Takes the name by which an image was pulled from it, and the image with its last name. False: a
    /// container uses it, so it stays. Idempotent.
    pub(crate) async fn remove_image(&self, image: &ImageReference) -> Result<bool, DockerError> {
        let (repository, tag) = split(image);
        let separator = if image.digest().is_some() { '@' } else { ':' };
        let name = format!("{repository}{separator}{tag}");
        let options = RemoveImageOptionsBuilder::default().force(false).noprune(false).build();
        let removed = self
            .call(NORMAL, |client| async move {
                client.remove_image(&name, Some(options), None).await
            })
            .await;
        match removed {
            Ok(_) => Ok(true),
            Err(error) if status(&error) == Some(404) => Ok(true),
            Err(error) if status(&error) == Some(409) => Ok(false),
            Err(error) => Err(DockerError::of("remove an image", error)),
        }
    }

    /// Says that images came or went, or got other names. Ends, or gives an error and ends, when dockerd goes.
    pub(crate) fn image_events(&self) -> impl Stream<Item = Result<(), DockerError>> + Send + use<> {
        let filters = HashMap::from([("type", vec!["image"])]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        stream::once(ready(self.client(NORMAL)))
            .map_ok(move |client| client.events(Some(options.clone())))
            .try_flatten()
            .map(|event| match event {
                Ok(_) => Ok(()),
                Err(error) => Err(DockerError::of("tell what happens", error)),
            })
    }

    pub(super) async fn find_image(&self, image: &ImageReference) -> Result<Option<Found>, DockerError> {
        let reference = image.to_string();
        if let Some(details) = self.inspect_image(&reference).await? {
            return Ok(Some(Found {
                name: reference,
                details,
            }));
        }
        // Pinned to what `image_digest` said about an image without a registry: its id.
        let Some(id) = image.digest() else { return Ok(None) };
        let details = self.inspect_image(id).await?;
        Ok(details
            .filter(|details| details.id.as_deref() == Some(id) && may_be(image, details))
            .map(|details| Found {
                name: id.to_owned(),
                details,
            }))
    }

    async fn inspect_image(&self, name: &str) -> Result<Option<ImageInspect>, DockerError> {
        let result = self
            .call(NORMAL, |client| async move { client.inspect_image(name).await })
            .await;
        match result {
            Ok(details) => Ok(Some(details)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(DockerError::of("inspect the image", error)),
        }
    }
}

/// An id alone could stand for any image: one that has names must have one of the reference's repository.
fn may_be(image: &ImageReference, details: &ImageInspect) -> bool {
    let location = image.location();
    let names = details.repo_tags.iter().chain(&details.repo_digests).flatten();
    let mut names = names.filter_map(|name| name.parse::<ImageReference>().ok()).peekable();
    names.peek().is_none() || names.any(|name| name.location().is_beside(&location))
}

fn credentials(login: &RegistryLogin) -> DockerCredentials {
    let server = if login.host == DEFAULT_REGISTRY {
        DEFAULT_SERVER
    } else {
        &login.host
    };
    DockerCredentials {
        username: Some(login.username.clone()),
        password: Some(login.password.expose().to_owned()),
        serveraddress: Some(server.to_owned()),
        ..DockerCredentials::default()
    }
}

fn refused(image: &ImageReference, message: String) -> DockerError {
    DockerError::Pull {
        image: image.clone(),
        problem: PullProblem::of(&message),
        message,
    }
}

fn no_room(image: &ImageReference) -> DockerError {
    DockerError::Pull {
        image: image.clone(),
        problem: PullProblem::NoRoom,
        message: "it was broken off when the node's disk was nearly full".to_owned(),
    }
}

/// The repository, and the digest or tag. Without either Docker would pull every tag there is.
fn split(image: &ImageReference) -> (&str, &str) {
    let (repository, tag) = crabshack_shared::image::split_tag(image.name());
    (repository, image.digest().or(tag).unwrap_or("latest"))
}

/// An image under each of its names.
fn held(image: &ImageSummary) -> Vec<HeldImage> {
    let digests: Vec<(&str, &str)> = image.repo_digests.iter().filter_map(|text| text.split_once('@')).collect();
    let digests: Vec<(&str, &str)> = digests.into_iter().filter(|(_, digest)| *digest != "<none>").collect();
    let tags: Vec<&String> = image.repo_tags.iter().filter(|tag| !tag.starts_with("<none>")).collect();
    let repository_of = |tag: &str| crabshack_shared::image::split_tag(tag).0.to_owned();
    let mut all = Vec::new();
    for tag in &tags {
        let known = digests
            .iter()
            .find(|(name, _)| familiar(name) == familiar(&repository_of(tag)));
        all.push(HeldImage {
            name: (*tag).clone(),
            digest: known.map_or(image.id.as_str(), |(_, digest)| digest).to_owned(),
            local: known.is_none(),
        });
    }
    for (name, digest) in digests {
        if !all
            .iter()
            .any(|known| known.digest == digest && repository_of(&known.name) == name)
        {
            all.push(HeldImage {
                name: name.to_owned(),
                digest: digest.to_owned(),
                local: false,
            });
        }
    }
    all
}

/// The digest under which the reference's own repository knows the image, else its id.
fn digest(image: &ImageReference, details: &ImageInspect) -> Option<String> {
    let (repository, _) = split(image);
    let known = details.repo_digests.iter().flatten().filter_map(|text| text.split_once('@'));
    let known = known.filter(|(name, _)| familiar(name) == familiar(repository));
    let digests: Vec<&str> = known.map(|(_, digest)| digest).collect();
    let pinned = digests.iter().copied().find(|digest| Some(*digest) == image.digest());
    pinned
        .or_else(|| digests.first().copied())
        .or(details.id.as_deref())
        .map(str::to_owned)
}

/// Docker's short form of a repository's name.
fn familiar(repository: &str) -> &str {
    let name = ["docker.io/", "index.docker.io/"]
        .iter()
        .find_map(|prefix| repository.strip_prefix(prefix))
        .unwrap_or(repository);
    name.strip_prefix("library/").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> ImageReference {
        text.parse().unwrap()
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    #[test]
    fn image__should_be_split_into_repository_and_tag_or_digest() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(split(&image("name")), ("name", "latest"));
        assert_eq!(split(&image("host:5000/a/name")), ("host:5000/a/name", "latest"));
        assert_eq!(split(&image("host:5000/name:1")), ("host:5000/name", "1"));
        assert_eq!(split(&image(&format!("a/name:1@{digest}"))), ("a/name", digest.as_str()));
    }

    #[test]
    fn image_digest__should_be_the_one_of_its_own_repository() {
        let details = ImageInspect {
            id: Some("sha256:id".to_owned()),
            repo_digests: Some(texts(&["other@sha256:1", "name@sha256:2"])),
            ..ImageInspect::default()
        };
        assert_eq!(
            digest(&image("docker.io/library/name:1"), &details),
            Some("sha256:2".to_owned())
        );
        assert_eq!(digest(&image("third"), &details), Some("sha256:id".to_owned()));
        assert_eq!(digest(&image("third"), &ImageInspect::default()), None);
    }

    #[test]
    fn image__should_not_be_taken_for_another_by_its_id() {
        let named = |tags: &[&str]| ImageInspect {
            repo_tags: Some(texts(tags)),
            ..ImageInspect::default()
        };
        let wanted = image("owner/name:1");
        assert!(may_be(&wanted, &named(&[])) && may_be(&wanted, &named(&["other:1", "owner/name:2"])));
        assert!(!may_be(&wanted, &named(&["other:1"])));
    }

    #[test]
    fn held__should_tell_what_came_from_a_registry() {
        let summary = ImageSummary {
            id: "sha256:id".to_owned(),
            repo_tags: texts(&["host:5000/a:1", "own:1", "<none>:<none>"]),
            repo_digests: texts(&["host:5000/a@sha256:1", "b/c@sha256:2", "<none>@<none>"]),
            ..ImageSummary::default()
        };
        let held = |name: &str, digest: &str, local| HeldImage {
            name: name.to_owned(),
            digest: digest.to_owned(),
            local,
        };
        assert_eq!(
            super::held(&summary),
            [
                held("host:5000/a:1", "sha256:1", false),
                held("own:1", "sha256:id", true),
                held("b/c", "sha256:2", false),
            ]
        );
    }
}

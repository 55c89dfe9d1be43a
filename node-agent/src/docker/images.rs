//! Images: is it here, which one is it, get it.

use std::time::Duration;

use bollard::{errors::Error, models::ImageInspect, query_parameters::CreateImageOptionsBuilder};
use crabshack_shared::image::ImageReference;
use futures_util::TryStreamExt as _;

use super::{
    Docker, DockerError, NORMAL,
    error::{message, status},
};

/// A pull may take as long as it likes while something moves.
const PULL_PATIENCE: Duration = Duration::from_secs(600);

/// An image of the node.
pub(super) struct Found {
    /// How Docker finds it: the reference, or its id when only that fits.
    pub(super) name: String,
    pub(super) details: ImageInspect,
}

impl Docker {
    /// `sha256:...` of an image: the registry's digest, or its id when it was built or imported
    /// here. None: not on this node.
    pub(crate) async fn image_digest(&self, image: &ImageReference) -> Result<Option<String>, DockerError> {
        let found = self.find_image(image).await?;
        Ok(found.and_then(|found| digest(image, &found.details)))
    }

    /// Gets an image from its registry. It may take minutes; ends after ten without progress.
    pub(crate) async fn pull(&self, image: &ImageReference) -> Result<(), DockerError> {
        let (repository, tag) = split(image);
        let options = CreateImageOptionsBuilder::default().from_image(repository).tag(tag).build();
        let client = self
            .client(PULL_PATIENCE)
            .map_err(|error| DockerError::of("pull the image", error))?;
        let mut progress = client.create_image(Some(options), None, None);
        loop {
            match tokio::time::timeout(PULL_PATIENCE, progress.try_next()).await {
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
            None => Err(refused(image, "the registry gave another image".to_owned())),
        }
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
            .filter(|details| details.id.as_deref() == Some(id))
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

fn refused(image: &ImageReference, message: String) -> DockerError {
    DockerError::Pull {
        image: image.clone(),
        message,
    }
}

/// The repository, and the digest or tag. Without either Docker would pull every tag there is.
fn split(image: &ImageReference) -> (&str, &str) {
    let start_of_last = image.name().rfind('/').map_or(0, |at| at + 1);
    let (repository, tag) = match image.name()[start_of_last..].find(':') {
        Some(at) => {
            let (repository, tag) = image.name().split_at(start_of_last + at);
            (repository, &tag[1..])
        }
        None => (image.name(), "latest"),
    };
    (repository, image.digest().unwrap_or(tag))
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
            repo_digests: Some(vec!["other@sha256:1".to_owned(), "name@sha256:2".to_owned()]),
            ..ImageInspect::default()
        };
        assert_eq!(
            digest(&image("docker.io/library/name:1"), &details),
            Some("sha256:2".to_owned())
        );
        assert_eq!(digest(&image("third"), &details), Some("sha256:id".to_owned()));
        assert_eq!(digest(&image("third"), &ImageInspect::default()), None);
    }
}

//! The service types that can be asked for. The node decides how each is run.

use crabshack_shared::{
    image::ImageReference,
    instance::ServiceType,
    problem::Problem,
    resources::Bytes,
    services::{Profile, SERVICES, Service, service},
};

/// The service type of that name, if there is one.
pub(crate) fn find(name: &str) -> Option<&'static Service> {
    SERVICES.iter().find(|known| known.name == name)
}

/// All names, for people.
pub(crate) fn names() -> String {
    SERVICES.iter().map(|known| known.name).collect::<Vec<_>>().join(", ")
}

/// What is reserved at least; nothing for a type that is no longer known.
pub(crate) fn minimum_memory(service_type: &ServiceType) -> Bytes {
    service(service_type).map_or(Bytes::new(0), |known| known.minimum_memory)
}

/// How an image is run: as was asked for, or as it needs.
pub(crate) fn profile(service: &Service, image: &ImageReference, asked: Option<&str>) -> Result<Profile, Problem> {
    let needed = service.profile_of(image);
    let profile = match asked {
        None => needed,
        Some("strict") => Profile::Strict,
        Some("compatible") => Profile::Compatible,
        Some(_) => return Err(Problem::invalid("profile must be `strict` or `compatible`")),
    };
    if service.runtime.is_some() && profile == Profile::Strict {
        return Err(Problem::invalid(format!(
            "profile: `{}` is root among users of its own, so it cannot be `strict`: leave it out",
            service.name
        )));
    }
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile__should_be_what_was_asked_for_or_what_the_image_needs() {
        let of = |name: &str, image: &str, asked| profile(find(name).unwrap(), &image.parse().unwrap(), asked).ok();
        let published = "nearaidev/ironclaw-nearai-worker:1";
        assert_eq!(of("ironclaw", "crabshack/ironclaw:1", None), Some(Profile::Strict));
        assert_eq!(of("ironclaw", published, None), Some(Profile::Compatible));
        assert_eq!(of("ironclaw", published, Some("strict")), Some(Profile::Strict));
        assert_eq!(of("openclaw", "own:1", Some("compatible")), Some(Profile::Compatible));
        assert_eq!(of("openclaw", "own:1", Some("privileged")), None);
        assert_eq!(of("ironclaw-dind", "own:1", None), Some(Profile::Compatible));
        assert_eq!(of("ironclaw-dind", "own:1", Some("strict")), None);
    }
}

//! The list of images as a decision: pure.

use crabshack_shared::{
    image::ImageReference,
    problem::{Code, Problem},
};
use http::StatusCode;

use crate::store::ImageRecord;

/// Lets an image through the list, pinned to the digest that its entry stands for. An empty list lets
/// everything through.
pub(super) fn admit(list: &[ImageRecord], service_type: &str, image: &ImageReference) -> Result<ImageReference, Problem> {
    if list.is_empty() {
        return Ok(image.clone());
    }
    let entries: Vec<&ImageRecord> = list
        .iter()
        .filter(|entry| entry.is_allowed() && entry.service_type == service_type && names(entry, image))
        .collect();
    let fits = |entry: &&&ImageRecord| match (entry.digest(), image.digest()) {
        (Some(known), Some(asked)) => known == asked,
        _ => true,
    };
    match entries.iter().find(fits) {
        Some(entry) => {
            let digest = image.digest().or(entry.digest());
            let pinned = digest.and_then(|digest| image.pinned(digest).ok());
            Ok(pinned.unwrap_or_else(|| image.clone()))
        }
        None if entries.is_empty() => Err(refused(format!(
            "service_type \"{service_type}\" not supported by image `{image}`: the list of images (GET /images) does not allow it"
        ))),
        None => Err(refused(format!(
            "service_type \"{service_type}\" not supported by image `{image}`: the list of images (GET /images) allows `{}` with another digest",
            image.name()
        ))),
    }
}

fn refused(text: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, Code::ImageNotAllowed, text)
}

/// Whether an entry speaks of this image: the same tag, or any when the entry has but a digest.
fn names(entry: &ImageRecord, image: &ImageReference) -> bool {
    let (listed, asked) = (entry.reference.location(), image.location());
    listed.is_beside(&asked) && (listed.tag.is_none() || listed.tag == asked.tag)
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    fn digest(letter: char) -> String {
        format!("sha256:{}", letter.to_string().repeat(64))
    }

    fn entry(reference: &str, service_type: &str, digest: Option<String>) -> ImageRecord {
        ImageRecord {
            reference: reference.parse().unwrap(),
            service_type: service_type.to_owned(),
            status: "allow-create".to_owned(),
            created_at: Utc::now(),
            digest,
            label: None,
            preferred: 0,
            note: None,
        }
    }

    #[test]
    fn admit__should_let_everything_through_an_empty_list() {
        let image = "anything:1".parse().unwrap();
        assert_eq!(admit(&[], "openclaw", &image).unwrap(), image);
    }

    #[test]
    fn admit__should_know_the_type_the_status_and_the_digest() {
        let (a, b) = (digest('a'), digest('b'));
        let mut list = vec![
            entry("docker.io/owner/agent:1.0.0", "openclaw", Some(a.clone())),
            entry("owner/other:2", "ironclaw", None),
            entry(&format!("owner/pinned@{b}"), "openclaw", None),
        ];
        let of = |list: &[ImageRecord], service_type: &str, text: &str| {
            admit(list, service_type, &text.parse().unwrap()).map(|image| image.to_string())
        };
        assert_eq!(
            of(&list, "openclaw", "owner/agent:1.0.0"),
            Ok(format!("owner/agent:1.0.0@{a}"))
        );
        assert!(of(&list, "openclaw", &format!("owner/agent:1.0.0@{a}")).is_ok());
        assert_eq!(of(&list, "ironclaw", "owner/other:2"), Ok("owner/other:2".to_owned()));
        assert_eq!(
            of(&list, "openclaw", &format!("owner/pinned:7@{b}")),
            Ok(format!("owner/pinned:7@{b}"))
        );
        for (service_type, text, words) in [
            ("ironclaw", "owner/agent:1.0.0".to_owned(), "not supported by image"),
            ("openclaw", "owner/agent:1.0.1".to_owned(), "does not allow it"),
            ("openclaw", format!("owner/agent:1.0.0@{b}"), "another digest"),
            ("openclaw", format!("owner/pinned@{a}"), "another digest"),
        ] {
            let problem = of(&list, service_type, &text).unwrap_err();
            assert_eq!(problem.code(), Code::ImageNotAllowed);
            assert!(problem.to_string().contains(words), "{problem}");
        }
        list[0].status = "retired".to_owned();
        assert!(of(&list, "openclaw", "owner/agent:1.0.0").is_err());
    }
}

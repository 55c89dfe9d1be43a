//! Which web pages may act with a visitor's cookie. Browsers send it along from neighbours under
//! the same zone too (they are one site), so SameSite alone does not keep agents apart.

use http::{HeaderMap, Method, header::ORIGIN};

/// True when a request that is authenticated by its cookie comes from the instance's own pages, or
/// cannot change anything.
pub(super) fn may_use_cookie(method: &Method, is_upgrade: bool, headers: &HeaderMap, own_origin: &str) -> bool {
    let mut origins = headers.get_all(ORIGIN).iter();
    if let Some(origin) = origins.next() {
        return origins.next().is_none() && origin.as_bytes() == as_browsers_write(own_origin).as_bytes();
    }
    let fetch = |name: &str| headers.get(name).map(|value| value.as_bytes());
    match fetch("sec-fetch-site") {
        Some(b"same-origin") => true,
        // A neighbour's page may lead a visitor here, but not pull scripts, pictures or frames from here.
        Some(b"same-site" | b"cross-site") => {
            *method == Method::GET
                && !is_upgrade
                && fetch("sec-fetch-mode") == Some(b"navigate")
                && fetch("sec-fetch-dest") == Some(b"document")
        }
        // Typed in by the visitor, or a client that does not tell.
        _ => !is_upgrade && matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS),
    }
}

/// Browsers leave the default port out.
fn as_browsers_write(origin: &str) -> &str {
    let default_port = if origin.starts_with("https://") { ":443" } else { ":80" };
    origin.strip_suffix(default_port).unwrap_or(origin)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const OWN: &str = "http://a.localhost:3000";

    fn check(method: Method, is_upgrade: bool, headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect();
        may_use_cookie(&method, is_upgrade, &headers, OWN)
    }

    #[test]
    fn origin__should_be_the_instances_own_when_it_is_given() {
        for method in [Method::GET, Method::POST] {
            assert!(check(method.clone(), false, &[("origin", OWN)]));
            for foreign in [
                "http://b.localhost:3000",
                "null",
                "https://a.localhost:3000",
                "http://a.localhost:30001",
                "",
            ] {
                let headers = [("origin", foreign), ("sec-fetch-site", "same-origin")];
                assert!(!check(method.clone(), false, &headers), "{method} {foreign}");
            }
        }
        let headers = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(OWN))]);
        let mut twice = headers.clone();
        twice.append(ORIGIN, HeaderValue::from_static("http://b.localhost:3000"));
        assert!(!may_use_cookie(&Method::GET, false, &twice, OWN));
    }

    #[test]
    fn origin__should_be_given_for_what_can_change_something() {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            assert!(check(method.clone(), false, &[]));
            assert!(!check(method, true, &[]));
        }
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            assert!(!check(method.clone(), false, &[]));
            assert!(!check(method.clone(), false, &[("sec-fetch-site", "same-site")]));
            assert!(check(method, false, &[("sec-fetch-site", "same-origin")]));
        }
        assert!(check(Method::GET, true, &[("origin", OWN)]));
    }

    #[test]
    fn neighbour__should_only_lead_visitors_here() {
        for site in ["same-site", "cross-site"] {
            let with = |mode, destination| {
                [
                    ("sec-fetch-site", site),
                    ("sec-fetch-mode", mode),
                    ("sec-fetch-dest", destination),
                ]
            };
            assert!(check(Method::GET, false, &with("navigate", "document")));
            for (mode, destination) in [
                ("no-cors", "script"),
                ("no-cors", "image"),
                ("navigate", "iframe"),
                ("cors", "empty"),
            ] {
                assert!(
                    !check(Method::GET, false, &with(mode, destination)),
                    "{site} {mode} {destination}"
                );
            }
            assert!(!check(Method::GET, false, &[("sec-fetch-site", site)]));
        }
        assert!(check(Method::GET, false, &[("sec-fetch-site", "none")]));
    }

    #[test]
    fn origin__should_match_without_its_default_port() {
        assert_eq!(as_browsers_write("https://a.example.com:443"), "https://a.example.com");
        assert_eq!(as_browsers_write("http://a.example.com:443"), "http://a.example.com:443");
        assert_eq!(as_browsers_write("http://a.example.com:80"), "http://a.example.com");
    }
}

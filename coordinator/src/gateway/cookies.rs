//! Our cookie among the agent's own: read and removed on the way in, protected on the way out.

use http::{
    HeaderMap, HeaderValue,
    header::{COOKIE, SET_COOKIE},
};

use super::ticket::LIFE;

const PLAIN: &str = "crabshack_gateway";
/// Browsers take a cookie of this prefix only from its own host over https, so that no neighbour
/// under the same zone can plant one.
const OF_HOST: &str = "__Host-crabshack_gateway";

/// The cookie that carries a ticket, for browsers that see the instance under `origin`.
pub(super) fn set(origin: &str, ticket: &str) -> String {
    let (name, secure) = if is_https(origin) {
        (OF_HOST, "; Secure")
    } else {
        (PLAIN, "")
    };
    let life = LIFE.as_secs();
    format!("{name}={ticket}; Path=/; Max-Age={life}; HttpOnly; SameSite=Lax{secure}")
}

/// Every ticket that a request carries: a neighbour may have planted a wrong one beside ours.
pub(super) fn tickets<'a>(headers: &'a HeaderMap, origin: &str) -> impl Iterator<Item = &'a str> {
    let ours = if is_https(origin) { OF_HOST } else { PLAIN };
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(move |cookie| {
            let (name, value) = cookie.split_once('=')?;
            (name.trim() == ours).then(|| value.trim())
        })
}

/// Takes our cookies off a request; the agent's stay byte for byte.
pub(super) fn strip_ours(headers: &mut HeaderMap) {
    if !headers.get_all(COOKIE).iter().any(|value| mentions_ours(value.as_bytes())) {
        return;
    }
    let values: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    headers.remove(COOKIE);
    for value in values {
        let kept: Vec<&[u8]> = value
            .as_bytes()
            .split(|byte| *byte == b';')
            .filter(|cookie| !is_ours(cookie))
            .map(<[u8]>::trim_ascii)
            .filter(|cookie| !cookie.is_empty())
            .collect();
        // Parts of a valid value, joined by `; `, are a valid value.
        if !kept.is_empty()
            && let Ok(value) = HeaderValue::from_bytes(&kept.join(&b"; "[..]))
        {
            headers.append(COOKIE, value);
        }
    }
}

/// An agent may set cookies for its own host only, and never ours.
pub(super) fn confine(headers: &mut HeaderMap) {
    if !headers.contains_key(SET_COOKIE) {
        return;
    }
    let values: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().cloned().collect();
    headers.remove(SET_COOKIE);
    for value in values {
        if let Some(value) = confined(value) {
            headers.append(SET_COOKIE, value);
        }
    }
}

fn confined(value: HeaderValue) -> Option<HeaderValue> {
    let parts: Vec<&[u8]> = value.as_bytes().split(|byte| *byte == b';').collect();
    if parts.first().is_some_and(|cookie| is_ours(cookie)) {
        return None;
    }
    let kept: Vec<&[u8]> = parts
        .iter()
        .enumerate()
        .filter(|(place, part)| *place == 0 || !name_of(part).eq_ignore_ascii_case(b"domain"))
        .map(|(_, part)| *part)
        .collect();
    if kept.len() == parts.len() {
        Some(value)
    } else {
        HeaderValue::from_bytes(&kept.join(&b';')).ok()
    }
}

fn mentions_ours(value: &[u8]) -> bool {
    value.split(|byte| *byte == b';').any(is_ours)
}

/// Also for `=crabshack_gateway=x`: browsers keep that as a nameless cookie and send it back as
/// `crabshack_gateway=x`.
fn is_ours(cookie: &[u8]) -> bool {
    let mut cookie = cookie.trim_ascii();
    while let Some(rest) = cookie.strip_prefix(b"=") {
        cookie = rest.trim_ascii();
    }
    let name = name_of(cookie);
    name == PLAIN.as_bytes() || name == OF_HOST.as_bytes()
}

fn name_of(part: &[u8]) -> &[u8] {
    part.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii()
}

fn is_https(origin: &str) -> bool {
    origin.starts_with("https://")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &str = "http://a.localhost:3000";

    fn headers(name: http::HeaderName, values: &[&str]) -> HeaderMap {
        values
            .iter()
            .map(|value| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn all(headers: &HeaderMap, name: http::HeaderName) -> Vec<&str> {
        headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn set__should_be_bound_to_the_host_and_hidden_from_scripts() {
        let plain = set(ORIGIN, "t");
        assert!(
            plain.starts_with("crabshack_gateway=t; Path=/; Max-Age=604800; HttpOnly; SameSite=Lax"),
            "{plain}"
        );
        assert!(!plain.contains("Secure") && !plain.contains("Domain"), "{plain}");
        let secure = set("https://a.example.com", "t");
        assert!(
            secure.starts_with("__Host-crabshack_gateway=t; Path=/;") && secure.ends_with("; Secure"),
            "{secure}"
        );
    }

    #[test]
    fn tickets__should_be_found_in_every_cookie_header() {
        let headers = headers(
            COOKIE,
            &[
                "a=1; crabshack_gateway=one",
                "crabshack_gateway=two;b=2",
                "xcrabshack_gateway=no",
            ],
        );
        assert_eq!(tickets(&headers, ORIGIN).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(tickets(&headers, "https://a.example.com").count(), 0);
    }

    #[test]
    fn strip_ours__should_keep_the_cookies_of_the_agent() {
        let mut mixed = headers(COOKIE, &["a=1; crabshack_gateway=t; b=\"2=3\"", "__Host-crabshack_gateway=t"]);
        strip_ours(&mut mixed);
        assert_eq!(all(&mixed, COOKIE), ["a=1; b=\"2=3\""]);
        let mut theirs = headers(COOKIE, &["a=1;b=2"]);
        strip_ours(&mut theirs);
        assert_eq!(all(&theirs, COOKIE), ["a=1;b=2"]);
    }

    #[test]
    fn confine__should_remove_domains_and_cookies_with_our_name() {
        let mut answer = headers(
            SET_COOKIE,
            &[
                "s=1; Domain=localhost; Path=/; HttpOnly",
                "domain=x; Path=/",
                "crabshack_gateway=evil",
                "=crabshack_gateway=evil",
                "__Host-crabshack_gateway=evil; Path=/; Secure",
                "t=2;DOMAIN =.example.com;Secure",
            ],
        );
        confine(&mut answer);
        assert_eq!(
            all(&answer, SET_COOKIE),
            ["s=1; Path=/; HttpOnly", "domain=x; Path=/", "t=2;Secure"]
        );
    }
}

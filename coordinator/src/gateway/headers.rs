//! Headers on their way through: what concerns one connection only is taken off, what an agent may
//! believe about the visitor is said by us alone.

use std::net::{IpAddr, Ipv4Addr};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        CONNECTION, EXPECT, HOST, ORIGIN, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};

use super::upstream::Upstream;

const HOP_BY_HOP: [HeaderName; 10] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Headers by which proxies tell who is asking. From a visitor they are claims.
const CLAIMS: [&str; 5] = ["forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "remote-user"];
const CLAIM_PREFIXES: [&str; 5] = ["x-forwarded-", "x-openclaw-", "x-auth-request-", "x-remote-", "cf-"];

/// Stands for a visitor on this machine: OpenClaw attributes nothing to a loopback address. From
/// the block that is reserved for documentation, so it is nobody's.
const LOCAL_VISITOR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Takes off what is meant for one connection only, including what `Connection` lists.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect();
    for name in listed.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Takes off what a visitor says about who and where it is.
pub(super) fn strip_claims(headers: &mut HeaderMap) {
    let claims: Vec<HeaderName> = headers.keys().filter(|name| is_claim(name.as_str())).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
    // Answered here: the server above us sends 100 when the body is first read.
    headers.remove(EXPECT);
}

fn is_claim(name: &str) -> bool {
    // Some servers read `_` as `-`.
    let folded = name.replace('_', "-");
    CLAIMS.contains(&folded.as_str()) || CLAIM_PREFIXES.iter().any(|prefix| folded.starts_with(prefix))
}

/// Says who is asking, and under which address the instance is seen. Host, proxy headers and
/// Origin all name the instance's one public origin, whatever way the visitor came.
pub(super) fn introduce(headers: &mut HeaderMap, client: IpAddr, origin: &str, upstream: &Upstream) {
    let (scheme, authority) = origin.split_once("://").unwrap_or(("http", origin));
    let client = client.to_canonical();
    let client = if client.is_loopback() || client.is_unspecified() {
        LOCAL_VISITOR
    } else {
        client
    };
    let mut say = |name: HeaderName, text: &str| {
        // Addresses, and parts of an origin that was a URL, are always valid values.
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    say(HeaderName::from_static("x-forwarded-for"), &client.to_string());
    say(HeaderName::from_static("x-forwarded-proto"), scheme);
    say(HeaderName::from_static("x-forwarded-host"), authority);
    say(HOST, authority);
    let own = upstream.origin.clone().or_else(|| HeaderValue::from_str(origin).ok());
    if headers.contains_key(ORIGIN)
        && let Some(value) = own
    {
        headers.insert(ORIGIN, value);
    }
    if let Some((name, value)) = &upstream.identity {
        headers.insert(name.clone(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use crabshack_shared::{instance::ServiceType, secret::Secret, services::Profile};

    use super::*;

    fn upstream(service_type: &str, profile: Profile) -> Upstream {
        let token = Secret::from("the-agents-own".to_owned());
        Upstream::of(&ServiceType::new(service_type), profile, &token)
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn hop_by_hop__should_be_stripped_with_everything_that_connection_lists() {
        let mut mixed = headers(&[
            ("connection", "keep-alive, X-Secret-Hop"),
            ("connection", "Upgrade"),
            ("keep-alive", "timeout=5"),
            ("x-secret-hop", "1"),
            ("upgrade", "websocket"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("sec-websocket-key", "kept"),
        ]);
        strip_hop_by_hop(&mut mixed);
        assert_eq!(mixed, headers(&[("sec-websocket-key", "kept")]));
    }

    #[test]
    fn claims__should_be_stripped_in_every_spelling() {
        let mut mixed = headers(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-user", "root"),
            ("x_forwarded_user", "root"),
            ("forwarded", "for=1.2.3.4"),
            ("x-real-ip", "1.2.3.4"),
            ("x-openclaw-scopes", "operator.admin"),
            ("cf-connecting-ip", "1.2.3.4"),
            ("remote_user", "root"),
            ("expect", "100-continue"),
            ("x-custom", "kept"),
        ]);
        strip_claims(&mut mixed);
        assert_eq!(mixed, headers(&[("x-custom", "kept")]));
    }

    #[test]
    fn introduce__should_name_the_visitor_and_the_one_origin() {
        let upstream = upstream(ServiceType::OPENCLAW, Profile::Strict);
        let mut request = headers(&[("host", "A.localhost:9999"), ("origin", "http://elsewhere.example")]);
        introduce(
            &mut request,
            "127.0.0.1".parse().unwrap(),
            "https://a.example.com:8443",
            &upstream,
        );
        assert_eq!(
            request,
            headers(&[
                ("host", "a.example.com:8443"),
                ("origin", "https://a.example.com:8443"),
                ("x-forwarded-for", "192.0.2.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "a.example.com:8443"),
                ("x-forwarded-user", "crabshack-owner"),
            ])
        );
        for (client, said) in [
            ("::1", "192.0.2.1"),
            ("::ffff:127.0.0.1", "192.0.2.1"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
        ] {
            let mut request = HeaderMap::new();
            introduce(&mut request, client.parse().unwrap(), "http://a.localhost:3000", &upstream);
            assert_eq!(request["x-forwarded-for"], said);
            assert!(!request.contains_key(ORIGIN));
        }
    }

    #[test]
    fn introduce__should_show_an_agent_its_own_token_and_no_other() {
        let visit = |upstream: &Upstream| {
            let mut request = headers(&[
                ("authorization", "Bearer visitors-own"),
                ("origin", "http://a.localhost:3000"),
            ]);
            introduce(
                &mut request,
                "203.0.113.9".parse().unwrap(),
                "http://a.localhost:3000",
                upstream,
            );
            ["authorization", "origin"].map(|name| request[name].to_str().unwrap().to_owned())
        };
        assert_eq!(
            visit(&upstream("ironclaw", Profile::Strict)),
            ["Bearer the-agents-own", "http://localhost"],
            "it lets in pages of its own machine only"
        );
        let compatible = visit(&upstream("openclaw", Profile::Compatible));
        assert_eq!(compatible, ["Bearer the-agents-own", "http://a.localhost:3000"]);
        assert_eq!(visit(&upstream("openclaw", Profile::Strict))[0], "Bearer visitors-own");
    }

    #[test]
    fn introduce__should_give_no_identity_to_a_service_type_that_wants_none() {
        let mut request = HeaderMap::new();
        let upstream = upstream("other", Profile::Strict);
        introduce(
            &mut request,
            "203.0.113.9".parse().unwrap(),
            "http://a.localhost:3000",
            &upstream,
        );
        assert!(!request.contains_key("x-forwarded-user"));
    }
}

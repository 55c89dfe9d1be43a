//! Asks a registry for a manifest, by the distribution API: with a login when there is one, and with
//! the token that most registries want fetched elsewhere.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use crabshack_shared::{
    image::{DEFAULT_REGISTRY, ImageReference},
    secret::Secret,
};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT, AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE},
};
use reqwest::{Client, Response, Url};
use serde::Deserialize;

use super::manifest::{self, Found, Manifest};

/// The registry behind the name that everybody uses for it.
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";
/// The largest manifest, configuration or token.
const LIMIT: usize = 4 << 20;
const DIGEST_HEADER: &str = "docker-content-digest";

/// Why a registry gave no manifest that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryError {
    #[error("the registry does not have it")]
    NotFound,
    #[error("the registry does not let us pull it: it does not exist there, or needs another login (PUT /registries/{{host}})")]
    Refused,
    #[error("the registry limits how often it is asked")]
    Limited { retry_after: Option<u32> },
    #[error("the registry does not answer within {} s", .0.as_secs())]
    Slow(Duration),
    #[error("the registry cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    #[error("the registry answered {0}")]
    Status(StatusCode),
    #[error("the registry's answer is not of a form that can be used: {0}")]
    Odd(&'static str),
    #[error("the registry gave a manifest with digest {found} where {said} was to come")]
    Lies { said: String, found: String },
}

impl From<reqwest::Error> for RegistryError {
    fn from(error: reqwest::Error) -> Self {
        Self::Unreachable(error)
    }
}

/// How to ask a registry.
#[derive(Debug)]
pub(super) struct Access {
    /// Without TLS.
    pub(super) plain_http: bool,
    /// Name and password.
    pub(super) login: Option<(String, Secret)>,
}

/// A registry on the same machine is spoken to without TLS, as Docker does.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

/// What a registry has under a reference.
pub(super) async fn look_up(http: &Client, image: &ImageReference, access: Access) -> Result<Found, RegistryError> {
    let location = image.location();
    let scheme = if access.plain_http { "http" } else { "https" };
    let host = if location.registry == DEFAULT_REGISTRY {
        DEFAULT_REGISTRY_HOST
    } else {
        &location.registry
    };
    let base = format!("{scheme}://{host}/v2/{}", location.repository);
    let mut session = Session {
        http,
        access,
        scope: format!("repository:{}:pull", location.repository),
        authorization: None,
    };
    let wanted = image.digest().or(location.tag.as_deref()).unwrap_or("latest");
    let response = session.get(&format!("{base}/manifests/{wanted}")).await?;
    let said = response.headers().get(DIGEST_HEADER).and_then(|value| value.to_str().ok());
    let said = image.digest().or(said).map(str::to_owned);
    let bytes = read(response).await?;
    let digest = verified(&bytes, said)?;
    let architectures = match manifest::read(&bytes) {
        Some(Manifest::Index(architectures)) => architectures,
        Some(Manifest::Image { configuration }) => {
            let bytes = read(session.get(&format!("{base}/blobs/{configuration}")).await?).await?;
            verified(&bytes, Some(configuration))?;
            manifest::architecture(&bytes).into_iter().collect()
        }
        None => return Err(RegistryError::Odd("the manifest is none of an image")),
    };
    Ok(Found { digest, architectures })
}

/// The digest of what came, if it is the one that was to come.
fn verified(bytes: &[u8], said: Option<String>) -> Result<String, RegistryError> {
    let found = manifest::digest(bytes);
    match said {
        Some(said) if said.starts_with("sha256:") && said != found => Err(RegistryError::Lies { said, found }),
        _ => Ok(found),
    }
}

/// One look-up: what opened the first request opens the second.
struct Session<'a> {
    http: &'a Client,
    access: Access,
    scope: String,
    authorization: Option<HeaderValue>,
}

impl Session<'_> {
    async fn get(&mut self, url: &str) -> Result<Response, RegistryError> {
        let mut response = self.send(url).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.authorization.is_none() {
            self.authorization = Some(self.authorize(response.headers()).await?);
            response = self.send(url).await?;
        }
        accept(response)
    }

    async fn send(&self, url: &str) -> Result<Response, RegistryError> {
        let mut request = self.http.get(url).header(ACCEPT, manifest::ACCEPTED);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        Ok(request.send().await?)
    }

    /// What the registry wants to see, from its challenge.
    async fn authorize(&self, headers: &HeaderMap) -> Result<HeaderValue, RegistryError> {
        let mut challenges = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?));
        match challenges.next() {
            Some(Challenge::Basic) => self.basic().ok_or(RegistryError::Refused),
            Some(Challenge::Bearer { realm, service }) => self.token(&realm, service.as_deref()).await,
            None => Err(RegistryError::Refused),
        }
    }

    fn basic(&self) -> Option<HeaderValue> {
        let (username, password) = self.access.login.as_ref()?;
        let text = STANDARD.encode(format!("{username}:{}", password.expose()));
        secret_header(&format!("Basic {text}"))
    }

    async fn token(&self, realm: &str, service: Option<&str>) -> Result<HeaderValue, RegistryError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<Secret>,
            access_token: Option<Secret>,
        }
        let mut url = Url::parse(realm).map_err(|_| RegistryError::Odd("its token service has no URL"))?;
        // The password goes there.
        if url.scheme() != "https" && !self.access.plain_http {
            return Err(RegistryError::Odd("its token service has no TLS"));
        }
        url.query_pairs_mut().append_pair("scope", &self.scope);
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut request = self.http.get(url);
        if let Some(basic) = self.basic() {
            request = request.header(AUTHORIZATION, basic);
        }
        let bytes = read(accept(request.send().await?)?).await?;
        let odd = RegistryError::Odd("its token service gave no token");
        let Ok(answer) = serde_json::from_slice::<Answer>(&bytes) else {
            return Err(odd);
        };
        let token = answer.token.or(answer.access_token);
        token
            .and_then(|token| secret_header(&format!("Bearer {}", token.expose())))
            .ok_or(odd)
    }
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn accept(response: Response) -> Result<Response, RegistryError> {
    match response.status() {
        status if status.is_success() => Ok(response),
        StatusCode::NOT_FOUND => Err(RegistryError::NotFound),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(RegistryError::Refused),
        StatusCode::TOO_MANY_REQUESTS => Err(RegistryError::Limited {
            retry_after: response
                .headers()
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.parse().ok()),
        }),
        status => Err(RegistryError::Status(status)),
    }
}

async fn read(mut response: Response) -> Result<Vec<u8>, RegistryError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > LIMIT {
            return Err(RegistryError::Odd("it is larger than 4 MiB"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// What a registry asks of who is not known.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// Reads `Bearer realm="https://...",service="..."`.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut realm = None;
        let mut service = None;
        let mut rest = rest.trim();
        while let Some((key, after)) = rest.split_once('=') {
            // A comma inside quotes belongs to the value.
            let (value, left) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after
                    .split_once(',')
                    .map_or((after, ""), |(value, _)| (value, &after[value.len()..])),
            };
            match key.trim().to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value.to_owned()),
                "service" => service = Some(value.to_owned()),
                _ => {}
            }
            rest = left.trim_start_matches([',', ' ']);
        }
        Some(Self::Bearer { realm: realm?, service })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenge__should_be_read_with_and_without_quotes() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
            })
        };
        let text = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        assert_eq!(
            Challenge::parse(text),
            bearer("https://auth.example/token", Some("registry.example"))
        );
        assert_eq!(
            Challenge::parse("bearer realm=https://x/token, service=y"),
            bearer("https://x/token", Some("y"))
        );
        assert_eq!(Challenge::parse(r#"BASIC realm="x""#), Some(Challenge::Basic));
        for odd in ["Digest x=y", "Bearer", r#"Bearer realm="x"#, r#"Bearer service="x""#] {
            assert_eq!(Challenge::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn registry__should_be_spoken_to_without_tls_on_this_machine_only() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["docker.io", "10.0.0.1:5000", "localhost.example:5000", "127.example.com"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn digest__should_be_that_of_what_came() {
        let digest = manifest::digest(b"x");
        assert_eq!(verified(b"x", Some(digest.clone())).unwrap(), digest);
        assert_eq!(verified(b"x", None).unwrap(), digest);
        assert!(matches!(verified(b"y", Some(digest)), Err(RegistryError::Lies { .. })));
    }
}

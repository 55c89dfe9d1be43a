//! The UI listener: a host `{name}.{zone}` leads to the instance of that name. By host and not by
//! path, so that each agent has an origin of its own and its absolute paths work.

use std::{net::SocketAddr, sync::Arc, time::SystemTime};

use axum::{
    body::Body,
    extract::{ConnectInfo, Request, State},
    response::{IntoResponse as _, Response},
};
use crabshack_shared::{
    instance::{InstanceName, InstanceStatus},
    secret::Secret,
    telemetry::Chain,
};
use http::{
    HeaderValue, Method, StatusCode,
    header::{CACHE_CONTROL, HOST, LOCATION, REFERRER_POLICY, SET_COOKIE},
    request::Parts,
};
use tracing::error;

use super::{
    Gateway, cookies,
    entry::{self, Entry},
    proxy::{Door, Visit},
    refusal::{self, Refusal},
    ticket::Scope,
    upgrade,
};
use crate::app::{App, GatewayTarget};

/// Answers everything that the UI listener gets for a host of an instance.
pub(crate) async fn serve(
    State(app): State<Arc<App>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let is_upgrade = upgrade::wanted(&parts).is_some();
    let wants_page = refusal::wants_page(&parts.method, is_upgrade, &parts.headers);
    let target = match host(&parts).and_then(|host| named_by(host, &app.settings.zone).ok_or(Refusal::UnknownHost)) {
        Ok(name) => app.gateway_target(&name).await.map_err(|error| {
            error!(%name, "gateway: the instance cannot be looked up: {}", Chain(&error));
            Refusal::Internal
        }),
        Err(refusal) => Err(refusal),
    };
    match target {
        Ok(target) => {
            let request = Request::from_parts(parts, body);
            answer(&app.gateway, &app.settings.admin_secret, target.as_ref(), client, request).await
        }
        Err(refusal) => refusal.answer(wants_page),
    }
}

/// Answers a request for the instance that its host names; `None`: no instance has that name.
pub(super) async fn answer(
    gateway: &Gateway,
    admin_secret: &Secret,
    target: Option<&GatewayTarget>,
    client: SocketAddr,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let is_upgrade = upgrade::wanted(&parts).is_some();
    let wants_page = refusal::wants_page(&parts.method, is_upgrade, &parts.headers);
    let now = SystemTime::now();
    let entry = entry::decide(&parts, is_upgrade, target, admin_secret, &gateway.tickets, now);
    let outcome = match (entry, target) {
        (Entry::Exchange { location }, Some(target)) => Ok(exchange(gateway, target, &location, now)),
        (Entry::Admitted { path, is_bearer }, Some(target)) => {
            let visit = Visit {
                client: client.ip(),
                door: Door::Host { is_bearer },
                path,
            };
            carry(gateway, target, visit, Request::from_parts(parts, body)).await
        }
        (Entry::Admitted { .. } | Entry::Exchange { .. }, None) => Err(Refusal::UnknownInstance),
        (Entry::ForeignOrigin, _) => Err(Refusal::ForeignOrigin),
        (Entry::Refused { had_token }, _) => Err(Refusal::Unauthorized { had_token }),
    };
    outcome.unwrap_or_else(|refusal| refusal.answer(wants_page))
}

/// Forwards if the instance can answer and the request can be forwarded.
pub(super) async fn carry(
    gateway: &Gateway,
    target: &GatewayTarget,
    visit: Visit,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    if request.method() == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    if !visit.path.as_str().starts_with('/') {
        return Err(Refusal::Malformed("the request's target must be a path"));
    }
    match target.status {
        InstanceStatus::Stopped => Err(Refusal::Stopped),
        InstanceStatus::Error => Err(Refusal::Failed),
        InstanceStatus::Creating | InstanceStatus::Running if !target.ready => Err(Refusal::Starting),
        InstanceStatus::Creating | InstanceStatus::Running => gateway.forward(target, visit, request).await,
    }
}

/// The cookie for the token, and the same page again.
fn exchange(gateway: &Gateway, target: &GatewayTarget, location: &str, now: SystemTime) -> Response {
    let scope = Scope {
        instance: target.id,
        origin: &target.origin,
        token: &target.token,
    };
    let cookie = cookies::set(&target.origin, &gateway.tickets.issue(scope, now));
    let mut response = StatusCode::SEE_OTHER.into_response();
    for (name, text) in [
        (LOCATION, location),
        (SET_COOKIE, &cookie),
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
    ] {
        match HeaderValue::from_str(text) {
            Ok(value) => response.headers_mut().insert(name, value),
            // A request's target may hold bytes that a header may not.
            Err(_) => return Refusal::Malformed("the request's target holds characters that must be encoded").answer(true),
        };
    }
    response
}

/// The host a request is for. Two different answers to that are how proxies get fooled.
fn host(parts: &Parts) -> Result<&str, Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let header = hosts.next().map(|host| host.to_str().unwrap_or_default());
    if hosts.next().is_some() {
        return Err(Refusal::Malformed("a request has one Host header"));
    }
    match (parts.uri.authority().map(|authority| authority.as_str()), header) {
        (Some(target), Some(header)) if !target.eq_ignore_ascii_case(header) => {
            Err(Refusal::Malformed("the request's target and its Host header differ"))
        }
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(Refusal::Malformed("a request has a Host header")),
    }
}

/// The name in `{name}.{zone}`, with any port and in any case.
fn named_by(host: &str, zone: &str) -> Option<InstanceName> {
    let host = match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        Some(_) => return None,
        None => host,
    };
    let (label, parent) = host.split_once('.')?;
    parent
        .eq_ignore_ascii_case(zone)
        .then(|| label.to_ascii_lowercase().parse().ok())?
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn host__should_name_an_instance_under_the_zone_only() {
        let named = |host, zone| named_by(host, zone).map(|name| name.to_string());
        for host in ["agent-1.localhost", "agent-1.localhost:3000", "AGENT-1.LocalHost:1"] {
            assert_eq!(named(host, "localhost").as_deref(), Some("agent-1"), "{host}");
        }
        assert_eq!(named("a.agents.example.com:8443", "Agents.example.com").as_deref(), Some("a"));
        for host in [
            "",
            "localhost",
            "localhost:3000",
            ".localhost",
            "a.b.localhost",
            "a.localhost.",
            "a.localhost:x",
            "a.localhost.example.com",
            "a.notlocalhost",
            "user@a.localhost",
            "-a.localhost",
            "api.localhost",
            "127.0.0.1:3000",
            "[::1]:3000",
            "a_b.localhost",
        ] {
            assert_eq!(named(host, "localhost"), None, "{host}");
        }
    }

    #[test]
    fn host__should_be_said_once() {
        let host_of = |request: http::request::Builder| host(&request.body(()).unwrap().into_parts().0).map(str::to_owned);
        assert_eq!(
            host_of(Request::get("/").header(HOST, "a.localhost")),
            Ok("a.localhost".to_owned())
        );
        let absolute = || Request::get("http://a.localhost:3000/x");
        assert_eq!(host_of(absolute()), Ok("a.localhost:3000".to_owned()));
        assert_eq!(
            host_of(absolute().header(HOST, "A.localhost:3000")),
            Ok("a.localhost:3000".to_owned())
        );
        assert!(host_of(absolute().header(HOST, "b.localhost:3000")).is_err());
        assert!(host_of(Request::get("/").header(HOST, "a").header(HOST, "a")).is_err());
        assert!(host_of(Request::get("/")).is_err());
    }
}

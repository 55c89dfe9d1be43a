//! `ANY /gateway/{name}/*` of the public API: programs that hold an API credential talk to an
//! agent's own API. The credential was checked before and is not passed on.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    response::Response,
};
use crabshack_shared::{instance::InstanceName, telemetry::Chain};
use http::{Uri, uri::PathAndQuery};
use tracing::error;

use super::{
    host,
    proxy::{Door, Visit},
    refusal::Refusal,
};
use crate::app::App;

const PREFIX: &str = "/gateway/";

/// Forwards what follows the name, byte for byte.
pub(crate) async fn serve(State(app): State<Arc<App>>, request: Request) -> Response {
    pass(&app, request).await.unwrap_or_else(|refusal| refusal.answer(false))
}

async fn pass(app: &App, request: Request) -> Result<Response, Refusal> {
    let (name, path) = split(request.uri()).ok_or(Refusal::UnknownInstance)?;
    let target = app.gateway_target(&name).await.map_err(|error| {
        error!(%name, "gateway: the instance cannot be looked up: {}", Chain(&error));
        Refusal::Internal
    })?;
    let visit = Visit {
        client: client(&request),
        door: Door::Api,
        path,
    };
    host::carry(&app.gateway, &target.ok_or(Refusal::UnknownInstance)?, visit, request).await
}

fn client(request: &Request) -> IpAddr {
    match request.extensions().get::<ConnectInfo<SocketAddr>>() {
        Some(ConnectInfo(client)) => client.ip(),
        // A listener that does not say is on loopback.
        None => Ipv4Addr::LOCALHOST.into(),
    }
}

/// The name, and what is asked of the agent.
fn split(uri: &Uri) -> Option<(InstanceName, PathAndQuery)> {
    let rest = uri.path_and_query()?.as_str().strip_prefix(PREFIX)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    let path = if rest.starts_with('/') {
        PathAndQuery::try_from(rest)
    } else {
        PathAndQuery::try_from(format!("/{rest}"))
    };
    Some((name.parse().ok()?, path.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path__should_be_passed_byte_for_byte() {
        for (target, path) in [
            ("/gateway/a", "/"),
            ("/gateway/a/", "/"),
            ("/gateway/a?x=1", "/?x=1"),
            ("/gateway/a/v1/x%2Fy?q=%20&&", "/v1/x%2Fy?q=%20&&"),
            ("/gateway/a//../%2e%2e/gateway/b", "//../%2e%2e/gateway/b"),
            ("http://127.0.0.1:7700/gateway/a/x", "/x"),
        ] {
            let (name, passed) = split(&target.parse().unwrap()).unwrap();
            assert_eq!((name.as_str(), passed.as_str()), ("a", path), "{target}");
        }
    }

    #[test]
    fn path__should_name_an_instance() {
        for target in [
            "/gateway",
            "/gateway/",
            "/gateway//x",
            "/gateway/%61/x",
            "/gateway/../x",
            "/gateway/A/x",
        ] {
            assert!(split(&target.parse().unwrap()).is_none(), "{target}");
        }
    }
}

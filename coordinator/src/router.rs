//! Every route of every listener.

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{any, get, post, put},
};
use chrono::Utc;
use crabshack_shared::problem::{Code, Problem};
use http::{HeaderValue, StatusCode, header::DATE};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    agents::{enrol, orders, report, stopping},
    api::{health, images, instances, nodes, registries},
    app::App,
    auth, gateway,
};

/// The public API.
pub(crate) fn api(app: &Arc<App>) -> Router {
    let open = Router::new()
        .route("/health", get(health::health))
        .route("/metrics", get(health::metrics))
        // A browser sends no credential with a WebSocket: the ticket is one.
        .route("/instances/{name}/exec", get(instances::exec::attach));
    let admin = Router::new()
        .route("/instances", get(instances::list).post(instances::create))
        .route(
            "/instances/{name}",
            get(instances::show).patch(instances::patch::patch).delete(instances::delete),
        )
        .route("/instances/{name}/start", post(instances::start))
        .route("/instances/{name}/stop", post(instances::stop))
        .route("/instances/{name}/restart", post(instances::restart))
        .route("/instances/{name}/token/rotate", post(instances::patch::rotate_token))
        // Here the name is an id; the router wants one word for one place.
        .route("/instances/{name}/undelete", post(instances::deleted::undelete))
        .route("/instances/{name}/ssh", get(instances::ssh))
        .route("/instances/{name}/logs", get(instances::logs::logs))
        .route("/instances/{name}/exec", post(instances::exec::ask))
        .route("/instances/{name}/stats", get(instances::usage::stats))
        .route("/instances/{name}/events", get(instances::usage::events))
        .route("/images", get(images::list).post(images::add).delete(images::remove))
        .route("/images/resolve-digests", post(images::resolve))
        .route("/registries", get(registries::list))
        .route("/registries/{host}", put(registries::put).delete(registries::remove))
        .route("/nodes", get(nodes::list))
        .route("/nodes/join-token", post(nodes::join_token))
        .route("/nodes/{id}", get(nodes::show).delete(nodes::revoke))
        .route("/gateway/{name}", any(gateway::api::serve))
        .route("/gateway/{name}/", any(gateway::api::serve))
        .route("/gateway/{name}/{*path}", any(gateway::api::serve))
        .route_layer(middleware::from_fn_with_state(Arc::clone(app), auth::require_admin));
    finish(open.merge(admin), app, "api")
}

/// Browser traffic: the host says which instance, so there are no paths of ours.
pub(crate) fn ui(app: &Arc<App>) -> Router {
    Router::new()
        .fallback(gateway::host::serve)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(app))
}

/// What node agents call, over mutual TLS.
pub(crate) fn agents(app: &Arc<App>) -> Router {
    let routes = Router::new()
        .route("/v1/enrol", post(enrol::enrol))
        .route("/v1/renew", post(enrol::renew))
        .route("/v1/orders", get(orders::poll))
        .route("/v1/report", post(report::report))
        .route("/v1/stopping", post(stopping::stopping))
        .layer(middleware::map_response(dated));
    finish(routes, app, "agents")
}

fn finish(routes: Router<Arc<App>>, app: &Arc<App>, listener: &'static str) -> Router {
    let counting = Arc::clone(app);
    routes
        .fallback(async || Problem::not_found("there is no such route"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                Code::MethodNotAllowed,
                "this route does not know this method",
            )
        })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            count(Arc::clone(&counting), listener, request, next)
        }))
        // Bodies are bounded where they are read; what the gateway carries is not.
        .layer(DefaultBodyLimit::disable())
        .with_state(Arc::clone(app))
}

async fn count(app: Arc<App>, listener: &'static str, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let response = next.run(request).await;
    let route = route.as_ref().map_or("unknown", MatchedPath::as_str);
    app.metrics.count_request(listener, &method, route, response.status());
    response
}

/// Nodes compare their clock with this. The server would add one by itself, but keeps it while the clock
/// stands before it, so that a clock that was set back looks right for as long as that takes.
async fn dated(mut response: Response) -> Response {
    let now = Utc::now().format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    if let Ok(now) = HeaderValue::try_from(now) {
        response.headers_mut().insert(DATE, now);
    }
    response
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!("a handler panicked: {text}");
    Problem::internal().into_response()
}

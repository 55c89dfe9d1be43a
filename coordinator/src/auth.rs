//! Who may use the public API: for now whoever has the admin secret.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use crabshack_shared::problem::Problem;

use crate::app::App;

/// Lets in who shows the admin secret.
pub(crate) async fn require_admin(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match bearer(request.headers()) {
        Some(token) if app.settings.admin_secret.matches(token) => next.run(request).await,
        Some(_) => Problem::unauthorized("the bearer token is not known").into_response(),
        None => Problem::unauthorized("send `Authorization: Bearer TOKEN`").into_response(),
    }
}

/// The bearer token; the scheme may be in any case.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer__should_accept_any_case_and_nothing_else() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, http::HeaderValue::from_static(value));
            bearer(&headers).map(str::to_owned)
        };
        assert_eq!(of("Bearer x"), Some("x".to_owned()));
        assert_eq!(of("bEARER  x"), Some("x".to_owned()));
        assert_eq!(of("Basic x"), None);
        assert_eq!(of("Bearer"), None);
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}

//! The small pages a browser sees while there is no agent to talk to. One file, nothing loaded, and
//! only our own words in it.

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use http::{
    HeaderValue,
    header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY},
};

use super::refusal::Refusal;

const TEMPLATE: &str = include_str!("page.html");
const TOKEN_FORM: &str = r#"<form method="get">
<label>Token <input type="password" name="token" autocomplete="off" required></label>
<button>Open</button>
</form>"#;
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// The page for a refusal, with the status and `Retry-After` of its problem.
pub(super) fn of(refusal: Refusal) -> Response {
    let problem = refusal.problem();
    let form = if matches!(refusal, Refusal::Unauthorized { .. }) {
        TOKEN_FORM
    } else {
        ""
    };
    let html = render(title(refusal), &problem.to_string(), refusal.refresh(), form);
    let (mut parts, _) = problem.into_response().into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    for (name, value) in [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (REFERRER_POLICY, "no-referrer"),
        (CONTENT_SECURITY_POLICY, POLICY),
    ] {
        parts.headers.insert(name, HeaderValue::from_static(value));
    }
    Response::from_parts(parts, Body::from(html))
}

fn render(title: &str, text: &str, refresh: Option<u32>, form: &str) -> String {
    let refresh = refresh.map(|seconds| format!(r#"<meta http-equiv="refresh" content="{seconds}">"#));
    TEMPLATE
        .replace("{refresh}", &refresh.unwrap_or_default())
        .replace("{title}", title)
        .replace("{text}", text)
        .replace("{form}", form)
}

fn title(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownHost | Refusal::UnknownInstance => "Nothing here",
        Refusal::Unauthorized { .. } => "Token needed",
        Refusal::ForeignOrigin => "Not allowed",
        Refusal::Malformed(_) | Refusal::Connect => "Not understood",
        Refusal::Starting => "Starting…",
        Refusal::Stopped => "Stopped",
        Refusal::Failed => "Cannot run",
        Refusal::NodeUnreachable | Refusal::BrokenOff | Refusal::TooSlow => "Not reachable",
        Refusal::Internal => "Something went wrong",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page__should_look_again_only_while_something_can_change_by_itself() {
        let starting = render(title(Refusal::Starting), "x", Refusal::Starting.refresh(), "");
        assert!(starting.contains(r#"<meta http-equiv="refresh" content="3">"#));
        let stopped = render(title(Refusal::Stopped), "x", Refusal::Stopped.refresh(), "");
        assert!(!stopped.contains("http-equiv"));
        for placeholder in ["{refresh}", "{title}", "{text}", "{form}"] {
            assert!(
                TEMPLATE.contains(placeholder) && !stopped.contains(placeholder),
                "{placeholder}"
            );
        }
    }

    #[test]
    fn page__should_keep_the_status_of_its_problem() {
        let response = of(Refusal::Starting);
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "3");
        assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
        assert_eq!(of(Refusal::Unauthorized { had_token: false }).status(), 401);
    }
}

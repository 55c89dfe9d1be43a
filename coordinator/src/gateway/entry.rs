//! Who may come in by an instance's host: whoever shows the instance's token (in the URL once, or
//! as a bearer), the admin secret as a bearer, or the cookie that was given for the token.

use std::time::SystemTime;

use crabshack_shared::secret::Secret;
use http::{Method, request::Parts, uri::PathAndQuery};

use super::{
    cookies, origin,
    ticket::{Scope, TicketKey},
};
use crate::{app::GatewayTarget, auth::bearer};

/// What to do with a visitor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Let in, with what is passed on of the request's target.
    Admitted {
        /// The request's target without our token.
        path: PathAndQuery,
        /// True when `Authorization` holds a credential of ours, which is not passed on.
        is_bearer: bool,
    },
    /// Showed the token while opening a page: gets the cookie and the same URL without the token.
    Exchange {
        /// Path and query without our token; never another host.
        location: String,
    },
    /// Has the cookie, but acts for another web page.
    ForeignOrigin,
    /// Has nothing, or something wrong.
    Refused {
        /// True when a token was shown.
        had_token: bool,
    },
}

/// Decides. An explicit credential counts before the cookie; a `token` parameter that is not ours
/// is the agent's own business once somebody is let in by other means. A target of `None` is a name
/// that no instance has: that must not be told to strangers.
pub(super) fn decide(
    parts: &Parts,
    is_upgrade: bool,
    target: Option<&GatewayTarget>,
    admin_secret: &Secret,
    tickets: &TicketKey,
    now: SystemTime,
) -> Entry {
    let whole = parts
        .uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    let is_bearer = bearer(&parts.headers)
        .is_some_and(|shown| admin_secret.matches(shown) || target.is_some_and(|target| target.token.matches(shown)));
    let shown = token_in(&whole);
    if let (Some(target), Some(shown)) = (target, shown)
        && target.token.matches(shown)
    {
        let path = without_token(&whole);
        return if opens_a_page(parts, is_upgrade) {
            Entry::Exchange {
                location: on_this_host(&path),
            }
        } else {
            Entry::Admitted { path, is_bearer }
        };
    }
    if is_bearer {
        return Entry::Admitted { path: whole, is_bearer };
    }
    let has_cookie = target.is_some_and(|target| {
        let scope = Scope {
            instance: target.id,
            origin: &target.origin,
            token: &target.token,
        };
        cookies::tickets(&parts.headers, &target.origin).any(|ticket| tickets.admits(ticket, scope, now))
    });
    match target {
        Some(target) if has_cookie => {
            if origin::may_use_cookie(&parts.method, is_upgrade, &parts.headers, &target.origin) {
                Entry::Admitted { path: whole, is_bearer }
            } else {
                Entry::ForeignOrigin
            }
        }
        _ => Entry::Refused {
            had_token: shown.is_some(),
        },
    }
}

/// The first `token` parameter. Tokens are hex digits, so nobody has a reason to encode one.
fn token_in(path: &PathAndQuery) -> Option<&str> {
    path.query()?.split('&').find_map(|pair| pair.strip_prefix("token="))
}

fn without_token(path: &PathAndQuery) -> PathAndQuery {
    let kept: Vec<&str> = path
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| *pair != "token" && !pair.starts_with("token="))
        .collect();
    let text = if kept.is_empty() {
        path.path().to_owned()
    } else {
        format!("{}?{}", path.path(), kept.join("&"))
    };
    // What is left of a valid target is one.
    PathAndQuery::try_from(text).unwrap_or_else(|_| PathAndQuery::from_static("/"))
}

/// A browser that follows a link, or a client that does not say what it does.
fn opens_a_page(parts: &Parts, is_upgrade: bool) -> bool {
    parts.method == Method::GET && !is_upgrade && parts.headers.get("sec-fetch-mode").is_none_or(|mode| mode == "navigate")
}

/// A `Location` that starts with `//` or `/\` would name another host.
fn on_this_host(path: &PathAndQuery) -> String {
    let text = path.as_str();
    if text.starts_with("//") || text.starts_with("/\\") {
        format!("/.{text}")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests;

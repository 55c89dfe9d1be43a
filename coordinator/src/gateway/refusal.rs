//! What is answered when a request is not carried to its agent: a page for browsers, a problem for
//! everything else.

use axum::response::{IntoResponse as _, Response};
use crabshack_shared::problem::{Code, Problem};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT, WWW_AUTHENTICATE},
};

use super::page;
use crate::agents::connect::ConnectError;

/// Seconds after which somebody who waits for a start should look again.
const SOON: u32 = 3;
/// The same for somebody who waits for a person.
const LATER: u32 = 30;

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The host is not one of an instance.
    UnknownHost,
    /// No instance has this name; only said to who may know.
    UnknownInstance,
    /// Nothing shown that lets in.
    Unauthorized {
        /// A token was shown, but not this instance's.
        had_token: bool,
    },
    /// The cookie came with another web page's request.
    ForeignOrigin,
    /// The request is not one that can be forwarded; says why.
    Malformed(&'static str),
    /// The method is not forwarded.
    Connect,
    /// The instance does not answer yet.
    Starting,
    /// The instance is stopped.
    Stopped,
    /// The instance needs a person.
    Failed,
    /// The node cannot be reached, or does not do its part.
    NodeUnreachable,
    /// The instance broke off before it answered.
    BrokenOff,
    /// The instance took the request and stays silent.
    TooSlow,
    /// Our fault.
    Internal,
}

impl Refusal {
    /// As a problem.
    pub(super) fn problem(self) -> Problem {
        match self {
            Self::UnknownHost => {
                Problem::not_found("no instance has this address: it is `{name}.{zone}`, as the instance's URL says")
            }
            Self::UnknownInstance => Problem::not_found("there is no instance of this name"),
            Self::Unauthorized { had_token: true } => {
                Problem::unauthorized("this token is wrong or no longer good: take the link from the instance's details again")
            }
            Self::Unauthorized { had_token: false } => {
                Problem::unauthorized("open the instance by its link, which holds its token, or send the token as a bearer")
            }
            Self::ForeignOrigin => Problem::forbidden(
                "another web page may not act for you here: requests by cookie must come from the instance's own origin",
            ),
            Self::Malformed(why) => Problem::invalid(why),
            Self::Connect => Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                Code::MethodNotAllowed,
                "CONNECT is not carried to instances",
            ),
            Self::Starting => Problem::unavailable(Code::NotReady, "the instance is starting", SOON),
            Self::Stopped => Problem::unavailable(Code::Stopped, "the instance is stopped: start it first", LATER),
            Self::Failed => Problem::unavailable(
                Code::Unreachable,
                "the instance cannot run: its details and its log say why",
                LATER,
            ),
            Self::NodeUnreachable => Problem::unreachable("the node of this instance cannot be reached"),
            Self::BrokenOff => Problem::unreachable("the instance broke off before it answered"),
            Self::TooSlow => Problem::new(
                StatusCode::GATEWAY_TIMEOUT,
                Code::Unreachable,
                "the instance took the request, but does not answer",
            ),
            Self::Internal => Problem::internal(),
        }
    }

    /// As browsers or programs read it.
    pub(super) fn answer(self, wants_page: bool) -> Response {
        let mut response = if wants_page {
            page::of(self)
        } else {
            self.problem().into_response()
        };
        if matches!(self, Self::Unauthorized { .. }) {
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }

    /// Seconds after which a page looks again by itself.
    pub(super) fn refresh(self) -> Option<u32> {
        match self {
            Self::Starting => Some(SOON),
            Self::NodeUnreachable => Some(LATER),
            _ => None,
        }
    }
}

impl From<&ConnectError> for Refusal {
    fn from(error: &ConnectError) -> Self {
        match error {
            ConnectError::Unreachable { .. } | ConnectError::BrokenOff { .. } | ConnectError::Refused { .. } => {
                Self::NodeUnreachable
            }
            // It was ready a moment ago: it is on its way down, or up again.
            ConnectError::NotHere { .. } | ConnectError::NotAnswering { .. } => Self::Starting,
        }
    }
}

/// True for a browser that opens a page.
pub(super) fn wants_page(method: &Method, is_upgrade: bool, headers: &HeaderMap) -> bool {
    !is_upgrade
        && (method == Method::GET || method == Method::HEAD || method == Method::POST)
        && headers
            .get_all(ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|accepted| accepted.contains("text/html"))
}

//! Error bodies: `{"error","code"}` everywhere, the code stable, the text for people.

use std::fmt;

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

/// What went wrong, in words that programs may rely on. Codes are added, never renamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is not of the documented form.
    InvalidRequest,
    /// No credential, or one that is not known.
    Unauthorized,
    /// Known, but not allowed.
    Forbidden,
    /// There is no such thing, or the caller may not know of it.
    NotFound,
    /// The route exists, but not with this method.
    MethodNotAllowed,
    /// The name belongs to a living instance.
    NameTaken,
    /// The state of the thing forbids it.
    Conflict,
    /// No node has room.
    NoCapacity,
    /// As many as are allowed at a time are there already.
    TooMany,
    /// The body is larger than the limit.
    TooLarge,
    /// The list of images does not hold it for this service type.
    ImageNotAllowed,
    /// Its registry does not have it, or does not give it to us.
    ImageNotFound,
    /// It cannot run on any node.
    ImageUnusable,
    /// Its registry does not answer as it should.
    RegistryFailed,
    /// The instance runs, but does not answer yet.
    NotReady,
    /// The instance is stopped.
    Stopped,
    /// The node or the instance cannot be reached.
    Unreachable,
    /// Our fault; the log says more.
    Internal,
}

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    status: StatusCode,
    code: Code,
    message: String,
    retry_after: Option<u32>,
}

impl Problem {
    /// A problem with any status.
    pub fn new(status: StatusCode, code: Code, message: impl Into<String>) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            retry_after: None,
        }
    }

    /// 400: says what is wrong with the request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Code::InvalidRequest, message)
    }

    /// 401.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, Code::Unauthorized, message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, Code::Forbidden, message)
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, Code::NotFound, message)
    }

    /// 409 with its own code.
    pub fn conflict(code: Code, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, message)
    }

    /// 429: the limit is reached.
    pub fn too_many(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, Code::TooMany, message)
    }

    /// 502: what stands behind us cannot be reached.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, Code::Unreachable, message)
    }

    /// 503 with `Retry-After` in seconds.
    pub fn unavailable(code: Code, message: impl Into<String>, retry_after: u32) -> Self {
        Self {
            retry_after: Some(retry_after),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
        }
    }

    /// 500. The cause belongs into the log, where it is handled, not into the answer.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, "Internal server error")
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The stable code.
    pub fn code(&self) -> Code {
        self.code
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: String,
            code: Code,
        }
        let mut response = (
            self.status,
            Json(Body {
                error: self.message,
                code: self.code,
            }),
        )
            .into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

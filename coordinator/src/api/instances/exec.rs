//! `POST /instances/{name}/exec` and the WebSocket that it leads to: commands in a running instance.
//!
//! Browsers cannot send a credential with a WebSocket, so the question is a request like every other,
//! and its answer a ticket that opens one WebSocket, once and soon. It may stand in a log: by then it
//! is of no use.
//!
//! | file | |
//! |---|---|
//! | `desk` | tickets, and how many commands run at a time |
//! | `session` | one WebSocket, from its ticket to its last message |
//! | `activity` | when a WebSocket has been quiet or open for too long |
//! | `audit` | who ran what, and how it ended |

mod activity;
mod audit;
mod desk;
mod session;

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{
        State,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use crabshack_shared::{
    agent_api::v1::Desired,
    exec::{PIECE_LIMIT, Request, Ticket},
    ids::UserId,
    problem::{Code, Problem},
    secret::Secret,
};
use http::StatusCode;
use serde::Deserialize;

pub(crate) use self::desk::Desk;
use self::desk::{Pending, TICKET_LIFE};
use super::view::{self, Found};
use crate::{
    api::{
        extract::{self, Named, Parameters, no_such_instance},
        internal,
    },
    app::{App, NodeDial},
    status,
};

/// Larger messages are not even read; between this and the limit of a piece they are refused in words.
const MESSAGE_LIMIT: usize = 16 * PIECE_LIMIT;
/// One read of what a client sends.
const READ_BUFFER: usize = 32 << 10;

/// `POST /instances/{name}/exec`: checks everything that can be checked, and answers a ticket.
pub(crate) async fn ask(
    State(app): State<Arc<App>>,
    Named(name): Named,
    body: Body,
) -> Result<(StatusCode, Json<Ticket>), Problem> {
    let request: Request = extract::optional(body).await?.unwrap_or_default();
    request.check()?;
    let found = view::find(&app, &name).map_err(internal)?;
    let found = found.ok_or_else(|| no_such_instance(&name))?;
    let node = place(&found)?;
    let token = app.store.secrets(&found.record).map_err(internal)?.token;
    let pending = Pending {
        instance: found.record.id,
        seats: app.exec.take_seats(found.record.id, &node.id)?,
        node: node.id,
        who: UserId::admin(),
        session: app.gateway.session(found.record.id, &token),
        name,
        request,
    };
    let path = format!("/instances/{}/exec?ticket=", pending.name);
    let ticket = app.exec.issue(pending);
    let answer = Ticket {
        path: path + ticket.expose(),
        ticket,
        expires_in: TICKET_LIFE.as_secs(),
    };
    Ok((StatusCode::CREATED, Json(answer)))
}

/// Parameters of the WebSocket.
#[derive(Debug, Deserialize)]
pub(crate) struct Shown {
    ticket: Option<Secret>,
}

/// `GET /instances/{name}/exec?ticket=...`, an upgrade to a WebSocket. What goes wrong from here on is
/// its last message, because browsers do not show the answer to an upgrade.
pub(crate) async fn attach(
    State(app): State<Arc<App>>,
    Named(name): Named,
    Parameters(Shown { ticket }): Parameters<Shown>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade =
        upgrade.map_err(|_| Problem::invalid("this is opened as a WebSocket, with a ticket from POST /instances/{name}/exec"))?;
    let ticket =
        ticket.ok_or_else(|| Problem::unauthorized("show a ticket, `?ticket=...`: POST /instances/{name}/exec answers one"))?;
    let pending = app.exec.redeem(&ticket, &name).ok_or_else(|| {
        Problem::unauthorized("this ticket has expired, was used already or is another instance's: ask for another one")
    })?;
    let tasks = app.shutdown.tasks.clone();
    Ok(upgrade
        .max_message_size(MESSAGE_LIMIT)
        .max_frame_size(MESSAGE_LIMIT)
        .read_buffer_size(READ_BUFFER)
        .on_upgrade(move |socket| tasks.track_future(session::run(app, pending, socket))))
}

/// The node on which a command could run now.
fn place(found: &Found) -> Result<NodeDial, Problem> {
    let status = status::of(&found.record, found.observation.as_ref(), true);
    if found.record.desired != Desired::Running {
        return Err(Problem::conflict(Code::Stopped, "the instance is stopped: start it first"));
    }
    let node = found.node.as_ref().and_then(|node| node.dial()).filter(|_| status.up);
    node.ok_or_else(|| {
        let text = format!(
            "the instance has no running container now ({}): try again when it is ready",
            status.phase
        );
        Problem::conflict(Code::NotReady, text)
    })
}

#[cfg(test)]
mod tests;

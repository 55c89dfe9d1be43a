//! The real OpenClaw: its image, and what its Control UI says first.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    client::stub,
    cluster::Cluster,
    dockerd::Dockerd,
    gateway::Browser,
    image,
    must::{self, PATIENCE},
};

/// A start takes 10 to 20 seconds on two processors.
const START: Duration = Duration::from_secs(120);

/// Name and settings of the image, as `infra/images/openclaw/build.sh` says.
pub async fn import(dockerd: &Dockerd) -> anyhow::Result<String> {
    let folder = image::repository().join("infra/images/openclaw");
    let ask = |argument: &str| crate::command::run(&format!("{} {argument}", folder.join("build.sh").display()));
    let name = ask("--print-name")?.trim().to_owned();
    let tar = ask("--tar-only")?;
    let tar = tar.trim().lines().last().context("no path of a tar was printed")?;
    let changes = ask("--print-changes")?;
    let changes: Vec<_> = changes.lines().collect();
    image::import(dockerd, tar.as_ref(), &name, &changes).await?;
    Ok(name)
}

/// A valid creation of a real instance.
pub fn request(name: &str, image: &str) -> Value {
    let mut body = stub(name);
    body["image"] = image.into();
    body["mem_limit"] = "2g".into();
    body["cpus"] = "2".into();
    body
}

/// Creates a real instance and shakes hands as the Control UI does.
pub async fn hello_ok(cluster: &Cluster<'_>, image: &str) -> anyhow::Result<bool> {
    timeout(START, cluster.client.create(&request("claw", image)))
        .await
        .context("OpenClaw does not start")??;
    let token = must::text(&cluster.client.instance("claw").await?, "token")?.to_owned();
    let mut visitor = cluster.browser("claw")?;
    visitor.log_in(&token).await?;
    let page = visitor.get("/", &[("accept", "text/html")]).await?;
    ensure!(
        page.status.is_success() && page.text.contains("<html"),
        "no Control UI: {page:?}"
    );
    let hello = connect(&visitor).await?;
    let scopes = hello["auth"]["scopes"].to_string();
    Ok(hello["type"] == "hello-ok" && scopes.contains("operator.admin"))
}

/// The handshake, repeated while OpenClaw says that it is still starting; the payload of the answer.
pub async fn connect(visitor: &Browser) -> anyhow::Result<Value> {
    let hello = must::eventually("the handshake", PATIENCE, async || {
        let answer = timeout(PATIENCE, shake_hands(visitor))
            .await
            .context("OpenClaw says nothing")??;
        Ok((answer["error"]["retryable"] != true).then_some(answer))
    })
    .await?;
    ensure!(hello["ok"] == true, "OpenClaw refused: {hello}");
    Ok(hello["payload"].clone())
}

/// One attempt; the whole answer frame.
async fn shake_hands(visitor: &Browser) -> anyhow::Result<Value> {
    let mut socket = visitor.websocket("/").await?;
    let request = json!({
        "type": "req", "id": "1", "method": "connect",
        "params": {
            "minProtocol": 4, "maxProtocol": 4, "role": "operator", "caps": ["tool-events"], "locale": "en",
            "scopes": ["operator.admin", "operator.read", "operator.write", "operator.approvals", "operator.questions", "operator.pairing"],
            // OpenClaw refuses a page of another build; `dev` passes as any.
            "client": {"id": "openclaw-control-ui", "version": "control-ui", "platform": "Linux x86_64", "mode": "webchat", "buildId": "dev"},
        },
    });
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message? else { continue };
        let frame: Value = serde_json::from_str(&text)?;
        if frame["event"] == "connect.challenge" {
            socket.send(Message::text(request.to_string())).await?;
        } else if frame["id"] == "1" {
            return Ok(frame);
        }
    }
    bail!("OpenClaw closed the connection")
}

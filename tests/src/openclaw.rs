//! The real OpenClaw: its image, and what its Control UI says first.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
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
    let changes = [
        "USER 1000:1000",
        "WORKDIR /home/agent",
        "ENV HOME=/home/agent",
        r#"ENTRYPOINT ["/usr/local/bin/crabshack-entrypoint"]"#,
    ];
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
pub async fn hello_ok(cluster: &Cluster<'_>) -> anyhow::Result<bool> {
    let image = import(&cluster.machine.dockerd).await?;
    tokio::time::timeout(START, cluster.client.create(&request("claw", &image)))
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

/// The handshake; returns the payload of the answer.
pub async fn connect(visitor: &Browser) -> anyhow::Result<Value> {
    let mut socket = visitor.websocket("/").await?;
    let request = json!({
        "type": "req", "id": "1", "method": "connect",
        "params": {
            "minProtocol": 4, "maxProtocol": 4, "role": "operator", "caps": [],
            "scopes": ["operator.admin", "operator.read", "operator.write", "operator.approvals", "operator.pairing"],
            "client": {"id": "openclaw-control-ui", "version": "control-ui", "platform": "Linux", "mode": "webchat"},
        },
    });
    let talking = async {
        while let Some(message) = socket.next().await {
            let Message::Text(text) = message? else { continue };
            let frame: Value = serde_json::from_str(&text)?;
            if frame["event"] == "connect.challenge" {
                socket.send(Message::text(request.to_string())).await?;
            } else if frame["id"] == "1" {
                ensure!(frame["ok"] == true, "OpenClaw refused: {frame}");
                return Ok(frame["payload"].clone());
            }
        }
        anyhow::bail!("OpenClaw closed the connection")
    };
    tokio::time::timeout(PATIENCE, talking)
        .await
        .context("OpenClaw says nothing")?
}

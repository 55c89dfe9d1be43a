//! `gateway`: live streams through the host route, and the real Control UI's handshake.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::tungstenite::Message;

use super::Figures;
use crate::{client::stub, cluster::Cluster, gateway::Browser, machine::Machine, must, openclaw};

const FRAME: usize = 25 << 20;

/// At full size: ten minutes of silence, and the real OpenClaw.
pub async fn figures(machine: &Machine) -> anyhow::Result<Figures> {
    let mut figures = Figures::default();
    let openclaw = openclaw::import(&machine.dockerd).await?;
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("figures")).await?;
        let token = must::text(&cluster.client.instance("figures").await?, "token")?.to_owned();
        let mut visitor = cluster.browser("figures")?;
        visitor.log_in(&token).await?;
        figures.add("sse_unbuffered", sse_unbuffered(&visitor).await.is_ok());
        figures.add("frame_25mib", frame_25mib(&visitor).await.is_ok());
        figures.add(
            "idle_websocket_10min",
            idle_websocket(&visitor, Duration::from_secs(600)).await.is_ok(),
        );
        figures.add("openclaw_hello_ok", openclaw::hello_ok(cluster, &openclaw).await?);
        Ok(())
    })
    .await?;
    Ok(figures)
}

/// Each event must arrive long before the next one is sent.
pub async fn sse_unbuffered(visitor: &Browser) -> anyhow::Result<()> {
    let began = Instant::now();
    let answer = visitor.request(reqwest::Method::GET, "/sse?n=5&ms=300", &[]).send().await?;
    let mut body = answer.bytes_stream();
    let mut arrivals = Vec::new();
    while let Some(chunk) = body.next().await {
        let events = String::from_utf8(chunk?.to_vec())?.matches("data:").count();
        arrivals.extend(std::iter::repeat_n(began.elapsed(), events));
    }
    ensure!(arrivals.len() == 5, "{} of 5 events", arrivals.len());
    for pair in arrivals.windows(2) {
        ensure!(
            pair[1] - pair[0] > Duration::from_millis(150),
            "buffered: they arrived after {arrivals:?}"
        );
    }
    Ok(())
}

/// One frame as large as OpenClaw's limit, there and back.
pub async fn frame_25mib(visitor: &Browser) -> anyhow::Result<()> {
    let mut socket = visitor.websocket("/ws").await?;
    let frame: Vec<u8> = (0..FRAME)
        .map(|index| u8::try_from(index % 251).unwrap_or_default())
        .collect();
    socket.send(Message::binary(frame.clone())).await?;
    let back = socket.next().await.context("no echo")??;
    ensure!(back.into_data() == frame, "the frame came back different");
    Ok(())
}

/// Says nothing for a while; the connection must still work.
pub async fn idle_websocket(visitor: &Browser, silence: Duration) -> anyhow::Result<()> {
    let mut socket = visitor.websocket("/ws").await?;
    for text in ["before", "after"] {
        socket.send(Message::text(text)).await?;
        ensure!(socket.next().await.context("it was closed")??.to_text()? == text);
        if text == "before" {
            tokio::time::sleep(silence).await;
        }
    }
    Ok(())
}

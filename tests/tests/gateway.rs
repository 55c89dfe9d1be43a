//! Browser traffic by host, and API traffic by path, against the stub behind the real data plane.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use crabshack_tests::{
    client::{Answer, stub, stub_with},
    cluster::{API, Cluster, SECRET, Who},
    gateway::{self, Browser, UI},
    machine::Machine,
    measure, must,
    must::{PATIENCE, become_true},
    suite,
};
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::Method;
use serde_json::Value;
use tokio_tungstenite::tungstenite::Message;

const HTML: gateway::Headers<'static> = &[("accept", "text/html")];

fn main() -> ExitCode {
    suite::run(|suite| {
        suite.test("entry__should_exchange_the_token_for_a_cookie", entry);
        suite.test("request__should_arrive_without_credentials_and_hop_by_hop_headers", headers);
        suite.test("cookies__should_lose_their_domain", cookies);
        suite.test("origin__should_be_the_instances_own", origin);
        suite.test("streams__should_flow_both_ways_without_limit", streams);
        suite.test("pages__should_say_that_it_starts_or_is_stopped", pages);
        suite.test("api_route__should_pass_path_and_query_as_they_are", api_route);
        suite.test("large_bodies__should_pass", large_bodies);
        suite.test("coordinator__should_reach_the_instance_again_after_a_crash", after_a_crash);
    })
}

/// An instance and a browser that is logged in.
async fn visitor(cluster: &Cluster<'_>, name: &str) -> anyhow::Result<(Browser, String)> {
    cluster.client.create(&stub(name)).await?;
    let token = must::text(&cluster.client.instance(name).await?, "token")?.to_owned();
    let mut browser = cluster.browser(name)?;
    browser.log_in(&token).await?;
    Ok((browser, token))
}

async fn entry(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (visitor, token) = visitor(cluster, "door").await?;
        let stranger = cluster.browser("door")?;
        let redirect = stranger.get(&format!("/some/page?a=1&token={token}&b=%2F"), HTML).await?;
        ensure!(redirect.status.as_u16() == 303, "{redirect:?}");
        let location = redirect.header("location");
        ensure!(
            location.ends_with("/some/page?a=1&b=%2F") && !location.contains(&token),
            "{location}"
        );
        let cookie = redirect.header("set-cookie").to_ascii_lowercase();
        for part in ["httponly", "samesite=lax", "path=/"] {
            ensure!(cookie.contains(part), "{cookie}");
        }
        ensure!(!cookie.contains("domain") && !cookie.contains(&token), "{cookie}");
        for evil in ["//evil.example/", "/\\evil.example/", "/%2f/evil.example"] {
            let answer = stranger.get(&format!("{evil}?token={token}"), HTML).await?;
            let location = answer.header("location");
            ensure!(
                !location.starts_with("//") && !location.starts_with("/\\"),
                "an open redirect: {location}"
            );
        }
        ensure!(visitor.get("/", HTML).await?.text == "stub agent\n");
        let with_bearer = stranger.get("/", &[("authorization", &format!("Bearer {token}"))]).await?;
        ensure!(with_bearer.status.is_success(), "{with_bearer:?}");

        for (what, answer) in [
            ("nothing", stranger.get("/", HTML).await?),
            ("a wrong token", stranger.get("/?token=wrong", HTML).await?),
            (
                "a wrong bearer",
                stranger.get("/", &[("authorization", "Bearer wrong")]).await?,
            ),
            ("an unknown name", cluster.browser("nobody")?.get("/", HTML).await?),
        ] {
            ensure!(
                answer.status.as_u16() == 401 && !answer.text.contains("stub agent"),
                "{what}: {answer:?}"
            );
        }
        stranger.get("/env", &[]).await?.problem(401, "unauthorized")?;
        // Another instance's cookie opens nothing.
        cluster.client.create(&stub("other")).await?;
        let mut other = cluster.browser("other")?;
        other.cookie.clone_from(&visitor.cookie);
        ensure!(other.get("/", HTML).await?.status.as_u16() == 401);
        Ok(())
    })
    .await
}

fn header_values(echo: &Value, name: &str) -> Vec<String> {
    let pairs = echo["headers"].as_array().into_iter().flatten();
    pairs
        .filter(|pair| pair[0] == name)
        .filter_map(|pair| pair[1].as_str().map(str::to_owned))
        .collect()
}

async fn headers(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (mut visitor, token) = visitor(cluster, "heads").await?;
        let cookie = visitor.cookie.take().context("no cookie")?;
        let both = format!("mine=1; {cookie}; yours=2");
        let sent = [
            ("cookie", both.as_str()),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-user", "root"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-proto", "gopher"),
            ("forwarded", "for=6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("x-openclaw-scopes", "operator.admin"),
            ("connection", "x-secret-hop"),
            ("x-secret-hop", "1"),
            ("te", "trailers"),
            ("proxy-authorization", "Basic eDp5"),
            ("x-kept", "yes"),
        ];
        let echo = visitor.get("/echo/a%2Fb?x=%20&y", &sent).await?.success()?;
        ensure!(echo["target"] == "/echo/a%2Fb?x=%20&y", "{echo}");
        let expected = [
            ("cookie", vec!["mine=1; yours=2"]),
            ("x-kept", vec!["yes"]),
            ("x-forwarded-user", vec!["crabshack-owner"]),
            ("x-forwarded-proto", vec!["http"]),
            ("x-forwarded-host", vec!["heads.localhost:3000"]),
            ("x-forwarded-for", vec!["192.0.2.1"]),
        ];
        for (name, values) in expected {
            ensure!(header_values(&echo, name) == values, "{name}: {echo}");
        }
        for name in [
            "forwarded",
            "x-real-ip",
            "x-openclaw-scopes",
            "x-secret-hop",
            "te",
            "proxy-authorization",
            "authorization",
        ] {
            ensure!(header_values(&echo, name).is_empty(), "{name} arrived: {echo}");
        }
        let bearer = format!("Bearer {token}");
        let echo = visitor.get("/echo", &[("authorization", &bearer)]).await?.success()?;
        ensure!(!echo.to_string().contains(&token), "the token arrived: {echo}");
        Ok(())
    })
    .await
}

async fn cookies(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (visitor, _) = visitor(cluster, "baker").await?;
        let own = visitor
            .cookie
            .as_deref()
            .and_then(|cookie| cookie.split_once('='))
            .context("no cookie")?
            .0;
        let answer = visitor.get(&format!("/cookies?name={own}"), &[]).await?;
        let set: Vec<_> = answer
            .headers
            .get_all("set-cookie")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        ensure!(set.len() == 2, "{set:?}");
        ensure!(!set.join(" ").to_ascii_lowercase().contains("domain"), "{set:?}");
        ensure!(
            set.iter()
                .any(|value| value.starts_with("first=1;") && value.contains("HttpOnly")),
            "{set:?}"
        );
        Ok(())
    })
    .await
}

async fn origin(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (visitor, token) = visitor(cluster, "home").await?;
        let cookie = visitor.cookie.clone().context("no cookie")?;
        let own = visitor.origin();
        for origin in [
            "http://evil.example",
            "http://other.localhost:3000",
            "null",
            "http://home.localhost:3001",
            "https://home.localhost:3000",
        ] {
            let answer = visitor.get("/echo", &[("origin", origin)]).await?;
            ensure!(answer.status.as_u16() == 403, "{origin}: {answer:?}");
            let upgrade = gateway::websocket(UI, &visitor.host, "/ws", &[("origin", origin), ("cookie", &cookie)]).await;
            ensure!(upgrade.is_err(), "a WebSocket from {origin}");
        }
        ensure!(
            gateway::websocket(UI, &visitor.host, "/ws", &[("cookie", &cookie)])
                .await
                .is_err(),
            "a WebSocket without an origin"
        );
        ensure!(
            gateway::websocket(UI, &visitor.host, "/ws", &[("origin", &own)])
                .await
                .is_err(),
            "a WebSocket without a credential"
        );
        let unsafe_without = Answer::read(visitor.request(Method::POST, "/sink", &[]).body("x").send().await?).await?;
        ensure!(unsafe_without.status.as_u16() == 403, "{unsafe_without:?}");
        let unsafe_own = Answer::read(
            visitor
                .request(Method::POST, "/sink", &[("origin", &own)])
                .body("x")
                .send()
                .await?,
        )
        .await?;
        ensure!(unsafe_own.success()?["body_length"] == 1);
        visitor.websocket("/ws").await?;
        gateway::websocket(UI, &visitor.host, &format!("/ws?token={token}"), &[("origin", &own)])
            .await
            .map(drop)
    })
    .await
}

async fn streams(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (visitor, _) = visitor(cluster, "river").await?;
        measure::gateway::sse_unbuffered(&visitor).await?;
        measure::gateway::frame_25mib(&visitor).await?;
        measure::gateway::idle_websocket(&visitor, Duration::from_secs(5)).await?;
        // Both sides see the other one leave, at once.
        let mut socket = visitor.websocket("/ws").await?;
        socket.send(Message::text("x")).await?;
        ensure!(socket.next().await.context("no echo")??.to_text()? == "x");
        let stopping = cluster.client.act("river", "stop");
        let began = Instant::now();
        let (stopped, end) = tokio::join!(
            stopping,
            tokio::time::timeout(PATIENCE, async { while let Some(Ok(_)) = socket.next().await {} })
        );
        stopped?;
        end.with_context(|| format!("the WebSocket still hangs {:?} after the stop", began.elapsed()))
    })
    .await
}

async fn pages(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let mut creating = cluster
            .client
            .events("/instances", &stub_with("lazy", &[("STUB_START_DELAY_MS", "3000")]))
            .await?;
        let token = must::text(&cluster.client.instance("lazy").await?, "token")?.to_owned();
        let mut visitor = cluster.browser("lazy")?;
        visitor.log_in(&token).await?;
        let starting = visitor.get("/", HTML).await?;
        ensure!(
            starting.status.as_u16() == 503 && starting.header("retry-after") == "3",
            "{starting:?}"
        );
        ensure!(starting.header("content-type").starts_with("text/html"), "{starting:?}");
        visitor.get("/echo", &[]).await?.problem(503, "not_ready")?;
        creating.rest().await?;
        ensure!(visitor.get("/", HTML).await?.status.is_success());
        cluster.client.act("lazy", "stop").await?;
        let stopped = visitor.get("/", HTML).await?;
        ensure!(
            stopped.status.as_u16() == 503 && stopped.header("retry-after") == "30",
            "{stopped:?}"
        );
        visitor.get("/echo", &[]).await?.problem(503, "stopped")?;
        cluster.client.get("/gateway/lazy/echo").await?.problem(503, "stopped")?;
        cluster.client.act("lazy", "start").await?;
        cluster.kill9(Who::NodeAgent).await?;
        visitor.get("/echo", &[]).await?.problem(502, "unreachable")?;
        Ok(())
    })
    .await
}

async fn api_route(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        cluster.client.create(&stub("inner")).await?;
        let request = cluster
            .client
            .request(Method::POST, "/gateway/inner/echo/a%2Fb?q=%20&r")
            .header("cookie", "mine=1")
            .body("12345");
        let echo = Answer::read(request.send().await?).await?.success()?;
        ensure!(
            echo["method"] == "POST" && echo["target"] == "/echo/a%2Fb?q=%20&r" && echo["body_length"] == 5,
            "{echo}"
        );
        ensure!(
            header_values(&echo, "authorization").is_empty() && header_values(&echo, "cookie").is_empty(),
            "{echo}"
        );
        ensure!(cluster.client.get("/gateway/inner/").await?.text == "stub agent\n");
        let authority = API.trim_start_matches("http://");
        let bearer = format!("Bearer {SECRET}");
        let mut socket = gateway::websocket(
            authority.parse()?,
            authority,
            "/gateway/inner/ws",
            &[("authorization", &bearer)],
        )
        .await?;
        socket.send(Message::text("x")).await?;
        ensure!(socket.next().await.context("no echo")??.to_text()? == "x");
        Ok(())
    })
    .await
}

async fn large_bodies(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (visitor, _) = visitor(cluster, "bulk").await?;
        let size = 100 << 20;
        let answer = visitor
            .request(Method::GET, &format!("/big?bytes={size}"), &[])
            .send()
            .await?;
        let mut received = 0;
        let mut body = answer.bytes_stream();
        while let Some(chunk) = body.next().await {
            received += chunk?.len();
        }
        ensure!(received == size, "{received} of {size} bytes arrived");
        let origin = visitor.origin();
        let sent = visitor
            .request(Method::POST, "/sink", &[("origin", &origin)])
            .body(vec![0; 30 << 20])
            .send()
            .await?;
        ensure!(Answer::read(sent).await?.success()?["body_length"] == 30 << 20);
        Ok(())
    })
    .await
}

async fn after_a_crash(machine: &Machine) -> anyhow::Result<()> {
    Cluster::with(machine, async |cluster| {
        let (visitor, _) = visitor(cluster, "phoenix").await?;
        for who in [Who::Coordinator, Who::NodeAgent] {
            cluster.crash_and_restart(who).await?;
            // The cookie outlives the coordinator.
            become_true("the page is back", PATIENCE, async || {
                Ok(visitor.get("/", HTML).await?.text == "stub agent\n")
            })
            .await?;
        }
        Ok(())
    })
    .await
}

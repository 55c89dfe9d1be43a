//! The public API as a client sees it: requests, answers, event streams byte by byte.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use reqwest::{Method, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::image;

/// No answer of ours takes longer than its keepalive.
const SILENCE: Duration = Duration::from_secs(30);

/// A complete answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body as text.
    pub text: String,
}

impl Answer {
    /// Reads a response to its end.
    pub async fn read(response: reqwest::Response) -> anyhow::Result<Self> {
        Ok(Self {
            status: response.status(),
            headers: response.headers().clone(),
            text: response.text().await?,
        })
    }

    /// The body as JSON.
    pub fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.text).with_context(|| format!("{} with a body that is not JSON: {}", self.status, self.text))
    }

    /// The body of a success.
    pub fn success(&self) -> anyhow::Result<Value> {
        ensure!(self.status.is_success(), "{}: {}", self.status, self.text);
        self.json()
    }

    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Checks that this is the product's error body with this status and code, and returns its text.
    pub fn problem(&self, status: u16, code: &str) -> anyhow::Result<String> {
        ensure!(
            self.status.as_u16() == status,
            "{} instead of {status}: {}",
            self.status,
            self.text
        );
        let body = self.json()?;
        ensure!(body["code"] == code, "code {} instead of {code}: {}", body["code"], self.text);
        let text = body["error"].as_str().unwrap_or_default();
        ensure!(!text.is_empty(), "no text in {}", self.text);
        Ok(text.to_owned())
    }
}

/// One event of a stream.
#[derive(Debug, Clone)]
pub struct Event {
    /// The `event:` line.
    pub name: String,
    /// The `data: ` line.
    pub data: Value,
    /// When it arrived.
    pub at: Instant,
}

/// An open event stream.
pub struct Events {
    /// Headers of the answer.
    pub headers: HeaderMap,
    body: std::pin::Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    buffer: String,
    /// Everything that was received, for checks of the bytes.
    pub raw: String,
}

impl Events {
    /// Wraps a successful answer with the right type.
    pub async fn open(response: reqwest::Response) -> anyhow::Result<Self> {
        if !response.status().is_success() {
            bail!("{}: {}", response.status(), response.text().await?);
        }
        let kind = response
            .headers()
            .get("content-type")
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        ensure!(kind.starts_with("text/event-stream"), "an event stream of type `{kind}`");
        Ok(Self {
            headers: response.headers().clone(),
            body: Box::pin(response.bytes_stream()),
            buffer: String::new(),
            raw: String::new(),
        })
    }

    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        loop {
            while let Some(end) = self.buffer.find("\n\n") {
                let block: String = self.buffer.drain(..end + 2).collect();
                if let Some(event) = parse(&block)? {
                    return Ok(Some(event));
                }
            }
            let chunk = timeout(SILENCE, self.body.next())
                .await
                .context("the event stream is silent")?;
            let Some(chunk) = chunk else {
                ensure!(self.buffer.is_empty(), "the event stream was cut inside `{}`", self.buffer);
                return Ok(None);
            };
            let text = String::from_utf8(chunk?.to_vec())?;
            self.raw.push_str(&text);
            self.buffer.push_str(&text);
        }
    }

    /// All remaining events.
    pub async fn rest(&mut self) -> anyhow::Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await? {
            events.push(event);
        }
        Ok(events)
    }
}

/// Reads one block; comments alone are keepalives.
fn parse(block: &str) -> anyhow::Result<Option<Event>> {
    let mut name = String::new();
    let mut data = None;
    for line in block.lines() {
        match line.split_once(": ") {
            Some(("event", value)) => value.clone_into(&mut name),
            Some(("data", value)) => {
                ensure!(data.is_none(), "two data lines in one event: {block}");
                data = Some(serde_json::from_str(value).with_context(|| format!("data is not JSON: {value}"))?);
            }
            _ => ensure!(
                line.is_empty() || line.starts_with(':'),
                "an unknown line in an event stream: `{line}`"
            ),
        }
    }
    Ok(data.map(|data| Event {
        name,
        data,
        at: Instant::now(),
    }))
}

/// A caller with the admin secret.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    secret: String,
}

impl Client {
    /// Talks to the API at `base`, like `http://127.0.0.1:7700`.
    pub fn new(base: &str, secret: &str) -> anyhow::Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .build()?,
            base: base.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// A request without a credential.
    pub fn bare(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// A request with the admin secret.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.bare(method, path).bearer_auth(&self.secret)
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        Answer::read(self.request(Method::GET, path).send().await?).await
    }

    /// `POST` of JSON, or of nothing for `null`, read to its end.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        Answer::read(self.posting(path, body).send().await?).await
    }

    fn posting(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        let request = self.request(Method::POST, path);
        // The documented curl lines send no content type.
        if body.is_null() {
            request
        } else {
            request.body(body.to_string())
        }
    }

    /// `POST` that answers with events.
    pub async fn events(&self, path: &str, body: &Value) -> anyhow::Result<Events> {
        Events::open(self.posting(path, body).send().await?).await
    }

    /// `PATCH` of an instance; the path may carry a query.
    pub async fn patch(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        Answer::read(self.request(Method::PATCH, path).body(body.to_string()).send().await?).await
    }

    /// Asks a deleted instance back, to the end, which must be `ready`.
    pub async fn undelete(&self, id: &str) -> anyhow::Result<Vec<Event>> {
        let mut events = self.events(&format!("/instances/{id}/undelete"), &Value::Null).await?;
        expect_end(events.rest().await?, "ready").with_context(|| format!("return of {id}"))
    }

    /// Creates an instance and reads its events to the end, which must be `ready`.
    pub async fn create(&self, body: &Value) -> anyhow::Result<Vec<Event>> {
        expect_end(self.events("/instances", body).await?.rest().await?, "ready")
    }

    /// `stop`, `start` or `restart`, to the end, which must be `stopped` or `ready`.
    pub async fn act(&self, name: &str, action: &str) -> anyhow::Result<Vec<Event>> {
        let end = if action == "stop" { "stopped" } else { "ready" };
        let mut events = self.events(&format!("/instances/{name}/{action}"), &Value::Null).await?;
        expect_end(events.rest().await?, end).with_context(|| format!("{action} of {name}"))
    }

    /// Deletes an instance, to the end, which must be `deleted`.
    pub async fn delete(&self, name: &str, purge: bool) -> anyhow::Result<Vec<Event>> {
        let path = format!("/instances/{name}?purge={purge}");
        let mut events = Events::open(self.request(Method::DELETE, &path).send().await?).await?;
        expect_end(events.rest().await?, "deleted").with_context(|| format!("deletion of {name}"))
    }

    /// One instance.
    pub async fn instance(&self, name: &str) -> anyhow::Result<Value> {
        self.get(&format!("/instances/{name}")).await?.success()
    }

    /// Every instance.
    pub async fn instances(&self) -> anyhow::Result<Vec<Value>> {
        let list = self.get("/instances").await?.success()?;
        Ok(list["instances"]
            .as_array()
            .with_context(|| format!("no array `instances` in {list}"))?
            .clone())
    }

    /// Its status word, or `None` when it does not exist.
    pub async fn status(&self, name: &str) -> anyhow::Result<Option<String>> {
        let answer = self.get(&format!("/instances/{name}")).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(answer.success()?["status"].as_str().context("no status")?.to_owned()))
    }

    /// A fresh join token.
    pub async fn join_token(&self) -> anyhow::Result<String> {
        let answer = self.post("/nodes/join-token", &Value::Null).await?.success()?;
        Ok(answer["token"].as_str().context("no token")?.to_owned())
    }
}

fn expect_end(events: Vec<Event>, end: &str) -> anyhow::Result<Vec<Event>> {
    let last = events.last().context("an event stream without events")?;
    ensure!(
        last.name == end,
        "the stream ended with `{}` instead of `{end}`: {}",
        last.name,
        last.data
    );
    Ok(events)
}

/// A valid creation of a stub instance.
pub fn stub(name: &str) -> Value {
    json!({
        "name": name,
        "service_type": "openclaw",
        "image": image::STUB,
        "mem_limit": "1g",
        "cpus": "1",
        "storage_size": "1G",
        "nearai_api_key": format!("sk-agent-{:032x}", 0x5ec2e7),
        "nearai_api_url": "http://203.0.113.1/v1",
        "ssh_pubkey": null,
        "extra_env": {},
    })
}

/// A stub whose disk may hold so much.
pub fn sized(name: &str, size: &str) -> Value {
    let mut body = stub(name);
    body["storage_size"] = size.into();
    body
}

/// A valid creation with more environment, which is how the stub gets its orders.
pub fn stub_with(name: &str, environment: &[(&str, &str)]) -> Value {
    let mut body = stub(name);
    for &(key, value) in environment {
        body["extra_env"][key] = value.into();
    }
    body
}

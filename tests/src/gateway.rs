//! A browser, as far as the host route can tell: requests with a `Host`, one cookie, WebSockets.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use reqwest::{Method, header};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{client::IntoClientRequest as _, http::HeaderValue, protocol::WebSocketConfig},
};

use crate::client::Answer;

/// The UI listener.
pub const UI: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 3000);
/// Name and value of headers.
pub type Headers<'a> = &'a [(&'a str, &'a str)];

/// One browser at one instance.
#[derive(Debug, Clone)]
pub struct Browser {
    http: reqwest::Client,
    /// `name.localhost:3000`.
    pub host: String,
    /// `Cookie` header, once logged in.
    pub cookie: Option<String>,
}

impl Browser {
    /// Not logged in.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .build()?,
            host: format!("{name}.localhost:{}", UI.port()),
            cookie: None,
        })
    }

    /// Where its pages come from.
    pub fn origin(&self) -> String {
        format!("http://{}", self.host)
    }

    /// Follows the link with the token and keeps the cookie.
    pub async fn log_in(&mut self, token: &str) -> anyhow::Result<Answer> {
        let answer = self.get(&format!("/?token={token}"), &[("accept", "text/html")]).await?;
        ensure!(
            answer.status.as_u16() == 303,
            "{} instead of a redirect: {}",
            answer.status,
            answer.text
        );
        let cookie = answer.header("set-cookie").split(';').next().unwrap_or_default();
        ensure!(cookie.contains('='), "no cookie: {:?}", answer.headers);
        self.cookie = Some(cookie.to_owned());
        Ok(answer)
    }

    /// `GET`.
    pub async fn get(&self, path: &str, headers: Headers<'_>) -> anyhow::Result<Answer> {
        Answer::read(self.request(Method::GET, path, headers).send().await?).await
    }

    /// Any request, with the cookie if there is one.
    pub fn request(&self, method: Method, path: &str, headers: Headers<'_>) -> reqwest::RequestBuilder {
        let mut request = self
            .http
            .request(method, format!("http://{UI}{path}"))
            .header(header::HOST, &self.host);
        if let Some(cookie) = &self.cookie {
            request = request.header(header::COOKIE, cookie);
        }
        headers
            .iter()
            .fold(request, |request, (name, value)| request.header(*name, *value))
    }

    /// A WebSocket from a page of the instance's own origin.
    pub async fn websocket(&self, path: &str) -> anyhow::Result<WebSocketStream<TcpStream>> {
        let origin = self.origin();
        let mut headers = vec![("origin", origin.as_str())];
        headers.extend(self.cookie.as_deref().map(|cookie| ("cookie", cookie)));
        websocket(UI, &self.host, path, &headers).await
    }
}

/// A WebSocket to any listener, with any headers and no size limits.
pub async fn websocket(
    to: SocketAddr,
    host: &str,
    path: &str,
    headers: Headers<'_>,
) -> anyhow::Result<WebSocketStream<TcpStream>> {
    let mut request = format!("ws://{host}{path}").into_client_request()?;
    for (name, value) in headers {
        let name = reqwest::header::HeaderName::from_bytes(name.as_bytes())?;
        request.headers_mut().insert(name, HeaderValue::from_str(value)?);
    }
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let connecting = client_async_with_config(request, stream, Some(config));
    let (socket, _) = tokio::time::timeout(Duration::from_secs(30), connecting)
        .await
        .context("no answer to the upgrade")??;
    Ok(socket)
}

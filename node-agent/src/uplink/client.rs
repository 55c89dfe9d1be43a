//! HTTP calls to the coordinator's agent listener, over mTLS.

use std::{
    net::SocketAddr,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use crabshack_shared::{
    agent_api::{
        LONG_POLL_SECONDS,
        v1::{EnrolAnswer, EnrolRequest, Orders, RenewAnswer, RenewRequest, Report, ReportAnswer},
    },
    tls::COORDINATOR_NAME,
};
use reqwest::{RequestBuilder, Response, StatusCode, header::DATE};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// The coordinator may be on its way down itself.
const GOODBYE_WITHIN: Duration = Duration::from_secs(2);

/// Why the coordinator did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UplinkError {
    #[error("the coordinator's address {address} cannot be resolved")]
    Resolve {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the coordinator at {address} cannot be reached")]
    Unreachable {
        address: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the coordinator refused with {status}: {message}")]
    Refused { status: StatusCode, message: String },
    #[error("an HTTP client cannot be made")]
    Client(#[source] reqwest::Error),
    #[error("the coordinator answered something else than expected")]
    Answer(#[source] reqwest::Error),
}

impl UplinkError {
    /// The coordinator was reached and said no.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// Calls the coordinator. Dials by address, verifies the coordinator's own name.
pub(crate) struct Client {
    address: String,
    port: u16,
    tls: RwLock<ClientConfig>,
    http: RwLock<Option<reqwest::Client>>,
    clock_offset: AtomicI64,
}

impl Client {
    /// `address` is host:port.
    pub(crate) fn new(address: String, tls: ClientConfig) -> Self {
        let port = address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .unwrap_or(7701);
        Self {
            address,
            port,
            tls: RwLock::new(tls),
            http: RwLock::new(None),
            clock_offset: AtomicI64::new(0),
        }
    }

    /// Uses another certificate from now on.
    pub(crate) fn reload(&self, tls: ClientConfig) -> Result<(), UplinkError> {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = tls;
        *self.http.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// Long poll; none: nothing changed.
    pub(crate) async fn orders(&self, revision: Option<u64>) -> Result<Option<Orders>, UplinkError> {
        let http = self.http().await?;
        let query = revision.map(|revision| format!("?revision={revision}")).unwrap_or_default();
        let limit = Duration::from_secs(LONG_POLL_SECONDS) + ANSWER_WITHIN;
        let response = self
            .send(http.get(format!("{}{query}", self.url("orders"))).timeout(limit))
            .await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        read(response).await.map(Some)
    }

    /// Sends what is observed. A coordinator that keeps no events answers nothing.
    pub(crate) async fn report(&self, report: &Report) -> Result<ReportAnswer, UplinkError> {
        let http = self.http().await?;
        let response = self.send(http.post(self.url("report")).json(report)).await?;
        let body = response.bytes().await.map_err(UplinkError::Answer)?;
        Ok(serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Says that this node agent accepts nothing more on its data plane.
    pub(crate) async fn stopping(&self) -> Result<(), UplinkError> {
        let http = self.http().await?;
        let request = http.post(self.url("stopping")).timeout(GOODBYE_WITHIN);
        self.send(request).await.map(drop)
    }

    /// How far the node's clock was ahead of the coordinator's when that last answered, in seconds.
    pub(crate) fn clock_offset(&self) -> i64 {
        self.clock_offset.load(Ordering::Relaxed)
    }

    /// Asks for the first certificate.
    pub(crate) async fn enrol(&self, request: &EnrolRequest) -> Result<EnrolAnswer, UplinkError> {
        let http = self.http().await?;
        read(self.send(http.post(self.url("enrol")).json(request)).await?).await
    }

    /// Asks for the next certificate.
    pub(crate) async fn renew(&self, request: String) -> Result<RenewAnswer, UplinkError> {
        let http = self.http().await?;
        read(
            self.send(http.post(self.url("renew")).json(&RenewRequest { request }))
                .await?,
        )
        .await
    }

    fn url(&self, call: &str) -> String {
        format!("https://{COORDINATOR_NAME}:{}/v1/{call}", self.port)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, UplinkError> {
        let response = match request.send().await {
            Ok(response) => response,
            Err(source) => {
                // The coordinator may have moved: its address is looked up again.
                *self.http.write().unwrap_or_else(PoisonError::into_inner) = None;
                return Err(UplinkError::Unreachable {
                    address: self.address.clone(),
                    source,
                });
            }
        };
        if let Some(offset) = response
            .headers()
            .get(DATE)
            .and_then(|date| offset(date.to_str().ok()?, Utc::now()))
        {
            self.clock_offset.store(offset, Ordering::Relaxed);
        }
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let message = response.text().await.unwrap_or_default().chars().take(500).collect();
        Err(UplinkError::Refused { status, message })
    }

    async fn http(&self) -> Result<reqwest::Client, UplinkError> {
        if let Some(http) = &*self.http.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(http.clone());
        }
        let resolve = |source| UplinkError::Resolve {
            address: self.address.clone(),
            source,
        };
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(&self.address).await.map_err(resolve)?.collect();
        let tls = self.tls.read().unwrap_or_else(PoisonError::into_inner).clone();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .http1_only()
            .resolve_to_addrs(COORDINATOR_NAME, &addresses)
            .connect_timeout(CONNECT_WITHIN)
            .timeout(ANSWER_WITHIN)
            .tcp_nodelay(true)
            .build()
            .map_err(UplinkError::Client)?;
        *self.http.write().unwrap_or_else(PoisonError::into_inner) = Some(http.clone());
        Ok(http)
    }
}

async fn read<T: DeserializeOwned>(response: Response) -> Result<T, UplinkError> {
    response.json().await.map_err(UplinkError::Answer)
}

/// Seconds from an answer's `Date` to now.
fn offset(date: &str, now: DateTime<Utc>) -> Option<i64> {
    let date = DateTime::parse_from_rfc2822(date).ok()?;
    Some((now - date.with_timezone(&Utc)).num_seconds())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock__should_be_compared_with_the_date_of_an_answer() {
        let now = "2026-01-02T03:04:05Z".parse().unwrap();
        assert_eq!(offset("Fri, 02 Jan 2026 04:04:05 GMT", now), Some(-3600));
        assert_eq!(offset("yesterday", now), None);
    }
}

//! The client for everything that goes out of the coordinator but to its nodes. Proxies are those of
//! `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`; an authority of one's own is trusted beside the system's.

use std::time::Duration;

use crabshack_shared::telemetry::Chain;
use reqwest::{Certificate, Client, ClientBuilder};

/// A connection that takes longer will not come.
const CONNECT: Duration = Duration::from_secs(4);

/// Makes the client.
pub(crate) fn client(authorities: &[Certificate]) -> Result<Client, reqwest::Error> {
    let authorities = || authorities.iter().cloned();
    match builder().tls_certs_merge(authorities()).build() {
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "the system's certificate authorities cannot be used (Debian: install ca-certificates); only CRABSHACK_CA_BUNDLE is trusted");
            builder().tls_certs_only(authorities()).build()
        }
        client => client,
    }
}

fn builder() -> ClientBuilder {
    Client::builder()
        .connect_timeout(CONNECT)
        .user_agent(concat!("crabshack/", env!("CARGO_PKG_VERSION")))
}

//! The resolvers that the node itself uses.

use std::net::{IpAddr, SocketAddr};

use super::{DnsError, PORT};

/// Reads the `nameserver` lines of a file.
pub(super) fn read(path: &'static str) -> Result<Vec<SocketAddr>, DnsError> {
    let text = std::fs::read_to_string(path).map_err(|source| DnsError::Unreadable { path, source })?;
    let upstreams = parse(&text);
    if upstreams.is_empty() {
        return Err(DnsError::NoUpstream);
    }
    Ok(upstreams)
}

/// What is no plain address (as a link-local one with its interface) is passed over.
fn parse(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address: IpAddr = (words.next() == Some("nameserver")).then(|| words.next())??.parse().ok()?;
            Some(SocketAddr::new(address, PORT))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse__should_keep_addresses_in_order_and_pass_over_the_rest() {
        let text =
            "# nameserver 1.1.1.1\nsearch example.org\nnameserver 127.0.0.53 # local\nnameserver fe80::1%eth0\nnameserver ::1\n";
        assert_eq!(parse(text), ["127.0.0.53:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
    }
}

//! The system's network tools.
//!
//! `nftables` (the crate) brings the words of the JSON; its own runner neither hands back what nft
//! says on stderr nor ends nft at a deadline, so nft runs here like the others.

use std::time::Duration;

pub(crate) use crate::command::CommandError;
use crate::command::{self, Input, Program};

/// Far beyond what any of them needs.
const DEADLINE: Duration = Duration::from_secs(10);

/// A tool of the system that we run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    Nft,
    Ip,
    Iptables,
    Conntrack,
}

impl Tool {
    fn program(self) -> Program {
        let (name, package) = match self {
            Self::Nft => ("nft", "nftables"),
            Self::Ip => ("ip", "iproute2"),
            Self::Iptables => ("iptables", "iptables"),
            Self::Conntrack => ("conntrack", "conntrack"),
        };
        Program {
            name,
            package,
            deadline: DEADLINE,
        }
    }
}

/// Runs a tool to its end and returns what it printed.
pub(super) async fn run(tool: Tool, arguments: &[&str], input: Option<&str>) -> Result<String, CommandError> {
    let input = input.map_or(Input::Nothing, Input::Text);
    let output = command::run(tool.program(), arguments, input).await?;
    Ok(String::from_utf8(output).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

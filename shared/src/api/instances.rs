//! `/instances`: what may be sent and what is answered.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    agent_api::v1::{LastExit, OnDisconnect, Stats},
    ids::{InstanceId, NodeId, UserId},
    instance::{InstanceName, InstanceStatus, ServiceType},
    resources::Bytes,
    secret::Secret,
    services::Profile,
};

/// A text that a client may also send as a number (`"cpus": 1`).
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct LooseText(pub String);

/// Keys come as such texts too, so none is ever printed.
impl fmt::Debug for LooseText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[text]")
    }
}

impl<'de> Deserialize<'de> for LooseText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = LooseText;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a string or a number")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<LooseText, E> {
                Ok(LooseText(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<LooseText, E> {
                Ok(LooseText(number.to_string()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<LooseText, E> {
                Ok(LooseText(number.to_string()))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<LooseText, E> {
                Ok(LooseText(number.to_string()))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl From<&str> for LooseText {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Body of `POST /instances`. Which fields are required is decided when it is checked, so that all
/// missing ones can be named at once; unknown fields and nulls are accepted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CreateInstance {
    /// Required: a known service type, like `openclaw`.
    pub service_type: Option<LooseText>,
    /// Required: an image reference.
    pub image: Option<LooseText>,
    /// Required: memory, like `2g`.
    pub mem_limit: Option<LooseText>,
    /// Required: processors, like `1` or `0.5`.
    pub cpus: Option<LooseText>,
    /// Required: key of the model API.
    pub nearai_api_key: Option<LooseText>,
    /// Required: base URL of the model API.
    pub nearai_api_url: Option<LooseText>,
    /// One DNS label; none: we choose.
    pub name: Option<LooseText>,
    /// The key that may log in by SSH, in OpenSSH's one-line form.
    pub ssh_pubkey: Option<LooseText>,
    /// Size of the volume; 10g by default.
    pub storage_size: Option<LooseText>,
    /// More environment. Nulls are skipped.
    pub extra_env: Option<BTreeMap<String, Option<LooseText>>>,
    /// True: it cannot be deleted.
    pub protected: Option<bool>,
    /// What its node does while the coordinator is away; it runs on by default.
    pub on_disconnect: Option<OnDisconnect>,
    /// `strict` or `compatible`; by default what the image needs.
    pub profile: Option<LooseText>,
}

/// Body of `PATCH /instances/{name}`. What is absent or null stays as it is; unknown fields are
/// accepted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PatchInstance {
    /// The key that may log in by SSH; an empty text: nobody.
    pub ssh_pubkey: Option<LooseText>,
    /// Key of the model API.
    pub nearai_api_key: Option<LooseText>,
    /// Base URL of the model API.
    pub nearai_api_url: Option<LooseText>,
    /// Memory, like `2g`.
    pub mem_limit: Option<LooseText>,
    /// Processors, like `1` or `0.5`.
    pub cpus: Option<LooseText>,
    /// Size of the volume.
    pub storage_size: Option<LooseText>,
    /// Merged into the present environment: a null takes a variable out.
    pub extra_env: Option<BTreeMap<String, Option<LooseText>>>,
    /// True: it cannot be deleted.
    pub protected: Option<bool>,
    /// What its node does while the coordinator is away.
    pub on_disconnect: Option<OnDisconnect>,
    /// Cannot be changed; refused unless it is the present one.
    pub service_type: Option<LooseText>,
    /// Cannot be changed; refused unless it is the present one.
    pub image: Option<LooseText>,
}

/// Body of `POST /instances/{id}/undelete`; may be absent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct UndeleteInstance {
    /// The name from now on; the old one by default.
    pub name: Option<LooseText>,
}

/// Answer of `POST /instances/{name}/token/rotate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RotatedToken {
    /// Whose.
    pub name: InstanceName,
    /// Opens the instance's gateway from now on.
    pub token: Secret,
    /// Opens the instance in a browser.
    pub instance_url: String,
    /// The same.
    pub dashboard_url: String,
    /// True while the container still has the old one in its environment.
    pub pending_change: bool,
}

/// Body of `POST /instances/{name}/restart`; may be absent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RestartInstance {
    /// The image to restart with.
    pub image: Option<LooseText>,
}

/// Answer of `GET /instances`: complete, newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceList {
    /// All living instances that the caller may see.
    pub instances: Vec<InstanceSummary>,
}

/// One line of the list: nothing secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceSummary {
    /// The label.
    pub name: InstanceName,
    /// The key.
    pub instance_id: InstanceId,
    /// One of four words.
    pub status: InstanceStatus,
    /// Where it is on its way, in one word.
    pub phase: String,
    /// Why, for people.
    pub reason: Option<String>,
    /// Which recipe.
    pub service_type: ServiceType,
    /// Name and tag of the image, without the digest.
    pub image: String,
    /// `sha256:...` of the image.
    pub image_digest: Option<String>,
    /// Memory limit, like `2g`.
    pub mem_limit: String,
    /// Processors, like `1`.
    pub cpus: String,
    /// Size of the volume, like `10g`.
    pub storage_size: String,
    /// Where it is.
    pub node_id: Option<NodeId>,
    /// Whose it is.
    pub owner: UserId,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// Answer of `GET /instances?deleted=true`: newest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeletedInstanceList {
    /// All deleted instances whose disk is still there.
    pub instances: Vec<DeletedInstance>,
}

/// A deleted instance whose disk is still there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeletedInstance {
    /// What the list of living ones says too.
    #[serde(flatten)]
    pub summary: InstanceSummary,
    /// When its deletion was asked for.
    pub deleted_at: DateTime<Utc>,
    /// When its disk is removed.
    pub purge_at: DateTime<Utc>,
}

/// Answer of `GET /instances/{name}` and `PATCH /instances/{name}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceDetails {
    /// What the list says too.
    #[serde(flatten)]
    pub summary: InstanceSummary,
    /// Opens the instance's gateway.
    pub token: Secret,
    /// Address on its link; null when it is down.
    pub gateway_address: Option<Ipv4Addr>,
    /// Port of its gateway on that address; null when it is down.
    pub gateway_port: Option<u16>,
    /// Host for SSH; null when it is down.
    pub ssh_address: Option<String>,
    /// Port for SSH; null when it is down.
    pub ssh_port: Option<u16>,
    /// The key that may log in.
    pub ssh_pubkey: Option<String>,
    /// Fingerprint of its host key, `SHA256:...`.
    pub ssh_fingerprint: Option<String>,
    /// The whole command line; null until it has a node.
    pub ssh_command: Option<String>,
    /// Opens the instance in a browser.
    pub instance_url: String,
    /// The same.
    pub dashboard_url: String,
    /// True while something that was changed waits for the next restart.
    pub pending_change: bool,
    /// How tightly its containers are held.
    #[serde(default)]
    pub profile: Profile,
    /// True: it cannot be deleted.
    pub protected: bool,
    /// What its node does while the coordinator is away.
    pub on_disconnect: OnDisconnect,
    /// What its volume holds, in bytes; null when its node cannot tell.
    pub disk_used: Option<Bytes>,
    /// What its volume may hold, in bytes; null when nothing bounds it.
    pub disk_limit: Option<Bytes>,
    /// What is wrong although it runs, for people.
    pub warning: Option<String>,
    /// How it last ended, while it is down by itself.
    pub last_exit: Option<LastExit>,
}

/// Answer of `GET /instances/{name}/ssh`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshAccess {
    /// Where to connect.
    pub host: String,
    /// To which port.
    pub port: u16,
    /// As whom.
    pub user: String,
    /// All of it as a command line.
    pub command: String,
}

/// Answer of `GET /instances/{name}/logs`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceLogs {
    /// Whose.
    pub name: InstanceName,
    /// The last lines, oldest first; empty when it is not running.
    pub logs: String,
}

/// Data of one event of `GET /instances/{name}/logs?follow=true`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogLine {
    /// Without its line break.
    pub line: String,
}

/// Answer of `GET /instances/{name}/stats`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceStats {
    /// Whose.
    pub name: InstanceName,
    /// What it uses.
    pub stats: Usage,
}

/// What an instance uses.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Usage {
    /// The numbers.
    Up(Box<UsageNumbers>),
    /// `{}`: it is not running.
    Down {},
}

/// The numbers, and some of them as `docker stats` writes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageNumbers {
    /// Processors, like `12.50%`; 100 % is one of them.
    #[serde(rename = "CPUPerc")]
    pub cpu: String,
    /// Memory and its limit, like `512MiB / 2GiB`.
    #[serde(rename = "MemUsage")]
    pub memory: String,
    /// Received and sent, like `1.2MB / 340kB`.
    #[serde(rename = "NetIO")]
    pub network: String,
    /// All of it as numbers.
    #[serde(flatten)]
    pub numbers: Stats,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn create_instance__should_accept_numbers_nulls_and_unknown_fields() {
        let request: CreateInstance = serde_json::from_str(
            r#"{"cpus": 0.5, "mem_limit": 1073741824, "name": null, "user_id": "x", "extra_env": {"A": null, "B": 1}}"#,
        )
        .unwrap();
        assert_eq!(request.cpus, Some("0.5".into()));
        assert_eq!(request.mem_limit, Some("1073741824".into()));
        assert_eq!(request.name, None);
        assert_eq!(request.extra_env.unwrap()["B"], Some("1".into()));
        assert!(serde_json::from_str::<CreateInstance>(r#"{"image": {}}"#).is_err());
    }
}

//! Checks what was asked for, a new instance or changes of one, before anything happens. Pure:
//! everything but the name's being free and the room for it.

use std::collections::BTreeMap;

use crabshack_shared::{
    agent_api::v1::{InstanceSecrets, OnDisconnect},
    api::instances::{CreateInstance, LooseText, PatchInstance},
    environment,
    ids::InstanceId,
    instance::{InstanceName, InvalidName, ServiceType},
    problem::Problem,
    resources::{Bytes, Cpus, Resources},
    secret::Secret,
};

use crate::{service_types, store::Spec};

/// When no size is asked for.
const DEFAULT_STORAGE: &str = "10g";
/// Longest texts.
const URL_LIMIT: usize = 512;
const KEY_LIMIT: usize = 4096;
const SSH_KEY_LIMIT: usize = 16 << 10;
const ENVIRONMENT_NAME_LIMIT: usize = 128;
const ENVIRONMENT_VALUE_LIMIT: usize = 32 << 10;
const ENVIRONMENT_COUNT_LIMIT: usize = 256;
/// A node hears of us every 10 seconds: with less, a lease would run out while all is well.
const LEASE_SECONDS: std::ops::RangeInclusive<u32> = 15..=31_536_000;

/// A request that can be carried out, if its name is free and a node has room.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) name: Option<InstanceName>,
    pub(crate) spec: Spec,
    pub(crate) secrets: InstanceSecrets,
    pub(crate) protected: bool,
    pub(crate) on_disconnect: OnDisconnect,
}

/// What is to be changed of an instance; none: as it is.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// `Some(None)`: nobody may log in.
    pub(crate) ssh_pubkey: Option<Option<String>>,
    pub(crate) nearai_api_key: Option<Secret>,
    pub(crate) nearai_api_url: Option<String>,
    pub(crate) memory: Option<Bytes>,
    pub(crate) cpus: Option<Cpus>,
    pub(crate) storage: Option<Bytes>,
    /// Without a value: taken out.
    pub(crate) extra_env: BTreeMap<String, Option<Secret>>,
    pub(crate) protected: Option<bool>,
    pub(crate) on_disconnect: Option<OnDisconnect>,
    /// Only good if they are the present ones.
    pub(crate) service_type: Option<String>,
    pub(crate) image: Option<String>,
}

/// Checks a request. The instance's token is made here.
pub(crate) fn check(request: CreateInstance) -> Result<Checked, Problem> {
    let [service_type, image, mem_limit, cpus, nearai_api_key, nearai_api_url] = required([
        ("service_type", request.service_type),
        ("image", request.image),
        ("mem_limit", request.mem_limit),
        ("cpus", request.cpus),
        ("nearai_api_key", request.nearai_api_key),
        ("nearai_api_url", request.nearai_api_url),
    ])?;
    let service = service_types::find(&service_type).ok_or_else(|| {
        Problem::invalid(format!(
            "unknown service_type `{}`: known are {}",
            service_type.chars().take(64).collect::<String>(),
            service_types::names()
        ))
    })?;
    let name = name(request.name)?;
    let storage = given(request.storage_size).unwrap_or_else(|| DEFAULT_STORAGE.to_owned());
    let resources = Resources {
        memory: field("mem_limit", mem_limit.parse())?,
        cpus: field("cpus", cpus.parse())?,
        storage: field("storage_size", storage.parse())?,
    };
    let service_type = ServiceType::new(service.name);
    enough_memory(&service_type, resources.memory)?;
    let image = field("image", image.parse())?;
    let spec = Spec {
        service_type,
        profile: service_types::profile(service, &image, given(request.profile).as_deref())?,
        image,
        resources,
        ssh_pubkey: given(request.ssh_pubkey).map(ssh_key).transpose()?,
        nearai_api_url: api_url(nearai_api_url)?,
    };
    let secrets = InstanceSecrets {
        token: Secret::random(),
        nearai_api_key: api_key(nearai_api_key)?,
        extra_env: environment(request.extra_env.unwrap_or_default())?
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect(),
        workload_token: Some(Secret::random()),
        master_key: service.keeps_secrets.then(Secret::random),
    };
    Ok(Checked {
        name,
        spec,
        secrets,
        protected: request.protected.unwrap_or_default(),
        on_disconnect: lease(request.on_disconnect.unwrap_or_default())?,
    })
}

/// Checks changes, as far as they can be checked without the instance.
pub(crate) fn check_changes(request: PatchInstance) -> Result<Changes, Problem> {
    let text = |value: Option<LooseText>| value.map(|text| text.0);
    Ok(Changes {
        ssh_pubkey: match text(request.ssh_pubkey) {
            Some(key) if key.trim().is_empty() => Some(None),
            Some(key) => Some(Some(ssh_key(key)?)),
            None => None,
        },
        nearai_api_key: match text(request.nearai_api_key) {
            Some(key) if key.is_empty() => return Err(Problem::invalid("nearai_api_key must not be empty")),
            Some(key) => Some(api_key(key)?),
            None => None,
        },
        nearai_api_url: text(request.nearai_api_url).map(api_url).transpose()?,
        memory: text(request.mem_limit)
            .map(|size| field("mem_limit", size.parse()))
            .transpose()?,
        cpus: text(request.cpus).map(|count| field("cpus", count.parse())).transpose()?,
        storage: text(request.storage_size)
            .map(|size| field("storage_size", size.parse()))
            .transpose()?,
        extra_env: environment(request.extra_env.unwrap_or_default())?,
        protected: request.protected,
        on_disconnect: request.on_disconnect.map(lease).transpose()?,
        service_type: text(request.service_type),
        image: text(request.image),
    })
}

/// A name that was asked for. One in the form of an id could be taken for one.
pub(crate) fn name(asked: Option<LooseText>) -> Result<Option<InstanceName>, Problem> {
    let Some(text) = given(asked) else {
        return Ok(None);
    };
    if text.parse::<InstanceId>().is_ok() {
        return Err(Problem::invalid("name must not have the form of an instance id"));
    }
    let name: InstanceName = text
        .parse()
        .map_err(|error: InvalidName| Problem::invalid(error.to_string()))?;
    Ok(Some(name))
}

/// Refuses less memory than the service needs to start.
pub(crate) fn enough_memory(service_type: &ServiceType, memory: Bytes) -> Result<(), Problem> {
    let minimum = service_types::minimum_memory(service_type);
    if memory >= minimum {
        return Ok(());
    }
    Err(Problem::invalid(format!(
        "mem_limit: {memory} is too little for `{service_type}`: it needs at least {minimum}"
    )))
}

/// Merges changes into an environment. An environment that grows too large is refused.
pub(crate) fn merge(
    environment: &mut BTreeMap<String, Secret>,
    changes: BTreeMap<String, Option<Secret>>,
) -> Result<(), Problem> {
    for (name, value) in changes {
        match value {
            Some(value) => environment.insert(name, value),
            None => environment.remove(&name),
        };
    }
    few_enough(environment.len())
}

fn lease(on_disconnect: OnDisconnect) -> Result<OnDisconnect, Problem> {
    match on_disconnect {
        OnDisconnect::StopAfter { seconds } if !LEASE_SECONDS.contains(&seconds) => Err(Problem::invalid(format!(
            "on_disconnect: seconds must be from {} to {}",
            LEASE_SECONDS.start(),
            LEASE_SECONDS.end()
        ))),
        _ => Ok(on_disconnect),
    }
}

/// All required texts, or a problem that names all that are missing.
fn required<const COUNT: usize>(fields: [(&'static str, Option<LooseText>); COUNT]) -> Result<[String; COUNT], Problem> {
    let missing: Vec<&str> = fields
        .iter()
        .filter(|(_, value)| value.as_ref().is_none_or(|text| text.0.trim().is_empty()))
        .map(|(name, _)| *name)
        .collect();
    if !missing.is_empty() {
        return Err(Problem::invalid(format!("Missing required fields: {}", missing.join(", "))));
    }
    Ok(fields.map(|(_, value)| value.map(|text| text.0).unwrap_or_default()))
}

/// An empty text is as good as none.
fn given(value: Option<LooseText>) -> Option<String> {
    value.map(|text| text.0).filter(|text| !text.is_empty())
}

fn field<T, E: std::fmt::Display>(name: &str, parsed: Result<T, E>) -> Result<T, Problem> {
    parsed.map_err(|error| Problem::invalid(format!("{name}: {error}")))
}

fn ssh_key(text: String) -> Result<String, Problem> {
    let line = text.trim();
    let refuse = |why: &str| Err(Problem::invalid(format!("ssh_pubkey {why}")));
    if line.len() > SSH_KEY_LIMIT || line.chars().any(char::is_control) {
        return refuse("must be one line, like `ssh-ed25519 AAAA... comment`");
    }
    match ssh_key::PublicKey::from_openssh(line) {
        Ok(key) if key.algorithm() == ssh_key::Algorithm::Dsa => refuse("is a DSA key, which SSH servers refuse: use Ed25519"),
        Ok(_) => Ok(line.to_owned()),
        Err(_) => refuse("is not a public key in OpenSSH's form, like `ssh-ed25519 AAAA... comment`"),
    }
}

fn api_url(text: String) -> Result<String, Problem> {
    let valid = text.len() <= URL_LIMIT
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !b"=\"'\\`$<>".contains(&byte))
        && text.parse::<http::Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
        });
    if valid {
        Ok(text)
    } else {
        Err(Problem::invalid(format!(
            "nearai_api_url must be an http or https URL of at most {URL_LIMIT} characters without `=`"
        )))
    }
}

fn api_key(text: String) -> Result<Secret, Problem> {
    if text.len() > KEY_LIMIT || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Problem::invalid(format!(
            "nearai_api_key must be at most {KEY_LIMIT} printable characters without spaces"
        )));
    }
    Ok(Secret::from(text))
}

fn few_enough(variables: usize) -> Result<(), Problem> {
    if variables <= ENVIRONMENT_COUNT_LIMIT {
        return Ok(());
    }
    Err(Problem::invalid(format!(
        "extra_env may hold at most {ENVIRONMENT_COUNT_LIMIT} variables"
    )))
}

fn environment(asked: BTreeMap<String, Option<LooseText>>) -> Result<BTreeMap<String, Option<Secret>>, Problem> {
    few_enough(asked.len())?;
    let mut environment = BTreeMap::new();
    for (name, value) in asked {
        let shown: String = name.chars().take(64).collect();
        let name_valid = name.len() <= ENVIRONMENT_NAME_LIMIT
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
        if !name_valid {
            return Err(Problem::invalid(format!(
                "extra_env: `{shown}` is not a variable name: use letters, digits and `_`"
            )));
        }
        if environment::is_managed(&name) {
            return Err(Problem::invalid(format!("extra_env: `{shown}` is set by the server")));
        }
        let Some(LooseText(value)) = value else {
            environment.insert(name, None);
            continue;
        };
        if value.len() > ENVIRONMENT_VALUE_LIMIT || value.contains(['\n', '\r', '\0']) {
            return Err(Problem::invalid(format!(
                "extra_env: the value of `{shown}` must be one line of at most {ENVIRONMENT_VALUE_LIMIT} bytes"
            )));
        }
        environment.insert(name, Some(Secret::from(value)));
    }
    Ok(environment)
}

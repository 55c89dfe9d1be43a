//! Environment of instances: which names are ours.

/// Names that we set ourselves, or that would change what we run. The API refuses them, and a node
/// leaves them out whoever asks.
const MANAGED: [&str; 38] = [
    "BASTION_SSH_PUBKEY",
    "CHANNEL_RELAY_API_KEY",
    "CHANNEL_RELAY_URL",
    "ENGINE_V2",
    "GATEWAY_AUTH_TOKEN",
    "GATEWAY_PORT",
    "GOOGLE_OAUTH_CLIENT_ID",
    "HOME",
    "HOSTNAME",
    "INSTANCE_NAME",
    "INSTANCE_TOKEN",
    "IRONCLAW_DOMAIN",
    "IRONCLAW_INSTANCE_ID",
    "IRONCLAW_OAUTH_EXCHANGE_URL",
    "LOGNAME",
    "NEARAI_API_KEY",
    "NEARAI_API_URL",
    "NEARAI_MODEL",
    "OPENCLAW_AUTO_APPROVE_DEVICES",
    "OPENCLAW_CONFIG_PATH",
    "OPENCLAW_DOMAIN",
    "OPENCLAW_FORCE_CONFIG_REGEN",
    "OPENCLAW_GATEWAY_BIND",
    "OPENCLAW_GATEWAY_PASSWORD",
    "OPENCLAW_GATEWAY_PORT",
    "OPENCLAW_GATEWAY_TOKEN",
    "OPENCLAW_HOME",
    "OPENCLAW_INSTANCE_NAME",
    "OPENCLAW_STATE_DIR",
    "PATH",
    "SECRETS_MASTER_KEY",
    "SERVICE_TYPE",
    "SHELL",
    "SSH_PORT",
    "SSH_PUBKEY",
    "TERM",
    "TZ",
    "USER",
];

/// True for a name that nobody else may set.
pub fn is_managed(name: &str) -> bool {
    MANAGED.contains(&name)
}

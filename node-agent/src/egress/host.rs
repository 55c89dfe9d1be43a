//! What the node needs beside the table: forwarding, the service address, the routing guard, and
//! Docker's permission. Each function puts one thing in place and says whether it was missing.

use std::{io, net::Ipv4Addr, path::Path};

use ipnet::Ipv4Net;
use serde::Deserialize;

use super::{
    EgressError,
    command::{CommandError, Tool, run},
    skeleton::MARK_MASK,
};
use crate::link::{BRIDGE_PREFIX, Pool};

/// The guard: forwarding from the pool needs the mark that only our table sets.
const GUARD_PREFERENCE: u32 = 100;
/// Before it: what the node itself sends from its addresses in the pool (answers, dials).
const OWN_PREFERENCE: u32 = 99;
/// Where administrators, and we, say what Docker's own rules must not decide.
const DOCKER_CHAIN: &str = "DOCKER-USER";
/// From where Docker has packets go there.
const FORWARD_CHAIN: &str = "FORWARD";
/// Shorter routes are a default route in pieces, as some VPN clients set it.
const SHORTEST_ROUTE: u8 = 2;

#[derive(Debug, Deserialize)]
struct Route {
    dst: String,
    #[serde(default)]
    dev: String,
}

#[derive(Debug, Deserialize)]
struct Interface {
    #[serde(default)]
    ifname: String,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    local: Option<Ipv4Addr>,
    prefixlen: Option<u8>,
}

#[derive(Debug, Deserialize)]
struct RoutingRule {
    priority: u32,
    src: Option<String>,
    srclen: Option<u8>,
    iif: Option<String>,
    fwmark: Option<String>,
    fwmask: Option<String>,
    action: Option<String>,
    table: Option<String>,
}

/// Refuses a node without the tools that are needed only later (nft, ip are used at once).
pub(super) async fn check_tools() -> Result<(), EgressError> {
    run(Tool::Conntrack, &["--version"], None).await?;
    Ok(())
}

/// Refuses a pool that overlaps a network that is not ours.
pub(super) async fn check_pool(pool: Pool) -> Result<(), EgressError> {
    let routes: Vec<Route> = listed(&["-j", "-4", "route", "show", "table", "all"]).await?;
    let interfaces: Vec<Interface> = listed(&["-j", "-4", "address", "show"]).await?;
    match foreign(pool, &routes, &interfaces) {
        Some(what) => Err(EgressError::PoolTaken {
            pool: pool.network(),
            what,
        }),
        None => Ok(()),
    }
}

/// The first route or address in the pool that somebody else made.
fn foreign(pool: Pool, routes: &[Route], interfaces: &[Interface]) -> Option<String> {
    let overlaps = |network: Ipv4Net| pool.network().contains(&network) || network.contains(&pool.network());
    let ours = |interface: &str, network: Ipv4Net| {
        interface.starts_with(BRIDGE_PREFIX) || (interface == "lo" && network == Ipv4Net::from(pool.service_address()))
    };
    let addresses = interfaces.iter().flat_map(|interface| {
        interface.addr_info.iter().filter_map(move |address| {
            let network = Ipv4Net::new(address.local?, address.prefixlen?).ok()?;
            (overlaps(network.trunc()) && !ours(&interface.ifname, network))
                .then(|| format!("the address {network} of {}", interface.ifname))
        })
    });
    let routes = routes.iter().filter_map(|route| {
        let network = network(&route.dst)?;
        (network.prefix_len() >= SHORTEST_ROUTE && overlaps(network) && !ours(&route.dev, network)).then(|| {
            match route.dev.as_str() {
                "" => format!("the route {network}"),
                device => format!("the route {network} of {device}"),
            }
        })
    });
    addresses.chain(routes).next()
}

/// `ADDRESS` or `ADDRESS/LENGTH`; not `default`.
fn network(text: &str) -> Option<Ipv4Net> {
    text.parse().ok().or_else(|| text.parse::<Ipv4Addr>().ok().map(Ipv4Net::from))
}

/// Lets the node forward. Docker does this too, unless told not to.
pub(super) async fn ensure_forwarding() -> Result<bool, EgressError> {
    write_setting(Path::new("/proc/sys/net/ipv4/ip_forward"), "1").await
}

/// Makes reverse path checks look at packet marks, as our routing guard does: an interface with
/// `rp_filter` would otherwise drop every answer to an instance.
pub(super) async fn ensure_marked_reverse_paths() -> Result<bool, EgressError> {
    write_setting(Path::new("/proc/sys/net/ipv4/conf/all/src_valid_mark"), "1").await
}

/// Gives the node the one address that instances may talk to.
pub(super) async fn ensure_service_address(pool: Pool) -> Result<bool, EgressError> {
    let service = pool.service_address();
    let interfaces: Vec<Interface> = listed(&["-j", "-4", "address", "show", "dev", "lo"]).await?;
    let there = |interface: &Interface| interface.addr_info.iter().any(|address| address.local == Some(service));
    if interfaces.iter().any(there) {
        return Ok(false);
    }
    run(Tool::Ip, &["address", "add", &format!("{service}/32"), "dev", "lo"], None).await?;
    Ok(true)
}

/// Forwarding from the pool stays forbidden when the table is gone, with everything in it.
pub(super) async fn ensure_guard(pool: Pool) -> Result<bool, EgressError> {
    let rules: Vec<RoutingRule> = listed(&["-j", "-4", "rule", "show"]).await?;
    let network = pool.network().to_string();
    let mark = format!("0/{MARK_MASK:#x}");
    let (own, guard) = (OWN_PREFERENCE.to_string(), GUARD_PREFERENCE.to_string());
    let mut missing = false;
    // First the exception, or the node would for a moment not reach its own instances.
    if !rules.iter().any(|rule| rule.lets_own(pool.network())) {
        missing = true;
        let from_node = ["iif", "lo", "lookup", "main"];
        run(
            Tool::Ip,
            &[&["-4", "rule", "add", "pref", &own, "from", &network][..], &from_node].concat(),
            None,
        )
        .await?;
    }
    if !rules.iter().any(|rule| rule.guards(pool.network())) {
        missing = true;
        let unmarked = ["fwmark", &mark, "prohibit"];
        run(
            Tool::Ip,
            &[&["-4", "rule", "add", "pref", &guard, "from", &network][..], &unmarked].concat(),
            None,
        )
        .await?;
    }
    Ok(missing)
}

impl RoutingRule {
    fn is_from(&self, pool: Ipv4Net) -> bool {
        let length = self.srclen.unwrap_or(32);
        let source = self.src.as_deref().and_then(network).map(|source| source.addr());
        source == Some(pool.addr()) && length == pool.prefix_len()
    }

    fn lets_own(&self, pool: Ipv4Net) -> bool {
        self.is_from(pool)
            && self.priority == OWN_PREFERENCE
            && self.iif.as_deref() == Some("lo")
            && self.table.as_deref() == Some("main")
            && self.fwmark.is_none()
    }

    fn guards(&self, pool: Ipv4Net) -> bool {
        self.is_from(pool)
            && self.priority == GUARD_PREFERENCE
            && self.action.as_deref() == Some("prohibit")
            && self.iif.is_none()
            && self.fwmark.as_deref().and_then(hex) == Some(0)
            && self.fwmask.as_deref().and_then(hex) == Some(MARK_MASK)
    }
}

fn hex(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

/// An accept of ours does not override Docker's own drops, so Docker is told to leave our bridges to
/// us. It also spares every packet the walk through the rules of all of Docker's networks.
pub(super) async fn ensure_docker_accepts() -> Result<bool, EgressError> {
    let Some(rules) = docker_rules().await? else {
        return Ok(false);
    };
    let mut missing = false;
    for rule in accepts() {
        let line = format!("-A {DOCKER_CHAIN} {rule}");
        if !rules.lines().any(|known| known.trim() == line) {
            missing = true;
            let words: Vec<&str> = rule.split(' ').collect();
            run(Tool::Iptables, &[&["-w", "5", "-I", DOCKER_CHAIN][..], &words].concat(), None).await?;
        }
    }
    Ok(missing)
}

/// Our rules in Docker's chain, as iptables lists them.
fn accepts() -> [String; 2] {
    ["-i", "-o"].map(|direction| format!("{direction} {BRIDGE_PREFIX}+ -j ACCEPT"))
}

/// Docker's chain for administrators; none: Docker has not made it yet.
async fn docker_rules() -> Result<Option<String>, EgressError> {
    match run(Tool::Iptables, &["-w", "5", "-S", DOCKER_CHAIN], None).await {
        Ok(rules) => Ok(Some(rules)),
        // How it says that there is no such chain depends on its version and backend.
        Err(error @ (CommandError::Failed { .. } | CommandError::Missing { .. })) => {
            let chains = run(Tool::Nft, &["-j", "list", "chains"], None).await?;
            if chains.contains(&format!("\"{DOCKER_CHAIN}\"")) {
                Err(error.into())
            } else {
                Ok(None)
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Rules of others that are asked before ours: in Docker's chain, and on the way to it.
pub(super) async fn rules_in_the_way() -> Result<Vec<String>, EgressError> {
    let Some(rules) = docker_rules().await? else {
        return Ok(Vec::new());
    };
    let forward = run(Tool::Iptables, &["-w", "5", "-S", FORWARD_CHAIN], None).await?;
    let mut found = before(&forward, FORWARD_CHAIN, &[format!("-j {DOCKER_CHAIN}")]);
    found.extend(before(&rules, DOCKER_CHAIN, &accepts()));
    Ok(found)
}

/// The rules of a chain that stand before the last of ours and may end a packet's way.
fn before(listing: &str, chain: &str, ours: &[String]) -> Vec<String> {
    let prefix = format!("-A {chain} ");
    let rules: Vec<&str> = listing.lines().filter_map(|line| line.trim().strip_prefix(&prefix)).collect();
    let is_ours = |rule: &str| ours.iter().any(|known| known == rule);
    let last = rules.iter().rposition(|rule| is_ours(rule)).unwrap_or_default();
    let others = rules[..last].iter().filter(|rule| !is_ours(rule) && !is_harmless(rule));
    others.map(|rule| format!("{prefix}{rule}")).collect()
}

/// It lets packets pass, only looks at them, or is Docker's own: those keep its networks apart, and may
/// stand first for a while after a start of dockerd.
fn is_harmless(rule: &str) -> bool {
    match rule.split(' ').skip_while(|word| *word != "-j").nth(1) {
        None | Some("ACCEPT" | "LOG" | "NFLOG") => true,
        Some(target) => target.starts_with("DOCKER"),
    }
}

/// Every bridge of ours refuses sources that it has no route to, even when the table is gone: the
/// guard knows only addresses of the pool.
pub(super) async fn ensure_strict_sources() -> Result<(), EgressError> {
    let settings = Path::new("/proc/sys/net/ipv4/conf");
    let failed = |source| EgressError::Setting {
        path: settings.display().to_string(),
        source,
    };
    let mut entries = tokio::fs::read_dir(settings).await.map_err(failed)?;
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        if let Some(bridge) = entry.file_name().to_str().filter(|name| name.starts_with(BRIDGE_PREFIX)) {
            strict_sources(bridge).await?;
        }
    }
    Ok(())
}

/// The same for one bridge; one that is not there yet, or no more, is no error.
pub(super) async fn strict_sources(bridge: &str) -> Result<(), EgressError> {
    let path = format!("/proc/sys/net/ipv4/conf/{bridge}/rp_filter");
    match write_setting(Path::new(&path), "1").await {
        Err(EgressError::Setting { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map(|_| ()),
    }
}

/// Whether the node has an interface of this name.
pub(super) fn has_interface(name: &str) -> bool {
    Path::new("/proc/sys/net/ipv4/conf").join(name).exists()
}

/// Removes an interface; one that is not there is no error.
pub(super) async fn remove_interface(name: &str) -> Result<(), EgressError> {
    match run(Tool::Ip, &["link", "delete", name], None).await {
        Err(error) if has_interface(name) => Err(error.into()),
        _ => Ok(()),
    }
}

async fn write_setting(path: &Path, value: &str) -> Result<bool, EgressError> {
    let failed = |source| EgressError::Setting {
        path: path.display().to_string(),
        source,
    };
    if tokio::fs::read_to_string(path).await.map_err(failed)?.trim() == value {
        return Ok(false);
    }
    tokio::fs::write(path, value).await.map_err(failed)?;
    Ok(true)
}

/// Forgets the connections of an address, so that a later instance inherits none.
pub(super) async fn forget_connections(address: Ipv4Addr) -> Result<(), EgressError> {
    let address = address.to_string();
    // Opened by the instance; opened to it, also through a published port.
    for side in ["--orig-src", "--reply-src"] {
        match run(Tool::Conntrack, &["-D", side, &address], None).await {
            Ok(_) => {}
            Err(error) if error.says("0 flow entries") => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn listed<T: for<'a> Deserialize<'a>>(arguments: &[&str]) -> Result<Vec<T>, EgressError> {
    let printed = run(Tool::Ip, arguments, None).await?;
    if printed.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&printed).map_err(|source| EgressError::Routing { source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(routes: &str, interfaces: &str) -> Option<String> {
        let pool = Pool::new("10.201.0.0/16".parse().unwrap()).unwrap();
        foreign(
            pool,
            &serde_json::from_str::<Vec<Route>>(routes).unwrap(),
            &serde_json::from_str::<Vec<Interface>>(interfaces).unwrap(),
        )
    }

    #[test]
    fn pool__should_accept_our_own_traces_and_default_routes() {
        let routes = r#"[{"dst":"default","dev":"eth0"},{"dst":"0.0.0.0/1","dev":"tun0"},{"dst":"172.17.0.0/16","dev":"docker0"},
            {"type":"local","dst":"10.201.0.1","dev":"lo"},{"dst":"10.201.0.8/29","dev":"cs-0123456789ab"}]"#;
        let interfaces = r#"[{"ifname":"lo","addr_info":[{"local":"10.201.0.1","prefixlen":32}]},
            {"ifname":"cs-0123456789ab","addr_info":[{"local":"10.201.0.9","prefixlen":29}]},{}]"#;
        assert_eq!(taken(routes, interfaces), None);
    }

    #[test]
    fn pool__should_name_the_route_or_address_that_is_in_the_way() {
        assert_eq!(
            taken(r#"[{"dst":"10.0.0.0/8","dev":"tun0"}]"#, "[]").unwrap(),
            "the route 10.0.0.0/8 of tun0"
        );
        assert_eq!(
            taken(r#"[{"type":"blackhole","dst":"10.201.3.0/24"}]"#, "[]").unwrap(),
            "the route 10.201.3.0/24"
        );
        let interfaces = r#"[{"ifname":"eth1","addr_info":[{"local":"10.201.7.1","prefixlen":24}]}]"#;
        assert_eq!(taken("[]", interfaces).unwrap(), "the address 10.201.7.1/24 of eth1");
    }

    #[test]
    fn rules__should_be_named_when_they_come_before_ours() {
        let chain = "-N DOCKER-USER\n-A DOCKER-USER -s 10.0.0.0/8 -j DROP\n-A DOCKER-USER -o cs-+ -j ACCEPT\n\
            -A DOCKER-USER -i cs-+ -j ACCEPT\n-A DOCKER-USER -j RETURN";
        assert_eq!(
            before(chain, DOCKER_CHAIN, &accepts()),
            ["-A DOCKER-USER -s 10.0.0.0/8 -j DROP"]
        );
        let plain = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-ISOLATION-STAGE-1";
        assert!(before(plain, "FORWARD", &["-j DOCKER-USER".to_owned()]).is_empty());
        let dockers = "-A FORWARD -j DOCKER-ISOLATION-STAGE-1\n-A FORWARD -j DOCKER-USER";
        assert!(before(dockers, "FORWARD", &["-j DOCKER-USER".to_owned()]).is_empty());
        assert!(before("-A DOCKER-USER -j RETURN", DOCKER_CHAIN, &accepts()).is_empty());
    }

    #[test]
    fn guard__should_be_recognised_only_when_it_is_exactly_ours() {
        let pool = "10.201.0.0/16".parse().unwrap();
        let rules: Vec<RoutingRule> = serde_json::from_str(
            r#"[{"priority":99,"src":"10.201.0.0","srclen":16,"iif":"lo","table":"main"},
            {"priority":100,"src":"10.201.0.0","srclen":16,"fwmark":"0","fwmask":"0xff0000","action":"prohibit"},
            {"priority":100,"src":"10.201.0.0","srclen":17,"fwmark":"0","fwmask":"0xff0000","action":"prohibit"},
            {"priority":100,"src":"10.201.0.0","srclen":16,"fwmark":"0x1","fwmask":"0xff0000","action":"prohibit"},
            {"priority":32766,"src":"all","table":"main"}]"#,
        )
        .unwrap();
        assert_eq!(
            rules.iter().map(|rule| rule.lets_own(pool)).collect::<Vec<_>>(),
            [true, false, false, false, false]
        );
        assert_eq!(
            rules.iter().map(|rule| rule.guards(pool)).collect::<Vec<_>>(),
            [false, true, false, false, false]
        );
    }
}

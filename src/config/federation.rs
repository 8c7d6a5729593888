//! How other servers are found, trusted and asked.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use ruma_common::{OwnedServerName, ServerName};
use serde::{Deserialize, Deserializer, de};

use crate::{rooms::matches, units};

/// How other servers are found, trusted and asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Keys")]
pub struct Federation {
    /// `federation_domain_whitelist`: the only servers to talk to; `None`: all.
    pub domain_whitelist: Option<Vec<OwnedServerName>>,
    /// `federation_verify_certificates`. Default true.
    pub verifies_certificates: bool,
    /// `federation_certificate_verification_whitelist`: hosts whose certificates are not checked.
    unchecked_hosts: Vec<String>,
    /// `federation_client_minimum_tls_version`. Default 1.2, below which nothing goes.
    pub minimum_tls: TlsVersion,
    /// `federation_custom_ca_list`: PEM files, instead of the system's authorities.
    pub custom_ca_list: Option<Vec<PathBuf>>,
    /// `ip_range_blocklist` and `ip_range_allowlist`.
    pub addresses: AddressRules,
    /// `federation_rr_transactions_per_room_per_second`: how often receipts of a room go to other
    /// servers, all of them together. Default 50.
    pub receipts_per_second: u32,
    /// `federation`.
    pub limits: FederationLimits,
    /// `limit_remote_rooms`.
    pub remote_rooms: RemoteRooms,
    /// `user_agent_suffix`: what is added to the name under which this server asks others.
    pub user_agent_suffix: Option<String>,
}

/// The keys as they are written.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Keys {
    federation_domain_whitelist: Option<Vec<OwnedServerName>>,
    federation_verify_certificates: bool,
    federation_certificate_verification_whitelist: Vec<String>,
    #[serde(deserialize_with = "tls_version")]
    federation_client_minimum_tls_version: TlsVersion,
    federation_custom_ca_list: Option<Vec<PathBuf>>,
    ip_range_blocklist: Option<Vec<Range>>,
    ip_range_allowlist: Option<Vec<Range>>,
    /// The older names.
    ip_range_blacklist: Option<Vec<Range>>,
    ip_range_whitelist: Option<Vec<Range>>,
    federation_rr_transactions_per_room_per_second: u32,
    federation: FederationLimits,
    limit_remote_rooms: RemoteRooms,
    user_agent_suffix: Option<String>,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            federation_domain_whitelist: None,
            federation_verify_certificates: true,
            federation_certificate_verification_whitelist: Vec::new(),
            federation_client_minimum_tls_version: TlsVersion::V1_2,
            federation_custom_ca_list: None,
            ip_range_blocklist: None,
            ip_range_allowlist: None,
            ip_range_blacklist: None,
            ip_range_whitelist: None,
            federation_rr_transactions_per_room_per_second: 50,
            federation: FederationLimits::default(),
            limit_remote_rooms: RemoteRooms::default(),
            user_agent_suffix: None,
        }
    }
}

impl From<Keys> for Federation {
    fn from(keys: Keys) -> Self {
        let ranges = |list: Vec<Range>| list.into_iter().map(|range| range.0).collect();
        let blocked = keys.ip_range_blocklist.or(keys.ip_range_blacklist);
        let allowed = keys.ip_range_allowlist.or(keys.ip_range_whitelist);
        Self {
            domain_whitelist: keys.federation_domain_whitelist,
            verifies_certificates: keys.federation_verify_certificates,
            unchecked_hosts: keys.federation_certificate_verification_whitelist,
            minimum_tls: keys.federation_client_minimum_tls_version,
            custom_ca_list: keys.federation_custom_ca_list,
            addresses: AddressRules {
                blocked: blocked.map_or_else(default_blocklist, ranges),
                allowed: allowed.map(ranges).unwrap_or_default(),
            },
            receipts_per_second: keys.federation_rr_transactions_per_room_per_second,
            limits: keys.federation,
            remote_rooms: keys.limit_remote_rooms,
            user_agent_suffix: keys.user_agent_suffix.filter(|suffix| !suffix.is_empty()),
        }
    }
}

impl Default for Federation {
    fn default() -> Self {
        Keys::default().into()
    }
}

impl Federation {
    /// Whether this server talks to `server`.
    pub fn may_talk_to(&self, server: &ServerName) -> bool {
        let listed = |list: &Vec<OwnedServerName>| list.iter().any(|one| one == server);
        self.domain_whitelist.as_ref().is_none_or(listed)
    }

    /// Whether the certificate that `host` shows has to be good.
    pub fn checks_certificate_of(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let like = |pattern: &String| matches(&pattern.to_ascii_lowercase(), &host);
        self.verifies_certificates && !self.unchecked_hosts.iter().any(like)
    }
}

/// The section `limit_remote_rooms`: which rooms of other servers are too much for this one.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct RemoteRooms {
    /// `enabled`. Default false.
    pub enabled: bool,
    /// `complexity`: the most that a room may have; one for 500 pieces of state. Default 1.
    pub complexity: f64,
    /// `complexity_error`: what users are told.
    pub complexity_error: String,
    /// `admins_can_join`: whether it does not hold for admins. Default false.
    pub admins_can_join: bool,
}

impl Default for RemoteRooms {
    fn default() -> Self {
        let error = "This room is too large or complex for this server to join. \
                     Please speak to its administrator.";
        Self {
            enabled: false,
            complexity: 1.0,
            complexity_error: error.to_owned(),
            admins_can_join: false,
        }
    }
}

/// The section `federation`: time-outs, repeats and back-off.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct FederationLimits {
    /// `client_timeout`: for one attempt. Default 60 s.
    #[serde(deserialize_with = "units::duration")]
    pub client_timeout: Duration,
    /// `max_short_retry_delay`. Default 2 s.
    #[serde(deserialize_with = "units::duration")]
    pub max_short_retry_delay: Duration,
    /// `max_long_retry_delay`. Default 60 s.
    #[serde(deserialize_with = "units::duration")]
    pub max_long_retry_delay: Duration,
    /// `max_short_retries`: of requests that somebody waits for. Default 3.
    pub max_short_retries: u32,
    /// `max_long_retries`: of others. Default 10.
    pub max_long_retries: u32,
    /// `destination_min_retry_interval`: how long a server that is away is left alone at first.
    /// Default 10 minutes.
    #[serde(deserialize_with = "units::duration")]
    pub destination_min_retry_interval: Duration,
    /// `destination_retry_multiplier`: by how much that grows each time. Default 2.
    pub destination_retry_multiplier: u32,
    /// `destination_max_retry_interval`. Default a week.
    #[serde(deserialize_with = "units::duration")]
    pub destination_max_retry_interval: Duration,
}

impl Default for FederationLimits {
    fn default() -> Self {
        Self {
            client_timeout: Duration::from_secs(60),
            max_short_retry_delay: Duration::from_secs(2),
            max_long_retry_delay: Duration::from_secs(60),
            max_short_retries: 3,
            max_long_retries: 10,
            destination_min_retry_interval: Duration::from_secs(600),
            destination_retry_multiplier: 2,
            destination_max_retry_interval: Duration::from_secs(7 * 86_400),
        }
    }
}

/// `federation_client_minimum_tls_version`. There is nothing below 1.2 here; files that allow
/// less get 1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

fn tls_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TlsVersion, D::Error> {
    struct Version;
    impl de::Visitor<'_> for Version {
        type Value = TlsVersion;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a TLS version, 1.2 or 1.3")
        }

        fn visit_u64<E: de::Error>(self, value: u64) -> Result<TlsVersion, E> {
            self.visit_str(&value.to_string())
        }

        fn visit_i64<E: de::Error>(self, value: i64) -> Result<TlsVersion, E> {
            self.visit_str(&value.to_string())
        }

        fn visit_f64<E: de::Error>(self, value: f64) -> Result<TlsVersion, E> {
            self.visit_str(&value.to_string())
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<TlsVersion, E> {
            match value {
                "1" | "1.0" | "1.1" | "1.2" => Ok(TlsVersion::V1_2),
                "1.3" => Ok(TlsVersion::V1_3),
                _ => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
            }
        }
    }
    deserializer.deserialize_any(Version)
}

/// Which addresses this server connects to on behalf of names that others choose.
#[derive(Clone, Debug)]
pub struct AddressRules {
    blocked: Vec<IpNet>,
    allowed: Vec<IpNet>,
}

impl AddressRules {
    /// Whether it may be connected to. An IPv6 address that stands for an IPv4 address is judged
    /// as both, and "any address" never is a place to go.
    pub fn allow(&self, address: IpAddr) -> bool {
        let within = |ranges: &[IpNet], one: &IpAddr| ranges.iter().any(|net| net.contains(one));
        let inner = embedded(address);
        let all = || std::iter::once(address).chain(inner);
        if all().any(|one| within(&self.allowed, &one)) {
            return true;
        }
        !all().any(|one| one.is_unspecified() || within(&self.blocked, &one))
    }
}

/// The IPv4 address that packets for an IPv6 address end at: mapped, compatible, 6to4, or by NAT64.
fn embedded(address: IpAddr) -> Option<IpAddr> {
    let IpAddr::V6(v6) = address else { return None };
    let parts = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(IpAddr::from([a, b, c, d]))
    };
    match parts {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        _ => None,
    }
}

/// An address or a range of addresses.
#[derive(Debug)]
struct Range(IpNet);

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let net = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        net.map(Self).map_err(|_| {
            let expected = "an IP address, or a range such as 10.0.0.0/8";
            de::Error::invalid_value(de::Unexpected::Str(&text), &expected)
        })
    }
}

/// Addresses that are this machine's, its network's, or nobody's.
fn default_blocklist() -> Vec<IpNet> {
    const RANGES: [&str; 19] = [
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "192.0.0.0/24",
        "169.254.0.0/16",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "192.0.2.0/24",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "::1/128",
        "fe80::/10",
        "fc00::/7",
        "2001:db8::/32",
        "ff00::/8",
        "fec0::/10",
    ];
    RANGES.iter().map(|range| range.parse().expect("these are ranges")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Overrides};

    fn read(text: &str) -> Result<Federation, String> {
        let text = format!("server_name: a.example\n{text}");
        Config::from_texts(&[("homeserver.yaml", &text)], &Overrides::default())
            .map(|config| config.federation)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn addresses_that_are_nobodys_are_blocked_by_default_in_every_disguise() {
        let rules = read("").unwrap().addresses;
        for (address, is_allowed) in [
            ("8.8.8.8", true),
            ("2a00:1450::1", true),
            ("127.0.0.1", false),
            ("10.200.0.1", false),
            ("169.254.169.254", false),
            ("0.0.0.0", false),
            ("::", false),
            ("::1", false),
            ("fe80::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:8.8.8.8", true),
            ("::10.0.0.1", false),
            ("2002:7f00:1::", false),
            ("64:ff9b::a00:1", false),
        ] {
            assert_eq!(rules.allow(address.parse().unwrap()), is_allowed, "{address}");
        }
    }

    #[test]
    fn what_is_allowed_goes_before_what_is_blocked_under_both_names() {
        for [block, allow] in [
            ["ip_range_blocklist", "ip_range_allowlist"],
            ["ip_range_blacklist", "ip_range_whitelist"],
        ] {
            let text = format!("{block}: [10.0.0.0/8, 192.0.2.1]\n{allow}: [10.1.0.0/16]");
            let rules = read(&text).unwrap().addresses;
            for (address, is_allowed) in [
                ("10.2.0.1", false),
                ("10.1.0.1", true),
                ("192.0.2.1", false),
                ("192.0.2.2", true),
                ("127.0.0.1", true),
            ] {
                assert_eq!(rules.allow(address.parse().unwrap()), is_allowed, "{address}");
            }
        }
    }

    #[test]
    fn certificates_are_checked_but_those_that_are_named() {
        let some = read("federation_certificate_verification_whitelist: ['*.Lan', old.example]");
        let some = some.unwrap();
        assert!(some.checks_certificate_of("good.example"));
        assert!(!some.checks_certificate_of("a.lan"));
        assert!(!some.checks_certificate_of("OLD.example"));
        let none = read("federation_verify_certificates: false").unwrap();
        assert!(!none.checks_certificate_of("good.example"));
    }

    #[test]
    fn a_list_of_domains_is_all_there_is() {
        let to = |text: &str| {
            let b = ServerName::parse("b.example").unwrap();
            read(text).unwrap().may_talk_to(&b)
        };
        assert!(to(""));
        assert!(to("federation_domain_whitelist: [b.example]"));
        assert!(!to("federation_domain_whitelist: [c.example]"));
        assert!(!to("federation_domain_whitelist: []"));
    }

    #[test]
    fn values_that_mean_nothing_are_refused_with_their_key() {
        for (text, key) in [
            ("ip_range_blocklist: [10.0.0]", "ip_range_blocklist"),
            ("federation_domain_whitelist: ['a b']", "federation_domain_whitelist"),
            ("federation_client_minimum_tls_version: 2", "federation_client_minimum_tls_version"),
            ("federation: {client_timeout: soon}", "federation.client_timeout"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
        let limits = read("federation: {client_timeout: 5s, max_short_retries: 0}").unwrap().limits;
        assert_eq!(limits.client_timeout, Duration::from_secs(5));
        assert_eq!((limits.max_short_retries, limits.max_long_retries), (0, 10));
        let tls = |text: &str| {
            read(&format!("federation_client_minimum_tls_version: {text}")).unwrap().minimum_tls
        };
        assert_eq!(
            (tls("1"), tls("1.2"), tls("'1.3'")),
            (TlsVersion::V1_2, TlsVersion::V1_2, TlsVersion::V1_3)
        );
    }
}

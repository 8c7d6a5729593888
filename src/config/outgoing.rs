//! The proxy through which this server asks others, where nothing else leads outside.

use std::net::IpAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use figment::{
    Figment,
    value::{Dict, Value},
};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

use crate::{Secret, source::Named};

/// The port of a proxy that names none.
const PORT: u16 = 1080;

/// Through whom other servers are asked.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Outgoing {
    /// `https_proxy`: for requests over TLS, which all are.
    #[serde(deserialize_with = "unless_empty")]
    https_proxy: Option<ForwardProxy>,
    /// `no_proxy_hosts`: who is asked without it.
    no_proxy_hosts: Direct,
}

impl Outgoing {
    /// The proxy that leads to `host`, a name or an address, if one does.
    pub fn proxy_towards(&self, host: &str) -> Option<&ForwardProxy> {
        self.https_proxy.as_ref().filter(|_| !self.no_proxy_hosts.has(host))
    }
}

/// A proxy that opens tunnels (`CONNECT`).
#[derive(Clone, Debug)]
pub struct ForwardProxy {
    /// Whether it is spoken to over TLS.
    pub is_tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// What it wants to be told in `Proxy-Authorization`.
    pub authorization: Option<Secret>,
}

impl ForwardProxy {
    /// `[scheme://][user:password@]host[:port]`, as Synapse reads it: a password stands there as
    /// it is, and counts only beside a user. The error does not repeat the text.
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let is_tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err("expected a proxy that is spoken to by http:// or https://"),
        };
        let (credentials, place) = rest.rsplit_once('@').unwrap_or(("", rest));
        let place = place.split(['/', '?', '#']).next().unwrap_or_default();
        let (host, port) = split_port(place).ok_or("expected a port, a number below 65536")?;
        if host.is_empty() {
            return Err("expected [scheme://][user:password@]host[:port]");
        }
        let authorization = credentials
            .split_once(':')
            .filter(|(user, password)| !user.is_empty() && !password.is_empty())
            .map(|_| Secret::new(format!("Basic {}", STANDARD.encode(credentials))));
        Ok(Self { is_tls, host: host.to_owned(), port: port.unwrap_or(PORT), authorization })
    }
}

/// An empty text in a file is no proxy, whatever the environment says.
fn unless_empty<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ForwardProxy>, D::Error> {
    let text = String::deserialize(from)?;
    let proxy = (!text.is_empty()).then(|| ForwardProxy::parse(&text));
    proxy.transpose().map_err(de::Error::custom)
}

/// Host, without the brackets of an IPv6 address, and port.
fn split_port(place: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, after.strip_prefix(':').unwrap_or(after))
        }
        None => place.split_once(':').unwrap_or((place, "")),
    };
    let port = if port.is_empty() { None } else { Some(port.parse().ok()?) };
    Some((host, port))
}

/// Hosts that are reached without a proxy.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Vec<String>")]
struct Direct {
    all: bool,
    /// Addresses.
    ranges: Vec<IpNet>,
    /// A host of such a name, or under it; in lower case.
    names: Vec<String>,
}

impl From<Vec<String>> for Direct {
    fn from(listed: Vec<String>) -> Self {
        let mut direct = Self { all: listed == ["*"], ..Self::default() };
        for one in listed {
            let one = one.trim();
            let range = one.parse().or_else(|_| bare(one).parse::<IpAddr>().map(IpNet::from));
            match range {
                Ok(range) => direct.ranges.push(range),
                Err(_) => direct.names.push(one.trim_start_matches('.').to_ascii_lowercase()),
            }
        }
        direct.names.retain(|name| !name.is_empty());
        direct
    }
}

impl Direct {
    fn has(&self, host: &str) -> bool {
        let host = bare(host).to_ascii_lowercase();
        let is_or_is_under = |name: &String| {
            let above = host.strip_suffix(name.as_str());
            above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
        };
        self.all
            || match host.parse::<IpAddr>() {
                Ok(address) => self.ranges.iter().any(|range| range.contains(&address)),
                Err(_) => self.names.iter().any(is_or_is_under),
            }
    }
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Puts what the environment says of proxies under everything else: `https_proxy` and `no_proxy`,
/// in any case; the name in lower case goes before others. An empty one says nothing.
pub(crate) fn from_environment(mut figment: Figment, environment: &[(String, String)]) -> Figment {
    let of = |wanted: &str| {
        let mut named =
            environment.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).rev();
        let exact = named.clone().find(|(name, _)| name == wanted);
        exact.or_else(|| named.next()).filter(|(_, text)| !text.is_empty())
    };
    let mut put = |key: &str, name: &str, value: Value| {
        let values = Dict::from([(key.to_owned(), value)]);
        figment = figment.clone().merge(Named::from_environment(name, values));
    };
    if let Some((name, text)) = of("https_proxy") {
        put("https_proxy", name, text.as_str().into());
    }
    if let Some((name, text)) = of("no_proxy") {
        let hosts: Vec<Value> = text.split(',').map(Value::from).collect();
        put("no_proxy_hosts", name, hosts.into());
    }
    figment
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, Overrides};

    fn read(text: &str, environment: &[(&str, &str)]) -> Result<Outgoing, String> {
        let text = format!("server_name: a.example\n{text}");
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let env = environment.iter().map(pair).collect();
        Config::from_texts(
            &[("homeserver.yaml", &text)],
            &Overrides { env, ..Overrides::default() },
        )
        .map(|config| config.outgoing)
        .map_err(|error| error.to_string())
    }

    #[test]
    fn proxies_are_read_as_synapse_reads_them() {
        for (text, is_tls, host, port, credentials) in [
            ("proxy.lan", false, "proxy.lan", 1080, None),
            ("proxy.lan:3128", false, "proxy.lan", 3128, None),
            ("http://proxy.lan:3128/", false, "proxy.lan", 3128, None),
            ("HTTPS://u:p@10.0.0.1", true, "10.0.0.1", 1080, Some("u:p")),
            ("u:p@w%40:@[::1]:80", false, "::1", 80, Some("u:p@w%40:")),
            ("u@proxy.lan", false, "proxy.lan", 1080, None),
        ] {
            let proxy = ForwardProxy::parse(text).unwrap();
            assert_eq!((proxy.is_tls, proxy.host.as_str(), proxy.port), (is_tls, host, port));
            let sent = proxy.authorization.as_ref().map(|secret| secret.expose().to_owned());
            let expected = credentials.map(|text| format!("Basic {}", STANDARD.encode(text)));
            assert_eq!(sent, expected, "{text}");
            assert!(!format!("{proxy:?}").contains("Basic"));
        }
        for wrong in ["socks5://proxy.lan", "http://", "u:p@", "proxy.lan:99999", "[::1"] {
            assert!(ForwardProxy::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mistake_is_told_without_the_password() {
        let error = read("https_proxy: socks5://me:hush@proxy.lan", &[]).unwrap_err();
        assert!(error.contains("https_proxy") && error.contains("line 2"), "{error}");
        assert!(!error.contains("hush"), "{error}");
        let error = read("", &[("HTTPS_PROXY", "me:hush@")]).unwrap_err();
        assert!(error.contains("https_proxy") && error.contains("HTTPS_PROXY"), "{error}");
        assert!(!error.contains("hush"), "{error}");
    }

    #[test]
    fn hosts_that_are_listed_are_asked_without_it() {
        let list = "[Corp.Example, .lan, 10.1.0.0/16, '192.0.2.1', '[2001:db8::1]']";
        let some = read(&format!("https_proxy: p\nno_proxy_hosts: {list}"), &[]).unwrap();
        for (host, is_direct) in [
            ("corp.example", true),
            ("matrix.CORP.example", true),
            ("notcorp.example", false),
            ("corp.example.org", false),
            ("a.lan", true),
            ("10.1.2.3", true),
            ("10.2.0.1", false),
            ("192.0.2.1", true),
            ("[2001:db8::1]", true),
            ("[2001:db8::2]", false),
        ] {
            assert_eq!(some.proxy_towards(host).is_none(), is_direct, "{host}");
        }
        let none = read("https_proxy: p\nno_proxy_hosts: ['*']", &[]).unwrap();
        assert!(none.proxy_towards("a.example").is_none());
        assert!(read("", &[]).unwrap().proxy_towards("a.example").is_none());
    }

    #[test]
    fn the_environment_is_asked_where_the_files_say_nothing() {
        let towards = |text: &str, environment: &[(&str, &str)]| {
            let outgoing = read(text, environment).unwrap();
            outgoing.proxy_towards("a.example").map(|proxy| proxy.host.clone())
        };
        let upper = ("HTTPS_PROXY", "upper:1");
        let lower = ("https_proxy", "lower:1");
        assert_eq!(towards("", &[upper]).as_deref(), Some("upper"));
        assert_eq!(towards("", &[lower, upper]).as_deref(), Some("lower"));
        assert_eq!(towards("", &[("https_proxy", ""), upper]), None);
        assert_eq!(towards("https_proxy: file:1", &[lower]).as_deref(), Some("file"));
        assert_eq!(towards("", &[lower, ("NO_PROXY", "b.example, example")]), None);
        let listed = "no_proxy_hosts: [b.example]";
        assert_eq!(towards(listed, &[lower, ("no_proxy", "example")]).as_deref(), Some("lower"));
        assert_eq!(towards("https_proxy: ''", &[lower]), None);
        let ours = ("CHATD_HTTPS_PROXY", "ours:1");
        assert_eq!(towards("https_proxy: file:1", &[lower, ours]).as_deref(), Some("ours"));
    }
}

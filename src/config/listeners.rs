//! `listeners` and `worker_listeners`: where an instance is reachable and for what.

use std::{fmt, net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// One listener.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Where it listens.
    pub bind: Bind,
    /// What it speaks.
    pub kind: ListenerKind,
    /// Whether `tls_certificate_path` and `tls_private_key_path` are used.
    pub tls: bool,
    /// Whether `X-Forwarded-For` names the client. Default: true on unix sockets only.
    pub x_forwarded: bool,
    /// Header of the request id to adopt, if a proxy sets one.
    pub request_id_header: Option<String>,
    /// Name for logs; the port or path if absent.
    pub tag: Option<String>,
    /// What an `http` listener serves.
    pub resources: Vec<Resources>,
}

impl Listener {
    /// Whether it serves `name`. `client` brings media and static files along, `federation`
    /// brings media, keys and openid, as in Synapse; health is everywhere.
    pub fn serves(&self, name: ResourceName) -> bool {
        let named = |wanted| self.resources.iter().any(|r| r.names.contains(&wanted));
        match name {
            ResourceName::Health => true,
            ResourceName::Metrics => self.kind == ListenerKind::Metrics || named(name),
            ResourceName::Media => {
                named(name) || named(ResourceName::Client) || named(ResourceName::Federation)
            }
            ResourceName::Static => named(name) || named(ResourceName::Client),
            ResourceName::Keys | ResourceName::Openid => {
                named(name) || named(ResourceName::Federation)
            }
            _ => named(name),
        }
    }

    /// Whether answers for `name` may be compressed.
    pub fn compresses(&self, name: ResourceName) -> bool {
        self.resources.iter().any(|r| r.compress && r.names.contains(&name))
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bind {
            Bind::Tcp { addresses, port } => {
                let all: Vec<_> = addresses
                    .iter()
                    .map(|ip| std::net::SocketAddr::new(*ip, *port).to_string())
                    .collect();
                f.write_str(&all.join(", "))
            }
            Bind::Unix { path, mode } => write!(f, "{} (mode {mode:o})", path.display()),
        }
    }
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// `port` with `bind_addresses` or `bind_address`; all interfaces if neither is given.
    Tcp {
        /// Each is bound.
        addresses: Vec<IpAddr>,
        /// The port.
        port: u16,
    },
    /// `path`: a unix socket.
    Unix {
        /// The socket.
        path: PathBuf,
        /// Its permissions. Default 0666.
        mode: u32,
    },
}

/// `type` of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenerKind {
    /// HTTP with the resources that are named.
    Http,
    /// Prometheus metrics and nothing else.
    Metrics,
}

/// One entry of `resources`.
#[derive(Clone, Debug)]
pub struct Resources {
    /// What is served.
    pub names: Vec<ResourceName>,
    /// Whether answers may be compressed with gzip.
    pub compress: bool,
}

crate::names::names! {
    /// What a listener can serve.
    pub enum ResourceName {
        /// Endpoints under `/_matrix/client`, `/_synapse/admin` and `/.well-known`.
        Client = "client",
        /// Endpoints under `/_matrix/federation`.
        Federation = "federation",
        /// The content repository.
        Media = "media",
        /// Endpoints under `/_matrix/key`.
        Keys = "keys",
        /// Calls between instances.
        Replication = "replication",
        /// Prometheus metrics.
        Metrics = "metrics",
        /// `/health`; on every listener anyway.
        Health = "health",
        /// `/_matrix/federation/v1/openid/userinfo` alone.
        Openid = "openid",
        /// Static pages.
        Static = "static",
        /// The privacy-policy page.
        Consent = "consent",
    }
}

/// A listener as the files write it.
#[derive(Debug, Deserialize)]
pub(crate) struct RawListener {
    #[serde(rename = "type")]
    kind: String,
    port: Option<u16>,
    bind_addresses: Option<Vec<String>>,
    bind_address: Option<String>,
    path: Option<PathBuf>,
    #[serde(default, deserialize_with = "mode")]
    mode: Option<u32>,
    #[serde(default)]
    tls: bool,
    x_forwarded: Option<bool>,
    request_id_header: Option<String>,
    #[serde(default, deserialize_with = "crate::units::optional_text")]
    tag: Option<String>,
    #[serde(default)]
    resources: Vec<RawResources>,
}

#[derive(Debug, Deserialize)]
struct RawResources {
    #[serde(default, deserialize_with = "crate::units::one_or_many")]
    names: Vec<String>,
    #[serde(default)]
    compress: bool,
}

impl RawListener {
    /// The checked listener, or `None` if chatd has nothing of its type (then `warnings` says so).
    /// `key` is where it stands, `listeners.0`.
    pub(crate) fn check(
        self,
        key: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Listener>, ConfigError> {
        let kind = match self.kind.as_str() {
            "http" => ListenerKind::Http,
            "metrics" => ListenerKind::Metrics,
            "manhole" => {
                warnings
                    .push(format!("`{key}`: chatd has no manhole; this listener is not opened"));
                return Ok(None);
            }
            "replication" => {
                warnings.push(format!(
                    "`{key}`: TCP replication is not used any more; this listener is not opened"
                ));
                return Ok(None);
            }
            other => {
                return Err(ConfigError::at(format!("{key}.type"), "expected http or metrics")
                    .found(format!("{other:?}")));
            }
        };
        let bind = self.bind(key, kind)?;
        let resources = self.resources(key, kind)?;
        let unix = matches!(bind, Bind::Unix { .. });
        Ok(Some(Listener {
            bind,
            kind,
            tls: self.tls,
            x_forwarded: self.x_forwarded.unwrap_or(unix),
            request_id_header: self.request_id_header,
            tag: self.tag,
            resources,
        }))
    }

    fn bind(&self, key: &str, kind: ListenerKind) -> Result<Bind, ConfigError> {
        match (self.port, &self.path) {
            (Some(port), None) => Ok(Bind::Tcp { addresses: self.addresses(key)?, port }),
            (None, Some(path)) if kind == ListenerKind::Http => {
                Ok(Bind::Unix { path: path.clone(), mode: self.mode.unwrap_or(0o666) })
            }
            (None, Some(path)) => {
                Err(ConfigError::at(format!("{key}.path"), "a metrics listener needs a port")
                    .found(path.display())
                    .remedy("write `port` instead, or `type: http` with the resource metrics"))
            }
            (Some(_), Some(_)) => Err(ConfigError::at(key, "has both a port and a path")
                .remedy("keep `port` for TCP or `path` for a unix socket")),
            (None, None) => Err(ConfigError::at(key, "has neither a port nor a path").remedy(
                "add `port: 8008` for TCP or `path: /run/chatd/main.sock` for a unix socket",
            )),
        }
    }

    fn addresses(&self, key: &str) -> Result<Vec<IpAddr>, ConfigError> {
        let mut texts = self.bind_addresses.clone().unwrap_or_default();
        texts.extend(self.bind_address.clone());
        if texts.is_empty() {
            texts = vec!["::".to_owned(), "0.0.0.0".to_owned()];
        }
        let mut addresses = Vec::new();
        for text in texts {
            let all = match text.as_str() {
                "" => vec![IpAddr::from([0; 16]), IpAddr::from([0; 4])],
                "localhost" => vec![IpAddr::from([127, 0, 0, 1])],
                other => vec![other.parse().map_err(|_| {
                    ConfigError::at(format!("{key}.bind_addresses"), "expected an IP address")
                        .found(format!("{other:?}"))
                        .remedy(
                            "write 127.0.0.1, ::1, 0.0.0.0, :: or another address of this machine",
                        )
                })?],
            };
            for address in all {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        Ok(addresses)
    }

    fn resources(&self, key: &str, kind: ListenerKind) -> Result<Vec<Resources>, ConfigError> {
        if kind == ListenerKind::Metrics {
            return Ok(Vec::new());
        }
        let mut checked = Vec::new();
        for (index, raw) in self.resources.iter().enumerate() {
            let key = format!("{key}.resources.{index}.names");
            let names = raw
                .names
                .iter()
                .map(|name| {
                    name.parse().map_err(|expected: String| {
                        let near = crate::suggest::nearest(
                            name,
                            ResourceName::ALL.iter().map(|n| n.as_str()),
                        );
                        let error = ConfigError::at(&key, format!("expected {expected}"))
                            .found(format!("{name:?}"));
                        match near {
                            Some(near) => error.remedy(format!("did you mean `{near}`?")),
                            None => error,
                        }
                    })
                })
                .collect::<Result<_, _>>()?;
            checked.push(Resources { names, compress: raw.compress });
        }
        Ok(checked)
    }
}

/// Permissions of a socket: `0o660`, `0660`, `"660"` and `660` all mean the same. YAML turns the
/// first two into 432; a number that is no usual mode but looks like one is read by its digits.
fn mode<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    use serde::de::Error;
    let text = crate::units::text_or_number(deserializer)?;
    let digits = text.trim_start_matches("0o");
    let octal = u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777);
    let decimal = text.parse::<u32>().ok().filter(|mode| *mode <= 0o777 && !text.starts_with('0'));
    decimal.or(octal).map(Some).ok_or_else(|| {
        Error::invalid_value(
            serde::de::Unexpected::Str(&text),
            &"permissions of a socket, such as 0o660",
        )
    })
}

//! Configurations for reverse proxies, from the files of the fleet: `chatd proxy-config`.
//!
//! Any instance takes any request, so nothing of this is needed for answers to be right; it is
//! what keeps each request from being carried a second time.

mod caddy;
mod haproxy;
mod nginx;
mod plan;
mod routes;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use crate::{ConfigError, Fleet, Tls};
use plan::Plan;
pub use routes::ProxyRoute;

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// A whole `nginx.conf`, or a file for its `http` section.
    Nginx,
    /// A whole `haproxy.cfg`.
    Haproxy,
    /// A whole `Caddyfile`.
    Caddy,
}

/// What the files of the fleet cannot tell.
#[derive(Clone, Debug, Default)]
pub struct ProxyOptions {
    /// Where its certificate is.
    pub certificate: Certificate,
    /// Where it listens; if empty, at every address, port 443 (80 without TLS) and, where other
    /// servers need it, 8448.
    pub listen: Vec<ProxyListen>,
    /// Proxies in front of it: what these say of the client's address counts.
    pub trust: Vec<Network>,
    /// Whether the admin API is reachable from outside.
    pub admin: bool,
    /// For nginx: only what belongs into its `http` section, for a folder of sites.
    pub site_only: bool,
}

/// The certificate of the proxy.
#[derive(Clone, Debug, Default)]
pub enum Certificate {
    /// `tls_certificate_path` and its key if the configuration has them, else where certbot puts
    /// them; Caddy gets its own.
    #[default]
    Usual,
    /// These files.
    Given(Tls),
    /// None: something else does TLS.
    None,
}

/// Where a proxy listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyListen {
    /// One address, or all of them.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

impl FromStr for ProxyListen {
    type Err = String;

    /// Reads `PORT`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(port) = text.parse() {
            return Ok(Self { address: None, port });
        }
        text.parse::<SocketAddr>()
            .map(|full| Self { address: Some(full.ip()), port: full.port() })
            .map_err(|_| "a port, or address:port with an IP address".to_owned())
    }
}

/// Addresses that have their first bits in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl FromStr for Network {
    type Err = String;

    /// Reads `ADDRESS` or `ADDRESS/BITS`.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "an IP address, or address/bits".to_owned();
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| expected())?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(all), str::parse).map_err(|_| expected())?;
        if bits > all { Err(expected()) } else { Ok(Self { address, bits }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

impl ProxyOptions {
    /// The networks of `trust`, for a line of the generated file.
    fn trusted(&self) -> Option<String> {
        let all: Vec<_> = self.trust.iter().map(ToString::to_string).collect();
        (!all.is_empty()).then(|| all.join(" "))
    }

    /// Certificate and key; none without TLS.
    fn tls(&self, plan: &Plan) -> Option<Tls> {
        match &self.certificate {
            Certificate::None => None,
            Certificate::Given(tls) => Some(tls.clone()),
            Certificate::Usual => Some(plan.tls.clone().unwrap_or_else(|| {
                let folder = PathBuf::from("/etc/letsencrypt/live").join(&plan.hosts[0]);
                Tls {
                    certificate_path: folder.join("fullchain.pem"),
                    private_key_path: folder.join("privkey.pem"),
                }
            })),
        }
    }

    fn has_tls(&self) -> bool {
        !matches!(self.certificate, Certificate::None)
    }

    fn listens(&self, plan: &Plan) -> Vec<ProxyListen> {
        let ports: &[u16] = match &self.listen[..] {
            [] if !self.has_tls() => &[80],
            [] if plan.federation_port => &[443, 8448],
            [] => &[443],
            given => return given.to_vec(),
        };
        ports.iter().map(|port| ProxyListen { address: None, port: *port }).collect()
    }
}

/// The whole file, with comments. `routes` is the table of endpoints.
pub fn proxy_config(
    fleet: &Fleet,
    routes: &[ProxyRoute],
    kind: ProxyKind,
    options: &ProxyOptions,
) -> Result<String, ConfigError> {
    let plan = Plan::of(fleet, routes)?;
    Ok(match kind {
        ProxyKind::Nginx => nginx::render(&plan, options),
        ProxyKind::Haproxy => haproxy::render(&plan, options),
        ProxyKind::Caddy => caddy::render(&plan, options),
    })
}

/// What every generated file begins with.
fn introduction(plan: &Plan, proxy: &str) -> String {
    let mut text = format!(
        "# {proxy} in front of {}.\n\
         # Made by `chatd proxy-config` from the files of the fleet: make it again when they change.\n\
         # Any instance takes any request; what goes where here only saves the way from one\n\
         # instance to another.\n",
        plan.hosts.join(" and ")
    );
    if !plan.notes.is_empty() {
        text += "#\n# Pools (chatd.proxy_pools in the configuration changes them):\n";
    }
    for note in &plan.notes {
        text += &format!("#   {note}\n");
    }
    text.push('\n');
    text
}

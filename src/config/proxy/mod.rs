//! Configurations for reverse proxies, from the files of the fleet: `chatd proxy-config`.
//!
//! Any instance takes any request, so nothing of this is needed for answers to be right; it is
//! what keeps each request from being carried a second time.

mod caddy;
mod haproxy;
mod nginx;
mod plan;
mod routes;

use std::path::PathBuf;

use crate::{ConfigError, Fleet, Tls};
use plan::Plan;

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// A file for nginx's `http` section.
    Nginx,
    /// A whole `haproxy.cfg`.
    Haproxy,
    /// A whole `Caddyfile`.
    Caddy,
}

/// What the files of the fleet cannot tell.
#[derive(Clone, Debug)]
pub struct ProxyOptions {
    /// Certificate and key, or none where something else does TLS.
    pub tls: Option<Tls>,
    /// Port to listen at, instead of 443 (80 without TLS) and 8448.
    pub port: Option<u16>,
    /// Whether the admin API is reachable from outside.
    pub admin: bool,
}

impl ProxyOptions {
    /// With the certificate of the configuration, or where certbot puts it.
    pub fn with_default_certificate(fleet: &Fleet) -> Self {
        let configured = fleet.main().and_then(|main| main.config.tls.clone());
        let host =
            fleet.main().map_or_else(String::new, |main| main.config.server_name.host().to_owned());
        let folder = PathBuf::from("/etc/letsencrypt/live").join(host);
        let usual = Tls {
            certificate_path: folder.join("fullchain.pem"),
            private_key_path: folder.join("privkey.pem"),
        };
        Self { tls: Some(configured.unwrap_or(usual)), port: None, admin: false }
    }

    fn ports(&self, plan: &Plan) -> Vec<u16> {
        match self.port {
            Some(port) => vec![port],
            None if self.tls.is_none() => vec![80],
            None if plan.federation_port => vec![443, 8448],
            None => vec![443],
        }
    }
}

/// The whole file, with comments.
pub fn proxy_config(
    fleet: &Fleet,
    kind: ProxyKind,
    options: &ProxyOptions,
) -> Result<String, ConfigError> {
    let plan = Plan::of(fleet)?;
    Ok(match kind {
        ProxyKind::Nginx => nginx::render(&plan, options),
        ProxyKind::Haproxy => haproxy::render(&plan, options),
        ProxyKind::Caddy => caddy::render(&plan, options),
    })
}

/// What every generated file begins with.
fn introduction(plan: &Plan, proxy: &str) -> String {
    let mut text = format!(
        "# {proxy} in front of {}, made by `chatd proxy-config` from the files of the fleet.\n\
         # Make it again when they change. Any instance takes any request; what goes where here\n\
         # only saves the way from one instance to another.\n",
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

//! `chatd proxy-config`: a configuration for a reverse proxy, from the files of the fleet.

use std::path::PathBuf;

use chatd_config::{
    Certificate, ProxyKind, ProxyListen, ProxyOptions, Severity, Tls, proxy_config,
};
use clap::{Args, ValueEnum};

use super::{Failure, Source, note, say};

/// Arguments of `proxy-config`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Which proxy
    proxy: Proxy,
    /// Further files of the fleet, as in `-c homeserver.yaml workers/*.yaml`; NAME=FILE for an
    /// instance that gets its name by --name
    #[arg(value_name = "FILE")]
    files: Vec<String>,
    /// Certificate (PEM) [default: tls_certificate_path, or where certbot puts it]
    #[arg(long, value_name = "PATH", requires = "certificate_key")]
    certificate: Option<PathBuf>,
    /// Key of the certificate (PEM)
    #[arg(long, value_name = "PATH", requires = "certificate")]
    certificate_key: Option<PathBuf>,
    /// Without TLS, for a proxy behind another one
    #[arg(long, conflicts_with = "certificate")]
    no_tls: bool,
    /// Where to listen: PORT or ADDRESS:PORT, may be repeated [default: 443 at every address, and
    /// 8448 without serve_server_wellknown; 80 without TLS]
    #[arg(long, value_name = "PLACE")]
    listen: Vec<ProxyListen>,
    /// nginx: only what belongs into its http section, for /etc/nginx/conf.d/chatd.conf
    #[arg(long)]
    site: bool,
    /// Let the admin API be reached from outside
    #[arg(long)]
    admin: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Proxy {
    /// A whole nginx.conf
    Nginx,
    /// A whole haproxy.cfg
    Haproxy,
    /// A whole Caddyfile
    Caddy,
}

impl From<Proxy> for ProxyKind {
    fn from(proxy: Proxy) -> Self {
        match proxy {
            Proxy::Nginx => Self::Nginx,
            Proxy::Haproxy => Self::Haproxy,
            Proxy::Caddy => Self::Caddy,
        }
    }
}

/// Prints the configuration. Refuses a fleet with errors, since its pools would be wrong too.
pub fn execute(source: &Source, arguments: Arguments) -> Result<(), Failure> {
    let fleet = source.load_fleet(&arguments.files)?;
    for finding in fleet.findings.iter().filter(|one| one.severity == Severity::Error) {
        note(finding);
    }
    if fleet.has_errors() {
        return Err(Failure::config(
            "the configuration of this fleet has errors; `chatd explain --fleet` tells more",
        ));
    }
    let certificate = match (arguments.certificate, arguments.certificate_key) {
        _ if arguments.no_tls => Certificate::None,
        (Some(certificate_path), Some(private_key_path)) => {
            Certificate::Given(Tls { certificate_path, private_key_path })
        }
        _ => Certificate::Usual,
    };
    let options = ProxyOptions {
        certificate,
        listen: arguments.listen,
        admin: arguments.admin,
        site_only: arguments.site,
    };
    say(proxy_config(&fleet, arguments.proxy.into(), &options)?.trim_end());
    Ok(())
}

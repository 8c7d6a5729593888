//! TLS towards other servers: whom they have to be certified by, and who may do without.
//! Identity servers and proxies never may.

use std::{path::PathBuf, sync::Arc};

use chatd_config::{Federation, TlsVersion};
use chatd_wire::{Trust, add_authorities, client, system_authorities};
use rustls::{
    RootCertStore, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use tokio_rustls::TlsConnector;

/// What is spoken, best first.
const HTTP: &[&[u8]] = &[b"h2", b"http/1.1"];

/// TLS as the configuration has it.
pub(crate) struct Tls {
    /// Names those whose certificates are not checked; absent: there are none.
    exceptions: Option<Federation>,
    checked: TlsConnector,
    unchecked: TlsConnector,
    proxies: TlsConnector,
}

impl Tls {
    /// Towards homeservers. Fails if authorities that the configuration names cannot be read.
    pub(crate) fn new(config: &Federation) -> Result<Self, String> {
        let roots = roots(config.custom_ca_list.as_deref())?;
        Self::with(config, roots, Some(config.clone()))
    }

    /// Towards servers of other kinds, all of which have to be certified: by the system's
    /// authorities, or those that the configuration adds.
    pub(crate) fn strict(config: &Federation) -> Result<Self, String> {
        Self::with(config, all_roots(config)?, None)
    }

    fn with(
        config: &Federation,
        roots: RootCertStore,
        exceptions: Option<Federation>,
    ) -> Result<Self, String> {
        let versions: &[&SupportedProtocolVersion] = match config.minimum_tls {
            TlsVersion::V1_2 => &[&TLS13, &TLS12],
            TlsVersion::V1_3 => &[&TLS13],
        };
        let connector = |trust, protocols: &[&[u8]]| {
            let mut client = client(trust, versions)?;
            client.alpn_protocols = protocols.iter().map(|one| one.to_vec()).collect();
            Ok::<_, String>(TlsConnector::from(Arc::new(client)))
        };
        Ok(Self {
            checked: connector(Trust::ThatHost(roots), HTTP)?,
            unchecked: connector(Trust::Anybody, HTTP)?,
            proxies: connector(Trust::ThatHost(all_roots(config)?), &[])?,
            exceptions,
        })
    }

    /// How to speak with `host`, a name or an address.
    pub(crate) fn towards(&self, host: &str) -> &TlsConnector {
        let checks = |config: &Federation| config.checks_certificate_of(host);
        if self.exceptions.as_ref().is_none_or(checks) { &self.checked } else { &self.unchecked }
    }

    /// How to speak with a proxy.
    pub(crate) fn towards_proxy(&self) -> &TlsConnector {
        &self.proxies
    }
}

/// The system's authorities and those that the configuration adds.
fn all_roots(config: &Federation) -> Result<RootCertStore, String> {
    let mut roots = system_authorities();
    add_all(&mut roots, config.custom_ca_list.as_deref().unwrap_or_default())?;
    Ok(roots)
}

/// The authorities in these files, or the system's.
fn roots(files: Option<&[PathBuf]>) -> Result<RootCertStore, String> {
    let Some(files) = files else { return Ok(system_authorities()) };
    let mut roots = RootCertStore::empty();
    add_all(&mut roots, files)?;
    Ok(roots)
}

fn add_all(roots: &mut RootCertStore, files: &[PathBuf]) -> Result<(), String> {
    let mut files = files.iter();
    files.try_for_each(|file| {
        add_authorities(roots, file).map_err(|why| format!("federation_custom_ca_list: {why}"))
    })
}

//! TLS towards other servers: whom they have to be certified by, and who may do without.

use std::{path::PathBuf, sync::Arc};

use chatd_config::{Federation, TlsVersion};
use chatd_wire::{Trust, add_authorities, client, system_authorities};
use rustls::{
    RootCertStore, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use tokio_rustls::TlsConnector;

/// TLS as the configuration has it.
pub(crate) struct Tls {
    config: Federation,
    checked: TlsConnector,
    unchecked: TlsConnector,
}

impl Tls {
    /// Fails if authorities that the configuration names cannot be read.
    pub(crate) fn new(config: &Federation) -> Result<Self, String> {
        let versions: &[&SupportedProtocolVersion] = match config.minimum_tls {
            TlsVersion::V1_2 => &[&TLS13, &TLS12],
            TlsVersion::V1_3 => &[&TLS13],
        };
        let connector = |trust| {
            let mut client = client(trust, versions)?;
            client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            Ok::<_, String>(TlsConnector::from(Arc::new(client)))
        };
        Ok(Self {
            checked: connector(Trust::ThatHost(roots(config.custom_ca_list.as_deref())?))?,
            unchecked: connector(Trust::Anybody)?,
            config: config.clone(),
        })
    }

    /// How to speak with `host`, a name or an address.
    pub(crate) fn towards(&self, host: &str) -> &TlsConnector {
        if self.config.checks_certificate_of(host) { &self.checked } else { &self.unchecked }
    }
}

/// The authorities in these files, or the system's.
fn roots(files: Option<&[PathBuf]>) -> Result<RootCertStore, String> {
    let Some(files) = files else { return Ok(system_authorities()) };
    let mut roots = RootCertStore::empty();
    for file in files {
        add_authorities(&mut roots, file)
            .map_err(|why| format!("federation_custom_ca_list: {why}"))?;
    }
    Ok(roots)
}

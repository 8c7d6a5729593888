//! TLS towards other servers: whom they have to be certified by, and who may do without.

use std::{path::PathBuf, sync::Arc};

use chatd_config::{Federation, TlsVersion};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, ring::default_provider, verify_tls12_signature,
        verify_tls13_signature,
    },
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
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
        let provider = Arc::new(default_provider());
        let versions: &[&SupportedProtocolVersion] = match config.minimum_tls {
            TlsVersion::V1_2 => &[&TLS13, &TLS12],
            TlsVersion::V1_3 => &[&TLS13],
        };
        let builder = |provider: &Arc<CryptoProvider>| {
            ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(versions)
                .map_err(|error| error.to_string())
        };
        let checked = builder(&provider)?
            .with_root_certificates(roots(config.custom_ca_list.as_deref())?)
            .with_no_client_auth();
        let anybody = Anybody { algorithms: provider.signature_verification_algorithms };
        let unchecked = builder(&provider)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(anybody))
            .with_no_client_auth();
        let connector = |mut client: ClientConfig| {
            client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            TlsConnector::from(Arc::new(client))
        };
        Ok(Self {
            config: config.clone(),
            checked: connector(checked),
            unchecked: connector(unchecked),
        })
    }

    /// How to speak with `host`, a name or an address.
    pub(crate) fn towards(&self, host: &str) -> &TlsConnector {
        if self.config.checks_certificate_of(host) { &self.checked } else { &self.unchecked }
    }
}

/// The authorities in these files, or the system's.
fn roots(files: Option<&[PathBuf]>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(files) = files else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    for file in files {
        let wrong = |what: &dyn std::fmt::Display| {
            format!("federation_custom_ca_list: {}: {what}", file.display())
        };
        let before = roots.len();
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        if roots.len() == before {
            return Err(wrong(&"there is no certificate in this file"));
        }
    }
    Ok(roots)
}

/// Takes any certificate; whoever shows it still has to have its key.
#[derive(Debug)]
struct Anybody {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _host: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

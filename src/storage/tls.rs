//! TLS to PostgreSQL, as libpq's `sslmode` has it.

use std::{fmt, path::Path, sync::Arc};

use chatd_config::DatabaseTls;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{
        WebPkiSupportedAlgorithms, ring::default_provider, verify_tls12_signature,
        verify_tls13_signature,
    },
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::{Error, Result};

/// What is asked of the server before TLS begins.
pub(crate) fn ssl_mode(tls: &DatabaseTls) -> SslMode {
    match tls {
        DatabaseTls::Never => SslMode::Disable,
        DatabaseTls::IfOffered => SslMode::Prefer,
        DatabaseTls::Required | DatabaseTls::FromAuthority(_) | DatabaseTls::ForHost(_) => {
            SslMode::Require
        }
    }
}

/// What makes the connections; `None` without TLS. Fails if the authorities cannot be read.
pub(crate) fn connector(tls: &DatabaseTls) -> Result<Option<MakeRustlsConnect>> {
    let trust = match tls {
        DatabaseTls::Never => return Ok(None),
        DatabaseTls::IfOffered | DatabaseTls::Required => Trust::Anybody,
        DatabaseTls::FromAuthority(file) => Trust::Authorities(authorities(file)?),
        DatabaseTls::ForHost(file) => Trust::AuthoritiesForHost(authorities(file)?),
    };
    let provider = Arc::new(default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default TLS versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { trust, algorithms }))
        .with_no_client_auth();
    Ok(Some(MakeRustlsConnect::new(config)))
}

/// The certificates in a PEM file.
fn authorities(file: &Path) -> Result<RootCertStore> {
    let failed = |what: &dyn fmt::Display| {
        Error::Settings(format!("the authorities in {} cannot be used: {what}", file.display()))
    };
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| failed(&error))? {
        let certificate = certificate.map_err(|error| failed(&error))?;
        store.add(certificate).map_err(|error| failed(&error))?;
    }
    if store.is_empty() { Err(failed(&"there is no certificate")) } else { Ok(store) }
}

/// Who may be at the other end.
#[derive(Debug)]
enum Trust {
    Anybody,
    Authorities(RootCertStore),
    AuthoritiesForHost(RootCertStore),
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let (Trust::Authorities(roots) | Trust::AuthoritiesForHost(roots)) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if matches!(self.trust, Trust::AuthoritiesForHost(_)) {
            verify_server_name(&certificate, host)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

//! Whom TLS believes to be at the other end.

use std::{
    path::Path,
    sync::{Arc, LazyLock},
};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedProtocolVersion,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{
        WebPkiSupportedAlgorithms, ring::default_provider, verify_tls12_signature,
        verify_tls13_signature,
    },
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

/// Who may be at the other end.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Whoever shows a certificate and has its key.
    Anybody,
    /// Whom one of the authorities has certified, for whatever host.
    AnyHost(RootCertStore),
    /// Whom one of the authorities has certified for the host that was asked for.
    ThatHost(RootCertStore),
}

/// TLS of those versions, towards whom `trust` allows.
pub fn client(
    trust: Trust,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<ClientConfig, String> {
    let provider = Arc::new(default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(|error| error.to_string())?;
    let authorities = match trust {
        Trust::ThatHost(authorities) => {
            return Ok(builder.with_root_certificates(authorities).with_no_client_auth());
        }
        Trust::AnyHost(authorities) => Some(authorities),
        Trust::Anybody => None,
    };
    let verifier = HostIgnored { authorities, algorithms };
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Adds the certificates in a PEM file. The error names the file and says what is wrong with it.
pub fn add_authorities(store: &mut RootCertStore, file: &Path) -> Result<(), String> {
    let wrong = |what: &dyn std::fmt::Display| format!("{}: {what}", file.display());
    let before = store.len();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        store.add(certificate).map_err(|error| wrong(&error))?;
    }
    match store.len() == before {
        true => Err(wrong(&"there is no certificate in this file")),
        false => Ok(()),
    }
}

/// The authorities that the system trusts. They are read once in the life of a process.
pub fn system_authorities() -> RootCertStore {
    static AUTHORITIES: LazyLock<RootCertStore> = LazyLock::new(|| {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        store
    });
    AUTHORITIES.clone()
}

/// Does not care for which host a certificate is. Whoever shows it still has to have its key.
#[derive(Debug)]
struct HostIgnored {
    /// Absent: any certificate will do.
    authorities: Option<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for HostIgnored {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _host: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(authorities) = &self.authorities {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(certificate)?,
                authorities,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
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

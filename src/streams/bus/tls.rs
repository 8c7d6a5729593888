//! TLS towards Redis.

use std::path::Path;

use chatd_config::Redis;
use fred::types::config::TlsConnector;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// How certificates are checked and shown. Fails if a file cannot be used.
pub(super) fn connector(settings: &Redis) -> Result<TlsConnector, String> {
    let builder = ClientConfig::builder().with_root_certificates(roots(settings)?);
    let client = match (&settings.certificate_file, &settings.private_key_file) {
        (Some(certificate), Some(key)) => {
            let chain = certificates("redis.certificate_file", certificate)?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| wrong("redis.private_key_file", key, &error))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| format!("redis: {error}"))?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => {
            return Err("redis: certificate_file and private_key_file need each other".to_owned());
        }
    };
    Ok(client.into())
}

/// Those of `ca_file`, else those in `ca_path`, else the system's.
fn roots(settings: &Redis) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = &settings.ca_file {
        roots.add_parsable_certificates(certificates("redis.ca_file", file)?);
    } else if let Some(folder) = &settings.ca_path {
        let entries =
            std::fs::read_dir(folder).map_err(|error| wrong("redis.ca_path", folder, &error))?;
        for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
            roots.add_parsable_certificates(certificates("redis.ca_path", &entry.path())?);
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        return Err("redis: no certificate authority was found; set redis.ca_file".to_owned());
    }
    Ok(roots)
}

fn certificates(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(key, file, &error))
}

fn wrong(key: &str, path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{key}: {}: {error}", path.display())
}

//! TLS to PostgreSQL, as libpq's `sslmode` has it.

use std::path::Path;

use chatd_config::DatabaseTls;
use chatd_wire::{Trust, add_authorities, client};
use rustls::{DEFAULT_VERSIONS, RootCertStore};
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
        DatabaseTls::FromAuthority(file) => Trust::AnyHost(authorities(file)?),
        DatabaseTls::ForHost(file) => Trust::ThatHost(authorities(file)?),
    };
    let config = client(trust, DEFAULT_VERSIONS).map_err(Error::Settings)?;
    Ok(Some(MakeRustlsConnect::new(config)))
}

/// The certificates in a PEM file.
fn authorities(file: &Path) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    add_authorities(&mut store, file)
        .map_err(|why| Error::Settings(format!("authorities of PostgreSQL: {why}")))?;
    Ok(store)
}

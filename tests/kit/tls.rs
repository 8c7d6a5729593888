//! A certificate authority for tests, and what it certifies.
//!
//! [`Authority::shared`] is one for all test processes of a working tree, so that a server that
//! they share trusts all others. Its certificate, and one for every server on the loopback address,
//! are files that configurations name.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    },
};

use crate::cluster;

/// Who a server of a test may say that it is.
const LOOPBACK: &[&str] = &["127.0.0.1", "::1", "localhost"];

/// An authority whose files stand in a folder.
#[derive(Clone, Debug)]
pub struct Authority {
    folder: PathBuf,
}

/// A certificate with its key, as files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The chain, PEM.
    pub chain: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
}

impl Authority {
    /// That of this working tree, made if there is none.
    pub fn shared() -> Result<Self> {
        let folder = cluster::shared_folder()?.join("tls");
        let _alone = cluster::lock(&cluster::shared_folder()?.join("tls.lock"))?;
        if folder.exists() {
            return Ok(Self { folder });
        }
        // Complete or not there at all, whenever a test is killed.
        let making = tempfile::tempdir_in(cluster::shared_folder()?)?;
        Self::create(making.path())?.issue("loopback", LOOPBACK)?;
        std::fs::rename(making.keep(), &folder)?;
        cluster::open_to_all(&folder)?;
        Ok(Self { folder })
    }

    /// Another one in `folder`, which nobody trusts unless told to.
    pub fn create(folder: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        std::fs::write(folder.join("ca.crt"), about_itself()?.self_signed(&key)?.pem())?;
        std::fs::write(folder.join("ca.key"), key.serialize_pem())?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Its own certificate, PEM: for `federation_custom_ca_list`.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// That of every server on the loopback address; only the shared authority has it.
    pub fn loopback(&self) -> Certificate {
        self.named("loopback")
    }

    /// Certifies `hosts`, names or addresses; the files are called `name`.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Result<Certificate> {
        let own_key = std::fs::read_to_string(self.folder.join("ca.key"))?;
        let issuer = Issuer::new(about_itself()?, KeyPair::from_pem(&own_key)?);
        let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = self.named(name);
        std::fs::write(&certificate.chain, params.signed_by(&key, &issuer)?.pem())?;
        std::fs::write(&certificate.key, key.serialize_pem())?;
        Ok(certificate)
    }

    /// A connection to `port`, as a server that trusts this authority makes it.
    pub async fn connect(&self, port: u16) -> Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.certificate())?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let plain = TcpStream::connect(("127.0.0.1", port)).await?;
        let name = ServerName::try_from("127.0.0.1")?;
        Ok(TlsConnector::from(Arc::new(config)).connect(name, plain).await?)
    }

    /// What `server` (`127.0.0.1:<port>`) answers to a request without a signature: JSON.
    pub async fn get(&self, server: &str, path: &str) -> Result<Value> {
        let (_, port) = server.rsplit_once(':').context("a server name with a port")?;
        let stream = TokioIo::new(self.connect(port.parse()?).await?);
        let (mut sender, connection) = http1::handshake(stream).await?;
        crate::spawn(async move {
            // An error here shows as an error of the request.
            let _ = connection.await;
        });
        let request = Request::get(path).header(HOST, server).body(Empty::<Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
        Ok(serde_json::from_slice(&body)?)
    }

    fn named(&self, name: &str) -> Certificate {
        let file = |extension: &str| self.folder.join(format!("{name}.{extension}"));
        Certificate { chain: file("crt"), key: file("key") }
    }
}

/// What the certificate of an authority says.
fn about_itself() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "the authority of the test kit");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

impl Certificate {
    /// What a listener of the test itself takes connections with.
    pub fn acceptor(&self) -> Result<TlsAcceptor> {
        let chain = CertificateDer::pem_file_iter(&self.chain)?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&self.key)?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("a certificate that its key fits")?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

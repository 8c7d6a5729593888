//! A real nginx of a test's own, in front of the instances of a fleet.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{Command, command::Running, process::free_port, tls::Authority};

/// A running nginx; killed when dropped.
#[derive(Debug)]
pub struct Nginx {
    port: u16,
    _running: Running,
}

/// What goes into its `http` section.
#[derive(Debug)]
pub enum Site<'a> {
    /// Each request goes to one of these sockets, whichever.
    Random(&'a [PathBuf]),
    /// What `chatd proxy-config nginx` writes for the files of this command line.
    Generated { binary: &'a Path, files: &'a str },
}

impl Nginx {
    /// Starts one in `folder`, on a free port of the loopback address; returns when it listens.
    /// With TLS it listens on the port `federation`, too.
    pub async fn start(folder: &Path, site: Site<'_>, federation: Option<u16>) -> Result<Self> {
        let port = free_port()?;
        let mut site = match site {
            Site::Random(sockets) => random(port, sockets),
            Site::Generated { binary, files } => {
                let line = format!(
                    "proxy-config nginx {files} --no-tls --site --admin --listen 127.0.0.1:{port}"
                );
                Command::new(binary, folder, &line).end().ok().to_owned()
            }
        };
        if let Some(federation) = federation {
            site += &with_tls(federation, port)?;
        }
        std::fs::write(folder.join("nginx.conf"), whole(folder, &site))?;
        let folder_text = folder.to_str().context("the folder's name is text")?;
        let line = format!("-p {folder_text} -c nginx.conf -e nginx-error.log");
        let running = Command::new(program(), folder, &line).start("nginx.log");
        let deadline = Instant::now() + Duration::from_secs(20);
        // It listens on one port after the other.
        for port in std::iter::once(port).chain(federation) {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                if Instant::now() > deadline {
                    bail!("nginx does not listen: {}", running.log());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(Self { port, _running: running })
    }

    /// `http://127.0.0.1:…`
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// Debian has it where an ordinary user's `PATH` does not look.
fn program() -> &'static str {
    let of_debian = "/usr/sbin/nginx";
    if Path::new(of_debian).exists() { of_debian } else { "nginx" }
}

fn random(port: u16, sockets: &[PathBuf]) -> String {
    let servers = sockets.iter().fold(String::new(), |mut text, socket| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "    server unix:{} fail_timeout=1s;", socket.display());
        text
    });
    format!(
        "upstream any {{\n    random;\n{servers}    keepalive 32;\n}}\n\
         server {{\n    listen 127.0.0.1:{port};\n    client_max_body_size 50m;\n    \
         location / {{\n        proxy_pass http://any;\n        proxy_http_version 1.1;\n        \
         proxy_set_header Connection \"\";\n        proxy_set_header Host $host;\n        \
         proxy_set_header X-Forwarded-For $remote_addr;\n        proxy_read_timeout 300s;\n    \
         }}\n}}\n"
    )
}

/// Takes the requests of other servers, and passes them on as they are.
fn with_tls(from: u16, to: u16) -> Result<String> {
    let certificate = Authority::shared()?.loopback();
    let (chain, key) = (certificate.chain.display(), certificate.key.display());
    Ok(format!(
        "\nserver {{\n    listen 127.0.0.1:{from} ssl;\n    ssl_certificate {chain};\n    \
         ssl_certificate_key {key};\n    client_max_body_size 50m;\n    location / {{\n        \
         proxy_pass http://127.0.0.1:{to};\n        proxy_http_version 1.1;\n        \
         proxy_set_header Connection \"\";\n        proxy_set_header Host $http_host;\n        \
         proxy_read_timeout 300s;\n    }}\n}}\n"
    ))
}

/// One process that keeps all its files in `folder`.
fn whole(folder: &Path, site: &str) -> String {
    let folder = folder.display();
    format!(
        "daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\n\
         error_log {folder}/nginx-error.log warn;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\naccess_log off;\nclient_body_temp_path {folder}/nginx-body;\n\
         proxy_temp_path {folder}/nginx-proxy;\nfastcgi_temp_path {folder}/nginx-fastcgi;\n\
         uwsgi_temp_path {folder}/nginx-uwsgi;\nscgi_temp_path {folder}/nginx-scgi;\n\
         {site}\n}}\n"
    )
}

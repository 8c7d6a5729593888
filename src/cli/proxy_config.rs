//! `chatd proxy-config`: a configuration for a reverse proxy, from the files of the fleet.

use std::path::PathBuf;

use chatd_config::{
    Certificate, Network, ProxyKind, ProxyListen, ProxyOptions, ProxyRoute, Severity, Tls,
    proxy_config,
};
use chatd_http::{Declared, Home};
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
    /// Without TLS, for a proxy behind another one (see --trust)
    #[arg(long, conflicts_with = "certificate")]
    no_tls: bool,
    /// Where to listen: PORT or ADDRESS:PORT, may be repeated [default: 443 at every address, and
    /// 8448 without serve_server_wellknown; 80 without TLS]
    #[arg(long, value_name = "PLACE")]
    listen: Vec<ProxyListen>,
    /// A proxy in front, as ADDRESS or ADDRESS/BITS, may be repeated: what it says of the client's
    /// address counts
    #[arg(long, value_name = "NETWORK")]
    trust: Vec<Network>,
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
        trust: arguments.trust,
        admin: arguments.admin,
        site_only: arguments.site,
    };
    say(proxy_config(&fleet, &routes(), arguments.proxy.into(), &options)?.trim_end());
    Ok(())
}

/// The endpoints of this release, as they are declared.
fn declared() -> Vec<Declared> {
    let client = chatd_api_client::routes();
    let admin = chatd_api_admin::routes();
    let client = client.iter().flat_map(|group| group.declared());
    client.chain(admin.iter().flat_map(|group| group.declared())).collect()
}

fn routes() -> Vec<ProxyRoute> {
    let of_endpoint = |endpoint: Declared| {
        let writer = match endpoint.home {
            Home::Stream(stream) => Some(stream),
            _ => None,
        };
        endpoint.patterns.into_iter().map(move |pattern| ProxyRoute { pattern, writer })
    };
    declared().into_iter().flat_map(of_endpoint).collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, process::Command};

    use chatd_config::{Fleet, Overrides, RouterName};
    use regex::Regex;

    use super::*;

    /// A fleet with a pool for everything.
    const FLEET: &str = "
server_name: example.org
database: { name: psycopg2, args: { host: /run, user: chatd } }
redis: { enabled: true }
listeners: [{ path: /s/main, type: http, resources: [{ names: [client, federation, media, replication] }] }]
instance_map:
  main: { path: /s/main }
  writer1: { path: /s/writer1 }
stream_writers:
  typing: writer1
  to_device: writer1
  account_data: writer1
  receipts: writer1
  presence: writer1
  push_rules: writer1
  device_lists: writer1
  thread_subscriptions: writer1
";

    fn fleet() -> Fleet {
        let names = ["writer1", "sync1", "initial_sync1", "rooms1", "federation_reader1"];
        let files = names.map(|name| {
            let file = format!(
                "worker_app: generic_worker\nworker_name: {name}\nworker_listeners: [{{ type: http, path: \
                 /s/{name}, resources: [{{ names: [client, federation, replication] }}] }}]\n"
            );
            (name, file)
        });
        let mut texts = vec![("homeserver.yaml", FLEET)];
        texts.extend(files.iter().map(|(name, file)| (*name, file.as_str())));
        let fleet = Fleet::from_texts(&texts, &Overrides::default()).unwrap();
        assert!(!fleet.has_errors(), "{:#?}", fleet.findings);
        fleet
    }

    /// The pools of HAProxy's file with the paths that go there, in their order.
    fn pools() -> Vec<(String, Regex)> {
        let options = ProxyOptions { certificate: Certificate::None, ..ProxyOptions::default() };
        let text = proxy_config(&fleet(), &routes(), ProxyKind::Haproxy, &options).unwrap();
        let line = Regex::new("use_backend chatd_(\\S+) if \\{ path_reg '(.*)' \\}$").unwrap();
        let found = text.lines().filter_map(|text| line.captures(text.trim()));
        found.map(|found| (found[1].to_owned(), Regex::new(&found[2]).unwrap())).collect()
    }

    /// A pattern with values for its arguments.
    fn path_of(pattern: &str) -> String {
        let segments = pattern.split('/');
        let filled = segments.map(|one| if one.starts_with('{') { "%21a.b%2Fc" } else { one });
        filled.collect::<Vec<_>>().join("/")
    }

    fn expected(endpoint: &Declared, pattern: &str) -> String {
        let of_room = ["/rooms/{", "/join/{", "/knock/{"];
        match endpoint.home {
            Home::Stream(stream) => format!("stream_{stream}"),
            _ if pattern.ends_with("/sync") => "sync".to_owned(),
            _ if pattern.contains("/user/{") => "clients".to_owned(),
            // Says what is known of rooms that the user need not be in.
            _ if pattern.contains("/im.nheko.summary/") => "clients".to_owned(),
            _ if of_room.iter().any(|part| pattern.contains(part)) => "rooms".to_owned(),
            _ if endpoint.router == RouterName::Admin => "nobody".to_owned(),
            _ => "clients".to_owned(),
        }
    }

    #[test]
    fn every_endpoint_is_sent_where_its_work_is_done() {
        let pools = pools();
        let mut writers = 0;
        for endpoint in declared() {
            for pattern in &endpoint.patterns {
                let path = path_of(pattern);
                let pool = pools.iter().find(|(_, paths)| paths.is_match(&path));
                let pool = pool.map_or("nobody", |(name, _)| name);
                let expected = expected(&endpoint, pattern);
                // Reads of what a writer has written share its paths.
                let shared = pool.starts_with("stream_") && expected != "nobody";
                assert!(pool == expected || shared, "{pattern} goes to {pool}, not {expected}");
                writers += usize::from(pool.starts_with("stream_"));
            }
        }
        assert!(writers > 50, "{writers}");
    }

    /// A certificate, its key, and both where HAProxy looks.
    fn certificate(folder: &Path) -> Tls {
        let made = rcgen::generate_simple_self_signed(vec!["example.org".to_owned()]).unwrap();
        let certificate_path = folder.join("site.pem");
        let private_key_path = folder.join("site.pem.key");
        fs::write(&certificate_path, made.cert.pem()).unwrap();
        fs::write(&private_key_path, made.signing_key.serialize_pem()).unwrap();
        Tls { certificate_path, private_key_path }
    }

    #[test]
    fn proxies_take_their_files_with_tls() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("proxy.conf").display().to_string();
        let pid = format!("pid {}/pid;", folder.path().display());
        let log = format!("{}/error.log", folder.path().display());
        let checks: [(ProxyKind, &str, &[&str]); 3] = [
            (ProxyKind::Nginx, "nginx", &["-t", "-e", &log, "-g", &pid, "-c", &file]),
            (ProxyKind::Haproxy, "haproxy", &["-c", "-f", &file]),
            (ProxyKind::Caddy, "caddy", &["validate", "--adapter", "caddyfile", "--config", &file]),
        ];
        let options = ProxyOptions {
            certificate: Certificate::Given(certificate(folder.path())),
            listen: vec!["127.0.0.1:28443".parse().unwrap(), "[::1]:28443".parse().unwrap()],
            admin: true,
            ..ProxyOptions::default()
        };
        for (kind, program, arguments) in checks {
            let text = proxy_config(&fleet(), &routes(), kind, &options).unwrap();
            fs::write(&file, &text).unwrap();
            let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
            let mut command = Command::new(program);
            let checked = command.args(arguments).env("PATH", path).output();
            let checked = checked.unwrap_or_else(|error| panic!("{program}: {error}"));
            let said = String::from_utf8_lossy(&checked.stderr);
            assert!(checked.status.success(), "{program}: {said}\n{text}");
        }
    }
}

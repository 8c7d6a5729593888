//! Every file of `config-examples/` is one that chatd takes without a word.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use crate::{
    Config, Fleet, FleetFile, Overrides, ProxyKind, ProxyOptions, Roles, assignment, proxy_config,
};

#[test]
fn every_example_is_good() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config-examples");
    // What the container image's example leaves to the environment.
    let name = ("CHATD_SERVER_NAME".to_owned(), "example.org".to_owned());
    let over = Overrides { env: vec![name], ..Overrides::default() };
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let config = Config::load(std::slice::from_ref(&path), &over)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.warnings, Vec::<String>::new(), "{}", path.display());
        let mine =
            assignment(&config, &Roles::embedded()).unwrap_or_else(|error| panic!("{error}"));
        assert!(mine.is_whole() && !config.listeners.is_empty(), "{}", path.display());
        seen += 1;
    }
    assert!(seen > 0);
}

/// Folders that hold a fleet: a `homeserver.yaml` and `workers/`.
fn fleets(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.join("workers").is_dir() {
            found.push(path);
        } else if path.is_dir() {
            fleets(&path, found);
        }
    }
}

/// What the files of older releases are told.
const OLD: [&str; 2] =
    ["`worker_replication_host` is read as", "worker_main_http_uri (chatd has no"];

#[test]
fn every_fleet_is_good() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config-examples");
    // The secret that only the container has.
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    secret.write_all(b"hush").unwrap();
    let secret = secret.path().display().to_string();
    let env = vec![("CHATD_DATABASE__ARGS__PASSWORD_PATH".to_owned(), secret)];
    let over = Overrides { env, ..Overrides::default() };
    let mut found = Vec::new();
    fleets(&folder, &mut found);
    for path in &found {
        let files = ["homeserver.yaml", "workers"];
        let files = files.map(|file| FleetFile { name: None, path: path.join(file) });
        let fleet = Fleet::load(&files, &over).unwrap();
        assert!(fleet.members.len() > 3, "{}", path.display());
        let in_containers = path.ends_with("twelve-containers");
        for finding in &fleet.findings {
            let text = finding.to_string();
            let is_old = OLD.iter().any(|words| text.contains(words));
            let same_port = in_containers && text.contains("a machine or container for each");
            assert!(is_old || same_port, "{}: {text}", path.display());
        }
        for kind in [ProxyKind::Nginx, ProxyKind::Haproxy, ProxyKind::Caddy] {
            proxy_config(&fleet, &[], kind, &ProxyOptions::default()).unwrap();
        }
    }
    assert_eq!(found.len(), 6);
}

//! Every file of `config-examples/` is one that chatd takes without a word.

use std::{fs, io::Write as _, path::Path};

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

/// Folders of `config-examples/` that hold a fleet: a `homeserver.yaml` and `workers/`.
#[test]
fn every_fleet_is_good() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config-examples");
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    secret.write_all(b"hush").unwrap();
    let secret = secret.path().display().to_string();
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("workers").is_dir() {
            continue;
        }
        let files = ["homeserver.yaml", "workers"];
        let files = files.map(|file| FleetFile { name: None, path: path.join(file) });
        let over = Overrides {
            // A secret that only the container has.
            env: vec![("CHATD_DATABASE__ARGS__PASSWORD_PATH".to_owned(), secret.clone())],
            ..Overrides::default()
        };
        let fleet = Fleet::load(&files, &over).unwrap();
        assert!(!fleet.has_errors(), "{}: {:#?}", path.display(), fleet.findings);
        assert!(fleet.members.len() > 3, "{}", path.display());
        let options = ProxyOptions::default();
        proxy_config(&fleet, &[], ProxyKind::Nginx, &options).unwrap();
        seen += 1;
    }
    assert_eq!(seen, 2);
}

//! Every file of `config-examples/` is one that chatd takes without a word.

use std::{fs, path::Path};

use crate::{Config, Overrides, Roles, assignment};

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

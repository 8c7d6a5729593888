//! Wrong files with the exact words that an admin reads: `wrong/instance.txt` for single
//! instances, `wrong/fleet.txt` for whole fleets. With `CHATD_BLESS=1` the words that are read now
//! are written there, to be looked at before they are kept.

use std::{fmt::Write as _, fs, path::PathBuf};

use crate::{Config, Fleet, Overrides, Roles, assignment};

/// What `<persister>` stands for.
const PERSISTER: &str = "worker_app: synapse.app.generic_worker
worker_name: persister1
worker_listeners:
  - { port: 9101, bind_addresses: [127.0.0.1], type: http, resources: [{ names: [replication] }] }
";

/// One case of a table: its lines as they are there, its files, and what must be said.
struct Case {
    title: String,
    given: String,
    files: Vec<(String, String)>,
    expected: String,
}

struct Table {
    path: PathBuf,
    /// What stands before the first case.
    head: String,
    cases: Vec<Case>,
}

impl Table {
    fn read(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/wrong").join(name);
        let text = fs::read_to_string(&path).unwrap();
        let mut parts = text.split("\n== ");
        let head = parts.next().unwrap().to_owned();
        let base = head.split_once("\n\n").unwrap().1;
        Self { cases: parts.map(|part| Case::parse(part, base)).collect(), head, path }
    }

    /// Every case says what it should, word by word.
    fn check(self, say: impl Fn(&[(&str, &str)]) -> String) {
        let mut text = self.head.clone();
        let mut wrong = Vec::new();
        for case in &self.cases {
            let files: Vec<_> =
                case.files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
            let said = say(&files);
            writeln!(text, "\n== {}-- error\n{said}", case.given).unwrap();
            if said != case.expected {
                wrong.push(format!("{}:\n{said}\n instead of\n{}", case.title, case.expected));
            }
        }
        if std::env::var_os("CHATD_BLESS").is_some() {
            fs::write(&self.path, text).unwrap();
            return;
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
        assert!(self.cases.len() > 20);
    }
}

impl Case {
    fn parse(text: &str, base: &str) -> Self {
        let (given, expected) = text.split_once("-- error\n").unwrap();
        let (title, files) = given.split_once('\n').unwrap();
        let files = files.split("-- ").skip(1).map(|file| {
            let (name, text) = file.split_once('\n').unwrap();
            let text = text.replace("<base>\n", &format!("{}\n", base.trim_end()));
            (name.to_owned(), text.replace("<persister>\n", PERSISTER))
        });
        Self {
            title: title.to_owned(),
            given: given.to_owned(),
            files: files.collect(),
            expected: expected.trim_end().to_owned(),
        }
    }
}

#[test]
fn what_is_wrong_with_an_instance_is_told() {
    Table::read("instance.txt").check(|files| {
        let roles = Roles::embedded();
        let config = Config::from_texts(files, &Overrides::default());
        match config.and_then(|config| Ok((assignment(&config, &roles)?, config.warnings))) {
            Ok((_, warnings)) => format!("warning: {}", warnings.join("\nwarning: ")),
            Err(error) => error.to_string(),
        }
    });
}

#[test]
fn what_is_wrong_with_a_fleet_is_told() {
    Table::read("fleet.txt").check(|files| {
        let fleet = Fleet::from_texts(files, &Overrides::default()).unwrap();
        let told: Vec<_> = fleet.findings.iter().map(ToString::to_string).collect();
        told.join("\n")
    });
}

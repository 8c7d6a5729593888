//! What containers, systemd and Kubernetes start in `config-examples/`: each command line goes
//! through the parser, and leads to files that are good and fit what is said around them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use chatd_config::{
    Assignment, Bind, Config, Fleet, FleetFile, ListenerKind, Overrides, Roles, assignment,
};
use clap::Parser;
use serde_json::Value;

use crate::cli::Cli;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn examples() -> PathBuf {
    root().join("config-examples")
}

/// All documents of a YAML file.
fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Cli {
    let words: Vec<_> = std::iter::once("chatd").chain(words).collect();
    Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect()
}

/// Keys of secrets that only the real place has.
const PASSWORD: &str = "CHATD_DATABASE__ARGS__PASSWORD_PATH";
const SECRET: &str = "CHATD_WORKER_REPLICATION_SECRET_PATH";

fn overrides(folder: &Path, name: Option<&str>, keys: &[&str]) -> Overrides {
    let secret = folder.join("secret");
    fs::write(&secret, "hush").unwrap();
    let value = secret.display().to_string();
    Overrides {
        env: keys.iter().map(|key| ((*key).to_owned(), value.clone())).collect(),
        name: name.map(str::to_owned),
        ..Overrides::default()
    }
}

/// The instance that a command line starts; `place` says where its files are here.
fn instance(cli: &Cli, secrets: &[&str], place: impl Fn(&Path) -> PathBuf) -> (Config, Assignment) {
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<_> = cli.source.config.iter().map(|path| place(path)).collect();
    let over = overrides(folder.path(), cli.source.name.as_deref(), secrets);
    let config = Config::load(&files, &over).unwrap_or_else(|error| panic!("{error}"));
    let mine = assignment(&config, &Roles::embedded()).unwrap_or_else(|error| panic!("{error}"));
    (config, mine)
}

fn yaml_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            yaml_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
}

/// A file that nobody tries could say anything.
#[test]
fn every_example_is_of_a_kind_that_is_tried() {
    let mut files = Vec::new();
    yaml_files(&examples(), &mut files);
    for path in &files {
        let document = &documents(path)[0];
        let has = |key: &str| document.get(key).is_some();
        let folder = path.parent().unwrap();
        let tried = match () {
            () if has("services") => folder == examples().join("twelve-containers"),
            () if has("apiVersion") => folder == examples().join("kubernetes"),
            // Files of fleets and of single servers; chatd-config loads them.
            () if has("worker_app") => folder.parent().unwrap().join("homeserver.yaml").is_file(),
            () if path.ends_with("homeserver.yaml") => folder.join("workers").is_dir(),
            () => folder == examples(),
        };
        assert!(tried, "no test looks at {}", path.display());
    }
    assert!(files.len() > 50);
}

#[test]
fn containers_start_instances_that_listen_where_they_are_asked_for_health() {
    let folder = examples().join("twelve-containers");
    let document = documents(&folder.join("compose.yaml")).remove(0);
    let services = document["services"].as_object().unwrap();
    let mut names = Vec::new();
    for (service, about) in services {
        let command = about["command"].as_str().unwrap_or_default();
        if !command.starts_with("run ") {
            continue;
        }
        let cli = parse(command.split_whitespace());
        let (config, mine) =
            instance(&cli, &[PASSWORD], |path| folder.join(path.strip_prefix("/config").unwrap()));
        assert_eq!(mine.instance.replace('_', "-"), *service);
        // Merged from what all instances have in common.
        assert_eq!(about["image"], "chatd", "{service}");
        let check = about["healthcheck"]["test"].as_str().unwrap();
        let asked = check.split(' ').find(|word| word.starts_with("/sockets/")).unwrap();
        let is_asked =
            |bind: &Bind| matches!(bind, Bind::Unix { path, .. } if path == Path::new(asked));
        assert!(config.listeners.iter().any(|one| is_asked(&one.bind)), "{service}: {asked}");
        names.push(mine.instance);
    }
    assert_eq!(names.len(), 13);
}

#[test]
fn units_and_the_image_start_what_they_say() {
    let units = ["chatd.service", "chatd-worker@.service"];
    for unit in units {
        let text = fs::read_to_string(examples().join("systemd").join(unit)).unwrap();
        let commands: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("ExecStart").or(line.strip_prefix("ExecStartPre")))
            .map(|line| line.split_once("/usr/bin/chatd ").unwrap().1)
            .collect();
        assert_eq!(commands.len(), 2, "{unit}");
        for command in commands {
            let command = command.replace("%i", "client_sync1");
            let fleet = examples().join("small-fleet");
            instance(&parse(command.split(' ')), &[], |path| {
                fleet.join(path.strip_prefix("/etc/chatd").unwrap())
            });
        }
    }
    let image = fs::read_to_string(root().join("Dockerfile")).unwrap();
    let command = image.lines().find_map(|line| line.strip_prefix("CMD [")).unwrap();
    parse(serde_json::from_str::<Vec<&str>>(&format!("[{command}")).unwrap());
    for part in ["AS build", "USER chatd", "HEALTHCHECK"] {
        assert!(image.contains(part), "{part}");
    }
}

/// The manifests of `config-examples/kubernetes`.
struct Manifests {
    all: Vec<Value>,
    /// The files of the config map.
    files: tempfile::TempDir,
}

impl Manifests {
    fn read() -> Self {
        let folder = examples().join("kubernetes");
        let mut all = Vec::new();
        for name in texts(&documents(&folder.join("kustomization.yaml"))[0]["resources"]) {
            all.extend(documents(&folder.join(name)));
        }
        let files = tempfile::tempdir().unwrap();
        let manifests = Self { all, files };
        let map = manifests.of("ConfigMap").next().unwrap();
        for (name, text) in map["data"].as_object().unwrap() {
            fs::write(manifests.files.path().join(name), text.as_str().unwrap()).unwrap();
        }
        manifests
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.all.iter().filter(move |one| one["kind"] == kind)
    }

    fn workloads(&self) -> impl Iterator<Item = &Value> {
        self.of("StatefulSet").chain(self.of("Deployment"))
    }

    /// The pods of a workload: their names, and the command line of each.
    fn pods(workload: &Value) -> Vec<(String, Cli)> {
        let container = container(workload);
        let pods = 0..workload["spec"]["replicas"].as_u64().unwrap();
        let name = workload["metadata"]["name"].as_str().unwrap();
        let pod = |index| {
            let pod = format!("{name}-{index}");
            let words = texts(&container["args"]);
            let words: Vec<_> = words.iter().map(|one| one.replace("$(POD_NAME)", &pod)).collect();
            let cli = parse(words.iter().map(String::as_str));
            (pod, cli)
        };
        pods.map(pod).collect()
    }

    fn place(&self, path: &Path) -> PathBuf {
        self.files.path().join(path.strip_prefix("/config").unwrap())
    }
}

fn container(workload: &Value) -> &Value {
    &workload["spec"]["template"]["spec"]["containers"][0]
}

fn labels(workload: &Value) -> &Value {
    &workload["spec"]["template"]["metadata"]["labels"]
}

#[test]
fn pods_are_one_fleet() {
    let manifests = Manifests::read();
    let mut files = BTreeMap::new();
    for (_, cli) in manifests.workloads().flat_map(Manifests::pods) {
        for path in &cli.source.config {
            let is_shared = path.ends_with("homeserver.yaml");
            let name = cli.source.name.clone().filter(|_| !is_shared);
            files.insert(
                (name.is_some(), name.clone(), path.clone()),
                FleetFile { name, path: manifests.place(path) },
            );
        }
    }
    let files: Vec<_> = files.into_values().collect();
    let over = overrides(manifests.files.path(), None, &[PASSWORD, SECRET]);
    let fleet = Fleet::load(&files, &over).unwrap();
    assert!(!fleet.has_errors(), "{:#?}", fleet.findings);
    assert_eq!(fleet.members.len(), 8);
    // Where the others call it is a service, or a pod of one.
    let services: Vec<_> =
        manifests.of("Service").map(|one| one["metadata"]["name"].as_str().unwrap()).collect();
    for (name, address) in fleet.instance_map() {
        let host = address.host.as_deref().unwrap();
        let service = host.strip_prefix(&format!("{name}.")).unwrap_or(host);
        assert!(services.contains(&service), "{name} is at {host}");
    }
}

#[test]
fn probes_services_and_budgets_fit_the_pods() {
    let manifests = Manifests::read();
    for workload in manifests.workloads() {
        let container = container(workload);
        let ports: BTreeMap<_, _> = container["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|port| (port["name"].as_str().unwrap(), port["containerPort"].as_u64().unwrap()))
            .collect();
        assert_eq!(workload["spec"]["selector"]["matchLabels"], *labels(workload));
        for (pod, cli) in Manifests::pods(workload) {
            let (config, _) = instance(&cli, &[PASSWORD, SECRET], |path| manifests.place(path));
            let listens = |kind, wanted: u64| {
                config.listeners.iter().any(|one| {
                    let here =
                        matches!(one.bind, Bind::Tcp { port, .. } if u64::from(port) == wanted);
                    here && one.kind == kind
                })
            };
            for (name, port) in &ports {
                let metrics = *name == "metrics";
                let kind = if metrics { ListenerKind::Metrics } else { ListenerKind::Http };
                assert!(listens(kind, *port), "{pod} does not listen at {name}");
            }
            for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
                let ask = &container[probe]["httpGet"];
                assert_eq!(ask["path"], "/health", "{pod}");
                let port = ports[ask["port"].as_str().unwrap()];
                assert!(listens(ListenerKind::Http, port), "{pod}: {probe}");
            }
            let grace = &workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"];
            assert!(config.chatd.shutdown_timeout.as_secs() + 5 < grace.as_u64().unwrap(), "{pod}");
        }
        let budget = manifests.of("PodDisruptionBudget");
        let mine = budget.filter(|one| one["spec"]["selector"]["matchLabels"] == *labels(workload));
        assert_eq!(mine.count(), 1, "{}", workload["metadata"]["name"]);
        for service in manifests.of("Service") {
            if service["spec"]["selector"] == *labels(workload) {
                for port in service["spec"]["ports"].as_array().unwrap() {
                    let target = port["targetPort"].as_str().unwrap();
                    assert_eq!(Some(port["port"].as_u64().unwrap()), ports.get(target).copied());
                }
            }
        }
    }
    every_service_has_pods(&manifests);
}

fn every_service_has_pods(manifests: &Manifests) {
    let mut known = Vec::new();
    for service in manifests.of("Service") {
        let selector = &service["spec"]["selector"];
        assert!(manifests.workloads().any(|one| labels(one) == selector), "{selector}");
        known.push(&service["metadata"]["name"]);
    }
    for rule in manifests.of("Ingress").flat_map(|one| one["spec"]["rules"].as_array().unwrap()) {
        for path in rule["http"]["paths"].as_array().unwrap() {
            let backend = &path["backend"]["service"]["name"];
            assert!(known.contains(&backend), "{backend}");
        }
    }
}

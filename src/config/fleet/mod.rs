//! The whole configuration of a server at once: the shared files and the file of each worker.
//!
//! One instance sees its own keys only ([`crate::assignment()`]); what only shows when all of
//! them are side by side is found here: work that nobody does, two on one port, a map that
//! points nowhere. `chatd explain --fleet` prints it and `chatd proxy-config` is made from it.

mod addresses;
mod agreement;
mod duties;
mod finding;

use std::{collections::BTreeMap, path::PathBuf};

pub use finding::{Finding, Severity};

use crate::{
    Assignment, Config, ConfigError, InstanceAddress, Listener, Overrides, ResourceName, Roles,
    RouterName, assignment,
    load::Files,
    source::Layer,
    workers::{MAIN, plain_app},
};

/// One file of a fleet. `name` is that of the instance, where the command line gives it (pods
/// share a file and get their names by `--name`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetFile {
    /// Name of the instance that this file is for.
    pub name: Option<String>,
    /// File, or folder of files.
    pub path: PathBuf,
}

impl FleetFile {
    /// Reads `FILE` or `NAME=FILE`.
    pub fn from_argument(text: &str) -> Self {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !name.contains('/') => {
                Self { name: Some(name.to_owned()), path: path.into() }
            }
            _ => Self { name: None, path: text.into() },
        }
    }
}

/// All instances of a server, and what is wrong with them.
#[derive(Debug)]
pub struct Fleet {
    /// The main process first, then the workers in the order of their files. Instances whose own
    /// configuration is wrong are not here, but in `findings`.
    pub members: Vec<Member>,
    /// Errors first.
    pub findings: Vec<Finding>,
}

/// One instance of the fleet.
#[derive(Debug)]
pub struct Member {
    /// Its whole configuration.
    pub config: Config,
    /// What it does.
    pub assignment: Assignment,
    /// The file that is its own; none for a main process that has the shared files only.
    pub(crate) own: Option<Layer>,
}

impl Member {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.assignment.instance
    }

    /// Its `worker_app` without prefix.
    pub fn app(&self) -> &str {
        self.config.workers.app.as_deref().map_or("homeserver", plain_app)
    }

    /// Whether this is the main process.
    pub fn is_main(&self) -> bool {
        self.name() == MAIN
    }

    /// Its listeners that serve `resource` and speak plain HTTP.
    pub fn listeners_for(&self, resource: ResourceName) -> impl Iterator<Item = &Listener> {
        self.config.listeners.iter().filter(move |one| one.serves(resource))
    }

    /// The key that its listeners are under.
    pub(crate) fn listeners_key(&self) -> &'static str {
        if self.is_main() { "listeners" } else { "worker_listeners" }
    }

    /// Whether some listener of it answers the endpoints of `router`.
    pub fn answers(&self, router: RouterName) -> bool {
        self.config.listeners.iter().any(|one| self.assignment.mounts(router, one))
    }
}

/// The parts of one instance before they are put together.
struct Parts {
    own: Option<Layer>,
    name: Option<String>,
}

impl Fleet {
    /// Reads `files`. A file with `worker_app` or `worker_name`, or with a name given to it, is
    /// the file of one instance; all others are shared by every instance.
    ///
    /// Fails only if a file cannot be read or is not YAML; everything else is a finding.
    pub fn load(files: &[FleetFile], over: &Overrides) -> Result<Self, ConfigError> {
        let mut layers = Vec::new();
        for file in files {
            let read = Files::read(std::slice::from_ref(&file.path))?;
            layers.extend(read.into_layers().into_iter().map(|layer| (file.name.clone(), layer)));
        }
        Ok(Self::assemble(layers, over))
    }

    /// As [`Fleet::load`], from texts instead of files. For tests and tools.
    pub fn from_texts(texts: &[(&str, &str)], over: &Overrides) -> Result<Self, ConfigError> {
        let layers = Files::parse(texts)?.into_layers();
        Ok(Self::assemble(layers.into_iter().map(|layer| (None, layer)).collect(), over))
    }

    fn assemble(layers: Vec<(Option<String>, Layer)>, over: &Overrides) -> Self {
        let (own, shared): (Vec<_>, Vec<_>) = layers.into_iter().partition(|(name, layer)| {
            let keys = ["worker_app", "worker_name"];
            name.is_some() || keys.iter().any(|key| layer.values.contains_key(*key))
        });
        let shared: Vec<Layer> = shared.into_iter().map(|(_, layer)| layer).collect();
        let mut fleet = Self { members: Vec::new(), findings: Vec::new() };
        for (name, layer) in own {
            fleet.add(&shared, Parts { own: Some(layer), name }, over);
        }
        // A file of its own with `worker_app: …homeserver` is the main process already.
        if !fleet.members.iter().any(Member::is_main) {
            fleet.add(&shared, Parts { own: None, name: None }, over);
        }
        fleet.members.sort_by_key(|member| !member.is_main());
        fleet.check();
        fleet
    }

    fn add(&mut self, shared: &[Layer], parts: Parts, over: &Overrides) {
        let layers = shared.iter().chain(&parts.own).cloned().collect();
        let over = Overrides { name: parts.name, ..over.clone() };
        let who = parts.own.as_ref().map_or_else(|| MAIN.to_owned(), Layer::name);
        match Config::assemble(Files::of(layers), &over)
            .and_then(|config| Ok((assignment(&config, &Roles::embedded())?, config)))
        {
            Ok((assignment, config)) => {
                self.members.push(Member { config, assignment, own: parts.own });
            }
            Err(error) => self.findings.push(Finding::error(&who, error)),
        }
    }

    fn check(&mut self) {
        let rules = [
            agreement::check as fn(&Fleet) -> Vec<Finding>,
            addresses::check,
            duties::check,
            duties::check_coverage,
        ];
        let mut found: Vec<_> = rules.iter().flat_map(|rule| rule(self)).collect();
        for member in &self.members {
            found.extend(member.config.warnings.iter().map(|warning| {
                Finding::warning(member.name(), ConfigError::new(warning.as_str()))
            }));
        }
        self.findings.append(&mut found);
        self.findings = finding::merged(std::mem::take(&mut self.findings));
    }

    /// Whether the server cannot run as it should.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// The instance of that name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name() == name)
    }

    /// The main process; absent if its configuration is wrong.
    pub fn main(&self) -> Option<&Member> {
        self.member(MAIN)
    }

    /// How each instance is called by the others, from all files together: older files tell the
    /// address of the main process in the files of the workers.
    pub fn instance_map(&self) -> BTreeMap<&str, &InstanceAddress> {
        let mut map = BTreeMap::new();
        for member in &self.members {
            for (name, address) in &member.config.workers.instance_map {
                map.entry(name.as_str()).or_insert(address);
            }
        }
        map
    }

    /// Whether the configuration of some instance is wrong, so that absence tells nothing.
    fn is_incomplete(&self) -> bool {
        self.has_errors()
    }
}

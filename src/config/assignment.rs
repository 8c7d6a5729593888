//! The assignment: what this instance does. One pure function decides it, from its role and the
//! configuration that all instances share; `chatd explain` prints it.
//!
//! Nothing else reads `worker_app`, `stream_writers`, the `*_instances` and `*_from_worker` keys
//! or the booleans that came before them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::{
    Config, ConfigError, Listener, ResourceName, RouterName, StreamName, TaskName, contradictions,
    roles::{Role, Roles},
    workers::MAIN,
};

/// What this instance does.
#[derive(Clone, Debug, Serialize)]
pub struct Assignment {
    /// Name of the instance.
    pub instance: String,
    /// Name of its role.
    pub role: String,
    /// Groups of endpoints to mount.
    pub routers: BTreeSet<RouterName>,
    /// Streams that it writes.
    pub writers: BTreeSet<StreamName>,
    /// Work that it does by itself.
    pub tasks: BTreeSet<TaskName>,
    /// Who writes each stream, in the order of the configuration.
    pub writers_of: BTreeMap<StreamName, Vec<String>>,
    /// Who runs each task; empty if that is an instance whose name the configuration does not
    /// tell (a role of one purpose, with the boolean of the main process off).
    pub runners_of: BTreeMap<TaskName, Vec<String>>,
}

impl Assignment {
    /// Whether the group of endpoints is mounted.
    pub fn has_router(&self, router: RouterName) -> bool {
        self.routers.contains(&router)
    }

    /// Whether this instance writes `stream`.
    pub fn writes(&self, stream: StreamName) -> bool {
        self.writers.contains(&stream)
    }

    /// Whether this instance runs `task`.
    pub fn runs(&self, task: TaskName) -> bool {
        self.tasks.contains(&task)
    }

    /// Who writes `stream`.
    pub fn writers_of(&self, stream: StreamName) -> &[String] {
        self.writers_of.get(&stream).map_or(&[], Vec::as_slice)
    }

    /// Whether this instance can be the whole server: the main process, with every stream.
    pub fn is_whole(&self) -> bool {
        let mine = |names: &Vec<String>| names.iter().all(|name| *name == self.instance);
        self.instance == MAIN && self.writers_of.values().all(mine)
    }

    /// Whether `router` is mounted on `listener`: it is ours, and the listener has its resource.
    pub fn mounts(&self, router: RouterName, listener: &Listener) -> bool {
        self.has_router(router) && listener.serves(router.resource())
    }
}

impl RouterName {
    /// What a listener must name so that this group is mounted on it.
    pub fn resource(self) -> ResourceName {
        match self {
            Self::Health => ResourceName::Health,
            Self::Metrics => ResourceName::Metrics,
            Self::FederationSend | Self::FederationQuery => ResourceName::Federation,
            Self::Key => ResourceName::Keys,
            Self::Openid => ResourceName::Openid,
            Self::Media => ResourceName::Media,
            Self::Replication => ResourceName::Replication,
            _ => ResourceName::Client,
        }
    }
}

/// What this instance does: what its role may do, and the shared configuration gives to it.
///
/// Refuses contradictions: a writer that nobody can reach, two instances for a stream that has
/// one writer, a role with a listener that it cannot serve, a task that two keys give to two.
pub fn assignment(config: &Config, roles: &Roles) -> Result<Assignment, ConfigError> {
    let role = roles
        .for_app(config.workers.app.as_deref())
        .map_err(|error| config.origins.locate(error))?;
    let me = config.instance_name();
    let writers_of: BTreeMap<_, _> =
        StreamName::ALL.iter().map(|&stream| (stream, config.writers_of(stream))).collect();
    let runners: BTreeMap<_, _> =
        TaskName::ALL.iter().map(|&task| (task, config.runners_of(task))).collect();
    contradictions::check(config, role, &writers_of, &runners)
        .map_err(|error| config.origins.locate(error))?;

    let writes = |stream: &StreamName| {
        *stream == StreamName::Caches || writers_of[stream].iter().any(|name| name == me)
    };
    let runs = |task: &TaskName| match &runners[task] {
        Runners::Named(names) => names.iter().any(|name| name == me),
        Runners::Role(app) => role.name == *app,
    };
    let assignment = Assignment {
        instance: me.to_owned(),
        role: role.name.to_owned(),
        routers: role
            .routers
            .iter()
            .copied()
            .filter(|router| offers(config, role, *router))
            .collect(),
        writers: role.writers.iter().copied().filter(writes).collect(),
        tasks: role.tasks.iter().copied().filter(runs).collect(),
        runners_of: runners.into_iter().map(|(task, runners)| (task, runners.names())).collect(),
        writers_of,
    };
    Ok(assignment)
}

/// `enable_media_repo: false` takes the content repository from every role but its own.
fn offers(config: &Config, role: &Role, router: RouterName) -> bool {
    router != RouterName::Media
        || config.workers.enable_media_repo
        || role.name == "media_repository"
}

/// Who runs a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Runners {
    /// These instances.
    Named(Vec<String>),
    /// Whichever instance has the role of that name.
    Role(&'static str),
}

impl Runners {
    fn names(self) -> Vec<String> {
        match self {
            Self::Named(names) => names,
            Self::Role(_) => Vec::new(),
        }
    }
}

impl Config {
    /// Who writes `stream`: the main process unless `stream_writers` says otherwise. Every
    /// instance writes `caches`.
    pub(crate) fn writers_of(&self, stream: StreamName) -> Vec<String> {
        match self.workers.stream_writers.named(stream) {
            [] => vec![MAIN.to_owned()],
            names => names.iter().map(|name| canonical(name)).collect(),
        }
    }

    /// Who runs `task`, by the key of today or by the boolean that came before it.
    pub(crate) fn runners_of(&self, task: TaskName) -> Runners {
        let workers = &self.workers;
        match task {
            TaskName::Cleanup | TaskName::BackgroundUpdates => {
                one_or_main(workers.run_background_tasks_on.as_deref())
            }
            TaskName::FederationSender => many_or_legacy(
                &workers.federation_sender_instances,
                workers.send_federation,
                "federation_sender",
            ),
            TaskName::Pusher => {
                many_or_legacy(&workers.pusher_instances, workers.start_pushers, "pusher")
            }
            TaskName::AppserviceSender => one_or_legacy(
                workers.notify_appservices_from_worker.as_deref(),
                workers.notify_appservices,
                "appservice",
            ),
            TaskName::UserDirectory => one_or_legacy(
                workers.update_user_directory_from_worker.as_deref(),
                workers.update_user_directory,
                "user_dir",
            ),
            TaskName::MediaCleanup => one_or_legacy(
                workers.media_instance_running_background_jobs.as_deref(),
                Some(workers.enable_media_repo),
                "media_repository",
            ),
        }
    }
}

/// Synapse calls the main process `master` in places.
pub(crate) fn canonical(name: &str) -> String {
    if name == "master" { MAIN.to_owned() } else { name.to_owned() }
}

fn one_or_main(name: Option<&str>) -> Runners {
    Runners::Named(vec![name.map_or_else(|| MAIN.to_owned(), canonical)])
}

fn one_or_legacy(name: Option<&str>, on_main: Option<bool>, app: &'static str) -> Runners {
    match (name, on_main) {
        (None, Some(false)) => Runners::Role(app),
        (name, _) => one_or_main(name),
    }
}

fn many_or_legacy(names: &[String], on_main: Option<bool>, app: &'static str) -> Runners {
    match (names, on_main) {
        ([], Some(false)) => Runners::Role(app),
        ([], _) => one_or_main(None),
        (names, _) => Runners::Named(names.iter().map(|name| canonical(name)).collect()),
    }
}

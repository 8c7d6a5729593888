//! Role files: what an instance of each `worker_app` may have.

use serde::Deserialize;

use crate::{ConfigError, ResourceName, RouterName, StreamName, TaskName, suggest, workers};

/// What an instance of this role may have. Data only; every condition is in
/// [`assignment`](crate::assignment()).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    /// Name of the role: that of its file.
    #[serde(skip)]
    pub name: &'static str,
    /// What it is for, in one sentence.
    pub summary: String,
    /// The `worker_app` names that mean it, without prefix.
    pub apps: Vec<String>,
    /// What its listeners may serve.
    pub serves: Vec<ResourceName>,
    /// Groups of endpoints.
    pub routers: Vec<RouterName>,
    /// Streams that it may write.
    pub writers: Vec<StreamName>,
    /// Work that it may do by itself.
    pub tasks: Vec<TaskName>,
}

/// All roles.
#[derive(Clone, Debug)]
pub struct Roles {
    roles: Vec<Role>,
}

macro_rules! embedded {
    ($($name:literal)*) => {
        &[$(($name, include_str!(concat!("../../roles/", $name, ".toml")))),*]
    };
}

const FILES: &[(&str, &str)] = embedded![
    "main" "generic_worker" "pusher" "appservice" "federation_sender" "media_repository" "user_dir"
];

impl Roles {
    /// The roles that this binary was built with.
    pub fn embedded() -> Self {
        let read = |&(name, text): &(&'static str, &str)| {
            let role: Role = toml::from_str(text).expect("a test parses every role file");
            Role { name, ..role }
        };
        Self { roles: FILES.iter().map(read).collect() }
    }

    /// All of them, the main process first.
    pub fn iter(&self) -> impl Iterator<Item = &Role> {
        self.roles.iter()
    }

    /// Names of the roles that can run `task`.
    pub fn able_to(&self, task: TaskName) -> impl Iterator<Item = &str> {
        let able = self.roles.iter().filter(move |role| role.tasks.contains(&task));
        able.map(|role| role.name)
    }

    /// The role of that name.
    pub fn by_name(&self, name: &str) -> Option<&Role> {
        self.roles.iter().find(|role| role.name == name)
    }

    /// The role of a `worker_app`, with any of its prefixes; `None` means the main process.
    pub fn for_app(&self, app: Option<&str>) -> Result<&Role, ConfigError> {
        let app = app.unwrap_or("homeserver");
        let plain = workers::plain_app(app);
        let found = self.roles.iter().find(|role| role.apps.iter().any(|name| name == plain));
        found.ok_or_else(|| {
            let all = || self.roles.iter().flat_map(|role| role.apps.iter().map(String::as_str));
            let names: Vec<_> = all().collect();
            let error =
                ConfigError::at("worker_app", format!("expected one of {}", names.join(", ")))
                    .found(format!("{app:?}"));
            match suggest::nearest(plain, all()) {
                Some(near) => error.remedy(format!("did you mean `synapse.app.{near}`?")),
                None => error,
            }
        })
    }
}

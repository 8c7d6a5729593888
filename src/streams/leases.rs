//! Work that one instance does for all: it belongs to the instance that the configuration names,
//! and to another one that is able to while that is away.

use std::{collections::BTreeMap, future::Future};

use chatd_base::Stop;
use chatd_storage::{instances::Instance, leases::Lease};
use tokio::sync::watch;

use crate::share::weight;

/// A task of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duty {
    /// Its name in the table: that of the task, and of the part of it if several instances share
    /// it.
    pub name: String,
    /// Who is to do it while it is there.
    pub preferred: Option<String>,
    /// Who else can.
    pub able: Able,
}

/// Who can take a task over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Able {
    /// Instances of these names.
    Named(Vec<String>),
    /// Instances of these roles.
    Roles(Vec<String>),
}

impl Able {
    fn allows(&self, instance: &Instance) -> bool {
        match self {
            Self::Named(names) => names.contains(&instance.name),
            Self::Roles(roles) => roles.contains(&instance.role),
        }
    }
}

impl Duty {
    /// Who should have it, seen who is alive and who has it.
    fn desired<'a>(&'a self, holder: Option<&'a str>, alive: &'a [Instance]) -> Option<&'a str> {
        let is_alive = |name: &&str| alive.iter().any(|one| one.name == *name);
        if let Some(preferred) = self.preferred.as_deref().filter(is_alive) {
            return Some(preferred);
        }
        let mut able = alive.iter().filter(|one| self.able.allows(one));
        match holder.filter(|holder| able.clone().any(|one| one.name == *holder)) {
            Some(holder) => Some(holder),
            None => able
                .by_ref()
                .max_by_key(|one| weight(&one.name, &self.name))
                .map(|one| one.name.as_str()),
        }
    }
}

/// The tasks of a fleet as this instance sees them.
#[derive(Debug)]
pub struct Leases {
    duties: BTreeMap<String, (Duty, watch::Sender<Option<i64>>)>,
}

impl Leases {
    /// All tasks that the configuration has. Nothing is held before the roster says so.
    pub fn new(duties: Vec<Duty>) -> Self {
        let with_state = |duty: Duty| (duty.name.clone(), (duty, watch::Sender::new(None)));
        Self { duties: duties.into_iter().map(with_state).collect() }
    }

    /// An instance that is alone does everything.
    pub fn hold_all(&self) {
        self.duties.values().for_each(|(_, held)| held.send_modify(|epoch| *epoch = Some(0)));
    }

    /// What `me` should take, with the epoch under which it was seen.
    pub(crate) fn wanted(
        &self,
        me: &str,
        leases: &[Lease],
        alive: &[Instance],
    ) -> Vec<(String, i64)> {
        let known: BTreeMap<&str, &Lease> =
            leases.iter().map(|lease| (lease.task.as_str(), lease)).collect();
        self.duties
            .values()
            .filter_map(|(duty, _)| {
                let lease = known.get(duty.name.as_str());
                let holder = lease.map(|lease| lease.holder.as_str());
                let is_due = duty.desired(holder, alive) == Some(me) && holder != Some(me);
                is_due.then(|| (duty.name.clone(), lease.map_or(0, |lease| lease.epoch)))
            })
            .collect()
    }

    /// Takes note of who has what.
    pub(crate) fn set(&self, me: &str, leases: &[Lease]) {
        for lease in leases {
            let Some((_, held)) = self.duties.get(&lease.task) else { continue };
            let epoch = (lease.holder == me).then_some(lease.epoch);
            held.send_if_modified(|old| {
                let is_new = *old != epoch;
                if is_new {
                    let what = if epoch.is_some() { "begins" } else { "ends" };
                    tracing::info!(task = lease.task, holder = lease.holder, "a task {what} here");
                }
                *old = epoch;
                is_new
            });
        }
    }

    /// The names of a task: one, or one for each instance that has a part of it.
    pub fn parts_of(&self, task: &str) -> Vec<String> {
        let is_part = |name: &&String| {
            name.strip_prefix(task).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.duties.keys().filter(is_part).cloned().collect()
    }

    /// What this instance does at the moment.
    pub fn held(&self) -> Vec<String> {
        let held = self.duties.values().filter(|(_, held)| held.borrow().is_some());
        held.map(|(duty, _)| duty.name.clone()).collect()
    }

    /// Does `job` whenever this instance has the task, until `stop`: it is dropped when the task
    /// goes to another instance. It gets the epoch, which fences what it writes if that must not
    /// happen twice.
    pub fn keep<F>(
        &self,
        task: &str,
        stop: Stop,
        job: impl Fn(i64) -> F + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let held = self.duties.get(task).map(|(_, held)| held.subscribe());
        async move {
            let Some(mut held) = held else { return };
            loop {
                let epoch = tokio::select! {
                    () = stop.triggered() => return,
                    held = held.wait_for(Option::is_some) => match held {
                        Ok(epoch) => epoch.unwrap_or_default(),
                        Err(_) => return,
                    },
                };
                tokio::select! {
                    () = stop.triggered() => return,
                    () = job(epoch) => return,
                    _ = held.wait_for(|now| *now != Some(epoch)) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chatd_base::WriterId;

    use super::*;

    fn instance(name: &str, role: &str) -> Instance {
        Instance {
            name: name.to_owned(),
            role: role.to_owned(),
            writer: WriterId(1),
            owns_rooms: false,
            silence: Duration::ZERO,
            knows_us: 0,
            address: None,
        }
    }

    fn lease(holder: &str) -> Vec<Lease> {
        vec![Lease { task: "cleanup".to_owned(), holder: holder.to_owned(), epoch: 4 }]
    }

    #[test]
    fn a_task_goes_to_who_is_named_or_stays_where_it_can() {
        let duty = Duty {
            name: "cleanup".to_owned(),
            preferred: Some("background".to_owned()),
            able: Able::Roles(vec!["generic_worker".to_owned()]),
        };
        let leases = Leases::new(vec![duty]);
        let all = [
            instance("background", "generic_worker"),
            instance("one", "generic_worker"),
            instance("pusher", "pusher"),
            instance("two", "generic_worker"),
        ];
        let task = |epoch| vec![("cleanup".to_owned(), epoch)];
        assert_eq!(leases.wanted("background", &[], &all), task(0), "nobody has it");
        assert_eq!(leases.wanted("background", &lease("one"), &all), task(4), "it is back");
        assert_eq!(leases.wanted("background", &lease("background"), &all), []);
        assert_eq!(leases.wanted("one", &lease("background"), &all), []);
        // While that is away exactly one of the others takes it, and then keeps it.
        let rest = &all[1..];
        let takers: Vec<_> = rest
            .iter()
            .filter(|one| !leases.wanted(&one.name, &lease("background"), rest).is_empty())
            .map(|one| one.name.as_str())
            .collect();
        assert_eq!(takers.len(), 1);
        assert_ne!(takers, ["pusher"], "its role cannot");
        for one in rest {
            assert_eq!(leases.wanted(&one.name, &lease("two"), rest), [], "two has it");
        }
    }

    #[tokio::test]
    async fn a_job_runs_while_its_task_is_held() {
        let duty =
            Duty { name: "cleanup".to_owned(), preferred: None, able: Able::Roles(Vec::new()) };
        let leases = Leases::new(vec![duty]);
        let (tell, mut told) = tokio::sync::mpsc::channel(8);
        let stop = Stop::new();
        let kept = leases.keep("cleanup", stop.clone(), move |epoch| {
            let tell = tell.clone();
            async move {
                tell.send(epoch).await.unwrap();
                std::future::pending().await
            }
        });
        let kept = chatd_base::tasks::spawn("kept", kept);
        leases.set("me", &lease("me"));
        assert_eq!(told.recv().await, Some(4));
        assert_eq!(leases.held(), ["cleanup"]);
        leases.set("me", &lease("other"));
        leases.set("me", &[Lease { epoch: 6, ..lease("me").remove(0) }]);
        assert_eq!(told.recv().await, Some(6));
        stop.trigger();
        kept.await.unwrap();
    }
}

//! `chatd roles`: what `worker_app` can name.

use chatd_config::Roles;

use super::{Failure, say};

/// Lists every role with its names.
pub fn execute() -> Result<(), Failure> {
    for role in Roles::embedded().iter() {
        say(format_args!("{}\n  {}", role.name, role.summary));
        say(format_args!("  worker_app: {}", role.apps.join(", ")));
        let tasks: Vec<_> = role.tasks.iter().map(|task| task.as_str()).collect();
        if !tasks.is_empty() {
            say(format_args!("  tasks: {}", tasks.join(", ")));
        }
        say("");
    }
    say("each name may have the prefix synapse.app. or chat.app.");
    Ok(())
}

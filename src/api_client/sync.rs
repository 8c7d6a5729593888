//! `/sync`. <https://spec.matrix.org/latest/client-server-api/#syncing>

use std::{sync::Arc, time::Duration};

use chatd_base::{Refusal, Requester, Result};
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, v3};
use chatd_sync::{Asker, filter::Filter, token::SyncToken};
use chatd_users::presence::parse_state;
use serde::Deserialize;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientSync).get(v3("/sync"), Auth::Guest, sync)
}

#[derive(Debug, Deserialize)]
struct Query {
    filter: Option<String>,
    since: Option<String>,
    #[serde(default)]
    full_state: bool,
    set_presence: Option<String>,
    #[serde(default)]
    timeout: u64,
    #[serde(default)]
    use_state_after: bool,
    #[serde(default, rename = "org.matrix.msc4222.use_state_after")]
    unstable_use_state_after: bool,
}

impl Query {
    /// The section that is to show the state at the end of a timeline, if one is asked for.
    fn state_after(&self) -> Option<&'static str> {
        let unstable = self.unstable_use_state_after.then_some("org.matrix.msc4222.state_after");
        self.use_state_after.then_some("state_after").or(unstable)
    }
}

/// What is new for the caller since a token.
async fn sync(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?.clone();
    let query: Query = request.query()?;
    let since = query.since.as_deref().map(SyncToken::from_client).transpose()?;
    let asker = Asker {
        user: who.user,
        user_id: who.user_id.clone(),
        device: who.device_id.as_ref().map(ToString::to_string),
        filter: filter(&app, &who, query.filter.as_deref()).await?,
        full_state: query.full_state,
        state_after: query.state_after(),
    };
    let wanted = parse_state(query.set_presence.as_deref().unwrap_or("online"))?;
    // Dropped when the answer is made, which is when the device stops syncing.
    let _syncing = app.users.presence.syncing(&who, wanted);
    let timeout = Duration::from_millis(query.timeout).min(app.config.chatd.max_sync_timeout);
    Ok(Reply::raw_json(app.sync.answer(&asker, since, timeout).await?))
}

/// The filter that the caller names by its id, or gives as JSON.
async fn filter(app: &App, who: &Requester, filter: Option<&str>) -> Result<Arc<Filter>> {
    Ok(Arc::new(match filter.filter(|text| !text.is_empty()) {
        None => Filter::default(),
        Some(text) if text.starts_with('{') => Filter::from_json(text)?,
        Some(id) => {
            let stored = app.users.filters.get(who.user, id).await?;
            Filter::from_json(stored.get())
                .map_err(|refusal| Refusal::invalid_param(refusal.message))?
        }
    }))
}

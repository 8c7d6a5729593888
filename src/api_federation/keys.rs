//! `/_matrix/key`: this server's keys, and what it knows of the keys of others.

use std::{collections::BTreeMap, sync::Arc};

use chatd_base::Result;
use chatd_config::RouterName;
use chatd_http::{Auth, Reply, Request, Routes, raw};
use chatd_servers::KeyQuery;
use ruma_common::OwnedServerName;
use serde::Deserialize;

use crate::App;

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::Key)
        .get(raw("/_matrix/key/v2/server/{keyId?}"), Auth::None, own)
        .get(raw("/_matrix/key/v2/query/{serverName}/{keyId?}"), Auth::None, query_one)
        .post(raw("/_matrix/key/v2/query"), Auth::None, query_many)
}

/// All keys, whatever the (deprecated) id in the path.
async fn own(app: Arc<App>, _: Request) -> Result<Reply> {
    Ok(Reply::raw_json(app.federation.deps.servers.keyring.own_document()?))
}

async fn query_one(app: Arc<App>, request: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Parameters {
        minimum_valid_until_ts: Option<u64>,
    }
    let until = request.query::<Parameters>()?.minimum_valid_until_ts;
    let server: OwnedServerName = request.arg_as("serverName")?;
    let keys = match request.arg("keyId") {
        "" => BTreeMap::new(),
        id => BTreeMap::from([(id.to_owned(), until)]),
    };
    answer(&app, &KeyQuery::from([(server, keys)]), until).await
}

async fn query_many(app: Arc<App>, request: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Body {
        server_keys: BTreeMap<OwnedServerName, BTreeMap<String, Criteria>>,
    }
    #[derive(Deserialize)]
    struct Criteria {
        minimum_valid_until_ts: Option<u64>,
    }
    let body: Body = request.json()?;
    let criteria = |keys: BTreeMap<String, Criteria>| {
        keys.into_iter().map(|(id, wanted)| (id, wanted.minimum_valid_until_ts)).collect()
    };
    let query: KeyQuery =
        body.server_keys.into_iter().map(|(server, keys)| (server, criteria(keys))).collect();
    answer(&app, &query, None).await
}

/// The documents, spliced as they are.
async fn answer(app: &App, query: &KeyQuery, until_ms: Option<u64>) -> Result<Reply> {
    let documents = app.federation.deps.servers.keyring.query(query, until_ms).await?;
    let length: usize = documents.iter().map(|document| document.len() + 1).sum();
    let mut json = Vec::with_capacity(length + 32);
    json.extend_from_slice(b"{\"server_keys\":[");
    json.extend_from_slice(&documents.join(&b','));
    json.extend_from_slice(b"]}");
    Ok(Reply::raw_json(json))
}

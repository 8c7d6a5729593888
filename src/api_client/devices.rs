//! Devices of the requester.

use std::sync::Arc;

use chatd_base::Result;
use chatd_config::{RouterName, StreamName};
use chatd_http::{Auth, Home, Reply, Request, Routes, v3};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    App,
    ui_auth::{self, Ignored, Lately},
};

pub fn routes() -> Routes<App> {
    Routes::of(RouterName::ClientDevices)
        .get(v3("/devices"), Auth::Guest, list)
        .get(v3("/devices/{deviceId}"), Auth::Guest, get)
        .put(v3("/devices/{deviceId}"), Auth::Guest, update)
        .home(Home::Stream(StreamName::DeviceLists))
        .delete(v3("/devices/{deviceId}"), Auth::Token, delete)
        .home(Home::Stream(StreamName::DeviceLists))
        .post(v3("/delete_devices"), Auth::Token, delete_many)
        .home(Home::Stream(StreamName::DeviceLists))
        .once()
}

async fn list(app: Arc<App>, request: Request) -> Result<Reply> {
    let devices = app.users.devices.list(request.who()?.user).await?;
    Reply::json(&json!({"devices": devices}))
}

async fn get(app: Arc<App>, request: Request) -> Result<Reply> {
    let user = request.who()?.user;
    Reply::json(&app.users.devices.get(user, request.arg("deviceId")).await?)
}

async fn update(app: Arc<App>, request: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Body {
        display_name: Option<String>,
    }
    let who = request.who()?;
    let device_id = request.arg("deviceId");
    match request.json_or_empty::<Body>()?.display_name {
        Some(name) => app.users.devices.rename(who, device_id, Some(&name)).await?,
        None => drop(app.users.devices.get(who.user, device_id).await?),
    }
    Ok(Reply::empty())
}

async fn delete(app: Arc<App>, request: Request) -> Result<Reply> {
    let body: Map<String, Value> = request.json_or_empty()?;
    let (Ignored {}, passed) = ui_auth::confirm(&app, &request, body, Lately::Counts).await?;
    let device_ids = vec![request.arg("deviceId").to_owned()];
    app.users.devices.delete(request.who()?, device_ids).await?;
    app.users.ui_auth.finish(&passed).await?;
    Ok(Reply::empty())
}

async fn delete_many(app: Arc<App>, request: Request) -> Result<Reply> {
    #[derive(Deserialize)]
    struct Body {
        devices: Vec<String>,
    }
    let body: Map<String, Value> = request.json()?;
    let (Body { devices }, passed) = ui_auth::confirm(&app, &request, body, Lately::Counts).await?;
    app.users.devices.delete(request.who()?, devices).await?;
    app.users.ui_auth.finish(&passed).await?;
    Ok(Reply::empty())
}

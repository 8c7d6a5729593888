//! Push rules. <https://spec.matrix.org/latest/client-server-api/#push-rules-api>

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::{RouterName, StreamName};
use chatd_http::{Auth, Home, Reply, Request, Routes, v3};
use chatd_users::push_rules::{NewRule, Place, to_json};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::App;

pub fn routes() -> Routes<App> {
    const RULE: &str = "/pushrules/{scope}/{kind}/{ruleId}";
    const ENABLED: &str = "/pushrules/{scope}/{kind}/{ruleId}/enabled";
    const ACTIONS: &str = "/pushrules/{scope}/{kind}/{ruleId}/actions";
    Routes::of(RouterName::ClientPushRules)
        .get(v3("/pushrules").or(v3("/pushrules/")), Auth::Token, get_all)
        .get(v3("/pushrules/{scope}").or(v3("/pushrules/{scope}/")), Auth::Token, get_scope)
        .get(
            v3("/pushrules/{scope}/{kind}").or(v3("/pushrules/{scope}/{kind}/")),
            Auth::Token,
            get_kind,
        )
        .get(v3(RULE), Auth::Token, get_rule)
        .put(v3(RULE), Auth::Token, put_rule)
        .home(Home::Stream(StreamName::PushRules))
        .delete(v3(RULE), Auth::Token, delete_rule)
        .home(Home::Stream(StreamName::PushRules))
        .get(v3(ENABLED), Auth::Token, get_enabled)
        .put(v3(ENABLED), Auth::Token, set_enabled)
        .home(Home::Stream(StreamName::PushRules))
        .get(v3(ACTIONS), Auth::Token, get_actions)
        .put(v3(ACTIONS), Auth::Token, set_actions)
        .home(Home::Stream(StreamName::PushRules))
}

async fn get_all(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    let content = app.users.push_rules.content(who.user, &who.user_id).await?;
    Reply::json(&content)
}

async fn get_scope(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    global_only(&request)?;
    let rules = app.users.push_rules.of_user(who.user, &who.user_id).await?;
    Reply::json(&to_json(&rules)?)
}

async fn get_kind(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    global_only(&request)?;
    let rules = app.users.push_rules.of_user(who.user, &who.user_id).await?;
    match to_json(&rules)?.get(request.arg("kind")) {
        Some(rules) => Reply::json(rules),
        None => Err(Refusal::unrecognized("there is no such kind of push rules").into()),
    }
}

async fn get_rule(app: Arc<App>, request: Request) -> Result<Reply> {
    Reply::json(&find_rule(&app, &request).await?)
}

async fn get_enabled(app: Arc<App>, request: Request) -> Result<Reply> {
    let rule = find_rule(&app, &request).await?;
    Reply::json(&json!({ "enabled": rule.get("enabled") }))
}

async fn get_actions(app: Arc<App>, request: Request) -> Result<Reply> {
    let rule = find_rule(&app, &request).await?;
    Reply::json(&json!({ "actions": rule.get("actions") }))
}

#[derive(Deserialize)]
struct PutQuery {
    before: Option<String>,
    after: Option<String>,
}

async fn put_rule(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    global_only(&request)?;
    let query: PutQuery = request.query()?;
    let body: NewRule = request.json()?;
    let place = Place { before: query.before.as_deref(), after: query.after.as_deref() };
    let (kind, rule_id) = (request.arg("kind"), request.arg("ruleId"));
    app.users.push_rules.put(who, kind, rule_id, body, place).await?;
    Ok(Reply::empty())
}

async fn delete_rule(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    global_only(&request)?;
    app.users.push_rules.delete(who, request.arg("kind"), request.arg("ruleId")).await?;
    Ok(Reply::empty())
}

#[derive(Deserialize)]
struct Enabled {
    enabled: bool,
}

async fn set_enabled(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    global_only(&request)?;
    let Enabled { enabled } = request.json()?;
    let (kind, rule_id) = (request.arg("kind"), request.arg("ruleId"));
    app.users.push_rules.set_enabled(who, kind, rule_id, enabled).await?;
    Ok(Reply::empty())
}

#[derive(Deserialize)]
struct Actions {
    actions: Vec<Value>,
}

async fn set_actions(app: Arc<App>, request: Request) -> Result<Reply> {
    let who = request.who()?;
    global_only(&request)?;
    let Actions { actions } = request.json()?;
    let (kind, rule_id) = (request.arg("kind"), request.arg("ruleId"));
    app.users.push_rules.set_actions(who, kind, rule_id, &actions).await?;
    Ok(Reply::empty())
}

async fn find_rule(app: &App, request: &Request) -> Result<Value> {
    global_only(request)?;
    let (kind, rule_id) = (request.arg("kind"), request.arg("ruleId"));
    app.users.push_rules.get(request.who()?, kind, rule_id).await
}

fn global_only(request: &Request) -> Result<()> {
    match request.arg("scope") {
        "global" => Ok(()),
        other => Err(Refusal::unrecognized(format!("{other} is not a scope")).into()),
    }
}

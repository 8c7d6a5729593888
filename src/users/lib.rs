//! What belongs to users of this server: accounts, access tokens, devices and their keys,
//! profiles, account data, push rules, presence, typing, receipts and to-device messages.
//! Nothing here knows HTTP or SQL text.

pub mod account_data;
pub mod accounts;
pub mod cleanup;
pub mod cross_signing;
pub mod devices;
mod digest;
pub mod filters;
mod fully_read;
pub mod ignored;
mod joined;
pub mod key_backups;
pub mod key_query;
pub mod keys;
mod locks;
pub mod logins;
pub mod openid;
pub mod passwords;
pub mod presence;
pub mod profiles;
pub mod push_rules;
pub mod receipts;
pub mod registration;
pub mod remote_devices;
pub mod room_nids;
mod seen;
mod succession;
pub mod to_device;
pub mod tokens;
pub mod typing;
pub mod uia;

use std::sync::Arc;

use chatd_base::{Clock, Stop};
use chatd_config::Config;
use chatd_storage::{
    Interner, Pool,
    notices::{Heard, Notice, Notices},
};
use chatd_streams::{Streams, Writer, device_lists::DeviceLists};

/// What every service of this member is built from. Cheap to clone.
#[derive(Clone)]
pub struct Deps {
    pub pool: Pool,
    pub interner: Arc<Interner>,
    pub streams: Arc<Streams>,
    /// What other instances are told, and tell, of values in memory.
    pub notices: Arc<Notices>,
    pub config: Arc<Config>,
    pub clock: Clock,
    /// Ends the services, after the last request.
    pub stop: Stop,
    /// Asks requests that wait for something to be answered as they are.
    pub closing: Stop,
}

/// All services of this member.
pub struct Users {
    pub deps: Deps,
    /// Writes changes of devices and of their keys.
    pub device_lists: Writer<DeviceLists>,
    pub passwords: Arc<passwords::Passwords>,
    pub tokens: Arc<tokens::Tokens>,
    pub devices: Arc<devices::Devices>,
    pub profiles: Arc<profiles::Profiles>,
    pub accounts: Arc<accounts::Accounts>,
    pub logins: logins::Logins,
    pub openid: openid::OpenId,
    pub registration: registration::Registration,
    pub ui_auth: uia::UiAuth,
    pub room_nids: Arc<room_nids::RoomNids>,
    pub account_data: Arc<account_data::AccountData>,
    pub filters: filters::Filters,
    pub ignored: ignored::Ignored,
    pub push_rules: Arc<push_rules::PushRules>,
    pub to_device: to_device::ToDevice,
    pub receipts: receipts::Receipts,
    pub typing: typing::Typing,
    pub presence: presence::Presence,
    pub keys: keys::Keys,
    pub key_backups: key_backups::KeyBackups,
    pub remote_devices: remote_devices::RemoteDevices,
}

/// Drops what other instances have made stale.
fn forget_what_is_heard(
    notices: &Notices,
    tokens: &Arc<tokens::Tokens>,
    profiles: &Arc<profiles::Profiles>,
    key_counts: &Arc<keys::CountCache>,
) {
    let (tokens, profiles, key_counts) = (tokens.clone(), profiles.clone(), key_counts.clone());
    notices.on_heard(move |heard| match heard {
        Heard::Notice(Notice::DevicesEnded { user, devices }) => {
            devices.iter().for_each(|device| tokens.forget(*user, tokens::Ended::Device(device)));
        }
        Heard::Notice(Notice::TokensEnded { user, but }) => {
            tokens.forget(*user, but.map_or(tokens::Ended::All, tokens::Ended::AllBut));
        }
        Heard::Notice(Notice::Profile { user }) => profiles.forget(*user),
        Heard::Notice(Notice::KeyCounts { devices }) => {
            devices.iter().for_each(|device| drop(key_counts.remove(device)));
        }
        Heard::Notice(_) => {}
        Heard::Missed => {
            tokens.forget_all();
            profiles.forget_all();
            key_counts.clear();
        }
    });
}

impl Users {
    /// Builds the services and starts what writes in the background; needs a Tokio runtime.
    pub fn new(deps: Deps) -> Self {
        let streams = &deps.streams;
        let device_lists =
            Writer::open_here(streams, &streams.device_lists, &deps.pool, &deps.stop);
        let seen = seen::LastSeen::start(&deps.pool, &deps.stop);
        let passwords = Arc::new(passwords::Passwords::new(&deps.config));
        let cached = deps.config.chatd.token_cache;
        let tokens = Arc::new(tokens::Tokens::new(&deps.pool, &deps.clock, cached, seen.clone()));
        tokens.attach(&streams.device_lists);
        let devices = Arc::new(devices::Devices::new(&deps, &tokens, &seen, &device_lists));
        let profiles = Arc::new(profiles::Profiles::new(&deps));
        let accounts = Arc::new(accounts::Accounts::new(&deps, &passwords, &devices, &profiles));
        let keys = keys::Keys::new(&deps, &device_lists);
        forget_what_is_heard(&deps.notices, &tokens, &profiles, keys.count_cache());
        let room_nids = Arc::new(room_nids::RoomNids::new(&deps));
        let account_data = Arc::new(account_data::AccountData::new(&deps, &room_nids));
        let push_rules = push_rules::PushRules::new(&deps);
        fully_read::answer_calls(&account_data);
        succession::answer_calls(&account_data);
        succession::answer_calls(&push_rules);
        Self {
            logins: logins::Logins::new(&deps, &tokens),
            openid: openid::OpenId::new(&deps),
            registration: registration::Registration::new(&deps, &passwords, &profiles),
            ui_auth: uia::UiAuth::new(&deps, &accounts),
            keys,
            key_backups: key_backups::KeyBackups::new(&deps),
            remote_devices: remote_devices::RemoteDevices::new(&deps, &device_lists),
            device_lists,
            passwords,
            tokens,
            devices,
            profiles,
            accounts,
            filters: filters::Filters::new(&deps),
            ignored: ignored::Ignored::new(&deps),
            push_rules,
            to_device: to_device::ToDevice::new(&deps),
            receipts: receipts::Receipts::new(&deps, &account_data),
            typing: typing::Typing::start(&deps, &room_nids),
            presence: presence::Presence::start(&deps),
            account_data,
            room_nids,
            deps,
        }
    }
}

//! The names that role files, listeners and assignments are made of. Each is an enum, so that a
//! typo in a role file fails the test that parses every file.

/// Declares an enum whose variants have a text form: `as_str`, `ALL`, `Display`, `FromStr`, serde.
macro_rules! names {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The text form.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|one| one.as_str() == text).ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|one| one.as_str()).collect();
                    format!("one of {}", all.join(", "))
                })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|expected: String| {
                    serde::de::Error::invalid_value(
                        serde::de::Unexpected::Str(&text),
                        &expected.as_str(),
                    )
                })
            }
        }
    };
}
pub(crate) use names;

names! {
    /// A group of endpoints that is mounted or not as a whole.
    pub enum RouterName {
        /// Versions, capabilities, `/.well-known`-independent discovery.
        ClientVersions = "client.versions",
        /// Login, refresh, logout.
        ClientLogin = "client.login",
        /// Registration.
        ClientRegister = "client.register",
        /// Who am I, password change, deactivation.
        ClientAccount = "client.account",
        /// Devices of an account.
        ClientDevices = "client.devices",
        /// End-to-end keys: upload, query, claim, cross-signing.
        ClientKeys = "client.keys",
        /// Key backup.
        ClientRoomKeys = "client.room_keys",
        /// Rooms: create, membership, state, send, read.
        ClientRooms = "client.rooms",
        /// `/sync` and its older forms, filters.
        ClientSync = "client.sync",
        /// Profiles.
        ClientProfile = "client.profile",
        /// Presence.
        ClientPresence = "client.presence",
        /// Push rules and notifications.
        ClientPushRules = "client.push_rules",
        /// Account data and tags.
        ClientAccountData = "client.account_data",
        /// Messages from device to device.
        ClientToDevice = "client.to_device",
        /// Receipts and read markers.
        ClientReceipts = "client.receipts",
        /// Typing.
        ClientTyping = "client.typing",
        /// Aliases and the public room list.
        ClientDirectory = "client.directory",
        /// TURN credentials.
        ClientVoip = "client.voip",
        /// Pushers and notification lists.
        ClientPushers = "client.pushers",
        /// Search in rooms and users.
        ClientSearch = "client.search",
        /// Thread subscriptions.
        ClientThreadSubscriptions = "client.thread_subscriptions",
        /// Everything under `/_synapse/admin`.
        Admin = "admin",
        /// `/.well-known/matrix/…`.
        WellKnown = "well_known",
        /// `/health`.
        Health = "health",
        /// `/_synapse/metrics`.
        Metrics = "metrics",
        /// `/_matrix/federation/…/send`.
        FederationSend = "federation.send",
        /// Everything else under `/_matrix/federation`.
        FederationQuery = "federation.query",
        /// `/_matrix/federation/v1/openid/userinfo`.
        Openid = "openid",
        /// Endpoints under `/_matrix/key`.
        Key = "key",
        /// The content repository.
        Media = "media",
        /// Calls between instances.
        Replication = "replication",
    }
}

names! {
    /// An ordered log of facts with its writers.
    pub enum StreamName {
        /// Events of rooms; sharded by room.
        Events = "events",
        /// Who types where; in memory only.
        Typing = "typing",
        /// Messages from device to device.
        ToDevice = "to_device",
        /// Account data and tags.
        AccountData = "account_data",
        /// Read receipts.
        Receipts = "receipts",
        /// Presence.
        Presence = "presence",
        /// Push rules.
        PushRules = "push_rules",
        /// Changed devices and keys.
        DeviceLists = "device_lists",
        /// Thread subscriptions.
        ThreadSubscriptions = "thread_subscriptions",
        /// Quarantined media.
        QuarantinedMedia = "quarantined_media_changes",
        /// What other instances must forget; every instance writes it.
        Caches = "caches",
    }
}

names! {
    /// Work that an instance does by itself.
    pub enum TaskName {
        /// Deletes what has expired: sessions, transaction ids, registration and login tokens.
        Cleanup = "cleanup",
        /// Runs the long rewrites of the database.
        BackgroundUpdates = "background_updates",
        /// Sends to other servers.
        FederationSender = "federation_sender",
        /// Sends push notifications.
        Pusher = "pusher",
        /// Sends to application services.
        AppserviceSender = "appservice_sender",
        /// Keeps the user directory.
        UserDirectory = "user_directory",
        /// Expires and cleans media.
        MediaCleanup = "media_cleanup",
    }
}

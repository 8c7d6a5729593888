//! Who may do what in a room, beyond the rules that ruma checks.

use std::collections::HashSet;

use ruma_common::{OwnedUserId, UserId, room_version_rules::RoomVersionRules};
use ruma_events::room::power_levels::UserPowerLevel;
use ruma_state_res::events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField};

use crate::pdu::Pdu;

/// The power levels of a room, as its create and power-levels events say.
pub struct Powers<'a> {
    rules: &'a RoomVersionRules,
    creators: HashSet<OwnedUserId>,
    levels: Option<RoomPowerLevelsEvent<&'a Pdu>>,
}

impl<'a> Powers<'a> {
    /// `levels` is the current `m.room.power_levels`, if the room has one.
    pub fn of(
        rules: &'a RoomVersionRules,
        create: Option<&'a Pdu>,
        levels: Option<&'a Pdu>,
    ) -> Self {
        let creators = create
            .and_then(|create| RoomCreateEvent::new(create).creators(&rules.authorization).ok())
            .unwrap_or_default();
        Self { rules, creators, levels: levels.map(RoomPowerLevelsEvent::new) }
    }

    /// The level of a user; room creators of version 12 are above all.
    pub fn of_user(&self, user: &UserId) -> UserPowerLevel {
        if self.rules.authorization.explicitly_privilege_room_creators
            && self.creators.contains(user)
        {
            return UserPowerLevel::Infinite;
        }
        match &self.levels {
            Some(levels) => {
                levels.user_power_level(user, &self.rules.authorization).unwrap_or_default().into()
            }
            None if self.creators.contains(user) => js_int::Int::from(100).into(),
            None => js_int::Int::from(0).into(),
        }
    }

    /// Whether the user's level reaches `field` (`redact`, `invite` …).
    pub fn reaches(&self, user: &UserId, field: RoomPowerLevelsIntField) -> bool {
        let needed = match &self.levels {
            Some(levels) => levels
                .get_as_int_or_default(field, &self.rules.authorization)
                .unwrap_or_else(|_| field.default_value()),
            None => field.default_value(),
        };
        self.of_user(user) >= UserPowerLevel::from(needed)
    }

    /// Whether the user may send a state event of that type.
    pub fn may_send_state(&self, user: &UserId, kind: &str) -> bool {
        let needed = match &self.levels {
            Some(levels) => levels
                .event_power_level(&kind.into(), Some(""), &self.rules.authorization)
                .unwrap_or_else(|_| RoomPowerLevelsIntField::StateDefault.default_value()),
            None => RoomPowerLevelsIntField::StateDefault.default_value(),
        };
        self.of_user(user) >= UserPowerLevel::from(needed)
    }
}

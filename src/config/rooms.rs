//! How rooms are made and found.

use ruma_common::RoomVersionId;
use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};

/// How rooms are made and found.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Rooms {
    /// `default_room_version`. Default 12.
    #[serde(rename = "default_room_version", deserialize_with = "room_version")]
    pub default_version: RoomVersionId,
    /// `encryption_enabled_by_default_for_room_type`: which new rooms are encrypted by the server.
    #[serde(rename = "encryption_enabled_by_default_for_room_type")]
    pub encrypted_by_default: EncryptedByDefault,
    /// `allow_public_rooms_without_auth`: whether the directory needs no access token.
    pub allow_public_rooms_without_auth: bool,
    /// `allow_public_rooms_over_federation`: whether other servers are told the directory.
    pub allow_public_rooms_over_federation: bool,
    /// `enable_room_list_search`: whether the directory answers at all. Default true.
    pub enable_room_list_search: bool,
    /// `require_membership_for_aliases`: only members may add aliases to a room. Default true.
    pub require_membership_for_aliases: bool,
    /// `alias_creation_rules`: first match wins. Default: everything is allowed.
    pub alias_creation_rules: Option<Vec<RoomRule>>,
    /// `room_list_publication_rules`: first match wins. Default: everything is allowed.
    pub room_list_publication_rules: Option<Vec<RoomRule>>,
    /// `default_power_level_content_override` by preset.
    pub default_power_level_content_override: PowerLevelOverrides,
    /// `block_non_admin_invites`.
    pub block_non_admin_invites: bool,
    /// `enable_3pid_lookup`: whether users may be invited by their addresses. Default true.
    #[serde(rename = "enable_3pid_lookup")]
    pub looks_addresses_up: bool,
    /// `forget_rooms_on_leave`.
    pub forget_rooms_on_leave: bool,
    /// `exclude_rooms_from_sync`.
    pub exclude_rooms_from_sync: Vec<String>,
    /// `filter_timeline_limit`: most events in one timeline that a filter can ask for.
    /// Default 100; negative means no limit of the admin's.
    pub filter_timeline_limit: i64,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            default_version: RoomVersionId::V12,
            encrypted_by_default: EncryptedByDefault::Off,
            allow_public_rooms_without_auth: false,
            allow_public_rooms_over_federation: false,
            enable_room_list_search: true,
            require_membership_for_aliases: true,
            alias_creation_rules: None,
            room_list_publication_rules: None,
            default_power_level_content_override: PowerLevelOverrides::default(),
            block_non_admin_invites: false,
            looks_addresses_up: true,
            forget_rooms_on_leave: false,
            exclude_rooms_from_sync: Vec::new(),
            filter_timeline_limit: 100,
        }
    }
}

/// `encryption_enabled_by_default_for_room_type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncryptedByDefault {
    /// All new rooms.
    All,
    /// Rooms with the presets `private_chat` and `trusted_private_chat`.
    Invite,
    /// None.
    #[default]
    Off,
}

/// One rule about aliases or the directory; `*` and `?` are wildcards.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct RoomRule {
    /// Who asks.
    pub user_id: String,
    /// The alias.
    pub alias: String,
    /// The room.
    pub room_id: String,
    /// What happens.
    pub action: RuleAction,
}

impl Default for RoomRule {
    fn default() -> Self {
        let any = || "*".to_owned();
        Self { user_id: any(), alias: any(), room_id: any(), action: RuleAction::Allow }
    }
}

impl Rooms {
    /// Whether `alias_creation_rules` let the user give the room the alias.
    pub fn may_create_alias(&self, user: &str, room: &str, alias: &str) -> bool {
        allows(self.alias_creation_rules.as_deref(), user, room, &[alias])
    }

    /// Whether `room_list_publication_rules` let the user publish the room with these aliases.
    pub fn may_publish(&self, user: &str, room: &str, aliases: &[&str]) -> bool {
        allows(self.room_list_publication_rules.as_deref(), user, room, aliases)
    }
}

/// The first rule that matches decides; if there are rules and none matches, it is refused.
fn allows(rules: Option<&[RoomRule]>, user: &str, room: &str, aliases: &[&str]) -> bool {
    let Some(rules) = rules else { return true };
    let matching = rules.iter().find(|rule| {
        matches(&rule.user_id, user)
            && matches(&rule.room_id, room)
            && (rule.alias == "*" || aliases.iter().any(|alias| matches(&rule.alias, alias)))
    });
    matching.is_some_and(|rule| rule.action == RuleAction::Allow)
}

/// Whether `text` is like `pattern`, in which `*` stands for anything and `?` for one character.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), text.chars().collect());
    let (mut at, mut in_text) = (0, 0);
    // Where the last star is, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while in_text < text.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, in_text));
                at += 1;
            }
            Some(letter) if *letter == '?' || *letter == text[in_text] => {
                at += 1;
                in_text += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                in_text = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(|letter| *letter == '*')
}

/// What a rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleAction {
    /// It may be done.
    Allow,
    /// It may not.
    Deny,
}

/// `default_power_level_content_override`: members put over the power levels of new rooms.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PowerLevelOverrides {
    /// Of the preset `private_chat`.
    pub private_chat: Option<Map<String, Value>>,
    /// Of the preset `trusted_private_chat`.
    pub trusted_private_chat: Option<Map<String, Value>>,
    /// Of the preset `public_chat`.
    pub public_chat: Option<Map<String, Value>>,
}

fn room_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RoomVersionId, D::Error> {
    let text = crate::units::text_or_number(deserializer)?;
    let stable = (1..=12).any(|n: u8| n.to_string() == text);
    match RoomVersionId::try_from(text.as_str()) {
        Ok(version) if stable => Ok(version),
        _ => Err(de::Error::invalid_value(
            de::Unexpected::Str(&text),
            &"a stable room version, \"1\" to \"12\"",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        for (pattern, text, is_match) in [
            ("*", "", true),
            ("*", "@a:b", true),
            ("@*:b", "@a:b", true),
            ("@*:b", "@a:c", false),
            ("#a?c:*", "#abc:x", true),
            ("#a?c:*", "#ac:x", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYb", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), is_match, "{pattern} {text}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rule = |user: &str, alias: &str, action| RoomRule {
            user_id: user.to_owned(),
            alias: alias.to_owned(),
            action,
            ..RoomRule::default()
        };
        let rules =
            [rule("@evil:*", "*", RuleAction::Deny), rule("*", "#open-*", RuleAction::Allow)];
        let allowed = |user: &str, aliases: &[&str]| allows(Some(&rules), user, "!r", aliases);
        assert!(allowed("@a:b", &["#open-x:b"]));
        assert!(!allowed("@evil:b", &["#open-x:b"]));
        assert!(!allowed("@a:b", &["#closed:b"]), "no rule matches");
        assert!(!allowed("@a:b", &[]), "a pattern needs an alias");
        assert!(allows(None, "@a:b", "!r", &[]), "no rules, no limits");
    }
}

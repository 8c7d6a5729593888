//! Who sees which events: the one place where history visibility is decided.
//! <https://spec.matrix.org/latest/client-server-api/#room-history-visibility>

use chatd_base::{Position, Refusal, Result, RoomNid, UserNid};
use chatd_storage::{
    Pool,
    events::{Span, StoredEvent},
    visibility::{self, Past},
};
use chatd_streams::events::{Membership, Visibility};
use ruma_common::{OwnedRoomId, RoomId};
use serde::Deserialize;

/// One room through the eyes of one user.
#[derive(Clone, Debug)]
pub struct Lens {
    pub room: RoomNid,
    pub room_id: OwnedRoomId,
    pub version: String,
    user: UserNid,
    forgotten: bool,
    /// Each from its position on, in order.
    memberships: Vec<(Position, Membership)>,
    visibility: Vec<(Position, Visibility)>,
}

/// How much of a room's state and timeline a user may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// As the room is now: the user is in it, or anybody may look.
    Now,
    /// As the room was when the user left it, at this position.
    Until(Position),
}

impl Lens {
    /// The lens of `user` on a room; refuses rooms that this server does not know as if the user
    /// could not see them.
    pub async fn of(pool: &Pool, user: UserNid, room_id: &RoomId) -> Result<Self> {
        match visibility::get(pool, user, room_id.as_str()).await? {
            Some(past) => Ok(Self::from_past(user, past)),
            None => Err(not_in_room()),
        }
    }

    /// The lenses of `user` on many rooms, in no order. One statement.
    pub async fn of_many(pool: &Pool, user: UserNid, rooms: &[RoomNid]) -> Result<Vec<Self>> {
        let pasts = visibility::list(pool, user, rooms).await?;
        Ok(pasts.into_iter().map(|past| Self::from_past(user, past)).collect())
    }

    fn from_past(user: UserNid, past: Past) -> Self {
        Self {
            room: past.room,
            room_id: RoomId::parse(&past.room_id).expect("rooms are stored under valid ids"),
            version: past.version,
            user,
            forgotten: past.forgotten,
            memberships: past
                .memberships
                .into_iter()
                .filter_map(|(pos, letter)| Some((pos, Membership::from_letter(letter)?)))
                .collect(),
            visibility: past
                .visibility
                .into_iter()
                .map(|(pos, content)| (pos, visibility_of(&content)))
                .collect(),
        }
    }

    /// Whether the user may see `event`.
    pub fn sees(&self, event: &StoredEvent) -> bool {
        !event.is_hidden() && event.room == self.room && self.shows(event.pos)
    }

    /// Whether the user may see what happened at `position`.
    fn shows(&self, position: Position) -> bool {
        let (before, after) = (self.membership_before(position), self.membership_from(position));
        // A user sees their own way out, even if they have only been invited.
        if before != after
            && matches!(before, Some(Membership::Join | Membership::Invite))
            && after == Some(Membership::Leave)
        {
            return true;
        }
        let joins_later = self
            .memberships
            .iter()
            .any(|(pos, membership)| *pos > position && *membership == Membership::Join);
        // A change of the visibility or of the own membership is seen if it could be seen before
        // or after itself; for all other events the two are the same.
        [self.visibility_before(position), self.visibility_from(position)].iter().any(|setting| {
            [before, after].iter().any(|membership| allows(*setting, *membership, joins_later))
        })
    }

    /// Whether the user may see what happened before all that is known here, as far as the earliest
    /// setting that is known tells.
    pub fn shows_what_was_before(&self) -> bool {
        let setting = self.visibility.first().map(|(_, setting)| *setting).unwrap_or_default();
        let joins = self.memberships.iter().any(|(_, membership)| *membership == Membership::Join);
        allows(setting, None, joins)
    }

    /// The parts of (low, high] that the user may see, in order.
    pub fn spans(&self, low: Position, high: Position) -> Vec<Span> {
        // What is shown changes at these positions only, and each of them may differ from both
        // of its sides.
        let changes = self.memberships.iter().map(|(position, _)| position.0);
        let mut ends: Vec<i64> = changes
            .chain(self.visibility.iter().map(|(position, _)| position.0))
            .flat_map(|position| [position - 1, position])
            .chain([-1, high.0])
            .filter(|end| *end > low.0 && *end <= high.0)
            .collect();
        ends.sort_unstable();
        ends.dedup();
        let mut spans: Vec<Span> = Vec::new();
        let mut start = low;
        for end in ends.into_iter().map(Position) {
            if self.shows(end) {
                match spans.last_mut() {
                    Some(last) if last.high == start => last.high = end,
                    _ => spans.push(Span { room: self.room, low: start, high: end }),
                }
            }
            start = end;
        }
        spans
    }

    /// Whether the user may ask for the room at all, and for which part; refuses otherwise.
    pub fn reach(&self) -> Result<Reach> {
        match self.now() {
            Some(Membership::Join) => Ok(Reach::Now),
            _ if self.may_peek() => Ok(Reach::Now),
            _ => match self.left_at() {
                Some(position) if !self.forgotten => Ok(Reach::Until(position)),
                _ => Err(not_in_room()),
            },
        }
    }

    /// Whether anybody may look at the room as it is now.
    pub fn may_peek(&self) -> bool {
        self.visibility_from(Position(i64::MAX)) == Visibility::WorldReadable
    }

    /// The user's membership now.
    pub fn now(&self) -> Option<Membership> {
        self.memberships.last().map(|(_, membership)| *membership)
    }

    /// The user's membership once `event` had happened, as clients are told it.
    pub fn membership_at(&self, event: &StoredEvent) -> Membership {
        self.membership_from(event.pos).unwrap_or(Membership::Leave)
    }

    pub fn user(&self) -> UserNid {
        self.user
    }

    /// Where the user's last time in the room ended.
    fn left_at(&self) -> Option<Position> {
        let joined = self.memberships.iter().rposition(|(_, m)| *m == Membership::Join)?;
        self.memberships.get(joined + 1).map(|(position, _)| *position)
    }

    fn membership_before(&self, position: Position) -> Option<Membership> {
        in_force(&self.memberships, |pos| pos < position)
    }

    fn membership_from(&self, position: Position) -> Option<Membership> {
        in_force(&self.memberships, |pos| pos <= position)
    }

    fn visibility_before(&self, position: Position) -> Visibility {
        in_force(&self.visibility, |pos| pos < position).unwrap_or_else(|| unset(position))
    }

    fn visibility_from(&self, position: Position) -> Visibility {
        in_force(&self.visibility, |pos| pos <= position).unwrap_or_else(|| unset(position))
    }
}

/// The setting where none is noted: the default of rooms. Of what was fetched from before this
/// server was in the room everything is noted, so there it means that the lens is older than that.
fn unset(position: Position) -> Visibility {
    if position.0 < 0 { Visibility::Joined } else { Visibility::default() }
}

/// The last value whose position passes `is_before`.
fn in_force<T: Copy>(values: &[(Position, T)], is_before: impl Fn(Position) -> bool) -> Option<T> {
    let end = values.partition_point(|(position, _)| is_before(*position));
    values[..end].last().map(|(_, value)| *value)
}

fn allows(setting: Visibility, membership: Option<Membership>, joins_later: bool) -> bool {
    match setting {
        Visibility::WorldReadable => true,
        _ if membership == Some(Membership::Join) => true,
        Visibility::Shared => joins_later,
        Visibility::Invited => membership == Some(Membership::Invite),
        Visibility::Joined => false,
    }
}

/// The setting in the content of an `m.room.history_visibility` event; what is not understood
/// counts as the default.
pub fn visibility_of(content: &str) -> Visibility {
    #[derive(Deserialize)]
    struct Content {
        history_visibility: String,
    }
    match serde_json::from_str::<Content>(content).map(|content| content.history_visibility) {
        Ok(word) => match word.as_str() {
            "world_readable" => Visibility::WorldReadable,
            "invited" => Visibility::Invited,
            "joined" => Visibility::Joined,
            _ => Visibility::Shared,
        },
        Err(_) => Visibility::Shared,
    }
}

fn not_in_room() -> chatd_base::Error {
    Refusal::forbidden("you are not in this room, and it cannot be looked at from outside").into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chatd_base::{EventNid, SnapshotId};
    use chatd_storage::events::flags;
    use serde_json::value::RawValue;

    use super::*;

    use Membership::{Ban, Invite, Join, Leave};
    use Visibility::{Invited, Joined, Shared, WorldReadable};

    /// Position of the event that the tables look at.
    const EVENT: i64 = 50;

    fn lens(memberships: &[(i64, Membership)], visibility: &[(i64, Visibility)]) -> Lens {
        Lens {
            room: RoomNid(1),
            room_id: RoomId::parse("!r:x").unwrap(),
            version: "12".to_owned(),
            user: UserNid(1),
            forgotten: false,
            memberships: memberships.iter().map(|(pos, m)| (Position(*pos), *m)).collect(),
            visibility: visibility.iter().map(|(pos, v)| (Position(*pos), *v)).collect(),
        }
    }

    fn event(pos: i64) -> StoredEvent {
        StoredEvent {
            nid: EventNid(1),
            pos: Position(pos),
            snapshot: SnapshotId(1),
            depth: 1,
            origin_ts: 0,
            room: RoomNid(1),
            room_id: RoomId::parse("!r:x").unwrap(),
            event_id: "$e".try_into().unwrap(),
            sender: "@a:x".try_into().unwrap(),
            sender_nid: UserNid(2),
            kind: "m.room.message".into(),
            state_key: None,
            key: None,
            content: Arc::from(RawValue::from_string("{}".to_owned()).unwrap()),
            redacts: None,
            flags: 0,
            redacted_by: None,
            replaced: None,
            txn: None,
        }
    }

    /// What each setting shows of an event at 50 to users with different pasts:
    /// world_readable, shared, invited, joined.
    #[test]
    fn an_event_is_seen_by_those_that_its_setting_admits() {
        type Past = &'static [(i64, Membership)];
        let table: &[(&str, Past, [bool; 4])] = &[
            ("never", &[], [true, false, false, false]),
            ("joined", &[(10, Join)], [true, true, true, true]),
            ("joined later", &[(60, Join)], [true, true, false, false]),
            ("invited", &[(10, Invite)], [true, false, true, false]),
            ("invited, joined later", &[(10, Invite), (60, Join)], [true, true, true, false]),
            ("invited later", &[(60, Invite)], [true, false, false, false]),
            ("invited and joined later", &[(60, Invite), (70, Join)], [true, true, false, false]),
            ("had left", &[(10, Join), (20, Leave)], [true, false, false, false]),
            ("left later", &[(10, Join), (60, Leave)], [true, true, true, true]),
            ("left, came back", &[(10, Join), (20, Leave), (60, Join)], [true, true, false, false]),
            ("came later, left", &[(60, Join), (70, Leave)], [true, true, false, false]),
            ("banned", &[(10, Join), (20, Ban)], [true, false, false, false]),
            ("banned later", &[(10, Join), (60, Ban)], [true, true, true, true]),
            ("was invited", &[(10, Invite), (20, Leave)], [true, false, false, false]),
        ];
        for (who, past, expected) in table {
            let seen = [WorldReadable, Shared, Invited, Joined]
                .map(|setting| lens(past, &[(1, setting)]).sees(&event(EVENT)));
            assert_eq!(&seen, expected, "{who}");
        }
    }

    #[test]
    fn a_change_of_the_setting_is_seen_if_either_setting_shows_it() {
        for (before, after) in [(WorldReadable, Joined), (Joined, WorldReadable)] {
            let stranger = lens(&[], &[(1, before), (EVENT, after)]);
            assert!(stranger.sees(&event(EVENT)));
            assert_eq!(stranger.sees(&event(EVENT - 1)), before == WorldReadable);
            assert_eq!(stranger.sees(&event(EVENT + 1)), after == WorldReadable);
        }
        let never_set = lens(&[(60, Join)], &[]);
        assert!(never_set.sees(&event(EVENT)), "shared is the default");
    }

    #[test]
    fn users_see_how_they_came_and_went() {
        let joined = lens(&[(EVENT, Join), (60, Leave)], &[(1, Joined)]);
        assert!(!joined.sees(&event(EVENT - 1)));
        assert!(joined.sees(&event(EVENT)) && joined.sees(&event(60)));
        assert!(!joined.sees(&event(61)));
        let rejected = lens(&[(10, Invite), (EVENT, Leave)], &[(1, Joined)]);
        assert!(rejected.sees(&event(EVENT)) && !rejected.sees(&event(EVENT - 1)));
        let banned = lens(&[(10, Join), (EVENT, Ban), (60, Leave)], &[(1, Joined)]);
        assert!(banned.sees(&event(EVENT)) && !banned.sees(&event(60)));
    }

    #[test]
    fn hidden_events_and_those_of_other_rooms_are_never_seen() {
        let member = lens(&[(10, Join)], &[(1, WorldReadable)]);
        for hidden in [flags::OUTLIER, flags::REJECTED, flags::SOFT_FAILED] {
            assert!(!member.sees(&StoredEvent { flags: hidden, ..event(EVENT) }));
        }
        assert!(member.sees(&StoredEvent { flags: flags::REDACTED, ..event(EVENT) }));
        assert!(!member.sees(&StoredEvent { room: RoomNid(2), ..event(EVENT) }));
    }

    #[test]
    fn spans_hold_exactly_what_is_shown() {
        let pasts: &[&[(i64, Membership)]] = &[
            &[],
            &[(10, Join)],
            &[(10, Invite), (12, Join), (20, Leave), (30, Join), (31, Leave)],
            &[(1, Invite), (2, Leave), (5, Join), (6, Ban), (7, Leave), (8, Invite)],
        ];
        let settings: &[&[(i64, Visibility)]] = &[
            &[],
            &[(1, Joined)],
            &[(1, Invited), (15, WorldReadable), (16, Joined)],
            &[(11, Joined), (12, Shared), (31, WorldReadable)],
        ];
        for past in pasts {
            for setting in settings {
                let lens = lens(past, setting);
                let spans = lens.spans(Position(3), Position(33));
                for pos in 4..=33 {
                    let within = spans.iter().filter(|s| s.low.0 < pos && pos <= s.high.0).count();
                    assert_eq!(within, usize::from(lens.sees(&event(pos))), "{past:?} {setting:?}");
                }
                assert!(spans.iter().all(|span| span.low.0 >= 3 && span.high.0 <= 33));
                assert!(spans.windows(2).all(|pair| pair[0].high < pair[1].low));
            }
        }
    }

    #[test]
    fn the_past_is_shown_as_far_as_it_is_known() {
        let past = &[(-5, Shared), (-2, Joined), (10, Shared)];
        let lens = lens(&[(20, Join)], past);
        for (pos, expected) in [(-7, false), (-5, true), (-3, true), (-1, false), (15, true)] {
            assert_eq!(lens.sees(&event(pos)), expected, "{pos}");
        }
        let spans = lens.spans(Position(i64::MIN), Position(30));
        let spans: Vec<_> = spans.iter().map(|span| (span.low.0, span.high.0)).collect();
        assert_eq!(spans, [(-6, -2), (9, 30)]);
        let without = Lens { visibility: Vec::new(), ..lens };
        assert!(!without.sees(&event(-1)) && without.sees(&event(1)));
        assert_eq!(without.spans(Position(i64::MIN), Position(30))[0].low, Position(-1));
    }

    #[test]
    fn the_reach_ends_where_the_user_left() {
        let reach = |past: &[(i64, Membership)], setting| {
            lens(past, &[(1, setting)]).reach().map_err(|error| error.errcode().map(str::to_owned))
        };
        let refused = Err(Some("M_FORBIDDEN".to_owned()));
        assert_eq!(reach(&[(10, Join)], Joined), Ok(Reach::Now));
        assert_eq!(reach(&[(10, Join), (20, Leave)], Shared), Ok(Reach::Until(Position(20))));
        assert_eq!(
            reach(&[(10, Join), (20, Ban), (30, Leave), (40, Invite)], Shared),
            Ok(Reach::Until(Position(20)))
        );
        assert_eq!(reach(&[(10, Join), (15, Join), (20, Leave)], WorldReadable), Ok(Reach::Now));
        assert_eq!(reach(&[(10, Invite)], Shared), refused);
        assert_eq!(reach(&[(10, Invite), (20, Leave)], Invited), refused);
        assert_eq!(reach(&[], Shared), refused);
        assert_eq!(reach(&[], WorldReadable), Ok(Reach::Now));
        let forgotten = Lens { forgotten: true, ..lens(&[(10, Join), (20, Leave)], &[]) };
        assert!(forgotten.reach().is_err());
    }
}

//! Ordered logs of facts: who writes them, how far each writer has got, and how new rows reach
//! whoever folds them into a view.
//!
//! A write goes [`Writer`] → one commit (rows and position together, R2) → [`Feed::apply`], which
//! runs the folds in order and only then moves the feed's token forward. So whoever holds a
//! token of a feed knows that every fold has seen all rows at or below it.

pub mod bus;
mod feed;
pub mod owners;
mod room_token;
pub mod seat;
mod token;
mod writer;

pub mod account_data;
pub mod device_lists;
pub mod events;
pub mod presence;
pub mod push_rules;
pub mod receipts;
pub mod to_device;
pub mod typing;

use std::sync::Arc;

use chatd_base::Result;
use chatd_storage::{
    Pool,
    positions::{self, Seat},
};
use serde_json::value::RawValue;

pub use feed::{Feed, Frame, Stream};
pub use owners::{Owner, Owners};
pub use room_token::RoomToken;
pub use token::{InvalidToken, StreamToken};
pub use writer::{Line, Persist, Writer};

/// Serialised JSON that many readers share.
pub type Raw = Arc<RawValue>;

/// All streams of an instance.
pub struct Streams {
    /// This instance as a writer.
    pub writer: Seat,
    pub events: Arc<Feed<events::Events>>,
    pub typing: Arc<Feed<typing::Typing>>,
    pub to_device: Arc<Feed<to_device::ToDevice>>,
    pub account_data: Arc<Feed<account_data::AccountData>>,
    pub receipts: Arc<Feed<receipts::Receipts>>,
    pub presence: Arc<Feed<presence::Presence>>,
    pub push_rules: Arc<Feed<push_rules::PushRules>>,
    pub device_lists: Arc<Feed<device_lists::DeviceLists>>,
}

impl Streams {
    /// Takes the place of any earlier process of this instance, and reads where every writer of
    /// every stream is.
    pub async fn open(pool: &Pool, bus: Arc<dyn bus::Bus>, instance: &str) -> Result<Self> {
        let writer = positions::take_seat(pool, instance).await?;
        let known = positions::list(pool).await?;
        Ok(Self {
            writer,
            events: Feed::new(bus.clone(), &known),
            typing: Feed::new(bus.clone(), &known),
            to_device: Feed::new(bus.clone(), &known),
            account_data: Feed::new(bus.clone(), &known),
            receipts: Feed::new(bus.clone(), &known),
            presence: Feed::new(bus.clone(), &known),
            push_rules: Feed::new(bus.clone(), &known),
            device_lists: Feed::new(bus, &known),
        })
    }
}

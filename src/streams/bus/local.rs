//! The bus of a monolith: there is nobody else.

use std::{sync::Arc, time::Duration};

use chatd_base::Stop;

use super::{Bus, BusState, Encode};
use crate::Streams;

/// Carries nothing; the feed has already folded the rows in this process.
#[derive(Debug, Default)]
pub struct LocalBus;

impl Bus for LocalBus {
    fn publish(&self, _stream: &'static str, _frame: &dyn Encode) {}

    fn listen(&self, _streams: &Arc<Streams>, _stop: &Stop) {}

    fn patience(&self) -> Option<Duration> {
        None
    }

    fn state(&self) -> Option<BusState> {
        None
    }

    fn is_calm(&self) -> bool {
        true
    }
}

//! Where the work of an endpoint belongs. In a fleet any instance takes any request; one whose
//! home is elsewhere is carried there ([`crate::carry`]).

use std::{future::Future, pin::Pin};

use chatd_base::Result;
use chatd_config::{InstanceAddress, RouterName, StreamName};

/// What an endpoint needs to be at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Home {
    /// Nothing: any instance with the router can answer.
    #[default]
    Anywhere,
    /// A writer of the stream.
    Stream(StreamName),
    /// The owner of the room that this argument of the path names, by id or alias.
    Room(&'static str),
    /// The owner of the room that this member of the body names, by id.
    RoomInBody(&'static str),
    /// An instance that owns rooms, whichever.
    AnyRoomOwner,
}

/// Finds homes. `None` means: here.
pub trait Placement: Send + Sync + 'static {
    /// Where a request belongs whose endpoint is in `router` and has `home`; `argument` is what
    /// the request says where `home` looks.
    fn place<'a>(
        &'a self,
        router: RouterName,
        home: Home,
        argument: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Option<String>>> + Send + 'a>>;

    /// Returns when this instance knows what any instance had acknowledged before the call.
    fn level(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Where `instance` says that it is; for those that `instance_map` does not name.
    fn address(&self, instance: &str) -> Option<InstanceAddress>;

    /// A request came to the wrong instance, or `instance` could not be reached: what is known
    /// about owners may be old.
    fn doubt<'a>(
        &'a self,
        instance: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
}

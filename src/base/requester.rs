//! Who makes a request, and how that is found out.

use std::{future::Future, net::IpAddr, pin::Pin, sync::Arc};

use ruma_common::{OwnedDeviceId, OwnedServerName, OwnedUserId, UserId};

use crate::{Result, UserNid};

/// An authenticated caller.
#[derive(Clone, Debug)]
pub struct Requester {
    pub user_id: OwnedUserId,
    pub user: UserNid,
    /// Absent for application services that act without a device.
    pub device_id: Option<OwnedDeviceId>,
    /// Row of the access token; 0 where there is none.
    pub token: i64,
    pub is_admin: bool,
    pub is_guest: bool,
    /// The client's address after `x_forwarded`, where it is known.
    pub address: Option<IpAddr>,
}

impl Requester {
    pub fn user_id(&self) -> &UserId {
        &self.user_id
    }
}

/// Turns an access token into a requester. `users` implements it; `http` only knows the trait.
pub trait Authenticate: Send + Sync {
    /// Refuses with `M_UNKNOWN_TOKEN` (with `soft_logout` where the token has expired), and with
    /// `M_USER_LOCKED` and the like for accounts that may not be used. Address and user agent are
    /// noted with the device.
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        address: Option<IpAddr>,
        user_agent: Option<&'a str>,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<Requester>>> + Send + 'a>>;
}

/// What a request of another server proves itself with.
#[derive(Clone, Copy, Debug)]
pub struct SignedRequest<'a> {
    pub method: &'a str,
    /// Path and query, as they were sent.
    pub uri: &'a str,
    /// The values of all `Authorization` headers.
    pub authorization: &'a [&'a [u8]],
    /// The whole body.
    pub body: &'a [u8],
}

/// Finds out which server makes a request. `servers` implements it; `http` only knows the trait.
pub trait AuthenticateServer: Send + Sync {
    /// The server that has signed the request. Refuses with 401 `M_UNAUTHORIZED` what nobody has
    /// signed for this server, and with 403 `M_FORBIDDEN` servers that it does not talk to.
    fn authenticate<'a>(
        &'a self,
        request: SignedRequest<'a>,
    ) -> Pin<Box<dyn Future<Output = Result<OwnedServerName>> + Send + 'a>>;
}

//! One server among others.
//!
//! How to write a scenario here:
//!
//! - `Settings::federating()` are the settings of a server that others find: it is called
//!   `127.0.0.1:<port>`, listens there with TLS by the kit's authority (`chatd_kit::tls`), trusts
//!   that authority, blocks no address, and asks no key server. Clients go to its plain listener,
//!   which answers federation requests too, so `server.user("alice")` and all that `User` does
//!   work as ever.
//! - `between! { async fn …(here: Server, there: Server) { … } }` makes two such servers and runs
//!   the scenario with two monoliths, and with a fleet on either side; `in (monoliths)` narrows it.
//!   What both servers have to agree on comes over the network: wait with `feed.until…`, never
//!   with a sleep.
//! - `Other::start()` (`chatd_kit::other`) is another server inside the test: it keeps rooms of any
//!   version, joins those of the server under test, sends transactions, checks all that it is sent,
//!   remembers every request, and answers what a script says (`other.on(…)`), also lies.
//! - `Synapse::shared().await` is real Synapse, one for all tests of a run: users made with
//!   `synapse.user("bob")` work like those of `server`, under names of their own. `Synapse::start()`
//!   is one that a test may kill; what begins with `gated()` can be cut off from all others.
//! - `acts` has what people on different servers do with each other, whichever servers these are.
//! - One file a subject; a subject with more than one file gets a folder.

mod acts;
mod answers;
mod complexity;
mod confined;
mod doors;
mod encrypted;
mod ephemeral;
mod history;
mod hostile;
mod inbound;
mod joins;
mod keys;
mod moments;
mod net;
mod openid;
mod oracle;
mod others;
mod partition;
mod past;
mod piles;
mod proxied;
mod queries;
mod rotation;
mod sending;
mod shared;
mod spaces;
mod third_party;
mod versions;

//! `scenario!` and `between!`: one description, one test for each shape of server.

/// Declares scenarios. Each gets a server of its own, and runs once for each shape:
/// `monolith`; `fleet`, whose proxy is set up as `chatd proxy-config` says; and `random`, a fleet
/// whose proxy sends each request to any instance.
///
/// ```ignore
/// scenario! {
///     async fn a_message_is_sent(server: Server) { … }
///     async fn limits_are_told(server: Server) with (Settings::new().with("rc_message", …)) { … }
///     async fn bytes_are_counted(server: Server) in (monolith) { … }
/// }
/// ```
#[macro_export]
macro_rules! scenario {
    () => {};
    (
        $(#[$meta:meta])*
        async fn $name:ident($server:ident: Server)
        $(in ($($shape:ident),+))? $(with ($settings:expr))? $body:block
        $($rest:tt)*
    ) => {
        $(#[$meta])*
        pub(crate) mod $name {
            #[allow(unused_imports, clippy::allow_attributes, reason = "not every scenario needs them")]
            use super::*;

            #[allow(unused_mut, clippy::allow_attributes, reason = "only some scenarios kill it")]
            pub(crate) async fn scenario(mut $server: $crate::Server) $body

            fn scenario_settings() -> $crate::Settings {
                $crate::settings_of!($($settings)?)
            }

            $crate::shapes! { $($($shape),+)? }
        }
        $crate::scenario! { $($rest)* }
    };
}

/// The settings of a scenario.
#[doc(hidden)]
#[macro_export]
macro_rules! settings_of {
    () => {
        $crate::Settings::new()
    };
    ($settings:expr) => {
        $settings
    };
}

/// The tests of a scenario.
#[doc(hidden)]
#[macro_export]
macro_rules! shapes {
    () => { $crate::shapes! { monolith, fleet, random } };
    ($($shape:ident),+) => { $($crate::shape! { $shape })+ };
}

/// The test of a scenario in one shape.
#[doc(hidden)]
#[macro_export]
macro_rules! shape {
    (monolith) => {
        #[tokio::test]
        async fn monolith() {
            scenario($crate::Server::start(env!("CARGO_BIN_EXE_chatd"), scenario_settings()).await)
                .await;
        }
    };
    (fleet) => {
        #[tokio::test]
        async fn fleet() {
            let (binary, spread) = (env!("CARGO_BIN_EXE_chatd"), $crate::Spread::Generated);
            scenario($crate::Server::fleet(binary, scenario_settings(), spread).await).await;
        }
    };
    (random) => {
        #[tokio::test]
        async fn random() {
            let (binary, spread) = (env!("CARGO_BIN_EXE_chatd"), $crate::Spread::Random);
            scenario($crate::Server::fleet(binary, scenario_settings(), spread).await).await;
        }
    };
}

/// Declares scenarios between two servers that federate. Each runs once with two monoliths
/// (`monoliths`), once with a fleet as the first one (`fleet_here`), and once with a fleet as the
/// second (`fleet_there`).
///
/// ```ignore
/// between! {
///     async fn a_message_goes_over(here: Server, there: Server) { … }
///     async fn work_is_bounded(here: Server, there: Server) in (monoliths) { … }
///     async fn keys_are_asked_for(here: Server, there: Server)
///         with (Settings::federating().with("trusted_key_servers", …)) { … }
/// }
/// ```
#[macro_export]
macro_rules! between {
    () => {};
    (
        $(#[$meta:meta])*
        async fn $name:ident($here:ident: Server, $there:ident: Server)
        $(in ($($shape:ident),+))? $(with ($settings:expr))? $body:block
        $($rest:tt)*
    ) => {
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports, clippy::allow_attributes, reason = "not every scenario needs them")]
            use super::*;

            #[allow(unused_mut, clippy::allow_attributes, reason = "only some scenarios kill them")]
            async fn scenario(mut $here: $crate::Server, mut $there: $crate::Server) $body

            fn scenario_settings() -> $crate::Settings {
                $crate::federating_settings_of!($($settings)?)
            }

            $crate::pairs! { $($($shape),+)? }
        }
        $crate::between! { $($rest)* }
    };
}

/// The settings of both servers of a scenario; evaluated once for each.
#[doc(hidden)]
#[macro_export]
macro_rules! federating_settings_of {
    () => {
        $crate::Settings::federating()
    };
    ($settings:expr) => {
        $settings
    };
}

/// The tests of a scenario between two servers.
#[doc(hidden)]
#[macro_export]
macro_rules! pairs {
    () => { $crate::pairs! { monoliths, fleet_here, fleet_there } };
    ($($shape:ident),+) => { $($crate::pair! { $shape })+ };
}

/// The test of a scenario between two servers of these shapes.
#[doc(hidden)]
#[macro_export]
macro_rules! pair {
    (monoliths) => { $crate::pair! { monoliths: start(), start() } };
    (fleet_here) => { $crate::pair! { fleet_here: fleet($crate::Spread::Random), start() } };
    (fleet_there) => { $crate::pair! { fleet_there: start(), fleet($crate::Spread::Random) } };
    ($name:ident: $here:ident($($spread:expr)?), $there:ident($($far:expr)?)) => {
        #[tokio::test]
        async fn $name() {
            let binary = env!("CARGO_BIN_EXE_chatd");
            let here = $crate::Server::$here(binary, scenario_settings() $(, $spread)?).await;
            let there = $crate::Server::$there(binary, scenario_settings() $(, $far)?).await;
            scenario(here, there).await;
        }
    };
}

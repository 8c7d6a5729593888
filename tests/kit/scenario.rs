//! `scenario!`: one description, one test for each shape of server.

/// Declares scenarios. Each gets a server of its own, and runs once for each shape.
///
/// ```ignore
/// scenario! {
///     async fn a_message_is_sent(server: Server) { … }
///     async fn limits_are_told(server: Server) with (Settings::new().with("rc_message", …)) { … }
/// }
/// ```
///
/// A shape is one more `#[tokio::test]` in the inner module, which starts the server its way.
#[macro_export]
macro_rules! scenario {
    () => {};
    ($(#[$meta:meta])* async fn $name:ident($server:ident: Server) $body:block $($rest:tt)*) => {
        $crate::scenario! {
            $(#[$meta])* async fn $name($server: Server) with ($crate::Settings::new()) $body
            $($rest)*
        }
    };
    ($(#[$meta:meta])* async fn $name:ident($server:ident: Server) with ($settings:expr) $body:block $($rest:tt)*) => {
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports, clippy::allow_attributes, reason = "not every scenario needs them")]
            use super::*;

            #[allow(unused_mut, clippy::allow_attributes, reason = "only some scenarios kill it")]
            async fn scenario(mut $server: $crate::Server) $body

            #[tokio::test]
            async fn monolith() {
                scenario($crate::Server::start(env!("CARGO_BIN_EXE_chatd"), $settings).await).await;
            }

            #[tokio::test]
            async fn fleet() {
                let binary = env!("CARGO_BIN_EXE_chatd");
                let spread = $crate::Spread::Generated;
                scenario($crate::Server::fleet(binary, $settings, spread).await).await;
            }

            #[tokio::test]
            async fn random() {
                let binary = env!("CARGO_BIN_EXE_chatd");
                let spread = $crate::Spread::Random;
                scenario($crate::Server::fleet(binary, $settings, spread).await).await;
            }
        }
        $crate::scenario! { $($rest)* }
    };
}

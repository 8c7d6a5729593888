//! Where other servers come in.

use chatd_kit::{Settings, scenario, tls::Authority};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

scenario! {
    async fn other_servers_are_answered_with_tls(server: Server) with (Settings::federating()) {
        let authority = Authority::shared().expect("an authority");
        let mut stream = authority.connect(server.federation_port()).await.expect("TLS");
        let request = format!(
            "GET /_matrix/federation/v1/version HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            server.name()
        );
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("\"chatd\""), "{answer}");

        let version = server.request("GET", "/_matrix/federation/v1/version").await;
        assert_eq!(version.ok()["server"]["name"], "chatd", "the plain listener answers too");
        let alice = server.user("alice").await;
        assert_eq!(alice.id, format!("@alice:{}", server.name()));
    }
}

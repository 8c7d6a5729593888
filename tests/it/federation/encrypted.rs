//! Two independent clients, unchanged from their registries, talk encrypted from server to server.

use chatd_kit::{Server, Settings, Synapse, between};

use crate::clients::talk_encrypted;

between! {
    async fn clients_of_two_servers_talk_encrypted(here: Server, there: Server) {
        let (alice, bob) = (here.user("alice").await, there.user("bob").await);
        talk_encrypted((&alice, &here.url()), (&bob, &there.url())).await;
    }
}

#[tokio::test]
async fn a_client_of_synapse_talks_encrypted_with_ours() {
    let synapse = Synapse::shared().await;
    let server = Server::start(env!("CARGO_BIN_EXE_chatd"), Settings::federating()).await;
    let (alice, bob) = (server.user("alice").await, synapse.user("bob").await);
    talk_encrypted((&alice, &server.url()), (&bob, &synapse.url())).await;
    let (alice, bob) = (synapse.user("alice").await, server.user("bob").await);
    talk_encrypted((&alice, &synapse.url()), (&bob, &server.url())).await;
}

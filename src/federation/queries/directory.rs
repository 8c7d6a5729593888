//! Aliases, here and elsewhere, and the room lists of other servers.

use chatd_base::Result;
use chatd_servers::{Ask, Failure};
use ruma_common::{OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Queries, encoded, told};

/// Servers that are told of one room (R8).
const MOST_SERVERS: usize = 200;
const MOST_LIST_BYTES: usize = 4 << 20;

/// The room that an alias stands for, and servers that are in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlaceOfAlias {
    pub room_id: OwnedRoomId,
    #[serde(default)]
    pub servers: Vec<OwnedServerName>,
}

/// Which part of another server's room list is wanted, as the client has said it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RoomListQuery {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_all_networks: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub third_party_instance_id: Option<String>,
}

impl Queries {
    /// The room behind an alias of any server.
    pub async fn alias(&self, alias: &RoomAliasId) -> Result<PlaceOfAlias> {
        if alias.server_name() == self.config.server_name {
            return self.own_alias(alias).await;
        }
        let server = alias.server_name();
        let path = format!(
            "/_matrix/federation/v1/query/directory?room_alias={}",
            encoded(alias.as_str())
        );
        let ask = Ask::get(path).most_bytes(MOST_LIST_BYTES);
        let answer = self.servers.client.ask_json(server, ask).await;
        let mut place: PlaceOfAlias = answer.map_err(|failure| told(server, failure))?;
        place.servers.truncate(MOST_SERVERS);
        Ok(place)
    }

    /// The room behind an alias of this server.
    pub async fn own_alias(&self, alias: &RoomAliasId) -> Result<PlaceOfAlias> {
        let room_id = self.reader.alias(alias).await?;
        let room_id = RoomId::parse(&room_id).map_err(chatd_base::Error::internal)?;
        let others = self.rooms.hosts.servers_in_room(&room_id).await?;
        let own = std::iter::once(self.config.server_name.clone());
        let servers = own.chain(others).take(MOST_SERVERS).collect();
        Ok(PlaceOfAlias { room_id, servers })
    }

    /// A page of the room list of another server, as that has written it.
    pub async fn room_list(
        &self,
        server: &ServerName,
        query: &RoomListQuery,
    ) -> Result<Map<String, Value>> {
        let ask = room_list_request(query).map_err(chatd_base::Error::internal)?;
        let answer = self.servers.client.ask_json(server, ask).await;
        let page: Map<String, Value> = answer.map_err(|failure| told(server, failure))?;
        if !page.get("chunk").is_some_and(Value::is_array) {
            let odd = Failure::Odd("a room list without rooms".to_owned());
            return Err(told(server, odd));
        }
        Ok(page)
    }
}

/// Without a filter, the request that every server knows.
fn room_list_request(query: &RoomListQuery) -> Result<Ask, serde_json::Error> {
    const PATH: &str = "/_matrix/federation/v1/publicRooms";
    if query.filter.is_some() {
        let body = serde_json::to_vec(query)?;
        return Ok(Ask::post(PATH).json(body.into()).most_bytes(MOST_LIST_BYTES));
    }
    let members = json!(query);
    let pairs = members.as_object().into_iter().flatten().map(|(name, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{name}={}", encoded(&text))
    });
    let pairs: Vec<_> = pairs.collect();
    let path =
        if pairs.is_empty() { PATH.to_owned() } else { format!("{PATH}?{}", pairs.join("&")) };
    Ok(Ask::get(path).most_bytes(MOST_LIST_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_asked_for_in_the_form_that_it_needs() {
        let all = room_list_request(&RoomListQuery::default()).unwrap();
        assert_eq!((all.path.as_str(), all.body), ("/_matrix/federation/v1/publicRooms", None));
        let page =
            RoomListQuery { limit: Some(5), since: Some("a&b".to_owned()), ..Default::default() };
        let page_ask = room_list_request(&page).unwrap();
        assert_eq!(page_ask.path, "/_matrix/federation/v1/publicRooms?limit=5&since=a%26b");
        let filter = Some(Map::from_iter([("generic_search_term".to_owned(), json!("x"))]));
        let search = room_list_request(&RoomListQuery { filter, ..page }).unwrap();
        let body: Value = serde_json::from_slice(&search.body.unwrap()).unwrap();
        let expected = json!({"limit": 5, "since": "a&b", "filter": {"generic_search_term": "x"}});
        assert_eq!((search.path.as_str(), body), ("/_matrix/federation/v1/publicRooms", expected));
    }
}

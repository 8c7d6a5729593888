//! A name server for tests.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use hickory_resolver::proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SRV},
};
use tokio::net::UdpSocket;

/// What a name server knows; of everything else it says that it is not there.
#[derive(Clone, Default)]
pub struct Names {
    records: HashMap<(String, RecordType), Vec<RData>>,
}

impl Names {
    pub fn address(self, host: &str, address: &str) -> Self {
        match address.parse().unwrap() {
            IpAddr::V4(v4) => self.with(host, RecordType::A, RData::A(v4.into())),
            IpAddr::V6(v6) => self.with(host, RecordType::AAAA, RData::AAAA(v6.into())),
        }
    }

    pub fn service(self, name: &str, priority: u16, target: &str, port: u16) -> Self {
        let target = Name::from_ascii(format!("{target}.")).unwrap();
        self.with(name, RecordType::SRV, RData::SRV(SRV::new(priority, 0, port, target)))
    }

    fn with(mut self, name: &str, kind: RecordType, data: RData) -> Self {
        self.records.entry((name.to_owned(), kind)).or_default().push(data);
        self
    }

    /// Answers until the test ends; the address, as `chatd.dns_servers` has it.
    pub async fn serve(self) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        chatd_base::tasks::spawn("name server", async move {
            let mut packet = [0; 2_048];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                let question = Message::from_vec(&packet[..length]).unwrap();
                let answer = self.answer(&question).to_vec().unwrap();
                let _sent = socket.send_to(&answer, from).await;
            }
        });
        address
    }

    fn answer(&self, question: &Message) -> Message {
        let query = question.queries[0].clone();
        let mut answer = Message::response(question.metadata.id, OpCode::Query);
        let name = query.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let found = self.records.get(&(name, query.query_type()));
        for data in found.into_iter().flatten() {
            answer.add_answer(Record::from_rdata(query.name().clone(), 60, data.clone()));
        }
        if found.is_none() {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        answer.add_query(query);
        answer
    }
}

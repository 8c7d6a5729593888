//! What the domain name system says of a host.

use std::net::{IpAddr, SocketAddr};

use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, rdata::SRV},
};
use rand::Rng;

/// Answers kept (R8); each for as long as it says.
const CACHE: u64 = 4_096;
/// Services of one name that count (R8).
const MOST_SERVICES: usize = 32;

/// Asks name servers.
pub(crate) struct Dns {
    resolver: TokioResolver,
}

/// A place where a service may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub host: String,
    pub port: u16,
}

impl Dns {
    /// Asks `servers`, or those that the system is set up for.
    pub(crate) fn new(servers: Option<&[SocketAddr]>) -> Result<Self, String> {
        let provider = TokioRuntimeProvider::default;
        let mut builder = match servers {
            Some(servers) => {
                let servers = servers.iter().map(|address| name_server(*address)).collect();
                let config = ResolverConfig::from_name_servers(servers);
                TokioResolver::builder_with_config(config, provider())
            }
            None => TokioResolver::builder_tokio().unwrap_or_else(|error| {
                tracing::warn!(%error, "the system has no name servers; chatd.dns_servers can name \
                                        some");
                TokioResolver::builder_with_config(ResolverConfig::default(), provider())
            }),
        };
        builder.options_mut().cache_size = CACHE;
        let resolver = builder.build().map_err(|error| format!("name servers: {error}"))?;
        Ok(Self { resolver })
    }

    /// The addresses of `host`.
    pub(crate) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        match self.resolver.lookup_ip(absolute(host)).await {
            Ok(found) => Ok(found.iter().collect()),
            Err(error) => Err(format!("{host} has no address: {error}")),
        }
    }

    /// Where the service (`_matrix-fed._tcp`) of `host` is, best first. `None`: it is not said.
    /// A name server that does not answer says nothing.
    pub(crate) async fn service(&self, service: &str, host: &str) -> Option<Vec<Place>> {
        let name = absolute(&format!("{service}.{host}"));
        let found = match self.resolver.srv_lookup(name).await {
            Ok(found) => found,
            Err(error) => {
                if !none(&error) {
                    tracing::debug!(host, %error, "a service could not be looked up");
                }
                return None;
            }
        };
        let records = found.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(service) => Some(service.clone()),
            _ => None,
        });
        let records: Vec<_> = records.take(MOST_SERVICES).collect();
        (!records.is_empty()).then(|| ordered(records, |most| rand::rng().random_range(0..=most)))
    }
}

fn none(error: &NetError) -> bool {
    error.is_no_records_found() || error.is_nx_domain()
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

/// A name with dots is a whole name; what the system puts after short names does not belong there.
fn absolute(name: &str) -> String {
    let whole = name.contains('.') && !name.ends_with('.');
    if whole { format!("{name}.") } else { name.to_owned() }
}

/// In the order in which clients try services (RFC 2782): by priority, then by chance as the
/// weights have it. `chance` is a number from zero to its argument. The root is no host: it says
/// that there is no such service.
fn ordered(mut records: Vec<SRV>, mut chance: impl FnMut(u32) -> u32) -> Vec<Place> {
    records.sort_by_key(|record| (record.priority, record.weight));
    let mut places = Vec::with_capacity(records.len());
    while let Some(first) = records.first() {
        let priority = first.priority;
        let equal = records.iter().take_while(|record| record.priority == priority);
        let sums: Vec<u32> = equal
            .scan(0, |sum, record| {
                *sum += u32::from(record.weight);
                Some(*sum)
            })
            .collect();
        let drawn = chance(sums.last().copied().unwrap_or(0));
        let at = sums.iter().position(|sum| *sum >= drawn).unwrap_or(0);
        let record = records.remove(at);
        if !record.target.is_root() {
            let host = record.target.to_ascii().trim_end_matches('.').to_owned();
            places.push(Place { host, port: record.port });
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_resolver::proto::rr::Name;

    fn record(priority: u16, weight: u16, host: &str) -> SRV {
        SRV::new(priority, weight, 1, Name::from_ascii(host).unwrap())
    }

    fn hosts(records: &[SRV], chance: impl FnMut(u32) -> u32) -> Vec<String> {
        ordered(records.to_vec(), chance).into_iter().map(|place| place.host).collect()
    }

    #[test]
    fn services_are_tried_by_priority_and_weight() {
        let records = [
            record(20, 0, "late.example."),
            record(10, 30, "b.example."),
            record(10, 10, "a.example."),
            record(10, 0, "zero.example."),
            record(5, 0, "."),
        ];
        assert_eq!(
            hosts(&records, |_| 0),
            ["zero", "a", "b", "late"].map(|s| format!("{s}.example"))
        );
        assert_eq!(
            hosts(&records, |most| most),
            ["b", "a", "zero", "late"].map(|s| format!("{s}.example"))
        );
        assert!(hosts(&[record(0, 0, ".")], |_| 0).is_empty());
    }

    #[test]
    fn short_names_are_left_to_the_system() {
        for (name, asked) in [("a.example", "a.example."), ("a.", "a."), ("host", "host")] {
            assert_eq!(absolute(name), asked);
        }
    }
}

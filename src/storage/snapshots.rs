//! State snapshots: immutable, owned by one room, a small delta over a chain of ancestors that
//! ends in a root. A small root holds its entries, a large one the digests of chunks, which
//! unchanged buckets share.
//!
//! Entries are (key, event) pairs sorted by key, written as differences of the keys and zig-zag
//! varints of the differences of the events: 4 to 9 bytes each.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chatd_base::{EventNid, KeyNid, RoomNid, SnapshotId};
use sha2::{Digest, Sha256};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::{Error, Pool, Result, statement::statements};

/// State of a room: which event each key has.
pub type StateMap = BTreeMap<KeyNid, EventNid>;

/// Most ancestors that a reader has to apply.
pub const MAX_CHAIN: usize = 16;
/// Most entries in all deltas of a chain.
pub const MAX_DELTA_ENTRIES: usize = 128;
/// A root with more entries is cut into chunks.
const INLINE_ENTRIES: usize = 200;
/// Entries that a chunk is to have.
const CHUNK_ENTRIES: usize = 256;

statements! {
    /// Snapshots with their ancestors, each in the order of their application: the root first.
    LIST_CHAINS = "SELECT t.id, s.id, s.chain, s.delta, s.root
                   FROM state_snapshots t
                   CROSS JOIN LATERAL unnest(array_prepend(t.id, t.chain)) WITH ORDINALITY AS c(id, n)
                   JOIN state_snapshots s ON s.room = t.room AND s.id = c.id
                   WHERE t.room = $1 AND t.id = ANY($2::int8[])
                   ORDER BY t.id, c.n DESC";
    LIST_CHUNKS = "SELECT digest, data FROM state_chunks WHERE room = $1 AND digest = ANY($2::uuid[])";
    GET_SNAPSHOT_CHAIN = "SELECT chain, (SELECT coalesce(sum(s.entries), 0)::int8
                                         FROM state_snapshots s
                                         WHERE s.room = t.room AND s.root IS NULL
                                           AND s.id = ANY(array_prepend(t.id, t.chain)))
                          FROM state_snapshots t WHERE room = $1 AND id = $2";
}

/// What the next snapshot needs to know of its parent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotHead {
    /// 0 before the first state event.
    pub id: SnapshotId,
    /// Ancestors, nearest first.
    pub chain: Vec<SnapshotId>,
    /// Entries in the deltas of the chain, its own included.
    pub delta_entries: usize,
}

/// A snapshot that is to be written.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    pub room: RoomNid,
    pub id: SnapshotId,
    pub chain: Vec<SnapshotId>,
    pub delta: Vec<u8>,
    pub root: Option<Vec<u8>>,
    pub entries: i32,
    /// Chunks that the root refers to; those that exist already are skipped on insert.
    pub chunks: Vec<Chunk>,
}

/// The snapshot `id`, which follows `parent` by `changes` and as a whole is `state` (read only
/// when a new root is due).
pub fn next(
    room: RoomNid,
    id: SnapshotId,
    parent: &SnapshotHead,
    changes: &[(KeyNid, Option<EventNid>)],
    state: impl FnOnce() -> StateMap,
) -> (NewSnapshot, SnapshotHead) {
    let delta_entries = parent.delta_entries + changes.len();
    let is_root =
        parent.id.0 == 0 || parent.chain.len() + 1 > MAX_CHAIN || delta_entries > MAX_DELTA_ENTRIES;
    if !is_root {
        let mut chain = vec![parent.id];
        chain.extend(&parent.chain);
        let snapshot = NewSnapshot {
            room,
            id,
            chain: chain.clone(),
            delta: pack(changes.iter().map(|(key, event)| (*key, event.unwrap_or_default()))),
            root: None,
            entries: i32::try_from(changes.len()).unwrap_or(i32::MAX),
            chunks: Vec::new(),
        };
        return (snapshot, SnapshotHead { id, chain, delta_entries });
    }
    let (root, chunks, entries) = pack_root(&state());
    let snapshot = NewSnapshot {
        room,
        id,
        chain: Vec::new(),
        delta: Vec::new(),
        root: Some(root),
        entries,
        chunks,
    };
    (snapshot, SnapshotHead { id, chain: Vec::new(), delta_entries: 0 })
}

/// The first byte of a root says how the rest is to be read.
const ROOT_INLINE: u8 = 0;
const ROOT_CHUNKS: u8 = 1;

/// A chunk and its digest.
type Chunk = (Uuid, Vec<u8>);

fn pack_root(state: &StateMap) -> (Vec<u8>, Vec<Chunk>, i32) {
    let entries = i32::try_from(state.len()).unwrap_or(i32::MAX);
    if state.len() <= INLINE_ENTRIES {
        let mut root = vec![ROOT_INLINE];
        root.extend(pack(state.iter().map(|(key, event)| (*key, *event))));
        return (root, Vec::new(), entries);
    }
    let buckets = (state.len() / CHUNK_ENTRIES).next_power_of_two();
    let mut by_bucket = vec![Vec::new(); buckets];
    for (key, event) in state {
        by_bucket[bucket_of(*key, buckets)].push((*key, *event));
    }
    let chunks: Vec<Chunk> = by_bucket
        .into_iter()
        .map(|entries| {
            let data = pack(entries.into_iter());
            (digest(&data), data)
        })
        .collect();
    let mut root = vec![ROOT_CHUNKS];
    for (digest, _) in &chunks {
        root.extend(digest.as_bytes());
    }
    (root, chunks, entries)
}

/// Spreads consecutive keys over all buckets.
fn bucket_of(key: KeyNid, buckets: usize) -> usize {
    let mixed = (key.0 as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    usize::try_from(mixed >> 32).unwrap_or(0) & (buckets - 1)
}

fn digest(data: &[u8]) -> Uuid {
    let hash = Sha256::digest(data);
    Uuid::from_slice(&hash[..16]).expect("half of a SHA-256 hash has 16 bytes")
}

/// The whole states of snapshots, and what their successors need to know: two round trips, or one
/// if all roots are small.
pub async fn load_many(
    pool: &Pool,
    room: RoomNid,
    ids: &[SnapshotId],
) -> Result<HashMap<SnapshotId, (StateMap, SnapshotHead)>> {
    load(pool, room, ids, |_| true).await
}

/// The entries with these keys in the states of snapshots; the others take no memory. Round trips
/// as for the whole.
pub async fn load_entries(
    pool: &Pool,
    room: RoomNid,
    ids: &[SnapshotId],
    keys: &BTreeSet<KeyNid>,
) -> Result<HashMap<SnapshotId, StateMap>> {
    let loaded = load(pool, room, ids, |key| keys.contains(key)).await?;
    Ok(loaded.into_iter().map(|(id, (state, _))| (id, state)).collect())
}

async fn load(
    pool: &Pool,
    room: RoomNid,
    ids: &[SnapshotId],
    is_wanted: impl Fn(&KeyNid) -> bool,
) -> Result<HashMap<SnapshotId, (StateMap, SnapshotHead)>> {
    let mut loaded = HashMap::new();
    let mut wanted: Vec<i64> = ids.iter().map(|id| id.0).filter(|id| *id != 0).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.len() < ids.len() {
        loaded.insert(SnapshotId(0), Default::default());
    }
    if wanted.is_empty() {
        return Ok(loaded);
    }
    let rows = pool.query(&LIST_CHAINS, &[&room.0, &wanted]).await?;
    let links = rows.iter().map(Link::from_row).collect::<Result<Vec<_>>>()?;
    let chunks = load_chunks(pool, room, &links).await?;
    for link in links {
        let (state, head): &mut (StateMap, SnapshotHead) = loaded.entry(link.of).or_default();
        if let Some(root) = &link.root {
            *state = root.state(&chunks, &is_wanted)?;
        } else {
            head.delta_entries += link.delta.len();
        }
        if link.id == link.of {
            (head.id, head.chain) = (link.id, link.chain);
        }
        for (key, event) in link.delta.into_iter().filter(|(key, _)| is_wanted(key)) {
            if event.0 == 0 {
                state.remove(&key);
            } else {
                state.insert(key, event);
            }
        }
    }
    match wanted.iter().find(|id| !loaded.contains_key(&SnapshotId(**id))) {
        Some(id) => Err(Error::Corrupt(format!("snapshot {id} of room {room} is missing"))),
        None => Ok(loaded),
    }
}

/// One snapshot on the way from a root to the snapshot `of`.
struct Link {
    of: SnapshotId,
    id: SnapshotId,
    chain: Vec<SnapshotId>,
    delta: Vec<(KeyNid, EventNid)>,
    root: Option<Root>,
}

impl Link {
    fn from_row(row: &Row) -> Result<Self> {
        let chain: Vec<i64> = row.get(2);
        let root: Option<&[u8]> = row.get(4);
        Ok(Self {
            of: SnapshotId(row.get(0)),
            id: SnapshotId(row.get(1)),
            chain: chain.into_iter().map(SnapshotId).collect(),
            delta: unpack(row.get(3))?,
            root: root.map(Root::read).transpose()?,
        })
    }
}

enum Root {
    Inline(StateMap),
    Chunks(Vec<Uuid>),
}

impl Root {
    fn read(bytes: &[u8]) -> Result<Self> {
        match bytes.split_first() {
            Some((&ROOT_INLINE, packed)) => Ok(Self::Inline(unpack(packed)?.into_iter().collect())),
            Some((&ROOT_CHUNKS, digests)) => Ok(Self::Chunks(
                digests.chunks_exact(16).filter_map(|bytes| Uuid::from_slice(bytes).ok()).collect(),
            )),
            _ => Err(Error::Corrupt("the root of a snapshot cannot be read".to_owned())),
        }
    }

    fn state(&self, chunks: &Chunks, is_wanted: impl Fn(&KeyNid) -> bool) -> Result<StateMap> {
        let wanted = |(key, _): &(KeyNid, EventNid)| is_wanted(key);
        match self {
            Self::Inline(state) => {
                Ok(state.iter().map(|(key, event)| (*key, *event)).filter(wanted).collect())
            }
            Self::Chunks(digests) => {
                let mut state = StateMap::new();
                for digest in digests {
                    let chunk = chunks.get(digest).ok_or_else(|| {
                        Error::Corrupt(format!("the chunk {digest} of a snapshot is missing"))
                    })?;
                    state.extend(chunk.iter().copied().filter(wanted));
                }
                Ok(state)
            }
        }
    }
}

/// Entries of chunks by digest.
type Chunks = HashMap<Uuid, Vec<(KeyNid, EventNid)>>;

async fn load_chunks(pool: &Pool, room: RoomNid, links: &[Link]) -> Result<Chunks> {
    let mut digests: Vec<Uuid> = Vec::new();
    for link in links {
        if let Some(Root::Chunks(of_root)) = &link.root {
            digests.extend(of_root);
        }
    }
    if digests.is_empty() {
        return Ok(Chunks::new());
    }
    digests.sort_unstable();
    digests.dedup();
    let rows = pool.query(&LIST_CHUNKS, &[&room.0, &digests]).await?;
    rows.iter().map(|row| Ok((row.get(0), unpack(row.get(1))?))).collect()
}

/// What a snapshot that is to follow `id` needs to know.
pub async fn get_head(pool: &Pool, room: RoomNid, id: SnapshotId) -> Result<SnapshotHead> {
    let Some(row) = pool.query_opt(&GET_SNAPSHOT_CHAIN, &[&room.0, &id.0]).await? else {
        return Ok(SnapshotHead::default());
    };
    let chain: Vec<i64> = row.get(0);
    let entries: i64 = row.get(1);
    Ok(SnapshotHead {
        id,
        chain: chain.into_iter().map(SnapshotId).collect(),
        delta_entries: usize::try_from(entries).unwrap_or(usize::MAX),
    })
}

fn pack(entries: impl Iterator<Item = (KeyNid, EventNid)>) -> Vec<u8> {
    let mut sorted: Vec<_> = entries.collect();
    sorted.sort_unstable();
    let mut out = Vec::with_capacity(sorted.len() * 6);
    let (mut last_key, mut last_event) = (0_i64, 0_i64);
    for (key, event) in sorted {
        write_varint(&mut out, zigzag(key.0.wrapping_sub(last_key)));
        write_varint(&mut out, zigzag(event.0.wrapping_sub(last_event)));
        (last_key, last_event) = (key.0, event.0);
    }
    out
}

fn unpack(mut bytes: &[u8]) -> Result<Vec<(KeyNid, EventNid)>> {
    let mut entries = Vec::with_capacity(bytes.len() / 6);
    let (mut key, mut event) = (0_i64, 0_i64);
    while !bytes.is_empty() {
        key = key.wrapping_add(unzigzag(read_varint(&mut bytes)?));
        event = event.wrapping_add(unzigzag(read_varint(&mut bytes)?));
        entries.push((KeyNid(key), EventNid(event)));
    }
    Ok(entries)
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn write_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn read_varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let Some((byte, rest)) = bytes.split_first() else { break };
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Error::Corrupt("packed state is cut short".to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packed_entries_survive(entries: BTreeMap<i64, i64>) {
            let state: Vec<_> =
                entries.into_iter().map(|(key, event)| (KeyNid(key), EventNid(event))).collect();
            prop_assert_eq!(unpack(&pack(state.iter().copied())).unwrap(), state);
        }

        #[test]
        fn garbage_is_refused_or_read_but_never_panics(bytes: Vec<u8>) {
            let _ = unpack(&bytes);
        }
    }

    #[test]
    fn a_change_in_a_large_room_rewrites_one_chunk() {
        let mut state: StateMap = (1..5_000).map(|n| (KeyNid(n), EventNid(n * 3))).collect();
        let (_, before, _) = pack_root(&state);
        state.insert(KeyNid(77), EventNid(1_000_000));
        let (_, after, _) = pack_root(&state);
        assert_eq!(before.iter().zip(&after).filter(|(b, a)| b.0 != a.0).count(), 1);
    }

    #[test]
    fn chains_stay_short() {
        let mut head = SnapshotHead::default();
        let mut roots = 0;
        for id in 1..100 {
            let change = [(KeyNid(id), Some(EventNid(id)))];
            let (snapshot, next) = next(RoomNid(1), SnapshotId(id), &head, &change, StateMap::new);
            roots += usize::from(snapshot.root.is_some());
            assert!(next.chain.len() <= MAX_CHAIN);
            head = next;
        }
        assert_eq!(roots, 6);
    }
}

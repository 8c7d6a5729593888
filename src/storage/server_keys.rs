//! Keys of other servers, and the documents in which they were told.

use std::collections::BTreeMap;

use crate::{Pool, Result, statement::statements};

statements! {
    LIST_SERVER_KEYS = "SELECT server_name, key_id, public_key, valid_until, is_old, told_until,
                               fetched
                        FROM server_keys WHERE server_name = ANY($1::text[])";
    LIST_SERVER_KEY_DOCUMENTS = "SELECT server_name, key_id, told_until, document
                                 FROM server_keys WHERE server_name = ANY($1::text[])
                                 ORDER BY server_name, key_id";
    /// One statement whatever the number of keys. A key that an older document tells is kept.
    UPSERT_SERVER_KEYS = "INSERT INTO server_keys (server_name, key_id, public_key, valid_until,
                              is_old, told_until, fetched, document)
                          SELECT server_name, key_id, public_key, valid_until, is_old, told_until,
                                 $7, ($8::text[])[document_number]
                          FROM unnest($1::text[], $2::text[], $3::bytea[], $4::int8[], $5::bool[],
                                      $6::int8[], $9::int4[])
                               AS t (server_name, key_id, public_key, valid_until, is_old,
                                     told_until, document_number)
                          ORDER BY server_name, key_id
                          ON CONFLICT (server_name, key_id) DO UPDATE
                          SET public_key = excluded.public_key, valid_until = excluded.valid_until,
                              is_old = excluded.is_old, told_until = excluded.told_until,
                              fetched = excluded.fetched, document = excluded.document
                          WHERE excluded.told_until >= server_keys.told_until";
}

/// One key of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerKey {
    pub server: String,
    pub key_id: String,
    pub public_key: Vec<u8>,
    /// Milliseconds; what it has signed at or before is good.
    pub valid_until_ms: i64,
    /// Whether the server signs with it no more.
    pub is_old: bool,
    /// Until when what tells of it is valid.
    pub told_until_ms: i64,
    pub fetched_ms: i64,
}

/// A document and the keys that it tells of.
#[derive(Clone, Debug)]
pub struct ServerKeyDocument {
    pub keys: Vec<ServerKey>,
    /// Canonical JSON with its signatures.
    pub json: String,
}

/// All known keys of `servers`.
pub async fn list(pool: &Pool, servers: &[&str]) -> Result<Vec<ServerKey>> {
    let rows = pool.query(&LIST_SERVER_KEYS, &[&servers]).await?;
    let key = |row: &tokio_postgres::Row| ServerKey {
        server: row.get(0),
        key_id: row.get(1),
        public_key: row.get(2),
        valid_until_ms: row.get(3),
        is_old: row.get(4),
        told_until_ms: row.get(5),
        fetched_ms: row.get(6),
    };
    Ok(rows.iter().map(key).collect())
}

/// What is known of one key: id, until when what tells of it is valid, and the document.
#[derive(Clone, Debug)]
pub struct ToldKey {
    pub server: String,
    pub key_id: String,
    pub told_until_ms: i64,
    pub document: String,
}

/// The documents in which the keys of `servers` were told, one for each key.
pub async fn list_documents(pool: &Pool, servers: &[&str]) -> Result<Vec<ToldKey>> {
    let rows = pool.query(&LIST_SERVER_KEY_DOCUMENTS, &[&servers]).await?;
    let told = |row: &tokio_postgres::Row| ToldKey {
        server: row.get(0),
        key_id: row.get(1),
        told_until_ms: row.get(2),
        document: row.get(3),
    };
    Ok(rows.iter().map(told).collect())
}

/// Writes what documents tell. Where two tell of one key, the newer one counts.
pub async fn upsert(pool: &Pool, documents: &[ServerKeyDocument], fetched_ms: i64) -> Result<()> {
    let mut newest = BTreeMap::<(&str, &str), (&ServerKey, i32)>::new();
    for (number, document) in (1_i32..).zip(documents) {
        for key in &document.keys {
            let place = newest.entry((&key.server, &key.key_id)).or_insert((key, number));
            if place.0.told_until_ms < key.told_until_ms {
                *place = (key, number);
            }
        }
    }
    let mut rows = Columns::default();
    for (key, number) in newest.into_values() {
        rows.servers.push(&key.server);
        rows.key_ids.push(&key.key_id);
        rows.public_keys.push(&key.public_key);
        rows.valid_until.push(key.valid_until_ms);
        rows.is_old.push(key.is_old);
        rows.told_until.push(key.told_until_ms);
        rows.documents.push(number);
    }
    let texts: Vec<&str> = documents.iter().map(|document| &*document.json).collect();
    pool.execute(
        &UPSERT_SERVER_KEYS,
        &[
            &rows.servers,
            &rows.key_ids,
            &rows.public_keys,
            &rows.valid_until,
            &rows.is_old,
            &rows.told_until,
            &fetched_ms,
            &texts,
            &rows.documents,
        ],
    )
    .await?;
    Ok(())
}

/// Rows as arrays, in the order of the statement.
#[derive(Default)]
struct Columns<'a> {
    servers: Vec<&'a str>,
    key_ids: Vec<&'a str>,
    public_keys: Vec<&'a [u8]>,
    valid_until: Vec<i64>,
    is_old: Vec<bool>,
    told_until: Vec<i64>,
    documents: Vec<i32>,
}

//! Cross-signing keys, and signatures that are added to keys later.

use chatd_base::UserNid;

use crate::{Batch, Pool, Result, params, statement::statements};

statements! {
    LIST_CROSS_SIGNING = "SELECT kind, key FROM cross_signing_keys WHERE user_nid = $1";
    LIST_MASTER_KEYS = "SELECT user_nid, key FROM cross_signing_keys
                        WHERE user_nid = ANY($1::int4[]) AND kind = 'm'";
    UPSERT_CROSS_SIGNING = "INSERT INTO cross_signing_keys (user_nid, kind, key)
                            VALUES ($1, $2, $3)
                            ON CONFLICT (user_nid, kind) DO UPDATE SET key = excluded.key";
    INSERT_KEY_SIGNATURES = "INSERT INTO key_signatures
                                 (user_nid, target, signer, key_id, signature)
                             SELECT u, t, $3, k, s
                             FROM unnest($1::int4[], $2::text[], $4::text[], $5::text[])
                                  AS rows(u, t, k, s)
                             ON CONFLICT (user_nid, target, signer, key_id)
                             DO UPDATE SET signature = excluded.signature";
    LIST_SIGNATURES_BY = "SELECT user_nid, target, key_id, signature FROM key_signatures
                          WHERE user_nid = ANY($1::int4[]) AND signer = $2";
    LIST_DEVICE_KEYS_OF = "SELECT device_id, keys FROM device_keys WHERE user_nid = $1";
}

/// Which of a user's cross-signing keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    Master,
    SelfSigning,
    UserSigning,
}

impl KeyKind {
    fn letter(self) -> i8 {
        match self {
            Self::Master => b'm' as i8,
            Self::SelfSigning => b's' as i8,
            Self::UserSigning => b'u' as i8,
        }
    }

    /// The word in `usage`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::SelfSigning => "self_signing",
            Self::UserSigning => "user_signing",
        }
    }
}

/// The cross-signing keys of one user, as JSON.
#[derive(Clone, Debug, Default)]
pub struct CrossSigning {
    pub master: Option<String>,
    pub self_signing: Option<String>,
    pub user_signing: Option<String>,
}

/// What a user has uploaded.
pub async fn get(pool: &Pool, user: UserNid) -> Result<CrossSigning> {
    let mut keys = CrossSigning::default();
    for row in pool.query(&LIST_CROSS_SIGNING, &[&user.0]).await? {
        let slot = match row.get::<_, i8>(0).to_ne_bytes()[0] {
            b'm' => &mut keys.master,
            b's' => &mut keys.self_signing,
            _ => &mut keys.user_signing,
        };
        *slot = Some(row.get(1));
    }
    Ok(keys)
}

/// Master keys of those `users` who have one.
pub async fn list_master_keys(pool: &Pool, users: &[UserNid]) -> Result<Vec<(UserNid, String)>> {
    let users: Vec<i32> = users.iter().map(|user| user.0).collect();
    let rows = pool.query(&LIST_MASTER_KEYS, &[&users]).await?;
    Ok(rows.iter().map(|row| (UserNid(row.get(0)), row.get(1))).collect())
}

/// (device id, identity keys) of all devices of one user that have keys.
pub async fn list_device_keys(pool: &Pool, user: UserNid) -> Result<Vec<(String, String)>> {
    let rows = pool.query(&LIST_DEVICE_KEYS_OF, &[&user.0]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Replaces one cross-signing key.
pub fn set_key(batch: &mut Batch, user: UserNid, kind: KeyKind, key: &str) {
    batch.add(&UPSERT_CROSS_SIGNING, params![user.0, kind.letter(), key.to_owned()]);
}

/// A signature by a key of the uploading user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Whose key is signed.
    pub user: UserNid,
    /// A device id, or the public part of a cross-signing key.
    pub target: String,
    pub key_id: String,
    pub signature: String,
}

/// Adds signatures made by `signer`.
pub fn insert_signatures(batch: &mut Batch, signer: UserNid, signatures: &[Signature]) {
    let column = |of: fn(&Signature) -> &String| -> Vec<String> {
        signatures.iter().map(|s| of(s).clone()).collect()
    };
    let users: Vec<i32> = signatures.iter().map(|signature| signature.user.0).collect();
    batch.add(
        &INSERT_KEY_SIGNATURES,
        params![
            users,
            column(|s| &s.target),
            signer.0,
            column(|s| &s.key_id),
            column(|s| &s.signature)
        ],
    );
}

/// Signatures that `signer` has added to keys of `users`.
pub async fn list_signatures_by(
    pool: &Pool,
    users: &[UserNid],
    signer: UserNid,
) -> Result<Vec<Signature>> {
    let users: Vec<i32> = users.iter().map(|user| user.0).collect();
    let rows = pool.query(&LIST_SIGNATURES_BY, &[&users, &signer.0]).await?;
    let signature = |row: &crate::Row| Signature {
        user: UserNid(row.get(0)),
        target: row.get(1),
        key_id: row.get(2),
        signature: row.get(3),
    };
    Ok(rows.iter().map(signature).collect())
}

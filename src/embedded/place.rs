//! Which folder the cluster is in, and whom it belongs to.
//!
//! PostgreSQL refuses to run as root, so a chatd that is root runs it as another user. That user
//! must be able to get to the folder: where the data folder is closed to others (below `/root`,
//! say), the cluster is in `/var/lib/chatd`, and the data folder has a link to it.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt, MetadataExt, chown, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use chatd_base::token::random_letters;

/// Where clusters go that cannot be in their data folder.
const ELSEWHERE: &str = "/var/lib/chatd";
/// The cluster in the data folder, or the link to it.
const NAME: &str = "postgres";
/// Longest path of a unix socket that the system takes, less the socket's own name.
const LONGEST_FOLDER: usize = 107 - "/.s.PGSQL.5432".len();

/// The user that PostgreSQL runs as, where that is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// A cluster's folder.
#[derive(Clone, Debug)]
pub struct Place {
    pub folder: PathBuf,
    pub owner: Option<Owner>,
}

impl Place {
    /// The cluster of `data_dir`, if it has one.
    pub fn existing(data_dir: &Path) -> Result<Option<Self>> {
        let path = data_dir.join(NAME);
        if !path.join("PG_VERSION").exists() {
            return Ok(None);
        }
        let folder = path.canonicalize()?;
        let metadata = fs::metadata(&folder)?;
        let (uid, gid) = (metadata.uid(), metadata.gid());
        let me = rustix::process::geteuid();
        if !me.is_root() && me.as_raw() != uid {
            bail!(
                "{} belongs to user {uid}, and this is user {}; run chatd as the user that made it",
                folder.display(),
                me.as_raw()
            );
        }
        Ok(Some(Self { folder, owner: me.is_root().then_some(Owner { uid, gid }) }))
    }

    /// Makes the folder and lets `init` fill it. It gets its name only when it is complete, so
    /// that a start which was broken off leaves nothing that looks like a database.
    pub fn create(
        data_dir: &Path,
        init: impl FnOnce(&Path, Option<Owner>) -> Result<()>,
    ) -> Result<Self> {
        let owner = if rustix::process::geteuid().is_root() { Some(other_user()?) } else { None };
        let fits = data_dir.as_os_str().len() + NAME.len() < LONGEST_FOLDER;
        let here = fits && owner.is_none_or(|owner| may_enter(data_dir, owner));
        let folder = if here { data_dir.join(NAME) } else { elsewhere(data_dir, owner)? };
        let unfinished = folder.with_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&unfinished)
            .with_context(|| format!("cannot make the folder {}", unfinished.display()))?;
        if let Some(owner) = owner {
            chown(&unfinished, Some(owner.uid), Some(owner.gid))?;
        }
        init(&unfinished, owner)?;
        fs::rename(&unfinished, &folder)?;
        if !here {
            let link = data_dir.join(NAME);
            if link.is_symlink() {
                fs::remove_file(&link)?;
            }
            symlink(&folder, &link)?;
        }
        Ok(Self { folder, owner })
    }
}

/// A folder for a cluster that cannot be in `data_dir`.
fn elsewhere(data_dir: &Path, owner: Option<Owner>) -> Result<PathBuf> {
    let Some(owner) = owner else {
        bail!(
            "the path {} is too long for a unix socket; choose a shorter --data-dir",
            data_dir.display()
        );
    };
    let parent = Path::new(ELSEWHERE);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(parent)
        .with_context(|| format!("cannot make the folder {ELSEWHERE}"))?;
    if !may_enter(parent, owner) {
        bail!("other users cannot enter {ELSEWHERE}, where the database should go: chmod 755 it");
    }
    let folder = parent.join(random_letters(12).to_lowercase());
    tracing::info!(
        "PostgreSQL does not run as root, and other users cannot enter {}: the database will be \
         in {}",
        data_dir.display(),
        folder.display()
    );
    Ok(folder)
}

/// The user that a root chatd runs PostgreSQL as.
fn other_user() -> Result<Owner> {
    let users = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    ["postgres", "chatd", "nobody"].iter().find_map(|name| find_user(&users, name)).ok_or_else(
        || {
            anyhow!(
                "PostgreSQL does not run as root, and there is no user postgres, chatd or nobody; \
                 run chatd as another user"
            )
        },
    )
}

fn find_user(passwd: &str, name: &str) -> Option<Owner> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // A "nobody" that is root would be refused all the same.
    (uid != 0).then_some(Owner { uid, gid })
}

/// Whether `owner` can get to what is in `folder`: each folder on the way lets it pass.
fn may_enter(folder: &Path, owner: Owner) -> bool {
    folder.ancestors().all(|ancestor| {
        fs::metadata(ancestor).is_ok_and(|metadata| {
            let bit = if metadata.uid() == owner.uid {
                0o100
            } else if metadata.gid() == owner.gid {
                0o010
            } else {
                0o001
            };
            metadata.mode() & bit != 0
        })
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const SOMEBODY: Owner = Owner { uid: 4_000_000, gid: 4_000_000 };

    #[test]
    fn users_are_found_by_name() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\npostgres:x:105:110:,,,:/var/lib/postgresql:/bin/sh\n";
        assert_eq!(find_user(passwd, "postgres"), Some(Owner { uid: 105, gid: 110 }));
        assert_eq!(find_user(passwd, "nobody"), None);
        assert_eq!(find_user(passwd, "root"), None);
    }

    #[test]
    fn a_closed_folder_on_the_way_keeps_others_out() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(may_enter(&inner, SOMEBODY));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(!may_enter(&inner, SOMEBODY));
    }

    #[test]
    fn a_cluster_that_was_not_finished_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(Place::create(folder.path(), |_, _| bail!("killed")).is_err());
        assert!(Place::existing(folder.path()).unwrap().is_none());
        let made = Place::create(folder.path(), |folder, _| {
            Ok(fs::write(folder.join("PG_VERSION"), "15\n")?)
        });
        let found = Place::existing(folder.path()).unwrap().unwrap();
        assert_eq!(found.folder, made.unwrap().folder.canonicalize().unwrap());
    }
}

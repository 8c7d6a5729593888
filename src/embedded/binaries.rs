//! Where PostgreSQL's programs are, and how they are called.

use std::{
    env,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, anyhow, bail};

use super::place::Owner;

/// Oldest release with everything that chatd's SQL uses.
const OLDEST: u32 = 14;

/// One installed release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    pub major: u32,
    pub folder: PathBuf,
}

impl Binaries {
    /// A command that runs in the cluster's folder, as its owner, with nothing of our environment
    /// that PostgreSQL would listen to.
    pub fn command(&self, program: &str, cluster: &Path, owner: Option<Owner>) -> Command {
        let mut command = Command::new(self.folder.join(program));
        command.current_dir(cluster).stdin(Stdio::null());
        for (name, _) in env::vars_os() {
            let ours =
                name.to_str().is_some_and(|name| name.starts_with("PG") || name.starts_with("LC_"));
            if ours {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C");
        if let Some(owner) = owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        command
    }
}

/// Runs a command to its end; the error carries what it wrote.
pub fn run(mut command: Command, input: Option<&str>) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    if input.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {name}"))?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}): {}", output.status, text.trim());
    }
    Ok(())
}

/// Every installed release that chatd can use, newest first.
pub fn installed() -> Vec<Binaries> {
    let mut all: Vec<Binaries> = candidates()
        .into_iter()
        .filter(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
        .filter_map(|folder| Some(Binaries { major: major(&folder)?, folder }))
        .collect();
    all.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
    all
}

/// Folders where distributions put the programs: Debian, Red Hat, source builds, Homebrew; and
/// whatever is in `PATH`.
fn candidates() -> Vec<PathBuf> {
    let roots =
        [("/usr/lib/postgresql", ""), ("/usr", "pgsql-"), ("/opt/homebrew/opt", "postgresql@")];
    let versioned = roots.into_iter().flat_map(|(root, prefix)| {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        entries
            .filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .map(|entry| entry.path().join("bin"))
    });
    let in_path = env::var_os("PATH").map(|path| env::split_paths(&path).collect::<Vec<_>>());
    in_path
        .unwrap_or_default()
        .into_iter()
        .chain(versioned)
        .chain([PathBuf::from("/usr/local/pgsql/bin")])
        .collect()
}

/// The release that `postgres --version` tells, as in `postgres (PostgreSQL) 15.14 (Debian …)`.
fn major(folder: &Path) -> Option<u32> {
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_version(text: &str) -> Option<u32> {
    let number = text.split_once("(PostgreSQL) ")?.1;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The release for a new cluster.
pub fn newest(installed: &[Binaries]) -> Result<Binaries> {
    installed.iter().find(|binaries| binaries.major >= OLDEST).cloned().ok_or_else(|| {
        anyhow!(
            "the embedded database needs the programs of PostgreSQL {OLDEST} or later, which are \
             not installed ({}); on Debian: apt-get install postgresql. Or name a server of your \
             own in the configuration (database.name: psycopg2)",
            found(installed)
        )
    })
}

/// The release that made the cluster in `folder`: its files fit no other.
pub fn for_cluster(installed: &[Binaries], folder: &Path) -> Result<Binaries> {
    let path = folder.join("PG_VERSION");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let major: u32 =
        text.trim().parse().with_context(|| format!("{} says {text:?}", path.display()))?;
    installed.iter().find(|binaries| binaries.major == major).cloned().ok_or_else(|| {
        anyhow!(
            "the database in {} was made by PostgreSQL {major}, whose programs are not installed \
             ({}); install them (on Debian: apt-get install postgresql-{major}), or move the data \
             to a newer release as docs/operations.md describes",
            folder.display(),
            found(installed)
        )
    })
}

fn found(installed: &[Binaries]) -> String {
    let versions: Vec<_> = installed.iter().map(|one| one.major.to_string()).collect();
    if versions.is_empty() {
        "found none".to_owned()
    } else {
        format!("found {}", versions.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_postgres_tells_them() {
        let table = [
            ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 18beta1\n", Some(18)),
            ("something else", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_version(text), expected, "{text}");
        }
    }

    #[test]
    fn a_cluster_wants_the_release_that_made_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("PG_VERSION"), "15\n").unwrap();
        let release = |major| Binaries { major, folder: PathBuf::from("/x") };
        let found = for_cluster(&[release(17), release(15)], folder.path()).unwrap();
        assert_eq!(found.major, 15);
        let error = for_cluster(&[release(17)], folder.path()).unwrap_err().to_string();
        assert!(error.contains("postgresql-15") && error.contains("found 17"), "{error}");
    }

    #[test]
    fn a_new_cluster_takes_the_newest_release_and_none_that_is_too_old() {
        let release = |major| Binaries { major, folder: PathBuf::from("/x") };
        assert_eq!(newest(&[release(17), release(15)]).unwrap().major, 17);
        assert!(newest(&[release(9)]).unwrap_err().to_string().contains("found 9"));
    }
}

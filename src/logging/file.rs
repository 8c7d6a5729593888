//! A log file that is put aside by size or time, with the names that Python's handlers use:
//! `chatd.log.1` by size, `chatd.log.2026-11-21` by time. Times are UTC.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use chatd_base::Clock;
use chatd_config::Rotation;
use parking_lot::{Mutex, MutexGuard};
use tracing_subscriber::fmt::MakeWriter;

const DAY: u64 = 86_400;

/// A log file; each line is written at once.
pub struct LogFile {
    state: Mutex<State>,
}

struct State {
    path: PathBuf,
    rotation: Rotation,
    keep: usize,
    clock: Clock,
    file: File,
    size: u64,
    /// When the current file was begun, in seconds.
    since: u64,
    /// When it was last seen in its place.
    seen: u64,
}

impl LogFile {
    /// Opens or makes the file, with the folders above it.
    pub fn open(path: &Path, rotation: Rotation, keep: usize) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let clock = Clock::system();
        let now = clock.now_ms() / 1000;
        let file = append(path)?;
        let metadata = file.metadata()?;
        let since =
            if metadata.len() == 0 { now } else { u64::try_from(metadata.mtime()).unwrap_or(now) };
        let state = State {
            path: path.to_owned(),
            rotation,
            keep,
            clock,
            size: metadata.len(),
            file,
            since,
            seen: now,
        };
        Ok(Self { state: Mutex::new(state) })
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter(self.state.lock())
    }
}

/// Writes one line; holds the file meanwhile.
pub struct LineWriter<'a>(MutexGuard<'a, State>);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let state = &mut *self.0;
        // A file that cannot be put aside still takes the line.
        let rotated = state.rotate_if_due(line.len());
        let written = state.file.write(line)?;
        state.size += u64::try_from(written).unwrap_or(u64::MAX);
        rotated.map(|()| written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.file.flush()
    }
}

impl State {
    fn rotate_if_due(&mut self, line: usize) -> io::Result<()> {
        let now = self.clock.now_ms() / 1000;
        let line = u64::try_from(line).unwrap_or(u64::MAX);
        match self.rotation {
            Rotation::Never => return self.reopen_if_moved(now),
            Rotation::Size(limit) if self.size > 0 && self.size.saturating_add(line) > limit => {
                self.shift_numbers()?;
            }
            Rotation::Every(seconds) if now >= self.since + seconds => self.put_aside(seconds)?,
            Rotation::Midnight(days) if now / DAY >= self.since / DAY + days => {
                self.put_aside(DAY)?
            }
            _ => return Ok(()),
        }
        self.begin(now)
    }

    fn begin(&mut self, now: u64) -> io::Result<()> {
        self.file = append(&self.path)?;
        self.size = self.file.metadata()?.len();
        self.since = now;
        Ok(())
    }

    /// `logrotate` moves files away; looked at once a second at most.
    fn reopen_if_moved(&mut self, now: u64) -> io::Result<()> {
        if now == self.seen {
            return Ok(());
        }
        self.seen = now;
        let ours = self.file.metadata()?;
        let there = fs::metadata(&self.path).ok();
        if there.is_some_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(());
        }
        self.begin(now)
    }

    /// `.1` becomes `.2` and so on; the last one goes. Without `keep` the file is begun anew.
    fn shift_numbers(&self) -> io::Result<()> {
        if self.keep == 0 {
            return fs::remove_file(&self.path);
        }
        for number in (1..self.keep).rev() {
            let (from, to) = (
                self.with_suffix(&number.to_string()),
                self.with_suffix(&(number + 1).to_string()),
            );
            if from.exists() {
                fs::rename(from, to)?;
            }
        }
        fs::rename(&self.path, self.with_suffix("1"))
    }

    /// Named after the time when it was begun, as exactly as the interval asks for.
    fn put_aside(&self, interval: u64) -> io::Result<()> {
        fs::rename(&self.path, self.with_suffix(&stamp(self.since, interval)))?;
        if self.keep == 0 {
            return Ok(());
        }
        let mut old = self.put_aside_before()?;
        old.sort();
        let surplus = old.len().saturating_sub(self.keep);
        old.into_iter().take(surplus).try_for_each(fs::remove_file)
    }

    fn put_aside_before(&self) -> io::Result<Vec<PathBuf>> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let prefix = self.with_suffix("").into_os_string().into_string().unwrap_or_default();
        let mut found = Vec::new();
        for entry in fs::read_dir(folder.unwrap_or(Path::new(".")))? {
            let path = self.path.with_file_name(entry?.file_name());
            let suffix = path.to_str().and_then(|path| path.strip_prefix(&prefix));
            if suffix.is_some_and(|suffix| suffix.starts_with("20") && suffix.contains('-')) {
                found.push(path);
            }
        }
        Ok(found)
    }

    fn with_suffix(&self, suffix: &str) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".");
        name.push(suffix);
        name.into()
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).open(path)
}

/// `2026-11-21`, with `_12`, `_12-30` or `_12-30-59` for shorter intervals.
fn stamp(seconds: u64, interval: u64) -> String {
    let (year, month, day) = civil(seconds / DAY);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let date = format!("{year}-{month:02}-{day:02}");
    match interval {
        DAY.. => date,
        3600.. => format!("{date}_{hour:02}"),
        60.. => format!("{date}_{hour:02}-{minute:02}"),
        _ => format!("{date}_{hour:02}-{minute:02}-{second:02}"),
    }
}

/// Year, month and day of a number of days since 1970, by counting from a first of March, so
/// that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(rotation: Rotation, keep: usize, clock: &Clock) -> (tempfile::TempDir, LogFile) {
        let folder = tempfile::tempdir().unwrap();
        let file = LogFile::open(&folder.path().join("a.log"), rotation, keep).unwrap();
        let mut state = file.state.lock();
        state.clock = clock.clone();
        state.since = clock.now_ms() / 1000;
        drop(state);
        (folder, file)
    }

    fn names(folder: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn by_size_the_oldest_goes() {
        let (folder, file) = file_with(Rotation::Size(10), 2, &Clock::system());
        for line in ["first line\n", "second line\n", "third line\n", "fourth line\n"] {
            file.make_writer().write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(names(&folder), ["a.log", "a.log.1", "a.log.2"]);
        assert_eq!(fs::read_to_string(folder.path().join("a.log.2")).unwrap(), "second line\n");
    }

    #[test]
    fn by_midnight_the_name_has_the_day() {
        let clock = Clock::fixed(1_795_262_400_000); // 2026-11-21 12:00
        let (folder, file) = file_with(Rotation::Midnight(1), 1, &clock);
        for day in 0..3 {
            clock.set_ms(1_795_262_400_000 + day * DAY * 1000);
            file.make_writer().write_all(b"line\n").unwrap();
        }
        assert_eq!(names(&folder), ["a.log", "a.log.2026-11-22"]);
    }

    #[test]
    fn a_file_that_was_moved_away_is_made_again() {
        let clock = Clock::fixed(1_000_000);
        let (folder, file) = file_with(Rotation::Never, 0, &clock);
        let path = folder.path().join("a.log");
        file.make_writer().write_all(b"one\n").unwrap();
        fs::rename(&path, folder.path().join("moved")).unwrap();
        clock.set_ms(2_000_000);
        file.make_writer().write_all(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
    }

    #[test]
    fn days_have_dates() {
        for (seconds, expected) in
            [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (4_107_542_399, "2100-02-28")]
        {
            assert_eq!(stamp(seconds, DAY), expected);
        }
        assert_eq!(stamp(1_795_264_200, 60), "2026-11-21_12-30");
    }
}

//! The live view: the terminal's other screen, drawn anew at each look.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use crossterm::{
    cursor,
    event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    queue,
    terminal::{self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen},
};

use super::{Failure, ask::Asker, snapshot::Snapshot, text};

/// Shows looks until a person presses `q`, Escape or Ctrl-C.
pub fn show(asker: &mut Asker, interval: Duration) -> Result<(), Failure> {
    let screen = Screen::open().map_err(failed)?;
    let ended = watch(asker, interval).map_err(failed);
    drop(screen);
    ended
}

fn failed(error: io::Error) -> Failure {
    Failure::other(format!("the terminal cannot be used: {error}"))
}

fn watch(asker: &mut Asker, interval: Duration) -> io::Result<()> {
    loop {
        let snapshot = asker.look();
        draw(&snapshot)?;
        let until = Instant::now() + interval;
        while let Some(left) = until.checked_duration_since(Instant::now())
            && event::poll(left)?
        {
            match event::read()? {
                Event::Key(key) if is_end(key) => return Ok(()),
                Event::Resize(..) => draw(&snapshot)?,
                _ => {}
            }
        }
    }
}

fn is_end(key: KeyEvent) -> bool {
    let with_control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('c') => with_control,
            KeyCode::Char('q') | KeyCode::Esc => true,
            _ => false,
        }
}

/// Writes over what is there line by line, so that nothing flickers.
fn draw(snapshot: &Snapshot) -> io::Result<()> {
    // A terminal over a line that knows no size says 0.
    let (width, height) = match terminal::size()? {
        (0, _) | (_, 0) => (80, 24),
        size => size,
    };
    let mut out = io::stdout().lock();
    queue!(out, cursor::MoveTo(0, 0))?;
    let text = text::of(snapshot, Some(usize::from(width)));
    let last = height.saturating_sub(1);
    for line in text.lines().take(usize::from(last)) {
        write!(out, "{line}")?;
        queue!(out, Clear(ClearType::UntilNewLine), cursor::MoveToNextLine(1))?;
    }
    queue!(out, Clear(ClearType::FromCursorDown), cursor::MoveTo(0, last))?;
    write!(out, "q ends")?;
    out.flush()
}

/// The terminal while it is ours; given back when dropped.
struct Screen;

impl Screen {
    fn open() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        let screen = Self;
        crossterm::execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nothing left to do for a terminal that does not take this.
        let _ = crossterm::execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
        let _ = terminal::disable_raw_mode();
    }
}

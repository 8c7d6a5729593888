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

/// Lines of a page.
const PAGE: usize = 10;

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
    let mut first_line = 0_usize;
    loop {
        let snapshot = asker.look();
        draw(&snapshot, &mut first_line)?;
        let until = Instant::now() + interval;
        while let Some(left) = until.checked_duration_since(Instant::now())
            && event::poll(left)?
        {
            match event::read()? {
                Event::Key(key) if is_end(key) => return Ok(()),
                Event::Key(key) => first_line = scrolled(first_line, key.code),
                _ => {}
            }
            draw(&snapshot, &mut first_line)?;
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

/// The first line that is shown after a key.
fn scrolled(first_line: usize, key: KeyCode) -> usize {
    match key {
        KeyCode::Down => first_line.saturating_add(1),
        KeyCode::Up => first_line.saturating_sub(1),
        KeyCode::PageDown => first_line.saturating_add(PAGE),
        KeyCode::PageUp => first_line.saturating_sub(PAGE),
        KeyCode::Home => 0,
        _ => first_line,
    }
}

/// Writes over what is there line by line, so that nothing flickers.
fn draw(snapshot: &Snapshot, first_line: &mut usize) -> io::Result<()> {
    // A terminal over a line that knows no size says 0.
    let (width, height) = match terminal::size()? {
        (0, _) | (_, 0) => (80, 24),
        size => size,
    };
    let mut out = io::stdout().lock();
    queue!(out, cursor::MoveTo(0, 0))?;
    let text = text::of(snapshot, Some(usize::from(width)));
    let last = height.saturating_sub(1);
    let most = text.lines().count().saturating_sub(usize::from(last));
    *first_line = most.min(*first_line);
    for line in text.lines().skip(*first_line).take(usize::from(last)) {
        write!(out, "{line}")?;
        queue!(out, Clear(ClearType::UntilNewLine), cursor::MoveToNextLine(1))?;
    }
    queue!(out, Clear(ClearType::FromCursorDown), cursor::MoveTo(0, last))?;
    write!(out, "q ends, arrows scroll")?;
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

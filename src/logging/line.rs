//! A log line after a template of Python's logging: `%(asctime)s - %(levelname)s - %(message)s`.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields, FormattedFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// A template, taken apart once.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Time,
    /// Module path.
    Name,
    Level,
    Line,
    /// The spans around the event: the request, if there is one.
    Request,
    Message,
    Process,
}

impl Template {
    /// Takes a template apart. A place that means nothing here is left out.
    pub fn parse(template: &str) -> Self {
        let mut parts = Vec::new();
        let mut rest = template;
        while let Some((text, (name, after))) = next_place(rest) {
            parts.push(Part::Text(text.replace("%%", "%")));
            parts.extend(part(name));
            rest = after;
        }
        parts.push(Part::Text(rest.replace("%%", "%")));
        parts.retain(|part| *part != Part::Text(String::new()));
        Self { parts }
    }
}

/// The text before the next `%(name)s`, the name, and what comes after it.
fn next_place(text: &str) -> Option<(&str, (&str, &str))> {
    let (before, place) = text.split_once("%(")?;
    let (name, after) = place.split_once(')')?;
    // Width and precision come before the letter of the type; they are not followed.
    let kind = after.find(|c: char| c.is_ascii_alphabetic())?;
    Some((before, (name, &after[kind + 1..])))
}

fn part(name: &str) -> Option<Part> {
    Some(match name {
        "asctime" => Part::Time,
        "name" | "module" | "pathname" | "filename" => Part::Name,
        "levelname" => Part::Level,
        "lineno" => Part::Line,
        "request" => Part::Request,
        "message" => Part::Message,
        "process" => Part::Process,
        _ => return None,
    })
}

impl<S, N> FormatEvent<S, N> for Template
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        for part in &self.parts {
            match part {
                Part::Text(text) => writer.write_str(text)?,
                Part::Time => SystemTime.format_time(&mut writer)?,
                Part::Name => writer.write_str(metadata.target())?,
                Part::Level => write!(writer, "{}", metadata.level())?,
                Part::Line => write!(writer, "{}", metadata.line().unwrap_or_default())?,
                Part::Request => write_spans(context, &mut writer)?,
                Part::Message => context.format_fields(writer.by_ref(), event)?,
                Part::Process => write!(writer, "{}", std::process::id())?,
            }
        }
        writeln!(writer)
    }
}

/// The spans by their ids, where they have one: that of the request.
fn write_spans<S, N>(context: &FmtContext<'_, S, N>, writer: &mut Writer<'_>) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    let Some(scope) = context.event_scope() else { return writer.write_char('-') };
    for (index, span) in scope.from_root().enumerate() {
        let separator = if index == 0 { "" } else { ":" };
        let extensions = span.extensions();
        let fields = extensions.get::<FormattedFields<N>>();
        let id = fields.and_then(|fields| fields.fields.strip_prefix("id="));
        write!(writer, "{separator}{}", id.unwrap_or(span.name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_taken_apart() {
        let text = |text: &str| Part::Text(text.to_owned());
        let cases = [
            ("%(asctime)s - %(message)s", vec![Part::Time, text(" - "), Part::Message]),
            ("[%(levelname)-8s] 5%% %(thread)d", vec![text("["), Part::Level, text("] 5% ")]),
            ("no places %(", vec![text("no places %(")]),
        ];
        for (template, parts) in cases {
            assert_eq!(Template::parse(template).parts, parts, "{template}");
        }
    }
}

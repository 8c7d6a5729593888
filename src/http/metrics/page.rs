//! Figures in the text format of Prometheus.

use std::{collections::BTreeMap, fmt::Write};

use chatd_base::Figure;

use super::catalogue;

/// Appends `figures`, those of one name together.
pub(super) fn write(text: &mut String, figures: &[Figure]) {
    let mut by_name = BTreeMap::<&str, Vec<&Figure>>::new();
    for figure in figures {
        by_name.entry(figure.name).or_default().push(figure);
    }
    for (name, figures) in by_name {
        if let Some(metric) = catalogue::find(name) {
            let has_labels = |figure: &&Figure| {
                let names = figure.labels.iter().map(|(name, _)| *name);
                names.eq(metric.labels.iter().copied())
            };
            debug_assert!(figures.iter().all(has_labels), "labels of {name}");
            let _ = writeln!(text, "# HELP {name} {}", metric.meaning);
            let _ = writeln!(text, "# TYPE {name} {}", metric.kind.as_str());
        }
        for figure in figures {
            write_figure(text, figure);
        }
        text.push('\n');
    }
}

fn write_figure(text: &mut String, figure: &Figure) {
    text.push_str(figure.name);
    for (index, (name, value)) in figure.labels.iter().enumerate() {
        text.push(if index == 0 { '{' } else { ',' });
        let _ = write!(text, "{name}=\"");
        for character in value.chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
    }
    if !figure.labels.is_empty() {
        text.push('}');
    }
    let _ = writeln!(text, " {}", figure.value);
}

#[cfg(test)]
mod tests {
    use chatd_base::Sheet;

    use super::*;

    #[test]
    fn figures_of_one_name_stand_together_and_labels_are_quoted() {
        let mut sheet = Sheet::default();
        sheet.add("process_open_fds", &[], 17.0);
        sheet.add("chatd_stream_lag", &[("stream", "a\"b\\c\nd"), ("writer", "x")], 0.25);
        sheet.count("process_max_fds", &[], 1024);
        sheet.add("chatd_stream_lag", &[("stream", "e"), ("writer", "y")], 2.0);
        let mut text = String::new();
        write(&mut text, sheet.figures());
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("# HELP")).collect();
        assert_eq!(
            lines,
            [
                "# TYPE chatd_stream_lag gauge",
                r#"chatd_stream_lag{stream="a\"b\\c\nd",writer="x"} 0.25"#,
                r#"chatd_stream_lag{stream="e",writer="y"} 2"#,
                "",
                "# TYPE process_max_fds gauge",
                "process_max_fds 1024",
                "",
                "# TYPE process_open_fds gauge",
                "process_open_fds 17",
                "",
            ]
        );
    }
}

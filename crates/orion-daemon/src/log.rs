//! Log lines to standard error: for the journal (with the priority it understands, without time and colour), for a
//! terminal, or as JSON. Control characters in values are escaped, so that no input can forge a line.

use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::config::faults::Faults;

/// The `[log]` table of a configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    /// What is logged: `error warn info debug trace`, or tracing's directives, as `info,orion_apid=debug`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For the journal when standard error is the journal, else as `text`.
    Auto,
    /// For people: with time, and with colours on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Auto,
        }
    }
}

impl LogSettings {
    pub(crate) fn check(&self, faults: &mut Faults) {
        faults.require(
            self.filter().is_some(),
            "log.level",
            "must be error, warn, info, debug, trace, or a list of directives like info,orion_apid=debug",
        );
    }

    fn filter(&self) -> Option<EnvFilter> {
        // A word that is no level would be taken for a target, and silence everything else.
        let ends_in_a_level = |directive: &str| {
            let level = directive.rsplit('=').next().unwrap_or_default().trim();
            level.parse::<LevelFilter>().is_ok() && !level.is_empty()
        };
        if !self.level.split(',').all(ends_in_a_level) {
            return None;
        }
        EnvFilter::try_new(&self.level).ok()
    }
}

/// Sets up the log of this process. Does nothing when a log is there already, as in tests.
pub(crate) fn init(settings: &LogSettings) {
    let filter = settings.filter().unwrap_or_else(|| EnvFilter::new("info"));
    let journal = settings.format == LogFormat::Auto && stderr_is_the_journal();
    let ansi = std::io::stderr().is_terminal();
    let done = tracing::subscriber::set_global_default(subscriber(
        settings.format,
        journal,
        ansi,
        filter,
        std::io::stderr,
    ));
    if done.is_err() {
        tracing::debug!("the log was set up before");
    }
}

fn subscriber<W>(
    format: LogFormat,
    journal: bool,
    ansi: bool,
    filter: EnvFilter,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // It would be told on standard error, with a panic when nobody reads that any more.
        .log_internal_errors(false)
        .with_ansi(ansi && !journal);
    match (format, journal) {
        (LogFormat::Json, _) => Box::new(builder.json().finish()),
        (LogFormat::Auto | LogFormat::Text, true) => Box::new(
            builder
                .fmt_fields(escaped_fields())
                .event_format(Journal(format::format().without_time()))
                .finish(),
        ),
        (LogFormat::Auto | LogFormat::Text, false) => {
            Box::new(builder.fmt_fields(escaped_fields()).finish())
        }
    }
}

/// True when systemd connected standard error to the journal; a child with another standard error inherits the
/// variable too, so device and inode are compared, as systemd.exec(5) asks.
fn stderr_is_the_journal() -> bool {
    let (Ok(stream), Ok(stderr)) = (
        std::env::var("JOURNAL_STREAM"),
        std::fs::metadata("/proc/self/fd/2"),
    ) else {
        return false;
    };
    stream == format!("{}:{}", stderr.dev(), stderr.ino())
}

/// Puts the syslog priority in front of a line, which the journal takes off again.
struct Journal<E>(E);

impl<S, N, E> FormatEvent<S, N> for Journal<E>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    E: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

/// Fields as `name=value`, the message without its name, everything escaped.
fn escaped_fields() -> impl for<'w> FormatFields<'w> + 'static {
    format::debug_fn(|writer, field, value| {
        let mut escape = Escape(writer);
        if field.name() == "message" {
            fmt::write(&mut escape, format_args!("{value:?}"))
        } else {
            fmt::write(&mut escape, format_args!("{}={value:?}", field.name()))
        }
    })
    .delimited(" ")
}

/// Writes text on one line: control characters and the line separators of Unicode become escapes.
struct Escape<'a, 'w>(&'a mut Writer<'w>);

impl fmt::Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
                write!(self.0, "{}", character.escape_default())?;
            } else {
                self.0.write_char(character)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

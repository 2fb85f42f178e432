use std::io;
use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

use super::*;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Captured {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

fn logged(format: LogFormat, journal: bool, ansi: bool, work: impl FnOnce()) -> String {
    let captured = Captured::default();
    let filter = EnvFilter::new("debug");
    let subscriber = subscriber(format, journal, ansi, filter, captured.clone());
    tracing::subscriber::with_default(subscriber, work);
    let bytes = captured.0.lock().expect("lock").clone();
    String::from_utf8(bytes).expect("text")
}

const EVIL: &str = "x\n<3>forged\r\u{1b}[31m\u{0}\u{85}\u{2028}y";

fn log_evil_input() {
    let span = tracing::info_span!("request", path = %EVIL);
    let _entered = span.enter();
    tracing::info!(display = %EVIL, debug = ?EVIL, text = EVIL, "message {EVIL}");
}

#[test]
fn input_can_not_forge_a_line_in_any_format() {
    for (format, journal, ansi) in [
        (LogFormat::Auto, true, false),
        (LogFormat::Text, false, false),
        (LogFormat::Auto, false, true),
        (LogFormat::Json, false, false),
    ] {
        let text = logged(format, journal, ansi, log_evil_input);
        assert!(text.contains("forged"), "{text}");
        assert_eq!(text.lines().count(), 1, "{format:?}: {text}");
        let body = text.trim_end_matches('\n');
        // With colours the formatter's own escapes are there, the input's is not.
        assert!(
            !body.contains("\u{1b}[31m") && !body.contains(['\r', '\0']),
            "{text:?}"
        );
        if format != LogFormat::Json {
            assert!(!body.contains(['\u{85}', '\u{2028}']), "{text:?}");
        }
    }
}

#[test]
fn a_line_for_the_journal_has_its_priority_and_neither_time_nor_colour() {
    let text = logged(LogFormat::Auto, true, true, || {
        tracing::error!("a");
        tracing::warn!("b");
        tracing::info!(node = 42, "c");
        tracing::debug!("d");
    });
    let starts: Vec<&str> = text.lines().filter_map(|line| line.get(..3)).collect();
    assert_eq!(starts, ["<3>", "<4>", "<6>", "<7>"]);
    assert!(text.contains("c node=42"), "{text}");
    assert!(!text.contains(['\u{1b}', 'Z']), "{text}");
    let after_priority = text.lines().filter_map(|line| line.get(3..));
    let levels: Vec<&str> = after_priority
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(levels, ["ERROR", "WARN", "INFO", "DEBUG"]);
}

/// Tells this program that it runs as the next test's child.
const UNREAD: &str = "ORION_TEST_UNREAD_LOG";

#[test]
fn a_log_that_nobody_reads_ends_no_process() {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Command, Stdio};

    if std::env::var_os(UNREAD).is_some() {
        init(&LogSettings::default());
        tracing::error!("nobody hears this");
        return;
    }
    let (reader, writer) = UnixStream::pair().expect("a pair");
    drop(reader);
    let name = "log::tests::a_log_that_nobody_reads_ends_no_process";
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", name, "--nocapture"])
        .env(UNREAD, "1")
        .stderr(Stdio::from(OwnedFd::from(writer)))
        .output()
        .expect("ran");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
fn a_level_must_be_a_level_or_directives() {
    let good = |level: &str| {
        let settings = LogSettings {
            level: level.to_owned(),
            format: LogFormat::Auto,
        };
        let mut faults = Faults::default();
        settings.check(&mut faults);
        faults.is_empty()
    };
    assert!(good("info") && good("WARN") && good("info,orion_apid=debug,hyper=off"));
    assert!(!good("") && !good("loud") && !good("info,hyper") && !good("info,hyper=loud"));
}

//! The command line and environment of one ansible-playbook, and what it prints.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use orion_core::RunKind;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::directory::PlayDirectory;
use super::processes::Mark;
use super::{PlaySettings, playbook};

/// How much of a play's output is kept: its end (bytes).
const KEPT: usize = 64 * 1024;

/// No argument and no variable holds a secret or a text that is not ours; what the play works with lies in files.
pub(super) fn command(
    settings: &PlaySettings,
    kind: RunKind,
    directory: &PlayDirectory,
    inventory: &Path,
    mark: &Mark,
) -> Command {
    let mut command = Command::new(&settings.playbook_command);
    command
        .arg("-i")
        .arg(inventory)
        .arg(settings.playbooks_dir.join(playbook(kind)))
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", &settings.state_dir)
        // Ansible does not start without a UTF-8 locale.
        .env("LANG", "C.UTF-8")
        .env("ANSIBLE_CONFIG", directory.join("ansible.cfg"))
        .env("ANSIBLE_HOME", directory.join("home"))
        .env("ANSIBLE_LOCAL_TEMP", directory.join("tmp"))
        .env("ORION_EVENTS", directory.events())
        .env(Mark::VARIABLE, mark.value())
        // Also a mark: OpenSSH's masters overwrite their environment, nobody overwrites this.
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A terminal's or a supervisor's signal to our group is ours to pass on, by the ladder.
        .process_group(0);
    command
}

/// The end of what a play printed, on both streams.
#[derive(Debug, Clone, Default)]
pub(crate) struct OutputTail {
    kept: Arc<Mutex<Vec<u8>>>,
}

impl OutputTail {
    /// Reads until every process that holds the stream has closed it: a full pipe would stop the play.
    pub(super) async fn drain(self, mut stream: impl AsyncRead + Unpin) {
        let mut chunk = vec![0; 8 * 1024];
        loop {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(length) => self.keep(chunk.get(..length).unwrap_or_default()),
            }
        }
    }

    fn keep(&self, bytes: &[u8]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }

    /// What is there by now, as text; nothing when nothing was printed.
    pub(crate) fn text(&self) -> Option<String> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let printable = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
        let text: String = String::from_utf8_lossy(&kept)
            .chars()
            .map(printable)
            .collect();
        (!text.trim().is_empty()).then(|| without_hashes(&text))
    }
}

/// Ansible masks the hash wherever it prints arguments; a traceback is not its to mask.
fn without_hashes(text: &str) -> String {
    let mut parts = text.split("$6$");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let in_hash = |c: char| c.is_ascii_alphanumeric() || "$./=".contains(c);
        clean.push_str("[hash]");
        clean.push_str(part.trim_start_matches(in_hash));
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ansible::testing::settings;
    use orion_testkit::Scratch;

    #[test]
    fn the_command_line_and_the_environment_are_a_short_fixed_list() {
        let scratch = Scratch::new("command");
        let directory = PlayDirectory::create(scratch.join("p")).unwrap();
        let inventory = directory.join("inventory.json");
        let mark = Mark::of_play("0123abcd", 7);
        let command = command(
            &settings(),
            RunKind::Provision,
            &directory,
            &inventory,
            &mark,
        );
        let command = command.as_std();
        let arguments: Vec<_> = command.get_args().collect();
        assert_eq!(
            arguments,
            [
                "-i".as_ref(),
                inventory.as_os_str(),
                "/usr/share/orion/playbooks/create_user.yml".as_ref()
            ]
        );
        let names: Vec<_> = command.get_envs().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "ANSIBLE_CONFIG",
                "ANSIBLE_HOME",
                "ANSIBLE_LOCAL_TEMP",
                "HOME",
                "LANG",
                "ORION_EVENTS",
                "ORION_RUN",
                "PATH"
            ]
        );
    }

    #[tokio::test]
    async fn of_a_long_output_the_end_is_kept() {
        let output = OutputTail::default();
        let mut printed = "x".repeat(3 * KEPT);
        printed.push_str("the \u{1b}end $6$ab./$cd9=, $6$x\n");
        output.clone().drain(printed.as_bytes()).await;
        let text = output.text().unwrap();
        assert!(text.len() <= KEPT);
        assert!(text.ends_with("xxthe  end [hash], [hash]\n"), "{text}");
        assert_eq!(OutputTail::default().text(), None);
    }
}

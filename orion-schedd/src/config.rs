//! What an operator may set. Every key is listed, commented at its default, in `etc/orion-schedd.toml`.

use std::path::{Path, PathBuf};

use orion_core::{AddressGuard, AddressRules};
use orion_daemon::{Faults, LogSettings, OpsSettings, Settings, is_own_address};
use orion_store::DatabaseSettings;
use serde::{Deserialize, Serialize};

/// `/etc/orion/orion-schedd.toml`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheddSettings {
    /// The ops listener.
    pub ops: OpsSettings,
    /// Log lines.
    pub log: LogSettings,
    /// Where the truth is.
    pub database: DatabaseSettings,
    /// How runs are executed.
    pub executor: ExecutorSettings,
    /// Which Ansible, which playbooks.
    pub ansible: AnsibleSettings,
    /// How workers are logged in to.
    pub ssh: SshSettings,
    /// Where workers may be; nothing else is dialled.
    pub addresses: AddressRules,
    /// How workers are looked at.
    pub probe: ProbeSettings,
    /// How often workers are looked at closely.
    pub health_check: HealthCheckSettings,
    /// Where orion-apid says that there is work.
    pub notify: NotifySettings,
    /// How rentals move off nodes that died or drain.
    pub migration: MigrationSettings,
    /// When the jobs run.
    pub cron: CronSettings,
}

/// `[executor]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecutorSettings {
    /// Plays at once. Two are always left to provisioning, and one to cleaning and inspections.
    pub plays: usize,
    /// Hosts of one play; they are worked on side by side.
    pub hosts_per_play: usize,
    /// One host's time in a play, in seconds.
    pub host_timeout_s: u32,
    /// How long running plays may go on after SIGTERM, in seconds.
    pub drain_s: u32,
    /// For sockets and the private directories of plays; its file system should be in memory.
    pub runtime_dir: PathBuf,
    /// The home directory of ansible-playbook.
    pub state_dir: PathBuf,
}

/// `[ansible]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnsibleSettings {
    /// ansible-core 2.14 to 2.19.
    pub playbook_command: PathBuf,
    /// `create_user.yml` and so on, `library/` and `callback_plugins/`.
    pub playbooks_dir: PathBuf,
}

/// `[ssh]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SshSettings {
    /// The account on every worker that the pool's key opens.
    pub user: String,
    /// The pool's private key; `orion-schedd init` makes it. While it is rotated, the one before lies beside it.
    pub pool_key_file: PathBuf,
    /// From the first packet to the end of the key exchange, in seconds.
    pub connect_timeout_s: u32,
}

/// `[probe]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeSettings {
    /// From the first packet to the login, in seconds.
    pub timeout_s: u32,
    /// Probes at once.
    pub at_once: usize,
}

/// `[health_check]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheckSettings {
    /// How often each node is looked at through Ansible, in minutes.
    pub deep_every_minutes: u32,
}

/// `[notify]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotifySettings {
    /// A Unix socket for members of the daemon's group.
    pub socket: PathBuf,
}

/// `[migration]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrationSettings {
    /// After a start, and after the database was away, no node is decided dead for so long, in seconds.
    pub grace_s: u32,
    /// Whether a rental gets back the time in which its node was dead; its end may then lie behind `rent.max_hours`.
    pub compensate: bool,
    /// How long the files of a client whose rental was moved are kept on the old node, in hours; 0 is not at all.
    pub keep_home_hours: u32,
}

/// `[cron]`: six fields (second minute hour day month weekday), UTC.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CronSettings {
    /// Ends rentals whose time is over.
    pub expire: String,
    /// Gives back lost runs, undoes requests past their deadline.
    pub reconcile: String,
    /// Queues cleaning for debts.
    pub cleanup: String,
    /// Queues inspections and dials every node.
    pub health_check: String,
    /// Moves rentals off nodes that died or drain.
    pub migrate: String,
}

impl Default for ScheddSettings {
    fn default() -> Self {
        Self {
            ops: OpsSettings::on_port(9302),
            log: LogSettings::default(),
            database: DatabaseSettings::for_user(Self::NAME),
            executor: ExecutorSettings {
                plays: 4,
                hosts_per_play: 50,
                host_timeout_s: 20,
                drain_s: 30,
                runtime_dir: "/run/orion-schedd".into(),
                state_dir: "/var/lib/orion-schedd".into(),
            },
            ansible: AnsibleSettings {
                playbook_command: "/usr/bin/ansible-playbook".into(),
                playbooks_dir: "/usr/share/orion/playbooks".into(),
            },
            ssh: SshSettings {
                user: "orion-node".to_owned(),
                pool_key_file: "/etc/orion/schedd/pool_key".into(),
                connect_timeout_s: 5,
            },
            addresses: AddressRules::default(),
            probe: ProbeSettings {
                timeout_s: 12,
                at_once: 64,
            },
            health_check: HealthCheckSettings {
                deep_every_minutes: 10,
            },
            notify: NotifySettings {
                socket: "/run/orion-schedd/notify.sock".into(),
            },
            migration: MigrationSettings {
                grace_s: 60,
                compensate: false,
                keep_home_hours: 24,
            },
            cron: CronSettings {
                expire: "* * * * * *".to_owned(),
                reconcile: "*/2 * * * * *".to_owned(),
                cleanup: "*/2 * * * * *".to_owned(),
                health_check: "*/5 * * * * *".to_owned(),
                migrate: "* * * * * *".to_owned(),
            },
        }
    }
}

impl ScheddSettings {
    /// Asked before each dial.
    pub fn address_guard(&self) -> AddressGuard {
        let database = self.database.tcp_addresses();
        AddressGuard::new(self.addresses.clone(), database, is_own_address)
    }
}

impl Settings for ScheddSettings {
    const NAME: &'static str = "orion-schedd";

    fn check(&self, faults: &mut Faults) {
        self.executor.check(faults);
        check_path(
            faults,
            "ansible.playbook_command",
            &self.ansible.playbook_command,
        );
        check_path(faults, "ansible.playbooks_dir", &self.ansible.playbooks_dir);
        check_path(faults, "ssh.pool_key_file", &self.ssh.pool_key_file);
        check_path(faults, "notify.socket", &self.notify.socket);
        // sun_path of unix(7) has 108 bytes, one of them the end.
        faults.require(
            self.notify.socket.as_os_str().len() < 108,
            "notify.socket",
            "is too long for a Unix socket (107 bytes)",
        );
        faults.require(
            orion_core::UserName::stored(&self.ssh.user).is_ok(),
            "ssh.user",
            "must match ^[a-z][a-z0-9_-]{0,30}$",
        );
        check_range(
            faults,
            "ssh.connect_timeout_s",
            self.ssh.connect_timeout_s,
            1,
            60,
        );
        faults.require(
            self.ssh.connect_timeout_s < self.executor.host_timeout_s,
            "ssh.connect_timeout_s",
            "must be less than executor.host_timeout_s",
        );
        check_range(faults, "probe.timeout_s", self.probe.timeout_s, 1, 60);
        faults.require(
            (1..=1024).contains(&self.probe.at_once),
            "probe.at_once",
            "must be 1 to 1024",
        );
        faults.require(
            (1..=1440).contains(&self.health_check.deep_every_minutes),
            "health_check.deep_every_minutes",
            "must be 1 to 1440 minutes",
        );
        check_range(faults, "migration.grace_s", self.migration.grace_s, 0, 3600);
        faults.require(
            self.migration.keep_home_hours <= 8760,
            "migration.keep_home_hours",
            "must be 0 to 8760 hours",
        );
        self.cron.check(faults);
    }

    fn log(&self) -> &LogSettings {
        &self.log
    }

    fn ops(&self) -> &OpsSettings {
        &self.ops
    }
}

impl ExecutorSettings {
    /// Slots that cleaning and inspections may fill together.
    pub fn plays_for_others(&self) -> usize {
        self.plays.saturating_sub(2)
    }

    /// Slots that provisioning may fill.
    pub fn plays_for_provisioning(&self) -> usize {
        self.plays.saturating_sub(1)
    }

    fn check(&self, faults: &mut Faults) {
        faults.require(
            (3..=64).contains(&self.plays),
            "executor.plays",
            "must be 3 to 64: two are kept for provisioning, one for the rest",
        );
        faults.require(
            (1..=500).contains(&self.hosts_per_play),
            "executor.hosts_per_play",
            "must be 1 to 500",
        );
        check_range(
            faults,
            "executor.host_timeout_s",
            self.host_timeout_s,
            2,
            600,
        );
        check_range(faults, "executor.drain_s", self.drain_s, 0, 3600);
        check_path(faults, "executor.runtime_dir", &self.runtime_dir);
        check_path(faults, "executor.state_dir", &self.state_dir);
    }
}

impl CronSettings {
    fn check(&self, faults: &mut Faults) {
        for (key, schedule) in [
            ("cron.expire", &self.expire),
            ("cron.reconcile", &self.reconcile),
            ("cron.cleanup", &self.cleanup),
            ("cron.health_check", &self.health_check),
            ("cron.migrate", &self.migrate),
        ] {
            faults.require(
                is_schedule(schedule),
                key,
                "must be six fields: second minute hour day month weekday (UTC)",
            );
        }
    }
}

fn check_range(faults: &mut Faults, key: &str, value: u32, least: u32, most: u32) {
    faults.require(
        (least..=most).contains(&value),
        key,
        format!("must be {least} to {most} seconds"),
    );
}

/// Paths go into ansible.cfg and ssh's options, where blanks, quotes, `%`, `,`, `:` and comment signs mean something.
fn check_path(faults: &mut Faults, key: &str, path: &Path) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    faults.require(
        path.is_absolute() && path.to_str().is_some_and(|text| text.chars().all(plain)),
        key,
        "must be an absolute path of letters, digits and / . _ - + @",
    );
}

/// Whether the scheduler takes it as a schedule: six fields, UTC.
fn is_schedule(text: &str) -> bool {
    let fields = text.split_ascii_whitespace().count();
    fields == 6 && tokio_cron_scheduler::Job::new(text, |_, _| {}).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGED: &str = include_str!("../../etc/orion-schedd.toml");

    #[test]
    fn the_defaults_have_no_fault() {
        let mut faults = Faults::default();
        ScheddSettings::default().check(&mut faults);
        assert!(faults.is_empty(), "{:?}", faults.found());
    }

    #[test]
    fn the_packaged_file_says_every_key_at_its_default() {
        let said: String = PACKAGED
            .lines()
            .filter_map(|line| match line.strip_prefix('#') {
                Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => Some(rest),
                Some(_) => None,
                None => Some(line),
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let said: toml::Table = said.parse().expect("TOML once the comment signs are off");
        let defaults = toml::Table::try_from(ScheddSettings::default()).expect("a table");
        assert_eq!(said, defaults);
    }

    #[test]
    fn the_packaged_file_sets_nothing() {
        let set: toml::Table = PACKAGED.parse().expect("TOML");
        assert!(
            set.values()
                .all(|table| table.as_table().is_some_and(toml::Table::is_empty))
        );
    }

    #[test]
    fn a_schedule_has_six_fields() {
        for good in ["* * * * * *", "*/5 * * * * *", "0 30 4 * * Mon"] {
            assert!(is_schedule(good), "{good}");
        }
        for bad in [
            "",
            "* * * * *",
            "*/2 * * * *",
            "every second",
            "61 * * * * *",
            "* * * * * * *",
        ] {
            assert!(!is_schedule(bad), "{bad}");
        }
    }

    #[test]
    fn the_databases_address_is_no_workers_where_it_is_reached_over_tcp() {
        let mut settings = ScheddSettings::default();
        settings.database.host = "10.0.0.3".to_owned();
        assert!(settings.address_guard().check("10.0.0.3").is_ok());
        settings.database.socket = PathBuf::new();
        assert!(settings.address_guard().check("10.0.0.3").is_err());
        assert!(settings.address_guard().check("10.0.0.4").is_ok());
    }

    #[test]
    fn every_fault_is_found_at_once() {
        let mut settings = ScheddSettings::default();
        settings.executor.plays = 2;
        settings.executor.runtime_dir = "/run/with blank".into();
        settings.ssh.user = "-oProxyCommand=x".to_owned();
        settings.ssh.connect_timeout_s = 20;
        settings.migration.keep_home_hours = 8761;
        settings.cron.expire = "every second".to_owned();
        settings.cron.cleanup = "*/2 * * * *".to_owned();
        let mut faults = Faults::default();
        settings.check(&mut faults);
        let keys: Vec<&str> = faults.found().iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "executor.plays",
                "executor.runtime_dir",
                "ssh.user",
                "ssh.connect_timeout_s",
                "migration.keep_home_hours",
                "cron.expire",
                "cron.cleanup"
            ]
        );
    }

    #[test]
    fn two_plays_are_always_left_to_provisioning_and_one_to_the_rest() {
        for plays in 3..=64 {
            let settings = ExecutorSettings {
                plays,
                ..ScheddSettings::default().executor
            };
            assert!(plays - settings.plays_for_others() >= 2);
            assert!(plays - settings.plays_for_provisioning() >= 1);
            assert!(settings.plays_for_others() >= 1);
        }
    }
}

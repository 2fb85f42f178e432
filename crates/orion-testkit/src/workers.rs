//! Simulated workers: an SSH port each on this machine, which the control plane must know as `localhost` since it dials no
//! loopback addresses, and accounts that the scripted ansible-playbook makes and removes.

use crate::child::binary;
use crate::scratch::{Scratch, random_hex};
use crate::scripted::{Act, Behaviour, Farm, LogLine, Op, Reach, WorkerState};
use crate::ssh::{Responders, new_key, private_text, public_line};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

/// Where simulated workers are registered. A control plane that shall dial them lists it in `addresses.names`.
pub const HOST: &str = "localhost";

/// Simulated workers, `worker1` and so on, with SSH on 127.0.0.1 and a port each.
#[derive(Debug)]
pub struct Workers {
    all: Vec<Worker>,
    playbook: PathBuf,
    pool_key: PathBuf,
    farm: Farm,
    // Fields are dropped in this order: the listeners before the directory they read.
    _responders: Responders,
    _scratch: Scratch,
}

/// One of [`Workers`].
#[derive(Debug)]
pub struct Worker {
    number: usize,
    farm: Farm,
    port: AtomicU16,
    hostname: String,
    host_key: String,
    boot_id: String,
}

impl Workers {
    /// `count` clean workers.
    pub fn new(count: usize) -> Self {
        Self::listening_on(Ipv4Addr::LOCALHOST, count)
    }

    /// The same on another address of this machine, which a control plane can dial without looking up a name.
    pub fn listening_on(address: Ipv4Addr, count: usize) -> Self {
        let scratch = Scratch::new("farm");
        let pool = new_key();
        let pool_key = scratch.write_secret("pool_key", private_text(&pool));
        scratch.write_secret("pool_key.pub", format!("{}\n", public_line(&pool)));
        let playbook = format!(
            "#!/bin/sh\nexec '{}' '{}' \"$@\"\n",
            binary("orion-scripted-playbook").display(),
            scratch.path().display()
        );
        let playbook = scratch.write_program("ansible-playbook", &playbook);
        let farm = Farm::at(scratch.path());
        let keys: Vec<_> = (0..count).map(|_| new_key()).collect();
        let (responders, ports) = Responders::start(&farm, &keys, address);
        let mut all = Vec::new();
        for (number, (key, port)) in keys.iter().zip(ports).enumerate() {
            let host_key = public_line(key);
            farm.add(
                number,
                port,
                &WorkerState {
                    host_key: host_key.clone(),
                    lets_in: vec![public_line(&pool)],
                    ..WorkerState::default()
                },
            );
            all.push(Worker {
                number,
                farm: farm.clone(),
                port: AtomicU16::new(port),
                hostname: format!("worker{}", number + 1),
                host_key,
                boot_id: random_hex(16),
            });
        }
        Self {
            all,
            playbook,
            pool_key,
            farm,
            _responders: responders,
            _scratch: scratch,
        }
    }

    /// All of them.
    pub fn all(&self) -> &[Worker] {
        &self.all
    }

    /// What schedd's configuration names as `ansible-playbook`.
    pub fn playbook(&self) -> &Path {
        &self.playbook
    }

    /// The pool's private key, which every worker lets in as `orion-node` until it is told otherwise; `.pub` lies beside
    /// it.
    pub fn pool_key(&self) -> &Path {
        &self.pool_key
    }

    /// (UID, name) of every managed account that exists on any worker.
    pub fn accounts(&self) -> BTreeSet<(u32, String)> {
        self.all.iter().flat_map(Worker::accounts).collect()
    }

    /// What must never happen and did: a second client on a worker.
    pub fn violations(&self) -> Vec<LogLine> {
        self.log()
            .into_iter()
            .filter(|line| line.what == "violation")
            .collect()
    }

    /// Everything that plays did: a line `play` for each, then `act` for each worker that acted or spoke.
    pub fn log(&self) -> Vec<LogLine> {
        self.farm.log()
    }

    /// Two workers come back with each other's addresses, as restarted containers do.
    pub fn swap_addresses(&self, one: usize, other: usize) {
        let (one, other) = (&self.all[one], &self.all[other]);
        let (one_port, other_port) = (one.port(), other.port());
        self.farm.point(one_port, other.number);
        self.farm.point(other_port, one.number);
        one.port.store(other_port, Ordering::Relaxed);
        other.port.store(one_port, Ordering::Relaxed);
    }
}

impl std::ops::Index<usize> for Workers {
    type Output = Worker;

    fn index(&self, number: usize) -> &Worker {
        &self.all[number]
    }
}

impl Worker {
    /// Its host name.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Its SSH port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.load(Ordering::Relaxed)
    }

    /// Its SSH host key, `ssh-ed25519 AAAA…`.
    pub fn host_key(&self) -> &str {
        &self.host_key
    }

    /// What its agent sends to `/api/workers/register`.
    pub fn registration(&self) -> Value {
        json!({
            "hostname": self.hostname, "ip": HOST, "ssh_port": self.port(),
            "host_keys": [self.host_key], "agent": "0.1.0", "boot_id": self.boot_id,
        })
    }

    /// (UID, name) of the managed accounts that exist on it.
    pub fn accounts(&self) -> BTreeSet<(u32, String)> {
        let state = self.farm.read(self.number);
        state
            .accounts
            .into_iter()
            .map(|(uid, account)| (uid, account.name))
            .collect()
    }

    /// Everything about it.
    pub fn state(&self) -> WorkerState {
        self.farm.read(self.number)
    }

    /// From now on the next `times` operations of this kind (none: of each kind) do `act`; `times` none means all.
    pub fn behave(&self, op: Option<Op>, act: Act, times: Option<u32>) {
        self.farm.change(self.number, |state| {
            state.behaviours.push(Behaviour {
                op,
                act,
                left: times,
            })
        });
    }

    /// From now on it does everything right.
    pub fn behave_well(&self) {
        self.farm
            .change(self.number, |state| state.behaviours.clear());
    }

    /// From now on its SSH port answers like this, to probes and to plays.
    pub fn reach(&self, reach: Reach) {
        self.farm.change(self.number, |state| state.reach = reach);
    }

    /// From now on it lets these public keys in as `orion-node`, `type base64` each, and no others.
    pub fn lets_in(&self, keys: &[&String]) {
        self.farm.change(self.number, |state| {
            state.lets_in = keys.iter().map(|key| key.to_string()).collect();
        });
    }

    /// Somebody removes every managed account by hand.
    pub fn lose_accounts(&self) {
        self.farm
            .change(self.number, |state| state.accounts.clear());
    }

    /// An account that is not Orion's exists on it.
    pub fn add_foreign_account(&self, name: &str) {
        self.farm.change(self.number, |state| {
            state.foreign_names.push(name.to_owned())
        });
    }
}

//! The daemon: its parts, and the order in which they come and go.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use orion_daemon::{Misconfigured, OpsPages, Readiness, Registry, SecretError, Shell, secret_file};
use orion_store::{DatabaseSettings, InstanceId, SchemaFit, Store, StoreError};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ansible::{Ansible, Containment, Instance, PlaySettings};
use crate::clock;
use crate::config::{CronSettings, ScheddSettings};
use crate::cron::{Cron, JobBook};
use crate::executor::{Executor, Parts};
use crate::jobs::{self, Grace, JobContext, Ticks};
use crate::leader::Leader;
use crate::metrics::Metrics;
use crate::notify::{NotifySocket, Settled, Wake};
use crate::pool_keys::PoolKeys;
use crate::probe::{Dialler, Prober};

/// How often a database that is away, or without its schema, is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What the parts of the daemon share.
struct Common {
    store: Store,
    instance: InstanceId,
    metrics: Metrics,
    leader: Leader,
    book: JobBook,
    /// Wakes the executor.
    look: Wake,
    /// Wakes who looks at new nodes and addresses.
    newcomers: Wake,
    settled: Settled,
}

/// Runs until SIGTERM.
///
/// # Errors
/// When the configuration names what is not there, an address or socket is taken, or a part breaks off.
pub async fn serve(settings: ScheddSettings) -> anyhow::Result<()> {
    let keys = PoolKeys::read(&settings.ssh.pool_key_file)?;
    check_ansible(&settings)?;
    let mut registry = Registry::default();
    let common = Common {
        store: open_store(&settings)?,
        instance: new_instance()?,
        metrics: Metrics::new(&mut registry),
        leader: Leader::default(),
        book: JobBook::default(),
        look: Wake::default(),
        newcomers: Wake::default(),
        settled: Settled::default(),
    };
    let pages = common.pages(registry, &settings);
    let shell = Shell::start(&settings, &["database", "schema"], pages).await?;
    let (shutdown, ready) = (shell.shutdown(), shell.ready().clone());

    let path = &settings.notify.socket;
    let socket = NotifySocket::bind(path).await;
    let socket = socket.with_context(|| format!("the notify socket {}", path.display()))?;
    let wakes = vec![common.look.clone(), common.newcomers.clone()];
    let served = socket.serve(wakes, common.settled.clone(), shutdown.clone());
    shell.tracker().spawn(served);

    let ansible = contain(&settings, &common.instance).await?;
    let jobs = common.jobs(&keys, ready.clone(), &settings);
    let executor = common.executor(ansible, ready.clone(), &settings);
    let drain = Executor::longest_drain(&settings.executor);
    let tracker = shell.tracker().clone();
    let work = async move {
        if wait_for_schema(&common.store, &keys, &ready, &shutdown).await {
            tracker.spawn(clock::watch(
                common.store.clone(),
                common.leader.clone(),
                ready.clone(),
                common.metrics.clone(),
                shutdown.clone(),
            ));
            let (leader, newcomers) = (common.leader.clone(), common.newcomers.clone());
            tracker.spawn(look_at_newcomers(
                jobs.clone(),
                leader,
                newcomers,
                shutdown.clone(),
            ));
            let run_jobs = common.run_jobs(jobs, &settings.cron, &tracker, shutdown.clone());
            let execute = async {
                executor.run(shutdown.clone()).await;
                Ok(())
            };
            tokio::try_join!(run_jobs, execute)?;
        }
        Ok(())
    };
    shell.run(drain, Box::pin(work)).await
}

impl Common {
    fn pages(&self, registry: Registry, settings: &ScheddSettings) -> OpsPages {
        let (leader, book, cron) = (
            self.leader.clone(),
            self.book.clone(),
            settings.cron.clone(),
        );
        let jobs = move || std::future::ready(book.page(&cron, &leader));
        OpsPages::new(registry).page("/jobs", jobs)
    }

    fn jobs(&self, keys: &PoolKeys, ready: Readiness, settings: &ScheddSettings) -> JobContext {
        let timeout = Duration::from_secs(settings.probe.timeout_s.into());
        let guard = settings.address_guard();
        let dialler = Dialler::new(guard, keys, &settings.ssh.user, timeout);
        let prober = Prober::new(
            self.store.clone(),
            dialler,
            settings.probe.at_once,
            self.newcomers.clone(),
            self.metrics.clone(),
        );
        JobContext {
            store: self.store.clone(),
            executor: self.look.clone(),
            settled: self.settled.clone(),
            prober,
            grace: Grace::new(Duration::from_secs(settings.migration.grace_s.into())),
            ticks: Ticks::default(),
            deep_every: Duration::from_secs(
                u64::from(settings.health_check.deep_every_minutes) * 60,
            ),
            ready,
            metrics: self.metrics.clone(),
        }
    }

    /// Runs the jobs as they tick until `shutdown`. The lead is kept meanwhile and given back then: ticks under way may be
    /// repeated and runs need no lead, so the next leader waits for neither.
    async fn run_jobs(
        &self,
        jobs: JobContext,
        settings: &CronSettings,
        tracker: &TaskTracker,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let (leader, metrics) = (self.leader.clone(), self.metrics.clone());
        let cron = Cron::new(jobs, leader.clone(), self.book.clone(), metrics.clone());
        let jobs_over = CancellationToken::new();
        let (store, instance) = (self.store.clone(), self.instance.clone());
        tracker.spawn(leader.keep(store, instance, metrics, jobs_over.clone()));
        let _over = jobs_over.drop_guard();
        cron.run(settings, shutdown).await
    }

    fn executor(&self, ansible: Ansible, ready: Readiness, settings: &ScheddSettings) -> Executor {
        let parts = Parts {
            store: self.store.clone(),
            instance: self.instance.clone(),
            ansible,
            wake: self.look.clone(),
            settled: self.settled.clone(),
            metrics: self.metrics.clone(),
            ready,
        };
        Executor::new(parts, settings.executor.clone())
    }
}

/// What is missing now will be missing for every play, and only another configuration or a package heals it.
fn check_ansible(settings: &ScheddSettings) -> Result<(), Misconfigured> {
    let needed = [
        (
            "ansible.playbook_command",
            settings.ansible.playbook_command.clone(),
        ),
        (
            "ansible.playbooks_dir",
            settings.ansible.playbooks_dir.join("create_user.yml"),
        ),
    ];
    for (key, path) in needed {
        if !path.is_file() {
            return Err(Misconfigured(format!(
                "{key}: {} is not there",
                path.display()
            )));
        }
    }
    Ok(())
}

fn open_store(settings: &ScheddSettings) -> anyhow::Result<Store> {
    let password = database_password(&settings.database)?;
    let store = Store::open(&settings.database, password)?;
    Ok(store.with_compensation(settings.migration.compensate))
}

/// What its file says; nothing where none is needed.
///
/// # Errors
/// When the file can't be used.
pub(crate) fn database_password(
    settings: &DatabaseSettings,
) -> Result<Option<SecretString>, SecretError> {
    let file: &Path = &settings.password_file;
    let needed = !file.as_os_str().is_empty();
    needed.then(|| secret_file(file)).transpose()
}

fn new_instance() -> anyhow::Result<InstanceId> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("no random bytes for the instance's id")?;
    Ok(InstanceId::from_random(bytes))
}

/// Takes this instance's place in the runtime directory and ends what instances that are gone have left running.
async fn contain(settings: &ScheddSettings, instance: &InstanceId) -> anyhow::Result<Ansible> {
    let runtime_dir = settings.executor.runtime_dir.clone();
    let id = instance.to_string();
    let swept = tokio::task::spawn_blocking(move || {
        let containment = Containment::new()?;
        let place = Instance::enter(&runtime_dir, &id)?;
        let swept = place.sweep_the_gone(&containment)?;
        std::io::Result::Ok((containment, place, swept))
    });
    let (containment, place, swept) = swept.await?.with_context(|| {
        format!(
            "executor.runtime_dir {}",
            settings.executor.runtime_dir.display()
        )
    })?;
    for instance in &swept.instances {
        tracing::info!(instance, "cleared up after an instance that is gone");
    }
    for left in &swept.left {
        tracing::error!(%left, "plays of an instance that is gone can't be ended");
    }
    Ok(Ansible::new(PlaySettings::of(settings), place, containment))
}

/// False when the daemon shall stop before the schema is there, and the pool's keys in it.
async fn wait_for_schema(
    store: &Store,
    keys: &PoolKeys,
    ready: &Readiness,
    shutdown: &CancellationToken,
) -> bool {
    loop {
        match schema_is_there(store, keys, ready).await {
            Ok(true) => return true,
            Ok(false) => {}
            Err(error) => {
                ready.set_not_ready("database", format!("{:#}", anyhow::Error::from(error)));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(ASK_AGAIN) => {}
            () = shutdown.cancelled() => return false,
        }
    }
}

async fn schema_is_there(
    store: &Store,
    keys: &PoolKeys,
    ready: &Readiness,
) -> Result<bool, StoreError> {
    let fit = store.schema_fits().await?;
    ready.set_ready("database");
    match fit {
        SchemaFit::Fits => {
            keys.publish(store).await?;
            ready.set_ready("schema");
            return Ok(true);
        }
        SchemaFit::Absent => ready.set_not_ready("schema", "absent: run orion-apid schema apply"),
        fit @ (SchemaFit::TooOld { .. } | SchemaFit::TooNew { .. }) => {
            ready.set_not_ready("schema", format!("{fit:?}"));
        }
    }
    Ok(false)
}

/// After `look`, nodes that were never dialled and addresses that are claimed do not wait for the next tick.
async fn look_at_newcomers(
    context: JobContext,
    leader: Leader,
    newcomers: Wake,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = newcomers.woken() => {}
            () = shutdown.cancelled() => return,
        }
        if let Some(lead) = leader.lead()
            && let Err(error) = jobs::newcomers(&context.leading(lead)).await
        {
            tracing::debug!(%error, "newcomers wait for the next tick");
        }
    }
}

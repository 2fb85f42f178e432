//! Recording what a run saw: the end of the run, and the edges that follow from it, in one transaction.

mod clean;
mod inspect;
mod provision;

pub(crate) use clean::FOREIGN_ACCOUNT;

use crate::edges::{HeldAccount, short};
use crate::row::{column, word};
use crate::tx::{Finish, Tx, unit};
use crate::{ClaimedRun, InstanceId, Store, StoreError};
use orion_core::{
    AccountId, AccountState, NodeId, RentalId, RequestId, RequestState, RunId, RunKind, RunOutcome,
    RunState,
};
use serde_json::Value;
use time::PrimitiveDateTime;

/// A run that brings no result so often fails like any other: for an account another node is tried, and the cron jobs
/// queue cleaning and inspection again with their back-off, so that a host that hangs doesn't starve the others.
const MAX_ATTEMPTS: u32 = 3;

/// What an executor saw of one run.
#[derive(Debug, Clone)]
pub struct RunReport {
    /// In one word.
    pub outcome: RunOutcome,
    /// In one sentence, from the worker or from Ansible: bounded, and only for people.
    pub detail: Option<String>,
    /// What the worker's module reported.
    pub evidence: Option<Value>,
    /// Bounded Ansible output, where it helps to understand a failure.
    pub output: Option<String>,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recorded {
    /// The claim is somebody else's by now, and so is the run.
    Lost,
    /// It is recorded.
    Done {
        /// The request that was decided by it.
        settled: Option<RequestId>,
        /// There is new work to claim.
        queued: bool,
    },
}

const NOTHING_MORE: Recorded = Recorded::Done {
    settled: None,
    queued: false,
};
const MORE_WORK: Recorded = Recorded::Done {
    settled: None,
    queued: true,
};

/// One claim of a run: by whom, and which of the run's attempts.
pub(crate) struct Claim<'a> {
    pub(crate) run: RunId,
    pub(crate) kind: RunKind,
    pub(crate) by: &'a str,
    pub(crate) attempt: u32,
    /// Only a claim that expired before this; `None` for the claimant's own word.
    pub(crate) expired_before: Option<PrimitiveDateTime>,
}

/// The account of a run, with the decision it belongs to.
struct Subject {
    account: HeldAccount,
    state: AccountState,
    rental: RentalId,
    request: RequestId,
    request_state: RequestState,
}

impl Store {
    /// Ends a claimed run with what was seen, and follows the edges from it.
    ///
    /// # Errors
    /// When the database is away: report it again, or let the claim expire.
    pub async fn record_run(
        &self,
        instance: &InstanceId,
        run: &ClaimedRun,
        report: &RunReport,
    ) -> Result<Recorded, StoreError> {
        unit!(self, |tx| {
            let subject = tx.lock_subject(run.id).await?;
            // An inspection may lead to work on the account of a request, whose lock comes first.
            let tenant = match run.kind {
                RunKind::Inspect => tx.lock_tenant(run.node).await?,
                RunKind::Provision | RunKind::Clean => None,
            };
            if report.outcome == RunOutcome::NoResult && run.attempt < MAX_ATTEMPTS {
                let claim = Claim {
                    run: run.id,
                    kind: run.kind,
                    by: instance.as_str(),
                    attempt: run.attempt,
                    expired_before: None,
                };
                match tx.requeue(&claim, subject.as_ref()).await? {
                    true => Finish::Commit(MORE_WORK),
                    false => Finish::Rollback(Recorded::Lost),
                }
            } else if !tx.finish_run(instance, run, report).await? {
                Finish::Rollback(Recorded::Lost)
            } else {
                tx.note_contact(run.node, report).await?;
                Finish::Commit(match (run.kind, subject) {
                    (RunKind::Provision, Some(subject)) => {
                        tx.provisioned(run, &subject, report, self.compensates)
                            .await?
                    }
                    (RunKind::Clean, Some(subject)) => tx.cleaned(run, &subject, report).await?,
                    (RunKind::Inspect, _) => tx.inspected(run, tenant.as_ref(), report).await?,
                    (RunKind::Provision | RunKind::Clean, None) => NOTHING_MORE,
                })
            }
        })
    }
}

fn run_state(outcome: RunOutcome) -> RunState {
    match outcome {
        RunOutcome::Present | RunOutcome::Gone | RunOutcome::Clean => RunState::Done,
        // An inspection that found something did what it was for.
        RunOutcome::Dirty => RunState::Done,
        RunOutcome::NameTaken
        | RunOutcome::StaleEpoch
        | RunOutcome::Refused
        | RunOutcome::NotGone
        | RunOutcome::Failed
        | RunOutcome::Unreachable
        | RunOutcome::HostKeyMismatch
        | RunOutcome::NoResult
        | RunOutcome::Superseded => RunState::Failed,
    }
}

impl Tx {
    /// The request's lock first, then a fresh look at the run's account.
    async fn lock_subject(&mut self, run: RunId) -> Result<Option<Subject>, StoreError> {
        let found = self
            .first(
                "SELECT a.id, r.id AS rental_id, r.request_id FROM runs u JOIN accounts a ON a.id = u.account_id \
                 JOIN rentals r ON r.id = a.rental_id WHERE u.id = ?",
                (run.0,),
            )
            .await?;
        let Some(mut row) = found else {
            return Ok(None);
        };
        let id = AccountId(column(&mut row, "id")?);
        let request = RequestId(column(&mut row, "request_id")?);
        let Some(request_state) = self.lock_request(request).await? else {
            return Ok(None);
        };
        let found = self
            .first(
                "SELECT node_id, epoch, state FROM accounts WHERE id = ? FOR UPDATE",
                (id.0,),
            )
            .await?;
        let Some(mut account) = found else {
            return Ok(None);
        };
        Ok(Some(Subject {
            account: HeldAccount {
                id,
                node: NodeId(column(&mut account, "node_id")?),
                epoch: column(&mut account, "epoch")?,
            },
            state: word(&mut account, "state")?,
            rental: RentalId(column(&mut row, "rental_id")?),
            request,
            request_state,
        }))
    }

    /// `claimed -> done | failed`, only for the claimant and the epoch it was claimed with.
    async fn finish_run(
        &mut self,
        instance: &InstanceId,
        run: &ClaimedRun,
        report: &RunReport,
    ) -> Result<bool, StoreError> {
        let now = self.now;
        let detail = report
            .detail
            .as_deref()
            .map(|text| text.chars().take(2_000).collect::<String>());
        let changed = self
            .change(
                "UPDATE runs SET state = ?, outcome = ?, detail = ?, evidence = ?, output = ?, finished_at = ?, \
                 claimed_by = NULL, claim_expires_at = NULL \
                 WHERE id = ? AND state = 'claimed' AND claimed_by = ? AND epoch = ? AND attempt = ?",
                (
                    run_state(report.outcome).as_str(),
                    report.outcome.as_str(),
                    detail,
                    report.evidence.as_ref().map(Value::to_string),
                    report.output.as_deref(),
                    now,
                    run.id.0,
                    instance.as_str(),
                    run.epoch,
                    run.attempt,
                ),
            )
            .await?;
        Ok(changed == 1)
    }

    /// `claimed -> queued`, at a higher epoch: what may still be under way on the worker then comes too late. A run that
    /// nobody needs any more fails instead. False when the claim is over.
    pub(crate) async fn requeue_claimed(&mut self, claim: &Claim<'_>) -> Result<bool, StoreError> {
        let subject = self.lock_subject(claim.run).await?;
        self.requeue(claim, subject.as_ref()).await
    }

    async fn requeue(
        &mut self,
        claim: &Claim<'_>,
        subject: Option<&Subject>,
    ) -> Result<bool, StoreError> {
        let now = self.now;
        let wanted = match claim.kind {
            RunKind::Provision => subject.is_some_and(|subject| {
                matches!(subject.state, AccountState::Making | AccountState::Present)
            }),
            RunKind::Clean => subject.is_some_and(|subject| subject.state == AccountState::Leaving),
            RunKind::Inspect => true,
        };
        if !wanted {
            let changed = self
                .change(
                    "UPDATE runs SET state = 'failed', outcome = 'superseded', finished_at = ?, claimed_by = NULL, \
                     claim_expires_at = NULL WHERE id = ? AND state = 'claimed' AND claimed_by = ? AND attempt = ? \
                     AND (? IS NULL OR claim_expires_at < ?)",
                    (now, claim.run.0, claim.by, claim.attempt, claim.expired_before, claim.expired_before),
                )
                .await?;
            return Ok(changed == 1);
        }
        let epoch = subject.map_or(0, |subject| subject.account.epoch + 1);
        let changed = self
            .change(
                "UPDATE runs SET state = 'queued', epoch = ?, claimed_by = NULL, claim_expires_at = NULL \
                 WHERE id = ? AND state = 'claimed' AND claimed_by = ? AND attempt = ? \
                 AND (? IS NULL OR claim_expires_at < ?)",
                (epoch, claim.run.0, claim.by, claim.attempt, claim.expired_before, claim.expired_before),
            )
            .await?;
        if let Some(subject) = subject.filter(|_| changed == 1) {
            self.change(
                "UPDATE accounts SET epoch = ? WHERE id = ?",
                (epoch, subject.account.id.0),
            )
            .await?;
        }
        Ok(changed == 1)
    }

    /// What a run says about its node besides its own matter: whether it can be reached.
    async fn note_contact(&mut self, node: NodeId, report: &RunReport) -> Result<(), StoreError> {
        match report.outcome {
            RunOutcome::Unreachable | RunOutcome::HostKeyMismatch => {
                let reason = format!(
                    "{}: {}",
                    report.outcome,
                    report.detail.as_deref().unwrap_or("no detail")
                );
                self.check_failed(node, &reason).await?;
            }
            RunOutcome::NoResult | RunOutcome::Superseded => {}
            RunOutcome::Present
            | RunOutcome::Gone
            | RunOutcome::Clean
            | RunOutcome::Dirty
            | RunOutcome::NameTaken
            | RunOutcome::StaleEpoch
            | RunOutcome::Refused
            | RunOutcome::NotGone
            | RunOutcome::Failed => {
                self.checks_succeeded(&[node]).await?;
            }
        }
        Ok(())
    }

    pub(super) async fn note_evidence(
        &mut self,
        account: AccountId,
        report: &RunReport,
    ) -> Result<(), StoreError> {
        let now = self.now;
        self.change(
            "UPDATE accounts SET evidence = ?, evidence_at = ? WHERE id = ?",
            (
                report.evidence.as_ref().map(Value::to_string),
                now,
                account.0,
            ),
        )
        .await?;
        Ok(())
    }

    /// `any -> quarantined`; what is owed there is still paid.
    pub(crate) async fn quarantine(
        &mut self,
        node: NodeId,
        reason: &str,
    ) -> Result<(), StoreError> {
        let now = self.now;
        let changed = self
            .change(
                "UPDATE nodes SET availability = 'quarantined', availability_reason = ?, availability_since = ? WHERE id = ? AND availability <> 'quarantined'",
                (short(reason), now, node.0),
            )
            .await?;
        if changed == 1 {
            self.event("node_quarantined", node.into(), Some(reason))
                .await?;
        }
        Ok(())
    }
}

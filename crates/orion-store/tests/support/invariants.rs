//! The rules of DESIGN 5 and 6 as statements that find rows which break them.

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row, Value};
use orion_core::{AccountState, RentalState};
use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

/// What each statement finds must be empty.
const RULES: &[(&str, &str)] = &[
    (
        "a node holds at most one account that is not gone",
        "SELECT node_id, COUNT(*) FROM accounts WHERE state <> 'gone' GROUP BY node_id HAVING COUNT(*) > 1",
    ),
    (
        // The second while it moves off a node that is drained.
        "an active rental has one present account and at most one in the making",
        "SELECT r.id FROM rentals r WHERE r.state = 'active' AND \
         ((SELECT COUNT(*) FROM accounts a WHERE a.rental_id = r.id AND a.state = 'present') <> 1 OR \
          (SELECT COUNT(*) FROM accounts a WHERE a.rental_id = r.id AND a.state = 'making') > 1)",
    ),
    (
        "a rental being provisioned has one account that is wanted",
        "SELECT r.id FROM rentals r WHERE r.state = 'provisioning' AND \
         (SELECT COUNT(*) FROM accounts a WHERE a.rental_id = r.id AND a.state IN ('making', 'present')) <> 1",
    ),
    (
        "a degraded rental has at most one account of a kind that is wanted",
        "SELECT r.id FROM rentals r JOIN accounts a ON a.rental_id = r.id AND a.state IN ('making', 'present') \
         WHERE r.state = 'degraded' GROUP BY r.id, a.state HAVING COUNT(*) > 1",
    ),
    (
        "the files of a client are kept only of a rental that was moved",
        "SELECT a.id FROM accounts a JOIN rentals r ON r.id = a.rental_id JOIN requests q ON q.id = r.request_id \
         WHERE a.keep_home = TRUE AND (a.state NOT IN ('leaving', 'gone') OR q.state <> 'active')",
    ),
    (
        "nothing is owed to a rental that is not degraded, unless it ended so",
        "SELECT r.id FROM rentals r WHERE r.lost_since IS NOT NULL AND r.state IN ('provisioning', 'active')",
    ),
    (
        "a request is open as long as its rentals are provisioned, and no longer",
        "SELECT q.id, q.state, r.id, r.state FROM requests q JOIN rentals r ON r.request_id = q.id \
         WHERE (q.state = 'open') <> (r.state = 'provisioning')",
    ),
    (
        "nothing of an undone request lives",
        "SELECT q.id, r.id, r.state FROM requests q JOIN rentals r ON r.request_id = q.id \
         WHERE q.state = 'undone' AND r.state NOT IN ('ending', 'ended')",
    ),
    (
        "an undone request keeps no idempotency key",
        "SELECT id FROM requests WHERE state = 'undone' AND idempotency_key IS NOT NULL",
    ),
    (
        "a request has as many rentals as were ordered",
        "SELECT q.id FROM requests q WHERE q.node_count <> (SELECT COUNT(*) FROM rentals r WHERE r.request_id = q.id)",
    ),
    (
        "a rental that is over has no account that is wanted",
        "SELECT r.id, a.id, a.state FROM rentals r JOIN accounts a ON a.rental_id = r.id \
         WHERE r.state IN ('ending', 'ended') AND a.state IN ('making', 'present')",
    ),
    (
        "a rental is ending only while an account must still go",
        "SELECT r.id FROM rentals r WHERE r.state = 'ending' AND NOT EXISTS \
         (SELECT 1 FROM accounts a WHERE a.rental_id = r.id AND a.state <> 'gone')",
    ),
    (
        // An account that an inspection found where none should be becomes a debt after the end; a debt on a node that
        // was forgotten stays recorded.
        "an ended rental has no account from its life that is not gone",
        "SELECT r.id, a.id FROM rentals r JOIN accounts a ON a.rental_id = r.id JOIN nodes n ON n.id = a.node_id \
         WHERE r.state = 'ended' AND a.state <> 'gone' AND a.state_since <= r.ended_at AND n.forgotten_at IS NULL",
    ),
    (
        "a ready node holds nothing",
        "SELECT n.id, a.id, a.state FROM nodes n JOIN accounts a ON a.node_id = n.id \
         WHERE n.availability = 'ready' AND a.state <> 'gone'",
    ),
    (
        "a leased node holds an account that is wanted",
        "SELECT n.id FROM nodes n WHERE n.availability = 'leased' AND NOT EXISTS \
         (SELECT 1 FROM accounts a WHERE a.node_id = n.id AND a.state IN ('making', 'present'))",
    ),
    (
        "an account that is wanted is on a leased node, or on one that was quarantined since",
        "SELECT a.id, n.id, n.availability FROM accounts a JOIN nodes n ON n.id = a.node_id \
         WHERE a.state IN ('making', 'present') AND n.availability NOT IN ('leased', 'quarantined')",
    ),
    (
        "a debt is on a node that nobody can get",
        "SELECT a.id, n.id, n.availability FROM accounts a JOIN nodes n ON n.id = a.node_id \
         WHERE a.state = 'leaving' AND n.availability NOT IN ('cleaning', 'joining', 'quarantined')",
    ),
    (
        "a cleaning node has a debt",
        "SELECT n.id FROM nodes n WHERE n.availability = 'cleaning' AND NOT EXISTS \
         (SELECT 1 FROM accounts a WHERE a.node_id = n.id AND a.state = 'leaving')",
    ),
    (
        "a debt has a clean run open, or a failed one and so another due",
        "SELECT a.id FROM accounts a WHERE a.state = 'leaving' AND \
         NOT EXISTS (SELECT 1 FROM runs u WHERE u.account_id = a.id AND u.kind = 'clean')",
    ),
    (
        "an account in the making has its run open once the password is hashed",
        "SELECT a.id FROM accounts a JOIN rentals r ON r.id = a.rental_id \
         WHERE a.state = 'making' AND r.password_hash IS NOT NULL AND NOT EXISTS \
         (SELECT 1 FROM runs u WHERE u.account_id = a.id AND u.kind = 'provision' AND u.state IN ('queued', 'claimed'))",
    ),
    (
        "nothing is provisioned without a password",
        "SELECT u.id FROM runs u JOIN accounts a ON a.id = u.account_id JOIN rentals r ON r.id = a.rental_id \
         WHERE u.kind = 'provision' AND u.state IN ('queued', 'claimed') AND r.password_hash IS NULL",
    ),
    (
        "a queued run is for what is still wanted, at the account's epoch",
        "SELECT u.id, u.kind, u.epoch, a.state, a.epoch FROM runs u JOIN accounts a ON a.id = u.account_id \
         WHERE u.state = 'queued' AND \
         (u.epoch <> a.epoch OR IF(u.kind = 'provision', a.state NOT IN ('making', 'present'), a.state <> 'leaving'))",
    ),
    (
        "a clean run is open only for a debt",
        "SELECT u.id, a.state FROM runs u JOIN accounts a ON a.id = u.account_id \
         WHERE u.kind = 'clean' AND u.state IN ('queued', 'claimed') AND a.state <> 'leaving'",
    ),
    (
        "a run is never ahead of its account",
        "SELECT u.id FROM runs u JOIN accounts a ON a.id = u.account_id WHERE u.epoch > a.epoch",
    ),
    (
        "an account's UID is that of its rental, and its run is on its node",
        "SELECT a.id FROM accounts a JOIN installation i LEFT JOIN runs u ON u.account_id = a.id \
         WHERE a.uid <> i.uid_base + a.rental_id OR u.node_id <> a.node_id",
    ),
];

/// Every rule that does not hold now, with the rows that break it.
pub async fn broken(conn: &mut Conn) -> Vec<String> {
    // One round trip for the usual answer: none.
    let each = RULES
        .iter()
        .enumerate()
        .map(|(number, (_, sql))| format!("SELECT {number} FROM DUAL WHERE EXISTS ({sql})"));
    let numbers: Vec<usize> = conn
        .query(each.collect::<Vec<_>>().join(" UNION ALL "))
        .await
        .unwrap();
    let mut broken = Vec::new();
    for (rule, sql) in numbers.into_iter().map(|number| RULES[number]) {
        let rows: Vec<Row> = conn.query(sql).await.unwrap();
        let rows: Vec<Vec<Value>> = rows.into_iter().map(Row::unwrap).collect();
        broken.push(format!("{rule}: {rows:?}"));
    }
    broken
}

/// Where everything stood after the step before, so that a step backwards is seen.
#[derive(Default)]
pub struct History {
    rentals: BTreeMap<u64, RentalState>,
    requests: BTreeMap<u64, String>,
    accounts: BTreeMap<u64, (AccountState, u64)>,
    runs: BTreeMap<u64, (bool, u32)>,
}

impl History {
    /// Everything that went where no edge leads since the last call.
    pub async fn broken(&mut self, conn: &mut Conn) -> Vec<String> {
        let mut broken = Vec::new();
        let rentals: Vec<(u64, String)> =
            conn.query("SELECT id, state FROM rentals").await.unwrap();
        for (id, state) in rentals {
            let state = parsed(&state);
            let before = self
                .rentals
                .insert(id, state)
                .unwrap_or(RentalState::Provisioning);
            if !leads(before, state, RentalState::ALL, RentalState::can_become) {
                broken.push(format!("rental {id}: {before} -> {state}"));
            }
        }
        let requests: Vec<(u64, String)> =
            conn.query("SELECT id, state FROM requests").await.unwrap();
        for (id, state) in requests {
            let before = self
                .requests
                .insert(id, state.clone())
                .unwrap_or_else(|| "open".to_owned());
            if before != state && before != "open" {
                broken.push(format!("request {id}: {before} -> {state}"));
            }
        }
        let accounts: Vec<(u64, String, u64)> = conn
            .query("SELECT id, state, epoch FROM accounts")
            .await
            .unwrap();
        for (id, state, epoch) in accounts {
            let state = parsed(&state);
            let (before, old) = self
                .accounts
                .insert(id, (state, epoch))
                .unwrap_or((AccountState::Making, epoch));
            if !leads(before, state, AccountState::ALL, AccountState::can_become) || epoch < old {
                broken.push(format!(
                    "account {id}: {before} epoch {old} -> {state} epoch {epoch}"
                ));
            }
        }
        let runs: Vec<(u64, bool, u32)> = conn
            .query("SELECT id, state IN ('done', 'failed'), attempt FROM runs")
            .await
            .unwrap();
        for (id, finished, attempt) in runs {
            let (was_finished, old) = self
                .runs
                .insert(id, (finished, attempt))
                .unwrap_or((false, 0));
            if (was_finished && !finished) || attempt < old {
                broken.push(format!(
                    "run {id}: finished {was_finished} -> {finished}, attempt {old} -> {attempt}"
                ));
            }
        }
        broken
    }
}

fn parsed<T: FromStr>(word: &str) -> T
where
    T::Err: Display + Debug,
{
    word.parse().unwrap()
}

/// Whether any number of edges, also none, leads from one state to the other.
fn leads<T: Copy + PartialEq>(from: T, to: T, all: &[T], edge: impl Fn(T, T) -> bool) -> bool {
    let mut reached = vec![from];
    let mut at = 0;
    while let Some(state) = reached.get(at).copied() {
        at += 1;
        let next = all.iter().filter(|next| edge(state, **next));
        let new: Vec<T> = next
            .filter(|next| !reached.contains(next))
            .copied()
            .collect();
        reached.extend(new);
    }
    reached.contains(&to)
}

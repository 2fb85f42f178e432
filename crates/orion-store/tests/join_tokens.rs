//! Join tokens: whom they let in, and how often.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod support;

use orion_core::{HostName, JoinTokenId, Role, UserId, UserName};
use orion_store::*;
use support::Bed;
use support::signed::{by, joined, key, sent, token};

async fn admin(bed: &Bed) -> UserId {
    let name = UserName::stored("boss").unwrap();
    let made = bed.store.create_user(&name, "$pbkdf2$", Role::Admin).await;
    made.unwrap().unwrap()
}

fn refused(fault: TokenFault) -> Registered {
    Registered::Refused(Refusal::NotAdmitted(fault))
}

#[tokio::test]
async fn a_token_lets_in_as_many_workers_as_it_says_and_no_more() {
    let bed = Bed::new().await;
    token(&bed, 200, |order| order.uses = 2).await;
    let with = Admission::Token(Some(key(200)));
    for number in [1, 2] {
        let registered = sent(number, by(number, 1)).with(&bed.store, with).await;
        assert!(
            matches!(registered, Registered::Created(_)),
            "{registered:?}"
        );
    }
    let third = sent(3, by(3, 1)).with(&bed.store, with).await;
    assert_eq!(third, refused(TokenFault::UsedUp));
    let left = bed.store.join_tokens().await.unwrap()[0].uses_left;
    assert_eq!(
        (left, bed.one("SELECT COUNT(*) FROM nodes")),
        (0, "2".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_token_used_many_times_at_once_lets_one_worker_in() {
    let bed = std::sync::Arc::new(Bed::new().await);
    token(&bed, 200, |_| {}).await;
    let all: Vec<_> = (1..=16)
        .map(|number| {
            let bed = bed.clone();
            tokio::spawn(async move {
                sent(number, by(number, 1))
                    .with(&bed.store, Admission::Token(Some(key(200))))
                    .await
            })
        })
        .collect();
    let mut created = 0;
    for one in all {
        let registered = one.await.unwrap();
        created += u32::from(matches!(registered, Registered::Created(_)));
        assert!(matches!(
            registered,
            Registered::Created(_) | Registered::Refused(Refusal::NotAdmitted(TokenFault::UsedUp))
        ));
    }
    assert_eq!(
        (created, bed.one("SELECT COUNT(*) FROM nodes")),
        (1, "1".to_owned())
    );
}

#[tokio::test]
async fn a_token_that_is_over_or_for_others_lets_nobody_in_and_stays_unused() {
    let bed = Bed::new().await;
    token(&bed, 200, |_| {}).await;
    let revoked = token(&bed, 201, |_| {}).await;
    token(&bed, 202, |order| {
        order.networks = vec!["192.168.0.0/16".parse().unwrap()]
    })
    .await;
    token(&bed, 203, |order| {
        order.hostnames = vec![HostName::parse("other").unwrap()]
    })
    .await;
    assert_eq!(
        bed.store.revoke_join_token(revoked).await.unwrap(),
        Revocation::Done
    );
    let good = Admission::Token(Some(key(200)));
    let late = sent(1, by(1, 1)).with(&bed.later(1801), good).await;
    assert_eq!(late, refused(TokenFault::Expired));
    for (byte, fault) in [
        (201, TokenFault::Revoked),
        (202, TokenFault::Network),
        (203, TokenFault::HostName),
        (204, TokenFault::Unknown),
    ] {
        let registered = sent(1, by(1, 1))
            .with(&bed.store, Admission::Token(Some(key(byte))))
            .await;
        assert_eq!(registered, refused(fault));
    }
    assert_eq!(
        sent(1, by(1, 1))
            .with(&bed.store, Admission::Token(None))
            .await,
        refused(TokenFault::Missing)
    );
    assert_eq!(
        bed.one("SELECT COUNT(*) FROM join_tokens WHERE uses_left < uses"),
        "0"
    );
    assert_eq!(bed.one("SELECT COUNT(*) FROM nodes"), "0");
    assert_eq!(
        bed.store.revoke_join_token(revoked).await.unwrap(),
        Revocation::Done,
        "again"
    );
    assert_eq!(
        bed.store.revoke_join_token(JoinTokenId(99)).await.unwrap(),
        Revocation::NotFound
    );
}

#[tokio::test]
async fn tokens_whose_lines_name_another_key_are_named_while_they_may_be_used() {
    let bed = Bed::new().await;
    let first = token(&bed, 200, |_| {}).await;
    let second = token(&bed, 201, |_| {}).await;
    let others = |store: Store, byte| async move {
        store.join_tokens_for_another_key(&key(byte)).await.unwrap()
    };
    assert!(others(bed.store.clone(), 240).await.is_empty());
    assert_eq!(others(bed.store.clone(), 241).await, [first, second]);
    bed.store.revoke_join_token(first).await.unwrap();
    assert_eq!(others(bed.store.clone(), 241).await, [second]);
    assert!(others(bed.later(1801), 241).await.is_empty());
}

#[tokio::test]
async fn a_node_that_was_deleted_is_not_made_again_by_what_it_once_said() {
    let bed = Bed::new().await;
    let node = joined(&bed).await;
    token(&bed, 201, |order| order.uses = 9).await;
    let with = Admission::Token(Some(key(201)));
    sent(1, by(1, 7)).with(&bed.store, with).await;
    bed.store.forget_node(node).await.unwrap();
    for admission in [with, Admission::Open, Admission::Approval] {
        let replayed = sent(1, by(1, 7)).with(&bed.store, admission).await;
        assert_eq!(replayed, Registered::Refused(Refusal::OldCounter(7)));
    }
    let again = sent(1, by(1, 8)).with(&bed.store, with).await;
    assert!(
        matches!(again, Registered::Created(new) if new != node),
        "{again:?}"
    );
}

#[tokio::test]
async fn a_stranger_without_a_token_learns_no_names() {
    let bed = Bed::new().await;
    joined(&bed).await;
    for number in [1, 2] {
        let refused = sent(number, by(7, 1))
            .with(&bed.store, Admission::Token(None))
            .await;
        assert_eq!(
            refused,
            Registered::Refused(Refusal::NotAdmitted(TokenFault::Missing))
        );
    }
}

#[tokio::test]
async fn tokens_are_listed_newest_first_without_their_seed() {
    let bed = Bed::new().await;
    let boss = admin(&bed).await;
    let first = token(&bed, 200, |_| {}).await;
    let second = token(&bed, 201, |order| order.created_by = boss).await;
    let tokens = bed.store.join_tokens().await.unwrap();
    let ids: Vec<_> = tokens.iter().map(|token| token.join_token_id).collect();
    assert_eq!(ids, [second, first]);
    assert_eq!((tokens[0].created_by, tokens[0].uses), (boss, 1));
    let shown = serde_json::to_string(&tokens).unwrap();
    assert!(!shown.contains(&key(201).to_string()), "{shown}");
}

//! Users, and who leads the cron jobs.

mod support;

use orion_core::{Role, UserId, UserName};
use std::time::Duration;
use support::{Bed, instance};

#[tokio::test]
async fn a_name_is_given_once() {
    let bed = Bed::new().await;
    let name = UserName::stored("carol").unwrap();
    let id = bed
        .store
        .create_user(&name, "$a", Role::Admin)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        bed.store
            .create_user(&name, "$b", Role::User)
            .await
            .unwrap(),
        None
    );
    let user = bed.store.user_by_name(&name).await.unwrap().unwrap();
    assert_eq!((user.id, user.name, user.role), (id, name, Role::Admin));
    assert_eq!((user.password_phc.as_str(), user.token_version), ("$a", 1));
}

#[tokio::test]
async fn who_is_not_there_is_not_found() {
    let bed = Bed::new().await;
    assert!(bed.store.user(UserId(999)).await.unwrap().is_none());
    assert!(
        bed.store
            .user_by_name(&UserName::stored("nobody-here").unwrap())
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_rehashed_password_replaces_the_old_hash_only() {
    let bed = Bed::new().await;
    bed.store.update_password(bed.alice, "$new").await.unwrap();
    assert_eq!(
        bed.store
            .user(bed.alice)
            .await
            .unwrap()
            .unwrap()
            .password_phc,
        "$new"
    );
    assert_eq!(
        bed.store.user(bed.bob).await.unwrap().unwrap().password_phc,
        "$pbkdf2$"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_that_want_to_lead_one_does() {
    let bed = Bed::new().await;
    for _ in 0..20 {
        bed.db.sql("DELETE FROM leader");
        let all: Vec<_> = (1..=8)
            .map(|number| {
                let store = bed.store.clone();
                tokio::spawn(async move {
                    store
                        .lead("cron", &instance(number), Duration::from_secs(10))
                        .await
                })
            })
            .collect();
        let mut leaders = 0;
        for one in all {
            leaders += u32::from(one.await.unwrap().unwrap().is_some());
        }
        assert_eq!(leaders, 1);
    }
}

#[tokio::test]
async fn the_lead_is_renewed_and_passes_on_when_it_runs_out() {
    let bed = Bed::new().await;
    let hold = Duration::from_secs(10);
    let (one, other) = (instance(1), instance(2));
    let epoch = bed.store.lead("cron", &one, hold).await.unwrap().unwrap();
    assert_eq!(
        bed.store.lead("cron", &one, hold).await.unwrap(),
        Some(epoch)
    );
    assert_eq!(bed.store.lead("cron", &other, hold).await.unwrap(), None);
    assert_eq!(
        bed.later(5).lead("cron", &one, hold).await.unwrap(),
        Some(epoch)
    );
    assert_eq!(
        bed.later(12).lead("cron", &other, hold).await.unwrap(),
        None,
        "it was renewed at 5 s"
    );
    assert_eq!(
        bed.later(16).lead("cron", &other, hold).await.unwrap(),
        Some(epoch + 1)
    );
    assert_eq!(bed.later(17).lead("cron", &one, hold).await.unwrap(), None);
    assert!(
        bed.later(17)
            .lead("else", &one, hold)
            .await
            .unwrap()
            .is_some(),
        "another lead is another's"
    );
}

#[tokio::test]
async fn a_lead_that_its_holder_gives_back_is_free_at_once() {
    let bed = Bed::new().await;
    let lead = async |number| {
        let (who, hold) = (instance(number), Duration::from_secs(10));
        bed.store.lead("cron", &who, hold).await.unwrap()
    };
    let resign = async |name, number| bed.store.resign(name, &instance(number)).await.unwrap();
    assert_eq!(lead(1).await, Some(1));
    resign("cron", 2).await;
    resign("else", 1).await;
    assert_eq!(lead(2).await, None, "neither was its own");
    resign("cron", 1).await;
    assert_eq!(lead(2).await, Some(2));
}

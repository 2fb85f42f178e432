//! Users.

mod support;

use orion_core::{Role, UserId, UserName};
use support::Bed;

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

use super::*;
use std::os::unix::fs::PermissionsExt;

/// A directory in place of /etc, with a usermod that writes into its shadow and tells what it was called with.
struct Etc(PathBuf);

const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
    alice:x:1000002:1000002:Orion rental:/home/alice:/bin/bash\n\
    bob:x:1000:1000::/home/bob:/bin/bash\n";

impl Etc {
    fn new(name: &str) -> Self {
        let name = format!("orion-agentd-lock-{name}-{}", std::process::id());
        let etc = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&etc.0).expect("made");
        etc.write("passwd", PASSWD);
        etc.write(
            "shadow",
            "root:*:1::::::\nalice:$6$a$b:19000:0:99999:7:::\n",
        );
        etc.usermod("sed -i 's/^alice:\\$\\(.*\\):::$/alice:!$\\1::1:/' shadow");
        etc
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).expect("written");
    }

    fn usermod(&self, act: &str) {
        let here = self.0.display();
        self.write(
            "usermod",
            &format!("#!/bin/sh\ncd '{here}'\necho \"$*\" >>calls\n{act}\n"),
        );
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self.0.join("usermod"), mode).expect("chmod");
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.0.join("calls")).unwrap_or_default()
    }

    async fn lock(&self, uid: u32) -> Result<bool, String> {
        let locksmith = Locksmith {
            etc: self.0.clone(),
            usermod: self.0.join("usermod"),
        };
        locksmith.lock(Uid(uid)).await
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("removed");
    }
}

#[tokio::test]
async fn an_open_account_is_locked_and_expired_once_and_seen_to_be() {
    let etc = Etc::new("once");
    assert_eq!(etc.lock(1_000_002).await, Ok(true));
    assert_eq!(etc.lock(1_000_002).await, Ok(false));
    assert_eq!(etc.calls(), "--lock --expiredate 1 alice\n");
}

#[tokio::test]
async fn a_tool_that_fails_or_does_nothing_is_not_believed() {
    let etc = Etc::new("fails");
    etc.usermod("echo 'no space left' >&2; exit 1");
    let error = etc.lock(1_000_002).await.expect_err("failed");
    assert!(error.contains("no space left"), "{error}");
    etc.usermod("true");
    let error = etc.lock(1_000_002).await.expect_err("still open");
    assert!(error.contains("left the account alice open"), "{error}");
}

#[tokio::test]
async fn an_account_that_is_no_more_has_nothing_to_lock() {
    let etc = Etc::new("none");
    assert_eq!(etc.lock(1_000_009).await, Ok(false));
    etc.write("shadow", "root:*:1::::::\n");
    assert_eq!(etc.lock(1_000_002).await, Ok(false));
    assert_eq!(etc.calls(), "");
}

#[tokio::test]
async fn a_uid_that_is_not_managed_is_refused() {
    for uid in [0, 1000, 99_999, u32::MAX] {
        let error = Locksmith::default().end_access(Uid(uid)).await;
        assert!(error.is_err(), "{uid}");
    }
}

#[test]
fn only_a_plain_name_that_leads_back_to_the_uid_is_an_argument() {
    let names = |passwd: &str| -> Vec<Option<String>> {
        let names = names_of(passwd, Uid(1_000_002));
        names.map(|name| name.ok().map(str::to_owned)).collect()
    };
    assert_eq!(names(PASSWD), [Some("alice".to_owned())]);
    for bad in ["--help", "-x", "", "a b", "Alice", "../x", "é", "a\u{1b}"] {
        assert_eq!(names(&format!("{bad}:x:1000002:1:::\n")), [None], "{bad}");
    }
    // usermod would lock root's other self.
    let twice = "alice:x:0:0:::\nalice:x:1000002:1000002:::\n";
    assert_eq!(names(twice), [None]);
    let two = "alice:x:1000002:1:::\nbob:x:1000002:1:::\n";
    assert_eq!(
        names(two),
        [Some("alice".to_owned()), Some("bob".to_owned())]
    );
    assert!(names("alice:x:+1000002x:1:::\nno colons\n\n").is_empty());
}

#[test]
fn an_account_is_locked_when_neither_password_nor_key_opens_it() {
    let shadow = |hash: &str, expires: &str| format!("alice:{hash}:1:0:99999:7::{expires}:\n");
    assert!(is_locked(&shadow("!$6$a$b", "1"), "alice"));
    for (hash, expires) in [
        ("$6$a$b", "1"),
        ("!$6$a$b", ""),
        ("!$6$a$b", "20000"),
        ("", "1"),
    ] {
        assert!(
            !is_locked(&shadow(hash, expires), "alice"),
            "{hash} {expires}"
        );
    }
}

use super::*;

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let name = format!("orion-agentd-state-{name}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn open(&self, line: Option<&JoinLine>) -> State {
        State::open(&self.0, line).expect("opened")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join("agent").join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("removed");
    }
}

fn public(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32])
}

fn line(byte: u8) -> JoinLine {
    JoinLine {
        endpoint: "http://orion.example".to_owned(),
        token: Seed::from_bytes([1; 32]),
        signing_key: public(byte),
    }
}

#[test]
fn the_key_is_made_once_and_nobody_else_reads_it() {
    use std::os::unix::fs::PermissionsExt;
    let directory = Directory::new("key");
    let first = directory.open(None).key().public();
    assert_eq!(directory.open(None).key().public(), first);
    let mode = |path: &Path| {
        let metadata = std::fs::metadata(path).expect("there");
        metadata.permissions().mode() & 0o7777
    };
    assert_eq!(mode(&directory.path("key")), 0o600);
    assert_eq!(mode(&directory.path("")), 0o700);
}

#[test]
fn a_damaged_key_is_never_replaced() {
    let directory = Directory::new("damaged");
    drop(directory.open(None));
    for text in ["", "x\n", "AAAA"] {
        std::fs::write(directory.path("key"), text).expect("written");
        let error = State::open(&directory.0, None).expect_err("damaged");
        assert!(error.to_string().contains("join anew"), "{error}");
        let kept = std::fs::read_to_string(directory.path("key")).expect("there");
        assert_eq!(kept, text);
    }
}

#[test]
fn counters_rise_over_restarts_and_are_written_in_blocks() {
    let directory = Directory::new("counter");
    let mut highest = 0;
    for _ in 0..3 {
        let mut state = directory.open(None);
        let mut texts = std::collections::BTreeSet::new();
        for _ in 0..BLOCK + 10 {
            let counter = state.take_counter().expect("taken");
            assert!(counter > highest);
            highest = counter;
            let text = std::fs::read_to_string(directory.path("counter")).expect("there");
            assert!(text.trim().parse::<u64>().expect("a number") >= counter);
            texts.insert(text);
        }
        // The first block, and from half of it on the next, and from half of that on one more.
        assert_eq!(texts.len(), 3);
    }
}

#[test]
fn a_full_disk_leaves_half_a_block_of_counters_and_not_one_more() {
    let directory = Directory::new("full");
    let mut state = directory.open(None);
    // It becomes full just when a block is used up.
    for _ in 0..BLOCK {
        state.take_counter().expect("taken");
    }
    // Nothing can be written where the new file would be.
    let full = directory.path(".counter.new");
    std::fs::create_dir(&full).expect("made");
    let reserved = std::fs::read_to_string(directory.path("counter")).expect("there");
    let reserved: u64 = reserved.trim().parse().expect("a number");
    let mut highest = 0;
    for _ in 0..BLOCK / 2 {
        highest = state.take_counter().expect("taken");
    }
    assert_eq!(highest, reserved);
    let error = state.take_counter().expect_err("none is left");
    assert!(error.to_string().contains("can't be written"), "{error}");
    std::fs::remove_dir(&full).expect("removed");
    assert_eq!(state.take_counter().expect("taken"), reserved + 1);
}

#[test]
fn a_counter_is_raised_above_what_was_used_and_never_to_the_end() {
    let directory = Directory::new("raised");
    let mut state = directory.open(None);
    assert_eq!(state.take_counter().expect("taken"), 1);
    assert!(state.raise_counter(70_000));
    assert_eq!(state.take_counter().expect("taken"), 70_001);
    for not_new in [0, 70_001, u64::MAX, HIGHEST + 1] {
        assert!(!state.raise_counter(not_new), "{not_new}");
    }
    assert_eq!(state.take_counter().expect("taken"), 70_002);
    drop(state);
    std::fs::write(directory.path("counter"), "rubbish").expect("written");
    assert_eq!(directory.open(None).take_counter().expect("taken"), 1);
}

#[test]
fn what_is_trusted_belongs_to_one_join_line() {
    let directory = Directory::new("trusted");
    assert!(directory.open(None).trusted().is_empty());
    let mut state = directory.open(Some(&line(1)));
    assert_eq!(state.trusted(), [public(1)]);
    assert!(state.learn(&[public(2), public(1)]).expect("learnt"));
    assert!(!state.learn(&[public(2), public(1)]).expect("the same"));
    assert!(!state.learn(&[]).expect("nothing new"));
    assert_eq!(state.trusted(), [public(2), public(1)]);
    let same = directory.open(Some(&line(1)));
    assert_eq!(same.trusted(), [public(2), public(1)]);
    // Without the line the agent goes on believing the same control plane, and nobody else.
    assert_eq!(directory.open(None).trusted(), [public(2), public(1)]);
    assert_eq!(directory.open(Some(&line(3))).trusted(), [public(3)]);
}

#[test]
fn damaged_trust_is_never_taken_for_trust_in_everybody() {
    let directory = Directory::new("untrusted");
    drop(directory.open(None));
    for text in ["", "x\n", &format!("{}\n", public(1))] {
        std::fs::write(directory.path("trusted"), text).expect("written");
        let error = State::open(&directory.0, None).expect_err("damaged");
        assert!(error.to_string().contains("join line heals"), "{error}");
        assert_eq!(directory.open(Some(&line(1))).trusted(), [public(1)]);
    }
}

#[test]
fn a_rotation_that_was_interrupted_anywhere_goes_on_or_is_done() {
    let directory = Directory::new("rotation");
    let mut state = directory.open(Some(&line(1)));
    let old = state.key().public();
    assert!(state.next_key().expect("read").is_none());
    assert_eq!(rotate_key(&directory.0).expect("made"), Rotation::Begun);
    let next = state.next_key().expect("read").expect("there");
    assert_eq!(rotate_key(&directory.0).expect("kept"), Rotation::UnderWay);
    let again = state.next_key().expect("read").expect("there");
    assert_eq!(again.key.public(), next.key.public());
    // Before the promotion: a restart knows both.
    let restarted = directory.open(Some(&line(1)));
    assert_eq!(restarted.key().public(), old);
    assert!(restarted.next_key().expect("read").is_some());
    // Between its two steps.
    std::fs::copy(directory.path("key.next"), directory.path("key")).expect("copied");
    let restarted = directory.open(Some(&line(1)));
    assert_eq!(restarted.key().public(), next.key.public());
    assert!(!directory.path("key.next").exists());
    // And all of it.
    rotate_key(&directory.0).expect("made");
    let next = state.next_key().expect("read").expect("there");
    let public = next.key.public();
    state.promote(next).expect("promoted");
    assert_eq!(state.key().public(), public);
    assert!(state.next_key().expect("read").is_none());
    assert_eq!(directory.open(None).key().public(), public);
}

#[test]
fn without_somebody_to_believe_the_key_is_not_rotated() {
    let directory = Directory::new("open");
    let state = directory.open(None);
    rotate_key(&directory.0).expect("made");
    assert!(state.next_key().expect("read").is_none());
}

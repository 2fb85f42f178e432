use super::*;
use crate::countdown::tests::reply;
use crate::lock::Ending;
use serde_json::json;
use std::collections::VecDeque;

const UID: u32 = 1_000_002;

/// Clocks that a test sets.
#[derive(Debug)]
struct Clocks(Mutex<(Now, &'static str)>);

impl Clock for Clocks {
    fn now(&self) -> Now {
        self.0.lock().expect("lock").0
    }

    fn boot_id(&self) -> String {
        self.0.lock().expect("lock").1.to_owned()
    }
}

/// Locks nothing, and tells what it was asked to.
#[derive(Debug, Default)]
struct Door {
    ended: Mutex<Vec<u32>>,
    /// What comes of the next attempts; then all is done already.
    script: Mutex<VecDeque<Result<Ended, String>>>,
    /// No attempt is good while this is there.
    in_the_way: Option<PathBuf>,
}

impl Access for Door {
    fn end(&self, uid: Uid) -> Ending<'_> {
        Box::pin(async move {
            if self.in_the_way.as_ref().is_some_and(|path| path.exists()) {
                return Err("no space left on device".to_owned());
            }
            self.ended.lock().expect("lock").push(uid.0);
            let scripted = self.script.lock().expect("lock").pop_front();
            scripted.unwrap_or(Ok(Ended::default()))
        })
    }
}

/// Keeps what terminals are told.
#[derive(Debug, Default)]
struct Paper(Mutex<Vec<(u32, String)>>);

impl Terminals for Paper {
    fn tell(&self, uid: Uid, text: &str) -> usize {
        self.0.lock().expect("lock").push((uid.0, text.to_owned()));
        1
    }
}

/// A worker with records, clocks, a door and terminals.
struct Bed {
    path: PathBuf,
    clocks: Arc<Clocks>,
    door: Arc<Door>,
    paper: Arc<Paper>,
    metrics: Metrics,
}

impl Bed {
    fn new(name: &str) -> Self {
        Self::with(name, |_| Door::default())
    }

    fn with(name: &str, door: impl FnOnce(&Path) -> Door) -> Self {
        let name = format!("orion-agentd-warden-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(path.join("accounts")).expect("made");
        std::fs::create_dir_all(path.join("agent")).expect("made");
        let now = Now {
            boot_s: 1000.0,
            wall_s: wall(),
        };
        let door = door(&path);
        door.script.lock().expect("lock").push_back(Ok(Ended {
            locked: true,
            processes: 3,
        }));
        Self {
            path,
            clocks: Arc::new(Clocks(Mutex::new((now, "boot-a")))),
            door: Arc::new(door),
            paper: Arc::default(),
            metrics: Metrics::default(),
        }
    }

    /// The agent's warden; again for one that was restarted.
    fn warden(&self) -> Warden {
        let machine = Machine {
            clock: Arc::clone(&self.clocks) as Arc<dyn Clock>,
            access: Arc::clone(&self.door) as Arc<dyn Access>,
            terminals: Arc::clone(&self.paper) as Arc<dyn Terminals>,
            ..Machine::default()
        };
        Warden::new(&self.path, &machine, self.metrics.clone())
    }

    fn pass(&self, seconds: f64) {
        let mut clocks = self.clocks.0.lock().expect("lock");
        clocks.0.boot_s += seconds;
        clocks.0.wall_s += seconds;
    }

    fn step_wall(&self, seconds: f64) {
        self.clocks.0.lock().expect("lock").0.wall_s += seconds;
    }

    /// The record that create writes: the account ends that many seconds from now.
    fn create(&self, uid: u32, epoch: u64, seconds: f64) {
        let (now, boot_id) = *self.clocks.0.lock().expect("lock");
        self.record(&json!({
            "uid": uid, "name": "alice", "epoch": epoch, "state": "present", "boot_id": boot_id,
            "ends_at_wall": now.wall_s + seconds, "ends_at_boot": now.boot_s + seconds,
        }));
    }

    fn record(&self, record: &serde_json::Value) {
        let path = self.path.join(format!("accounts/{}.json", record["uid"]));
        let new = path.with_extension("json.new");
        std::fs::write(&new, record.to_string()).expect("written");
        std::fs::rename(new, path).expect("renamed");
    }

    fn told(&self) -> Vec<(u32, String)> {
        std::mem::take(&mut *self.paper.0.lock().expect("lock"))
    }

    fn ended(&self) -> Vec<u32> {
        std::mem::take(&mut *self.door.ended.lock().expect("lock"))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.path).expect("removed");
    }
}

/// Now, because records are files that were written now.
fn wall() -> f64 {
    crate::clock::wall_seconds(SystemTime::now())
}

#[tokio::test]
async fn with_the_control_plane_down_it_counts_down_asks_once_and_locks_at_the_end() {
    let bed = Bed::new("down");
    bed.create(UID, 1, 60.0);
    let warden = bed.warden();
    let mut asks = warden.asks();
    for _ in 0..60 {
        warden.look().await;
        assert!(!asks.has_changed().expect("open"));
        bed.pass(1.0);
    }
    for _ in 0..5 {
        warden.look().await;
        assert!(bed.ended().is_empty());
        bed.pass(1.0);
    }
    assert!(asks.has_changed().expect("open"));
    asks.mark_unchanged();
    // Looked at again and again, in case something comes back; counted once.
    for _ in 0..3 {
        warden.look().await;
        assert_eq!(bed.ended(), [UID]);
        bed.pass(1.0);
    }
    assert!(!asks.has_changed().expect("open"));
    assert_eq!(bed.metrics.locked.get(), 1);
}

#[tokio::test]
async fn it_looks_again_when_the_next_countdown_reaches_zero() {
    let bed = Bed::new("next");
    let warden = bed.warden();
    assert_eq!(warden.look().await, LOOK);
    bed.create(UID, 1, 0.25);
    let pause = warden.look().await;
    assert!(pause > Duration::from_millis(250) && pause < Duration::from_millis(300));
}

#[tokio::test]
async fn an_extension_is_honoured_and_survives_a_restart() {
    let bed = Bed::new("extension");
    bed.create(UID, 1, 60.0);
    let warden = bed.warden();
    let sent = warden.sending();
    warden.hear(&sent, &reply(&[(UID, 1, 3600.0)], &[]));
    drop(warden);
    bed.pass(3000.0);
    let warden = bed.warden();
    warden.look().await;
    bed.pass(10.0);
    warden.look().await;
    assert!(bed.ended().is_empty());
    bed.pass(590.0);
    warden.look().await;
    bed.pass(5.0);
    warden.look().await;
    assert_eq!(bed.ended(), [UID]);
}

#[tokio::test]
async fn an_end_that_is_heard_locks_at_once() {
    let bed = Bed::new("end");
    bed.create(UID, 1, 3600.0);
    let warden = bed.warden();
    let running = tokio::spawn(warden.clone().run());
    // It has looked, and would look again in a second.
    tokio::task::yield_now().await;
    assert!(bed.path.join("agent/countdowns").exists() && bed.ended().is_empty());
    let sent = warden.sending();
    warden.hear(&sent, &reply(&[], &[UID]));
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bed.ended(), [UID]);
    running.abort();
}

#[tokio::test]
async fn after_a_reboot_the_wall_clock_counts_but_never_more_than_was_left() {
    for (name, off_s, left_s) in [("off", 1000.0, 2600.0), ("back", -7200.0, 3600.0)] {
        let bed = Bed::new(&format!("reboot-{name}"));
        bed.create(UID, 1, 3600.0);
        bed.warden().look().await;
        {
            let mut clocks = bed.clocks.0.lock().expect("lock");
            clocks.0.boot_s = 5.0;
            clocks.0.wall_s += off_s;
            clocks.1 = "boot-b";
        }
        let warden = bed.warden();
        bed.pass(left_s - 1.0);
        warden.look().await;
        bed.pass(0.9);
        warden.look().await;
        bed.pass(5.0);
        warden.look().await;
        assert!(bed.ended().is_empty(), "{name}: not asked yet");
        bed.pass(5.0);
        warden.look().await;
        assert_eq!(bed.ended(), [UID], "{name}");
    }
}

#[tokio::test]
async fn a_clock_that_is_set_while_it_runs_ends_nobody_and_saves_nobody() {
    for step_s in [-7200.0, 7200.0] {
        let bed = Bed::new(&format!("step{step_s}"));
        bed.create(UID, 1, 60.0);
        let warden = bed.warden();
        warden.look().await;
        bed.step_wall(step_s);
        bed.pass(59.0);
        warden.look().await;
        bed.pass(1.0);
        warden.look().await;
        assert!(bed.ended().is_empty());
        bed.pass(5.0);
        warden.look().await;
        assert_eq!(bed.ended(), [UID]);
    }
}

#[tokio::test]
async fn an_account_without_a_record_or_below_the_managed_uids_is_never_touched() {
    let bed = Bed::new("norecord");
    bed.create(1000, 1, 1.0);
    bed.create(0, 1, 1.0);
    bed.record(&json!({"uid": UID, "epoch": 1, "state": "gone", "ends_at_wall": 0}));
    let warden = bed.warden();
    let sent = warden.sending();
    let told = [(UID, 1, 1.0), (1000, 1, 1.0), (UID + 1, 1, 1.0)];
    warden.hear(&sent, &reply(&told, &[UID, UID + 1, 1000, 0]));
    for _ in 0..10 {
        warden.look().await;
        bed.pass(100.0);
    }
    assert!(bed.ended().is_empty());
}

#[tokio::test]
async fn what_can_not_be_locked_is_tried_until_it_is_and_counted_then() {
    let bed = Bed::new("trying");
    bed.create(UID, 1, 0.0);
    {
        let mut script = bed.door.script.lock().expect("lock");
        script.clear();
        script.extend([Err("x".to_owned()), Err("x".to_owned())]);
    }
    let warden = bed.warden();
    warden.look().await;
    bed.pass(5.0);
    // No room is kept that could be given away.
    warden.0.reserve.release();
    for _ in 0..2 {
        warden.look().await;
        assert_eq!(bed.ended(), [UID]);
        assert_eq!(bed.metrics.locked.get(), 0);
    }
    for _ in 0..2 {
        warden.look().await;
        assert_eq!(bed.metrics.locked.get(), 1);
    }
    assert_eq!(bed.metrics.failures.get(), 2);
}

#[tokio::test]
async fn on_a_full_disk_the_room_that_was_kept_is_given_away() {
    let bed = Bed::with("full", |path| Door {
        in_the_way: Some(path.join("agent/reserve/0")),
        ..Door::default()
    });
    bed.create(UID, 1, 60.0);
    let warden = bed.warden();
    warden.look().await;
    assert!(bed.path.join("agent/reserve/15").exists());
    // And nothing can be written any more.
    std::fs::remove_file(bed.path.join("agent/countdowns")).expect("removed");
    std::fs::create_dir(bed.path.join("agent/countdowns")).expect("made");
    bed.pass(60.0);
    warden.look().await;
    bed.pass(5.0);
    warden.look().await;
    assert_eq!(bed.ended(), [UID]);
    assert!(!bed.path.join("agent/reserve/15").exists());
    std::fs::remove_file(bed.path.join(format!("accounts/{UID}.json"))).expect("removed");
    warden.look().await;
    assert!(bed.path.join("agent/reserve/15").exists(), "kept anew");
}

#[tokio::test]
async fn while_the_module_is_at_work_it_waits_a_while_and_then_no_longer() {
    let bed = Bed::new("busy");
    bed.create(UID, 1, 0.0);
    let module = files::try_lock(&bed.path.join("lock")).expect("opened");
    assert!(module.is_some());
    let warden = bed.warden();
    warden.look().await;
    for _ in 0..4 {
        bed.pass(5.0);
        assert!(bed.ended().is_empty());
        warden.look().await;
    }
    assert_eq!(bed.ended(), [UID]);
    drop(module);
}

#[tokio::test]
async fn an_account_that_was_made_anew_or_deleted_meanwhile_is_left_alone() {
    let bed = Bed::new("anew");
    bed.create(UID, 1, 0.0);
    let warden = bed.warden();
    warden.look().await;
    bed.pass(5.0);
    let now = bed.clocks.now();
    let over = warden.book().countdowns.advance(now).over;
    bed.create(UID, 2, 3600.0);
    warden.end(over[0]).await;
    bed.record(&json!({"uid": UID, "epoch": 1, "state": "gone", "ends_at_wall": 0}));
    warden.end(over[0]).await;
    assert!(bed.ended().is_empty());
    bed.create(UID, 1, 0.0);
    warden.end(over[0]).await;
    assert_eq!(bed.ended(), [UID]);
}

#[tokio::test]
async fn a_damaged_file_leaves_what_the_records_say() {
    let bed = Bed::new("damaged");
    bed.create(UID, 1, 60.0);
    std::fs::write(bed.path.join("agent/countdowns"), "{\"boot").expect("written");
    let warden = bed.warden();
    warden.look().await;
    bed.pass(60.0);
    warden.look().await;
    bed.pass(5.0);
    warden.look().await;
    assert_eq!(bed.ended(), [UID]);
}

#[tokio::test]
async fn records_that_can_not_be_read_stop_no_countdown() {
    let bed = Bed::new("unreadable");
    bed.create(UID, 1, 60.0);
    let warden = bed.warden();
    warden.look().await;
    std::fs::rename(bed.path.join("accounts"), bed.path.join("moved")).expect("moved");
    std::fs::write(bed.path.join("accounts"), "").expect("written");
    bed.pass(60.0);
    warden.look().await;
    bed.pass(5.0);
    warden.look().await;
    assert_eq!(bed.ended(), [UID]);
}

#[tokio::test]
async fn a_client_is_told_of_its_end_and_not_again_after_a_restart() {
    let bed = Bed::new("told");
    bed.create(UID, 1, 3600.0);
    let warden = bed.warden();
    warden.look().await;
    assert!(bed.told().is_empty());
    bed.pass(2700.0);
    warden.look().await;
    let told = bed.told();
    assert_eq!(told.len(), 1);
    assert!(
        told[0].0 == UID && told[0].1.contains("in 15 minutes"),
        "{told:?}"
    );
    drop(warden);
    let warden = bed.warden();
    warden.look().await;
    assert!(bed.told().is_empty());
    bed.pass(600.0);
    warden.look().await;
    assert!(bed.told()[0].1.contains("in 5 minutes"));
}

#[tokio::test]
async fn an_account_is_reported_locked_once_it_was_seen_to_be_and_no_more_when_made_anew() {
    let bed = Bed::new("reported");
    bed.create(UID, 1, 60.0);
    bed.create(UID + 1, 1, 3600.0);
    bed.record(&json!({"uid": UID + 2, "epoch": 1, "state": "gone", "ends_at_wall": 0}));
    bed.door
        .script
        .lock()
        .expect("lock")
        .push_front(Err("x".to_owned()));
    let warden = bed.warden();
    let locked = |warden: &Warden| {
        let accounts = warden.reported().expect("read");
        assert_eq!(accounts.len(), 3);
        let locked = accounts.iter().filter(|account| account.locked);
        locked
            .map(|account| (account.uid.0, account.epoch))
            .collect::<Vec<_>>()
    };
    warden.look().await;
    bed.pass(60.0);
    warden.look().await;
    assert!(locked(&warden).is_empty());
    warden.0.reserve.release();
    bed.pass(5.0);
    warden.look().await;
    assert!(locked(&warden).is_empty(), "it can't be locked yet");
    warden.look().await;
    assert_eq!(locked(&warden), [(UID, 1)]);
    drop(warden);
    let warden = bed.warden();
    warden.look().await;
    assert_eq!(locked(&warden), [(UID, 1)], "also after a restart");
    bed.ended();
    bed.create(UID, 2, 3600.0);
    for _ in 0..3 {
        warden.look().await;
        assert!(locked(&warden).is_empty());
        bed.pass(60.0);
    }
    assert!(
        bed.ended().is_empty(),
        "the new epoch has a time of its own"
    );
}

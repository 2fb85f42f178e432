use super::*;
use orion_core::api::{Countdown, Trust};

const UID: u32 = 1_000_002;
const BOOT: &str = "boot-a";

fn at(seconds: f64) -> Now {
    Now {
        boot_s: 1000.0 + seconds,
        wall_s: 2.0e9 + seconds,
    }
}

/// A record written at `at(0.0)` by a create whose bound is that many seconds.
fn bound(seconds: f64) -> Bound {
    Bound::At {
        wall_s: 2.0e9 + seconds,
        boot_s: 1000.0 + seconds,
        boot_id: BOOT.to_owned(),
        written_s: 2.0e9,
    }
}

fn records(epoch: u64, bound: Bound) -> BTreeMap<Uid, Option<Held>> {
    BTreeMap::from([(Uid(UID), Some(Held { epoch, bound }))])
}

fn counting(seconds: f64) -> Countdowns {
    let mut countdowns = Countdowns::new(BOOT.to_owned());
    countdowns.follow(&records(2, bound(seconds)), at(0.0));
    countdowns
}

pub(crate) fn reply(accounts: &[(u32, u64, f64)], end: &[u32]) -> BeatReply {
    let accounts = accounts.iter().map(|&(uid, epoch, ends_in_s)| Countdown {
        uid: Uid(uid),
        epoch,
        ends_in_s,
    });
    BeatReply {
        next_beat_s: 5,
        accounts: accounts.collect(),
        end: end.iter().copied().map(Uid).collect(),
        trust: Trust::default(),
    }
}

fn hear(countdowns: &mut Countdowns, sent: Now, reply: &BeatReply, now: Now) -> bool {
    let sent = countdowns.sending(sent);
    countdowns.hear(&sent, reply, now)
}

fn left(countdowns: &Countdowns, now: Now) -> f64 {
    countdowns.left_s(UID, now).expect("it counts")
}

fn is_over(countdowns: &mut Countdowns, now: Now) -> bool {
    !countdowns.advance(now).over.is_empty()
}

/// What a restart at `then` in `boot` goes on with.
fn restarted(countdowns: &Countdowns, now: Now, boot: &str, then: Now) -> Countdowns {
    let text = countdowns.text(now).expect("written");
    Countdowns::parse(&text, boot.to_owned(), then).expect("read")
}

#[test]
fn it_asks_once_at_zero_and_is_over_five_seconds_later() {
    let mut countdowns = counting(60.0);
    assert_eq!(countdowns.advance(at(59.9)), Due::default());
    assert!((countdowns.next_s(at(59.9)).expect("counts") - 0.1).abs() < 0.001);
    let due = countdowns.advance(at(60.0));
    assert_eq!((due.ask, due.over.len()), (true, 0));
    for second in [60.5, 62.0, 64.9] {
        assert_eq!(countdowns.advance(at(second)), Due::default(), "{second}");
    }
    for second in [65.0, 66.0, 1.0e6] {
        let due = countdowns.advance(at(second));
        let over: Vec<_> = due.over.iter().map(|o| (o.uid.0, o.epoch, o.why)).collect();
        assert_eq!(over, [(UID, 2, Why::TimeOver)]);
        assert!(!due.ask);
    }
}

#[test]
fn silence_alone_ends_nobody_whose_time_is_not_over() {
    let mut countdowns = counting(720.0 * 3600.0);
    for hour in 1..720 {
        let due = countdowns.advance(at(f64::from(hour) * 3600.0));
        assert_eq!(due, Due::default(), "{hour}");
    }
}

#[test]
fn an_answer_lengthens_counted_from_when_its_request_was_sent() {
    let mut countdowns = counting(60.0);
    // It was under way for ten seconds.
    hear(
        &mut countdowns,
        at(20.0),
        &reply(&[(UID, 2, 3600.0)], &[]),
        at(30.0),
    );
    assert_eq!(left(&countdowns, at(30.0)), 3590.0);
    assert_eq!(countdowns.advance(at(3619.0)), Due::default());
    assert!(countdowns.advance(at(3620.0)).ask);
}

#[test]
fn an_answer_to_the_asking_gives_more_time_and_zero_asks_anew() {
    let mut countdowns = counting(60.0);
    assert!(countdowns.advance(at(60.0)).ask);
    hear(
        &mut countdowns,
        at(60.1),
        &reply(&[(UID, 2, 10.0)], &[]),
        at(63.0),
    );
    // The machine slept through the time that it gained.
    assert!(countdowns.advance(at(80.0)).ask);
    assert!(is_over(&mut countdowns, at(85.0)));
}

#[test]
fn an_answer_that_gives_no_time_to_come_is_not_asked_for_again() {
    let mut countdowns = counting(60.0);
    assert!(countdowns.advance(at(60.0)).ask);
    for second in [61.0, 62.0, 64.0] {
        let told = reply(&[(UID, 2, 0.5)], &[]);
        hear(&mut countdowns, at(second), &told, at(second + 0.9));
        assert_eq!(countdowns.advance(at(second + 0.9)), Due::default());
    }
    assert!(is_over(&mut countdowns, at(65.0)));
}

#[test]
fn the_first_answer_starts_the_countdown_also_before_the_bound_that_create_left() {
    let mut countdowns = counting(90.0);
    let told = reply(&[(UID, 2, 20.0)], &[]);
    assert!(!hear(&mut countdowns, at(10.0), &told, at(10.0)));
    assert_eq!(left(&countdowns, at(10.0)), 20.0);
    assert!(countdowns.advance(at(30.0)).ask);
    assert!(is_over(&mut countdowns, at(35.0)));
}

#[test]
fn a_shorter_time_an_older_epoch_and_nonsense_change_nothing() {
    let mut countdowns = counting(60.0);
    hear(
        &mut countdowns,
        at(0.0),
        &reply(&[(UID, 2, 60.0)], &[]),
        at(0.0),
    );
    for (epoch, ends_in_s) in [
        (2, 5.0),
        (2, 0.0),
        (2, -1.0e300),
        (1, 3600.0),
        (2, f64::INFINITY),
        (2, f64::NAN),
    ] {
        let told = reply(&[(UID, epoch, ends_in_s)], &[]);
        assert!(!hear(&mut countdowns, at(10.0), &told, at(10.0)));
        assert_eq!(left(&countdowns, at(10.0)), 50.0, "{epoch} {ends_in_s}");
    }
}

#[test]
fn an_end_is_over_at_once_and_nothing_takes_it_back() {
    let mut countdowns = counting(60.0);
    assert!(hear(&mut countdowns, at(1.0), &reply(&[], &[UID]), at(2.0)));
    assert_eq!(countdowns.advance(at(2.0)).over[0].why, Why::Told);
    // Heard again it is no news, and more time comes too late.
    let told = reply(&[(UID, 2, 3600.0)], &[UID]);
    assert!(!hear(&mut countdowns, at(3.0), &told, at(4.0)));
    let mut countdowns = restarted(&countdowns, at(5.0), BOOT, at(6.0));
    assert!(is_over(&mut countdowns, at(6.0)));
    let mut countdowns = restarted(&countdowns, at(7.0), "boot-b", at(8.0));
    assert!(is_over(&mut countdowns, at(8.0)));
}

#[test]
fn an_end_is_about_the_account_that_was_known_when_the_request_was_sent() {
    let mut countdowns = counting(60.0);
    let sent = countdowns.sending(at(1.0));
    countdowns.follow(&records(3, bound(3600.0)), at(2.0));
    assert!(!countdowns.hear(&sent, &reply(&[], &[UID]), at(3.0)));
    assert!(!is_over(&mut countdowns, at(3.0)));
}

#[test]
fn an_account_without_a_record_gets_no_countdown_and_no_end() {
    let mut countdowns = Countdowns::new(BOOT.to_owned());
    let told = reply(&[(UID, 2, 1.0), (0, 1, 1.0)], &[UID, 0, 1000]);
    assert!(!hear(&mut countdowns, at(0.0), &told, at(0.0)));
    assert_eq!(countdowns.advance(at(1000.0)), Due::default());
    // And one whose record is removed or says that it is gone loses its countdown.
    let mut countdowns = counting(60.0);
    countdowns.follow(&BTreeMap::new(), at(1.0));
    assert_eq!(countdowns.advance(at(1000.0)), Due::default());
}

#[test]
fn a_record_that_can_not_be_read_stops_no_countdown() {
    let mut countdowns = counting(60.0);
    countdowns.follow(&BTreeMap::from([(Uid(UID), None)]), at(1.0));
    assert!(countdowns.advance(at(60.0)).ask);
}

#[test]
fn a_record_without_an_end_counts_from_the_first_answer_on() {
    let mut countdowns = Countdowns::new(BOOT.to_owned());
    countdowns.follow(&records(2, Bound::Unsaid), at(0.0));
    assert_eq!(countdowns.advance(at(1.0e6)), Due::default());
    hear(
        &mut countdowns,
        at(1.0e6),
        &reply(&[(UID, 2, 10.0)], &[]),
        at(1.0e6),
    );
    assert!(countdowns.advance(at(1.0e6 + 10.0)).ask);
}

#[test]
fn a_record_that_says_it_is_to_go_is_over_at_once() {
    let mut countdowns = counting(60.0);
    countdowns.follow(&records(3, Bound::ToGo), at(1.0));
    assert_eq!(countdowns.advance(at(1.0)).over[0].why, Why::ToGo);
}

#[test]
fn a_new_epoch_is_a_new_life_and_a_later_bound_of_the_same_lengthens() {
    let mut countdowns = counting(60.0);
    countdowns.follow(&records(2, bound(50.0)), at(1.0));
    assert_eq!(left(&countdowns, at(0.0)), 60.0);
    countdowns.follow(&records(2, bound(90.0)), at(1.0));
    assert_eq!(left(&countdowns, at(0.0)), 90.0);
    countdowns.advance(at(90.0));
    assert!(is_over(&mut countdowns, at(95.0)));
    countdowns.follow(&records(3, bound(200.0)), at(100.0));
    assert_eq!(countdowns.advance(at(100.0)), Due::default());
    assert_eq!(left(&countdowns, at(100.0)), 100.0);
}

#[test]
fn a_clock_set_back_or_forward_changes_nothing_while_running() {
    for step_s in [-7200.0, 7200.0] {
        let stepped = |seconds: f64| Now {
            wall_s: at(seconds).wall_s + step_s,
            ..at(seconds)
        };
        let mut countdowns = counting(60.0);
        countdowns.follow(&records(2, bound(60.0)), stepped(10.0));
        assert_eq!(left(&countdowns, stepped(10.0)), 50.0);
        assert_eq!(countdowns.advance(stepped(59.0)), Due::default());
        // Not while the agent restarts, either.
        let mut countdowns = restarted(&countdowns, at(10.0), BOOT, stepped(20.0));
        countdowns.follow(&records(2, bound(60.0)), stepped(20.0));
        assert_eq!(left(&countdowns, stepped(20.0)), 40.0);
        assert!(countdowns.advance(stepped(60.0)).ask);
    }
}

#[test]
fn a_restart_goes_on_with_what_was_learnt_and_asked() {
    let mut countdowns = counting(60.0);
    hear(
        &mut countdowns,
        at(10.0),
        &reply(&[(UID, 2, 100.0)], &[]),
        at(10.0),
    );
    let mut countdowns = restarted(&countdowns, at(10.0), BOOT, at(50.0));
    countdowns.follow(&records(2, bound(60.0)), at(50.0));
    assert_eq!(left(&countdowns, at(50.0)), 60.0);
    assert!(countdowns.advance(at(110.0)).ask);
    // One that restarts all the time does not ask for ever.
    let mut countdowns = restarted(&countdowns, at(111.0), BOOT, at(113.0));
    assert_eq!(countdowns.advance(at(113.0)), Due::default());
    assert!(is_over(&mut countdowns, at(115.0)));
}

/// After a reboot, with another count of CLOCK_BOOTTIME.
fn rebooted(wall_s: f64) -> Now {
    Now {
        boot_s: 7.0,
        wall_s: 2.0e9 + wall_s,
    }
}

#[test]
fn after_a_reboot_the_wall_clock_counts_but_never_more_than_was_left() {
    for (wall_s, wanted) in [
        (40.0, 30.0),    // It was off for 30 of the 60 seconds that were left.
        (300.0, 0.0),    // It was off for longer.
        (-7200.0, 60.0), // The clock was set back: as if it had been off for no time.
    ] {
        let countdowns = counting(70.0);
        let now = rebooted(wall_s);
        let mut countdowns = restarted(&countdowns, at(10.0), "boot-b", now);
        countdowns.follow(&records(2, bound(70.0)), now);
        assert_eq!(left(&countdowns, now), wanted, "{wall_s}");
    }
}

#[test]
fn an_account_that_was_made_right_before_a_reboot_has_no_more_than_create_gave() {
    for (wall_s, wanted) in [(20.0, 40.0), (100.0, 0.0), (-7200.0, 60.0)] {
        let mut countdowns = Countdowns::new("boot-b".to_owned());
        countdowns.follow(&records(2, bound(60.0)), rebooted(wall_s));
        assert_eq!(left(&countdowns, rebooted(wall_s)), wanted, "{wall_s}");
    }
}

#[test]
fn it_is_written_when_something_changes_and_now_and_then() {
    let mut countdowns = Countdowns::new(BOOT.to_owned());
    assert!(!countdowns.needs_saving(at(0.0)));
    countdowns.follow(&records(2, bound(600.0)), at(0.0));
    assert!(countdowns.needs_saving(at(0.0)));
    hear(
        &mut countdowns,
        at(0.0),
        &reply(&[(UID, 2, 600.0)], &[]),
        at(0.0),
    );
    countdowns.was_saved(at(0.0));
    hear(
        &mut countdowns,
        at(1.0),
        &reply(&[(UID, 2, 599.5)], &[]),
        at(1.0),
    );
    assert!(!countdowns.needs_saving(at(1.0)), "half a second");
    assert!(!countdowns.needs_saving(at(29.0)));
    assert!(countdowns.needs_saving(at(30.0)), "what is left");
    let stepped = Now {
        wall_s: at(2.0).wall_s - 7200.0,
        ..at(2.0)
    };
    assert!(countdowns.needs_saving(stepped), "the clock");
    hear(
        &mut countdowns,
        at(1.0),
        &reply(&[(UID, 2, 700.0)], &[]),
        at(1.0),
    );
    assert!(countdowns.needs_saving(at(1.0)), "an extension");
    countdowns.was_saved(at(1.0));
    hear(&mut countdowns, at(2.0), &reply(&[], &[UID]), at(2.0));
    assert!(countdowns.needs_saving(at(2.0)), "an end");
    countdowns.was_saved(at(2.0));
    assert!(!countdowns.needs_saving(at(1.0e6)), "nothing counts");
}

#[test]
fn a_damaged_file_is_none() {
    for text in ["", "{", "[]", "{\"boot_id\":\"b\"}"] {
        assert!(Countdowns::parse(text, BOOT.to_owned(), at(0.0)).is_none());
    }
}

/// The minutes of the notices that are due in each second from `first` on.
fn told(countdowns: &mut Countdowns, seconds: std::ops::Range<u32>) -> Vec<(u32, u32)> {
    let mut told = Vec::new();
    for second in seconds {
        let now = at(f64::from(second));
        countdowns.advance(now);
        let due = countdowns.notices(now);
        told.extend(
            due.iter()
                .map(|(_, left_s)| (second, (left_s / 60.0).ceil() as u32)),
        );
    }
    told
}

#[test]
fn a_client_is_told_fifteen_five_and_one_minute_before_its_end_once_each() {
    let mut countdowns = counting(3600.0);
    let wanted = [(2700, 15), (3300, 5), (3540, 1)];
    assert_eq!(told(&mut countdowns, 0..3700), wanted);
}

#[test]
fn a_rental_shorter_than_a_step_is_told_of_the_later_ones_alone() {
    for (seconds, wanted) in [
        (600.0, vec![(300, 5), (540, 1)]),
        (300.0, vec![(240, 1)]),
        (30.0, vec![]),
    ] {
        let mut countdowns = counting(seconds);
        assert_eq!(told(&mut countdowns, 0..700), wanted, "{seconds}");
    }
    // The bound that create left lies beyond the step, the end itself does not.
    let mut countdowns = counting(960.0);
    hear(
        &mut countdowns,
        at(5.0),
        &reply(&[(UID, 2, 895.0)], &[]),
        at(5.0),
    );
    assert_eq!(told(&mut countdowns, 6..700), [(600, 5)]);
}

#[test]
fn an_extension_makes_the_steps_that_lie_ahead_new_again() {
    let mut countdowns = counting(3600.0);
    assert_eq!(told(&mut countdowns, 0..3400), [(2700, 15), (3300, 5)]);
    // 200 s were left; now 500 are.
    hear(
        &mut countdowns,
        at(3400.0),
        &reply(&[(UID, 2, 500.0)], &[]),
        at(3400.0),
    );
    assert_eq!(told(&mut countdowns, 3400..3850), [(3600, 5), (3840, 1)]);
    hear(
        &mut countdowns,
        at(3850.0),
        &reply(&[(UID, 2, 1000.0)], &[]),
        at(3850.0),
    );
    let wanted = [(3950, 15), (4550, 5), (4790, 1)];
    assert_eq!(told(&mut countdowns, 3850..5000), wanted);
}

#[test]
fn a_step_that_was_slept_through_is_told_late_with_what_is_left() {
    let mut countdowns = counting(3600.0);
    assert_eq!(told(&mut countdowns, 0..10), []);
    assert_eq!(told(&mut countdowns, 3420..3500), [(3420, 3)]);
    assert_eq!(told(&mut countdowns, 3601..3602), []);
}

#[test]
fn a_restart_tells_nobody_twice() {
    let mut countdowns = counting(3600.0);
    assert_eq!(told(&mut countdowns, 0..2701), [(2700, 15)]);
    assert!(countdowns.needs_saving(at(2700.0)));
    let mut countdowns = restarted(&countdowns, at(2700.0), BOOT, at(2710.0));
    assert_eq!(told(&mut countdowns, 2710..3400), [(3300, 5)]);
}

#[test]
fn an_account_that_is_over_is_told_nothing() {
    let mut countdowns = counting(3600.0);
    hear(&mut countdowns, at(0.0), &reply(&[], &[UID]), at(0.0));
    assert_eq!(told(&mut countdowns, 0..3700), []);
}

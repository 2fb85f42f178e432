//! What can happen, and how often.

use orion_core::{RunKind, RunOutcome, UndoReason};
use orion_store::Drain;
use proptest::prelude::*;

/// Chooses one of what there is: modulo its number.
pub(crate) type Pick = u8;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Single(Event),
    /// At once.
    Both(Event, Event),
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Client(Client),
    Executor(Executor),
    Job(Job),
    Node(Pick, Node),
    /// A worker registers, at its own port or at a new one.
    Register {
        worker: Pick,
        moved: bool,
    },
    /// Seconds pass.
    Wait(u32),
    /// Seconds pass in which everybody does what they should, but for one play.
    Calm(u32, Play),
}

#[derive(Clone, Debug)]
pub(crate) enum Client {
    Rent {
        bob: bool,
        count: u32,
        seconds: u64,
        key: Option<u8>,
        /// apid hashes at once; else it takes its time.
        hashed: bool,
    },
    /// apid has hashed: the runs are queued.
    Provision(Pick),
    Release {
        pick: Pick,
        stranger: bool,
    },
    Extend {
        pick: Pick,
        seconds: u64,
    },
    Undo(Pick, UndoReason),
}

#[derive(Clone, Debug)]
pub(crate) enum Executor {
    Claim {
        instance: u8,
        kind: RunKind,
        limit: u32,
    },
    /// A play does a claimed run, and its executor records it.
    Play(Pick, Play),
    /// A play that nobody waits for any more acts and is recorded, whatever its run has become.
    Late(Pick, Option<RunOutcome>),
    /// An instance records a run that another one has claimed.
    Steal(Pick),
    Renew(u8),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Job {
    Expire,
    Reconcile,
    QueueCleaning,
    QueueInspections,
    Migrate,
    OverrideBrakes,
    Reset,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Node {
    /// Its pending address met its key.
    Confirm,
    /// Its pending address met another key.
    Refuse,
    Probe(Probe),
    /// Silent until it is taken for dead, unless something forbids it.
    Dies,
    Beat,
    Unquarantine,
    Forget,
    Drain(Drain),
}

/// What becomes of a play's host.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Play {
    /// It acts, and what it says is recorded.
    Well,
    /// It acts, and something else is recorded.
    Unheard(RunOutcome),
    /// It does nothing, and this is recorded.
    Fails(RunOutcome),
    /// The executor dies with it; it may still act.
    Crashes,
    /// It acts, and is recorded twice.
    Twice,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Probe {
    LoggedIn,
    NoAnswer,
    WrongKey,
    Refused,
}

pub(crate) fn any() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => event().prop_map(Step::Single),
        1 => (event(), event()).prop_map(|(one, other)| Step::Both(one, other)),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let seconds = prop_oneof![4 => 1..4_u32, 3 => 20..70_u32, 1 => 600..4_000_u32];
    prop_oneof![
        12 => client().prop_map(Event::Client),
        20 => executor().prop_map(Event::Executor),
        9 => job().prop_map(Event::Job),
        4 => (pick(), node()).prop_map(|(pick, node)| Event::Node(pick, node)),
        1 => (pick(), flag()).prop_map(|(worker, moved)| Event::Register { worker, moved }),
        4 => seconds.prop_map(Event::Wait),
        8 => (1..8_u32, play()).prop_map(|(seconds, play)| Event::Calm(seconds, play)),
    ]
}

fn client() -> impl Strategy<Value = Client> {
    let undo = prop_oneof![
        Just(UndoReason::Deadline),
        Just(UndoReason::NoNode),
        Just(UndoReason::Released)
    ];
    let key = prop_oneof![3 => Just(None), 1 => (0..3_u8).prop_map(Some)];
    prop_oneof![
        10 => (flag(), 1..=3_u32, 10..7_200_u64, key, 0..4_u8).prop_map(
            |(bob, count, seconds, key, n)| Client::Rent { bob, count, seconds, key, hashed: n > 0 }
        ),
        4 => pick().prop_map(Client::Provision),
        4 => (pick(), 0..8_u8).prop_map(|(pick, n)| Client::Release { pick, stranger: n == 0 }),
        2 => (pick(), 1..5_000_u64).prop_map(|(pick, seconds)| Client::Extend { pick, seconds }),
        1 => (pick(), undo).prop_map(|(pick, reason)| Client::Undo(pick, reason)),
    ]
}

fn executor() -> impl Strategy<Value = Executor> {
    let kind = prop_oneof![
        3 => Just(RunKind::Provision),
        3 => Just(RunKind::Clean),
        1 => Just(RunKind::Inspect)
    ];
    prop_oneof![
        10 => (1..=2_u8, kind, 1..=4_u32)
            .prop_map(|(instance, kind, limit)| Executor::Claim { instance, kind, limit }),
        16 => (pick(), play()).prop_map(|(pick, play)| Executor::Play(pick, play)),
        3 => (pick(), prop::option::of(outcome())).prop_map(|(pick, said)| Executor::Late(pick, said)),
        1 => pick().prop_map(Executor::Steal),
        1 => (1..=2_u8).prop_map(Executor::Renew),
    ]
}

fn play() -> impl Strategy<Value = Play> {
    prop_oneof![
        10 => Just(Play::Well),
        3 => outcome().prop_map(Play::Unheard),
        6 => outcome().prop_map(Play::Fails),
        2 => Just(Play::Crashes),
        1 => Just(Play::Twice),
    ]
}

/// What a play may say although it is not so: never that it succeeded.
fn outcome() -> impl Strategy<Value = RunOutcome> {
    prop_oneof![
        4 => Just(RunOutcome::NoResult),
        3 => Just(RunOutcome::Failed),
        3 => Just(RunOutcome::Unreachable),
        1 => Just(RunOutcome::HostKeyMismatch),
        2 => Just(RunOutcome::NameTaken),
        1 => Just(RunOutcome::StaleEpoch),
        1 => Just(RunOutcome::Refused),
        3 => Just(RunOutcome::NotGone),
        1 => Just(RunOutcome::Dirty),
    ]
}

fn job() -> impl Strategy<Value = Job> {
    prop_oneof![
        2 => Just(Job::Expire),
        4 => Just(Job::Migrate),
        1 => Just(Job::OverrideBrakes),
        4 => Just(Job::Reconcile),
        4 => Just(Job::QueueCleaning),
        3 => Just(Job::QueueInspections),
        1 => Just(Job::Reset),
    ]
}

fn node() -> impl Strategy<Value = Node> {
    let probe = prop_oneof![
        3 => Just(Probe::LoggedIn),
        2 => Just(Probe::NoAnswer),
        1 => Just(Probe::WrongKey),
        1 => Just(Probe::Refused),
    ];
    prop_oneof![
        1 => Just(Node::Confirm),
        1 => Just(Node::Refuse),
        5 => probe.prop_map(Node::Probe),
        6 => Just(Node::Dies),
        1 => Just(Node::Beat),
        3 => Just(Node::Unquarantine),
        1 => Just(Node::Forget),
        6 => Just(Node::Drain(Drain::Moves)),
        1 => Just(Node::Drain(Drain::RunsOut)),
        6 => Just(Node::Drain(Drain::No)),
    ]
}

fn pick() -> impl Strategy<Value = Pick> {
    proptest::num::u8::ANY
}

fn flag() -> impl Strategy<Value = bool> {
    proptest::bool::ANY
}

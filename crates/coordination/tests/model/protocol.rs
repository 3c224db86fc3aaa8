//! What owners, Redis and the database do, one indivisible step at a time.
//!
//! What makes the page short, without leaving a case out:
//!
//! * There is no clock. A lease may expire at any step while its owner believes in it for ever, so a pause of any length
//!   and a clock of any speed are covered. A release is an early expiry; a renewal only puts the expiry off.
//! * A message takes any time, so the moment at which an owner sends it needs no step of its own: an owner that has got
//!   the lease sends its write at once, and the write arrives whenever it likes. A reply's delay is part of the delay of
//!   what its receiver sends next.
//! * An owner keeps nothing from one try to the next, so one that comes back is another owner. Who is who does not matter:
//!   owners are kept sorted.

use std::collections::BTreeSet;

use stateright::{Model, Property};

/// Violated: an old holder's write landed after a newer one's.
pub const LATE_WRITE: &str = "no write of an old holder lands after a newer one's";
/// Violated: two holders had the same token, or the later one the lower.
pub const TOKEN_REPEATED: &str = "each holder has a higher token than those before it";

/// How a write is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// Whoever believes that it holds the lease writes.
    None,
    /// The token comes from a counter in Redis; the row remembers the highest that wrote it and refuses lower ones.
    RedisAlone,
    /// Ours: the token is recorded in the database before the owner has the lease, and a write proves that it is the
    /// highest recorded one.
    Recorded,
}

/// The bounds within which everything is tried.
#[derive(Clone, Debug)]
pub struct Protocol {
    pub fencing: Fencing,
    /// How many try to get the lease and then to write once.
    pub owners: usize,
    /// How often Redis loses its data or goes back in time.
    pub faults: u8,
    /// How many commands to Redis arrive twice.
    pub duplicates: u8,
}

/// What an owner has sent and has not arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    /// To Redis: give me the lease. With the highest token the database knows, where that was asked.
    Acquire { floor: Option<u8> },
    /// To the database: what is the highest token?
    ReadFloor,
    /// To the database: this is my token.
    Record { token: u8 },
    /// To the database, in one transaction: prove my token and write the row.
    Write { token: u8, rank: u8 },
}

/// What an owner waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Phase {
    Acquiring,
    ReadingFloor,
    Recording,
    /// It has had the lease, or has seen it in other hands.
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    phase: Phase,
    /// Its messages under way.
    sent: BTreeSet<Message>,
    /// Whether Redis has given it the lease, which is not what it believes.
    is_holder: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    owners: Vec<Owner>,
    // Redis.
    counter: Option<u8>,
    faults: u8,
    duplicates: u8,
    // The database.
    highest: u8,
    row_token: u8,
    // What only the reader of this page sees.
    /// How many have come to hold the lease; the rank of a holder says how many did before it.
    holders: u8,
    highest_token: u8,
    newest_writer: u8,
    late_write: bool,
    token_repeated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Arrive(usize, Message),
    /// And will arrive once more: the client of Redis may send a command twice, that of the database never does.
    ArriveTwice(usize, Message),
    Expire,
    LoseData,
    GoBack,
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        // Without the database's part a counter that is missing begins at zero.
        let floor = (self.fencing != Fencing::Recorded).then_some(0);
        let mut owner = Owner {
            phase: Phase::Acquiring,
            sent: BTreeSet::new(),
            is_holder: false,
        };
        owner.sent.insert(Message::Acquire { floor });
        vec![State {
            owners: vec![owner; self.owners],
            counter: None,
            faults: self.faults,
            duplicates: self.duplicates,
            highest: 0,
            row_token: 0,
            holders: 0,
            highest_token: 0,
            newest_writer: 0,
            late_write: false,
            token_repeated: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, owner) in state.owners.iter().enumerate() {
            for message in &owner.sent {
                actions.push(Action::Arrive(index, *message));
                if state.duplicates > 0 && matches!(message, Message::Acquire { .. }) {
                    actions.push(Action::ArriveTwice(index, *message));
                }
            }
        }
        if state.owners.iter().any(|owner| owner.is_holder) {
            actions.push(Action::Expire);
        }
        if state.faults > 0 && state.counter.is_some() {
            actions.extend([Action::LoseData, Action::GoBack]);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Arrive(index, message) => {
                state.owners[index].sent.remove(&message);
                self.arrive(&mut state, index, message);
            }
            Action::ArriveTwice(index, message) => {
                state.duplicates -= 1;
                self.arrive(&mut state, index, message);
            }
            Action::Expire => state.expire(),
            Action::LoseData => {
                state.faults -= 1;
                state.counter = None;
                state.expire();
            }
            // A failover to a replica that had not heard of the last lease.
            Action::GoBack => {
                state.faults -= 1;
                state.counter = state.counter.map(|counter| counter.saturating_sub(1));
                state.expire();
            }
        }
        state.owners.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(LATE_WRITE, |_, state: &State| !state.late_write),
            Property::always(TOKEN_REPEATED, |_, state: &State| !state.token_repeated),
            Property::sometimes("one holder writes after another", |_, state: &State| {
                state.newest_writer > 1
            }),
            Property::sometimes(
                "after every fault the lease is taken and written with",
                |model: &Self, state: &State| {
                    state.faults == 0 && usize::from(state.newest_writer) == model.owners
                },
            ),
        ]
    }
}

impl Protocol {
    fn arrive(&self, state: &mut State, index: usize, message: Message) {
        match message {
            Message::Acquire { floor } => self.acquire(state, index, floor),
            Message::ReadFloor => {
                let floor = Some(state.highest);
                let asked = Message::Acquire { floor };
                state.owners[index].go_on(Phase::ReadingFloor, Phase::Acquiring, asked);
            }
            Message::Record { token } => state.record(index, token),
            Message::Write { token, rank } => self.write(state, token, rank),
        }
    }

    /// `acquire.lua`, and what its caller makes of the answer.
    fn acquire(&self, state: &mut State, index: usize, floor: Option<u8>) {
        let mut holders = state.owners.iter().enumerate();
        let owner = match holders.find(|(_, owner)| owner.is_holder) {
            Some((holder, _)) if holder != index => return state.owners[index].done(),
            _ => &mut state.owners[index],
        };
        let token = match (state.counter, floor) {
            (None, None) => {
                return owner.go_on(Phase::Acquiring, Phase::ReadingFloor, Message::ReadFloor);
            }
            // The same command again: it has its token.
            (Some(counter), floor)
                if owner.is_holder && floor.is_none_or(|floor| counter > floor) =>
            {
                counter
            }
            (counter, floor) => counter.max(floor).unwrap_or_default() + 1,
        };
        owner.is_holder = true;
        state.counter = Some(token);
        if self.fencing == Fencing::Recorded {
            let record = Message::Record { token };
            owner.go_on(Phase::Acquiring, Phase::Recording, record);
        } else if owner.phase == Phase::Acquiring {
            state.hold(index, token);
        }
    }

    fn write(&self, state: &mut State, token: u8, rank: u8) {
        let accepted = match self.fencing {
            Fencing::None => true,
            Fencing::RedisAlone => token >= state.row_token,
            // The lock on the token's row makes this and `record` exclude each other.
            Fencing::Recorded => token == state.highest,
        };
        if accepted {
            state.row_token = token;
            state.late_write |= rank < state.newest_writer;
            state.newest_writer = state.newest_writer.max(rank);
        }
    }
}

impl State {
    /// `lease::fence::record`, and what its caller makes of the answer.
    fn record(&mut self, index: usize, token: u8) {
        if token > self.highest {
            self.highest = token;
            self.hold(index, token);
        } else {
            // Redis has gone back in time.
            self.owners[index].go_on(Phase::Recording, Phase::ReadingFloor, Message::ReadFloor);
        }
    }

    /// From here on the owner believes that it holds the lease.
    fn hold(&mut self, index: usize, token: u8) {
        self.holders += 1;
        self.token_repeated |= token <= self.highest_token;
        self.highest_token = self.highest_token.max(token);
        let rank = self.holders;
        let owner = &mut self.owners[index];
        owner.go_on(owner.phase, Phase::Done, Message::Write { token, rank });
    }

    fn expire(&mut self) {
        for owner in &mut self.owners {
            owner.is_holder = false;
        }
    }
}

impl Owner {
    /// Takes an answer and sends what follows from it. One that it does not wait for, because it came twice or too late,
    /// changes nothing.
    fn go_on(&mut self, from: Phase, to: Phase, message: Message) {
        if self.phase == from {
            self.phase = to;
            self.sent.insert(message);
        }
    }

    fn done(&mut self) {
        if self.phase == Phase::Acquiring {
            self.phase = Phase::Done;
        }
    }
}

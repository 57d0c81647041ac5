//! Cancelling, from any thread or signal handler.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::fork_count;

/// Cancels the chats that run on the [`Client`](crate::Client) it came from, or on all one-liners.
///
/// It takes effect within 100 ms in every phase of a chat, except inside the system's name
/// resolution. It may be used on any thread and in a signal handler.
#[derive(Clone)]
pub struct CancelHandle(pub(crate) Arc<Gate>);

impl CancelHandle {
    /// Cancels the chats that run now; `false` where none does. A later chat is not affected.
    pub fn cancel(&self) -> bool {
        self.0.cancel()
    }
}

impl fmt::Debug for CancelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CancelHandle")
    }
}

/// How many chats run in this process, and how often they were cancelled: in one atomic, so that a
/// cancel and the end of a chat have one order.
#[derive(Default)]
pub(crate) struct Gate(AtomicU64);

/// What a gate holds.
#[derive(Clone, Copy)]
struct State {
    /// The process that counts, by its forks: the parent's chats do not run in the child.
    forks: u16,
    /// 24 bits.
    cancels: u32,
    /// 24 bits.
    chats: u32,
}

const MASK: u32 = (1 << 24) - 1;

impl State {
    fn pack(self) -> u64 {
        u64::from(self.forks) << 48 | u64::from(self.cancels & MASK) << 24 | u64::from(self.chats)
    }

    fn unpack(packed: u64) -> State {
        State {
            forks: (packed >> 48) as u16,
            cancels: (packed >> 24) as u32 & MASK,
            chats: packed as u32 & MASK,
        }
    }

    /// As this process sees it.
    fn here(self) -> State {
        let forks = fork_count() as u16;
        match self.forks == forks {
            true => self,
            false => State {
                forks,
                chats: 0,
                ..self
            },
        }
    }
}

impl Gate {
    /// Lock-free, and so fit for a signal handler. The state before the change, or `Err` with it
    /// where there was none.
    fn change(&self, change: impl Fn(State) -> Option<State>) -> Result<State, State> {
        let packed = |packed| change(State::unpack(packed).here()).map(State::pack);
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, packed)
            .map(|before| State::unpack(before).here())
            .map_err(|still| State::unpack(still).here())
    }

    pub fn cancel(&self) -> bool {
        let cancel = |state: State| State {
            cancels: state.cancels + 1,
            ..state
        };
        self.change(|state| (state.chats > 0).then(|| cancel(state)))
            .is_ok()
    }

    /// One chat more, or less. The state before.
    fn count(&self, chats: i32) -> State {
        let counted = |state: State| State {
            chats: state.chats.saturating_add_signed(chats),
            ..state
        };
        let (Ok(before) | Err(before)) = self.change(|state| Some(counted(state)));
        before
    }
}

/// Tells whether a chat has been cancelled.
#[derive(Clone)]
pub(crate) struct Watch {
    gate: Arc<Gate>,
    cancels: u32,
}

impl Watch {
    pub fn is_cancelled(&self) -> bool {
        State::unpack(self.gate.0.load(Ordering::Acquire)).cancels != self.cancels
    }
}

/// A chat that runs. Dropping it says that the chat is over.
pub(crate) struct Running {
    watch: Watch,
    forks: u16,
    over: bool,
}

impl Running {
    pub fn new(gate: Arc<Gate>) -> Running {
        let State { forks, cancels, .. } = gate.count(1);
        Running {
            watch: Watch { gate, cancels },
            forks,
            over: false,
        }
    }

    /// Cancels this chat, and the others that run behind the same gate.
    pub fn handle(&self) -> CancelHandle {
        CancelHandle(self.watch.gate.clone())
    }

    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    pub fn is_cancelled(&self) -> bool {
        self.watch.is_cancelled()
    }

    /// The chat is over: from here on a cancel finds it no more. Whether one came before.
    pub fn end(&mut self) -> bool {
        // A chat that the parent ran is not counted in the child, where it may be dropped.
        let is_counted = self.forks == fork_count() as u16;
        if std::mem::replace(&mut self.over, true) || !is_counted {
            return false;
        }
        self.watch.gate.count(-1).cancels != self.watch.cancels
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

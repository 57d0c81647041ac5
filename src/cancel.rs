//! Cancelling, from any thread or signal handler.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

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

/// How many chats run (the low half), and how often they were cancelled (the high half): in one
/// atomic, so that a cancel and the end of a chat have one order.
#[derive(Default)]
pub(crate) struct Gate {
    state: AtomicU64,
    /// The process that counts, by its forks: the parent's chats do not run in the child.
    forks: AtomicU32,
}

const ONE_CANCEL: u64 = 1 << 32;

fn chats(state: u64) -> u64 {
    state % ONE_CANCEL
}

fn cancels(state: u64) -> u64 {
    state / ONE_CANCEL
}

impl Gate {
    /// Lock-free, and so fit for a signal handler.
    pub fn cancel(&self) -> bool {
        let is_ours = self.forks.load(Ordering::Relaxed) == fork_count();
        let cancel = |state| (chats(state) > 0).then(|| state.wrapping_add(ONE_CANCEL));
        let changed = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, cancel);
        is_ours && changed.is_ok()
    }
}

/// A chat that runs. Dropping it says that the chat is over.
pub(crate) struct Running {
    gate: Arc<Gate>,
    forks: u32,
    cancels: u64,
    over: bool,
}

impl Running {
    pub fn new(gate: Arc<Gate>) -> Running {
        let forks = fork_count();
        if gate.forks.swap(forks, Ordering::Relaxed) != forks {
            // The first chat in the child of a fork.
            gate.state.fetch_and(!(ONE_CANCEL - 1), Ordering::AcqRel);
        }
        let before = gate.state.fetch_add(1, Ordering::AcqRel);
        Running {
            gate,
            forks,
            cancels: cancels(before),
            over: false,
        }
    }

    /// Cancels this chat, and the others that run behind the same gate.
    pub fn handle(&self) -> CancelHandle {
        CancelHandle(self.gate.clone())
    }

    pub fn is_cancelled(&self) -> bool {
        cancels(self.gate.state.load(Ordering::Acquire)) != self.cancels
    }

    /// The chat is over: from here on a cancel finds it no more. Whether one came before.
    pub fn end(&mut self) -> bool {
        // A chat that the parent ran is not counted in the child, where it may be dropped.
        let is_counted = self.forks == self.gate.forks.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.over, true) || !is_counted {
            return false;
        }
        let before = self.gate.state.fetch_sub(1, Ordering::AcqRel);
        cancels(before) != self.cancels
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

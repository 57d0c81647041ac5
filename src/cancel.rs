//! Cancelling, from any thread or signal handler.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
pub(crate) struct Gate(AtomicU64);

const ONE_CANCEL: u64 = 1 << 32;

impl Gate {
    /// Lock-free, and so fit for a signal handler.
    pub fn cancel(&self) -> bool {
        let cancel = |state: u64| match state as u32 {
            0 => None,
            _ => Some(state.wrapping_add(ONE_CANCEL)),
        };
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, cancel)
            .is_ok()
    }
}

/// A chat that runs. Dropping it says that the chat is over.
pub(crate) struct Running {
    gate: Arc<Gate>,
    cancels: u32,
    over: bool,
}

impl Running {
    pub fn new(gate: Arc<Gate>) -> Running {
        let before = gate.0.fetch_add(1, Ordering::AcqRel);
        Running {
            gate,
            cancels: (before >> 32) as u32,
            over: false,
        }
    }

    pub fn is_cancelled(&self) -> bool {
        (self.gate.0.load(Ordering::Acquire) >> 32) as u32 != self.cancels
    }

    /// The chat is over: from here on a cancel finds it no more. Whether one came before.
    pub fn end(&mut self) -> bool {
        if std::mem::replace(&mut self.over, true) {
            return false;
        }
        let before = self.gate.0.fetch_sub(1, Ordering::AcqRel);
        (before >> 32) as u32 != self.cancels
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

//! HTTP over sockets, in steps that never wait long.
//!
//! ```text
//! Pool ──take──▶ Connecting ──▶ Wire ──▶ Exchange ──▶ Answer + Body ──end──▶ Pool
//!                (TCP, proxy, TLS)        (request, header)  (bytes)
//! ```
//!
//! Every [socket](crate::sys::Socket) waits for one [`SLICE`] at most. Every step here, whatever it
//! waits for, returns after a slice or two at the latest, with "nothing yet", and is called again. So
//! the caller looks at its cancel flag, its ticks and its callbacks *between* two steps: in each
//! phase alike, on its own thread, with no lock held and with nothing of ours on the stack but
//! the caller's loop. An interrupted system call is a step that brought nothing.
//!
//! The file `http` alone names the HTTP library, `tls` alone makes TLS configurations.

mod body;
mod connect;
mod exchange;
mod http;
mod pool;
mod tls;
mod tunnel;
mod wire;

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};

pub(crate) use body::{Body, Part};
pub(crate) use exchange::{Answer, Exchange};
pub(crate) use http::{Request, prepare};
pub(crate) use pool::{Pool, Route};

pub(crate) use crate::sys::SLICE;

/// The time limits of a chat; `None`: no limit.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Until connected: TCP, proxy and TLS, name resolution aside.
    pub connect: Option<Duration>,
    /// From the request sent to the answer's header.
    pub response: Option<Duration>,
    /// Silence inside a body.
    pub idle: Option<Duration>,
    /// The end of the whole chat, and how long that was.
    pub total: Option<(Instant, Duration)>,
}

impl Limits {
    /// Fails where the whole chat's time is up.
    pub fn check_total(&self, now: Instant, url: &str) -> Result<(), Error> {
        match self.total {
            Some((end, length)) if now >= end => Err(timeout(
                "timeout",
                format!(
                    "the chat took longer than its {} ms (timeout_ms), in the talk with {url}",
                    length.as_millis()
                ),
            )),
            _ => Ok(()),
        }
    }
}

/// A time limit that passed; `code` is its option's name without the unit.
fn timeout(code: &'static str, message: String) -> Error {
    Error::new(ErrorKind::Timeout, message).with_code(code)
}

/// Whether an I/O error only says that a slice is over or a signal came.
fn is_not_yet(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted)
}

//! For the fuzzers in `fuzz/`, and with `cfg(gptalk_fuzzing)` alone: a network in memory.
//!
//! All above the sockets is what users run: pool, HTTP, protocols, streams. A connection brings
//! the next answer that its thread has been [given](answer); without one it is refused. Nothing
//! waits, and every name is this machine's.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::sse;

/// What a connection brings, whatever it is asked.
#[derive(Clone, Default)]
pub struct Answer {
    /// What one receive brings, each; an empty one is "nothing yet".
    pub parts: VecDeque<VecDeque<u8>>,
    /// How it ends: with a reset, or in good order.
    pub reset: bool,
}

#[derive(Default)]
struct Network {
    answers: VecDeque<Answer>,
    sent: Vec<Vec<u8>>,
}

thread_local! {
    static NETWORK: RefCell<Network> = RefCell::default();
}

/// The answers to this thread's next connections, in place of those that are left. Gives what was
/// sent on the connections before, each.
pub fn answer(answers: impl IntoIterator<Item = Answer>) -> Vec<Vec<u8>> {
    let network = Network {
        answers: answers.into_iter().collect(),
        sent: Vec::new(),
    };
    NETWORK.replace(network).sent
}

/// The lines of a stream that arrives in these parts, and what stands behind the last line end.
pub fn lines(parts: &[&[u8]]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let (mut lines, mut found) = (sse::Lines::default(), Vec::new());
    for part in parts {
        let mut used = 0;
        loop {
            let mut left = &part[used..];
            let ahead: Vec<u8> = lines.peek(left).copied().collect();
            let Some(line) = lines.next(&mut left).expect("no line is too long") else {
                break;
            };
            // But for a byte order mark.
            let is_line = |ahead: &[u8]| ahead.starts_with(line);
            assert!(is_line(&ahead) || is_line(&ahead[3..]));
            found.push(line.to_vec());
            used = part.len() - left.len();
        }
    }
    (found, lines.rest().to_vec())
}

/// In place of [`sys::Socket`](crate::sys::Socket).
pub(crate) struct Socket {
    answer: Answer,
    /// Where in [`Network::sent`] its output goes.
    number: usize,
}

impl Socket {
    pub fn connect(_: SocketAddr) -> io::Result<Socket> {
        NETWORK.with_borrow_mut(|network| {
            let answer = network.answers.pop_front();
            network.sent.push(Vec::new());
            Ok(Socket {
                answer: answer.ok_or(io::ErrorKind::ConnectionRefused)?,
                number: network.sent.len() - 1,
            })
        })
    }

    pub fn is_connected(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// Always: it has an answer or its end. So no connection serves twice.
    pub fn wait_readable(&self, _: Duration) -> io::Result<bool> {
        Ok(true)
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(part) = self.answer.parts.front_mut() else {
            return match self.answer.reset {
                true => Err(io::ErrorKind::ConnectionReset.into()),
                false => Ok(0),
            };
        };
        let is_pause = part.is_empty();
        let n = part.read(buf)?;
        if part.is_empty() {
            self.answer.parts.pop_front();
        }
        match is_pause {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => Ok(n),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        NETWORK.with_borrow_mut(|network| {
            // Another execution's network has no place for it.
            if let Some(sent) = network.sent.get_mut(self.number) {
                sent.extend_from_slice(buf);
            }
        });
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// In place of a name server.
pub(crate) fn resolved(host: &str) -> &str {
    match host.parse::<IpAddr>() {
        Ok(_) => host,
        Err(_) => "127.0.0.1",
    }
}

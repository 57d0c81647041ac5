//! One connection: a socket, TLS where it has it, and its two buffers.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConnection;

use super::is_not_yet;
use super::pool::Route;
#[cfg(gptalk_fuzzing)]
use crate::fuzzing::Socket;
#[cfg(not(gptalk_fuzzing))]
use crate::sys::Socket;

/// What bytes go through: TCP, or TLS over either (a proxy may be reached by TLS itself).
pub(super) enum Io {
    Tcp(Socket),
    Tls(Box<Tls>),
}

pub(super) struct Tls {
    session: ClientConnection,
    under: Io,
    /// Received, but not decrypted yet: the session takes 4 KiB at a time, and a receive brings more.
    /// When a step is over, there is something only where decrypted bytes wait for their reader.
    sealed: Input,
}

impl Io {
    pub fn tcp(&self) -> &Socket {
        match self {
            Io::Tcp(socket) => socket,
            Io::Tls(tls) => tls.under.tcp(),
        }
    }

    /// Whether TLS has something for the reader that the socket does not show any more: decrypted
    /// bytes, or the end.
    fn holds_input(&self) -> bool {
        match self {
            Io::Tcp(_) => false,
            Io::Tls(tls) => {
                !tls.session.wants_read()
                    || !tls.sealed.unread().is_empty()
                    || tls.under.holds_input()
            }
        }
    }
}

impl Read for Io {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Io::Tcp(socket) => socket.read(buf),
            Io::Tls(tls) => tls.read(buf),
        }
    }
}

impl Write for Io {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Io::Tcp(socket) => socket.write(buf),
            Io::Tls(tls) => tls.write(buf),
        }
    }

    /// One write, for the records of a TLS session: `Socket` writes one buffer alone.
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match bufs {
            [one] => self.write(one),
            _ => self.write(&bufs.iter().map(|buf| &**buf).collect::<Vec<_>>().concat()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Io::Tcp(socket) => socket.flush(),
            Io::Tls(tls) => tls.push(),
        }
    }
}

impl Tls {
    /// Two records at a time, or many small ones.
    const SEALED: usize = 32 << 10;

    pub fn new(session: ClientConnection, under: Io) -> Tls {
        Tls {
            session,
            under,
            sealed: Input::default(),
        }
    }

    /// Sends what the session has to say.
    fn push(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.under)?;
        }
        self.under.flush()
    }

    /// Receives once; 0 at the end.
    fn pull(&mut self) -> io::Result<usize> {
        let n = self.under.read(self.sealed.space(Tls::SEALED))?;
        self.sealed.end += n;
        if n == 0 {
            // The session wants to be told.
            self.session.read_tls(&mut io::empty())?;
        }
        self.unseal()?;
        Ok(n)
    }

    /// Decrypts what was received, up to the next record that has bytes for the reader.
    fn unseal(&mut self) -> io::Result<()> {
        loop {
            let state = match self.session.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    // The alert that says why is worth sending; that it may fail is not worth a word.
                    let _ = self.push();
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            };
            if state.plaintext_bytes_to_read() > 0 || self.sealed.unread().is_empty() {
                return Ok(());
            }
            match self.session.read_tls(&mut self.sealed.unread())? {
                // After the end of the session nothing counts.
                0 => self.sealed.consume(self.sealed.unread().len()),
                n => self.sealed.consume(n),
            }
        }
    }

    /// One step of the handshake; `true` when it is done.
    pub fn handshake(&mut self) -> io::Result<bool> {
        if let Err(error) = self.push() {
            return Err(self.last_words(error));
        }
        if self.session.is_handshaking() && self.pull()? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Err(error) = self.push() {
            return Err(self.last_words(error));
        }
        Ok(!self.session.is_handshaking())
    }

    /// What the peer said before it closed, where sending failed: it tells why.
    fn last_words(&mut self, error: io::Error) -> io::Error {
        if is_not_yet(&error) {
            return error;
        }
        match self.pull() {
            Err(told) if told.kind() == io::ErrorKind::InvalidData => told,
            _ => error,
        }
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.take(buf) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        // Nothing is sent here: a peer may have answered that reads no more.
        self.pull()?;
        // Once: a record that arrives in drops is a step each, like everything else.
        self.take(buf).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(
                error.kind(),
                "it closed the connection without TLS's close_notify",
            ),
            _ => error,
        })
    }

    /// The decrypted bytes, as many as there are and fit.
    fn take(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut taken = 0;
        loop {
            let unsealed = self.unseal();
            match self.session.reader().read(&mut buf[taken..]) {
                Ok(n @ 1..) => taken += n,
                // What comes behind them is told the next time.
                _ if taken > 0 => return Ok(taken),
                nothing => return unsealed.and(nothing),
            }
        }
    }

    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.push()?;
        let n = self.session.writer().write(buf)?;
        match self.push() {
            // The session keeps it: the next step sends the rest.
            Err(error) if is_not_yet(&error) => Ok(n),
            Err(error) => Err(error),
            Ok(()) => Ok(n),
        }
    }
}

/// What a step on a wire brought.
#[derive(Debug)]
pub(super) enum Pump {
    /// Bytes arrived.
    Data,
    /// Nothing yet.
    Pending,
    /// The peer closed in good order.
    Ended,
    Failed(io::Error),
}

/// A connection and its buffers.
pub(super) struct Wire {
    pub io: Io,
    pub route: Arc<Route>,
    pub input: Input,
    /// The request, as far as it is not sent: `output[sent..]`.
    pub output: Vec<u8>,
    pub sent: usize,
    /// Served another request before: a death now may be the end of its idle time.
    pub reused: bool,
    pub progress: Progress,
}

/// How far the request on a wire has come.
#[derive(Default)]
pub(super) struct Progress {
    /// The connection broke before all of it was sent.
    pub torn: bool,
    /// A byte of the answer has come.
    pub answered: bool,
    /// Bytes of headers that have been read, informational ones (1xx) included.
    pub skipped: usize,
    /// The last of them, or its beginning.
    pub header: Vec<u8>,
}

impl Wire {
    pub fn new(io: Io, route: Arc<Route>) -> Wire {
        Wire {
            io,
            route,
            input: Input::default(),
            output: Vec::new(),
            sent: 0,
            reused: false,
            progress: Progress::default(),
        }
    }

    /// Sends what there is to send, then receives; waits at most a slice or two.
    pub fn pump(&mut self) -> Pump {
        if let Err(error) = self.send() {
            // The service may have answered before it closed: read that first.
            self.progress.torn = true;
            self.output.clear();
            self.sent = 0;
            return match self.receive() {
                Pump::Data => Pump::Data,
                Pump::Failed(told) if told.kind() == io::ErrorKind::InvalidData => {
                    Pump::Failed(told)
                }
                _ => Pump::Failed(error),
            };
        }
        if !self.is_sent() && !self.is_readable(Duration::ZERO) {
            return Pump::Pending;
        }
        self.receive()
    }

    pub fn is_sent(&self) -> bool {
        self.sent == self.output.len()
    }

    /// Whether receiving would not wait.
    pub fn is_readable(&self, limit: Duration) -> bool {
        self.io.holds_input() || self.io.tcp().wait_readable(limit).unwrap_or(true)
    }

    /// One write; the rest is for the next step.
    fn send(&mut self) -> io::Result<()> {
        if self.is_sent() {
            return Ok(());
        }
        match self.io.write(&self.output[self.sent..]) {
            Ok(n) => self.sent += n,
            Err(error) if is_not_yet(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        if self.is_sent() {
            self.output.clear();
            self.sent = 0;
            // A long request leaves no memory behind.
            self.output.shrink_to(64 << 10);
        }
        Ok(())
    }

    /// One receive.
    pub fn receive(&mut self) -> Pump {
        // What TLS could not send before goes first. Where it cannot go at all, the service may have
        // answered before it closed.
        let unsent = self.io.flush().err().filter(|error| !is_not_yet(error));
        match (self.io.read(self.input.space(Input::LARGEST)), unsent) {
            (Ok(n @ 1..), _) => {
                self.input.end += n;
                Pump::Data
            }
            (Err(told), _) if told.kind() == io::ErrorKind::InvalidData => Pump::Failed(told),
            (_, Some(error)) => Pump::Failed(error),
            (Ok(_), None) => Pump::Ended,
            (Err(error), None) if is_not_yet(&error) => Pump::Pending,
            (Err(error), None) => Pump::Failed(error),
        }
    }
}

/// Received bytes: read straight into one buffer, and used from it in place.
#[derive(Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    const FIRST: usize = 16 << 10;
    const LARGEST: usize = 128 << 10;

    #[inline]
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    #[inline]
    pub fn consume(&mut self, n: usize) {
        self.start += n;
        debug_assert!(self.start <= self.end);
    }

    /// Room for a receive. Doubles where the last receive filled it, up to `largest`.
    fn space(&mut self, largest: usize) -> &mut [u8] {
        let full = self.end == self.bytes.len();
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if full && self.bytes.len() < largest {
            let length = (self.bytes.len() * 2).max(Self::FIRST);
            self.bytes.resize(length, 0);
        }
        &mut self.bytes[self.end..]
    }
}

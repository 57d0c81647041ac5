//! The client's side of a connection.

use crate::check::Refusal;
use crate::http::HEAD_LIMIT;
use crate::stream::Stream;
use crate::{Endpoint, Request, Shared, gptalk, openai};
use rustls::ServerConfig;
use serde_json::Value;
use socket2::SockRef;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// What lies between the writes of [`Peer::send_split`]: time enough for the first to be read.
const SPLIT: Duration = Duration::from_millis(5);

/// How long [`Peer::tunnel`] looks at one side before it looks at the other.
const GLANCE: Duration = Duration::from_millis(1);

/// Where events are not paced, so many bytes of them make a chunk.
const CHUNK: usize = 64 * 1024;

/// The client's side of a connection, in the hands of a handler.
///
/// Nothing here fails: where the client has gone, the connection ends, and on one that has ended
/// everything does nothing.
pub struct Peer {
    pub(crate) shared: Arc<Shared>,
    connection: usize,
    /// None once the connection has ended.
    stream: Option<Stream>,
    /// What was read of the requests to come.
    buffer: Vec<u8>,
    nth: usize,
    /// Header lines that the next answer is to have, each with its CRLF.
    headers: String,
}

impl Peer {
    /// Takes charge of a connection just accepted.
    pub(crate) fn new(stream: TcpStream, shared: &Arc<Shared>) -> Peer {
        let _ = stream.set_nodelay(true);
        let stream = Arc::new(stream);
        let mut state = shared.lock();
        let connection = state.accepted;
        state.accepted += 1;
        state.open.insert(connection, Arc::clone(&stream));
        if state.stopping {
            let _ = stream.shutdown(Shutdown::Both);
        }
        Peer {
            shared: Arc::clone(shared),
            connection,
            stream: Some(Stream::new(stream)),
            buffer: Vec::new(),
            nth: connection,
            headers: String::new(),
        }
    }

    /// How many requests of this endpoint came before this one: 0 is the first. In
    /// [`Builder::on_connect`](crate::Builder::on_connect), how many connections did.
    pub fn nth(&self) -> usize {
        self.nth
    }

    /// Adds a header to the next answer that [`Peer::respond`] or [`Peer::sse_head`] begins.
    pub fn header(&mut self, name: &str, value: &str) {
        self.headers += &format!("{name}: {value}\r\n");
    }

    /// Sends a whole answer. The connection stays open.
    pub fn respond(&mut self, status: u16, content_type: &str, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let reason = if status == 200 { "OK" } else { "Not OK" };
        let (length, headers) = (body.len(), mem::take(&mut self.headers));
        let head = format!(
            "HTTP/1.1 {status} {reason}\r\ncontent-type: {content_type}\r\n\
             content-length: {length}\r\n{headers}\r\n"
        );
        self.send([head.as_bytes(), body].concat());
    }

    /// Sends the answer that the service gives when left to itself.
    pub fn normal(&mut self, request: &Request) {
        match request.endpoint {
            Endpoint::Chat => openai::answer(request, self),
            _ => gptalk::answer(request, self),
        }
    }

    /// Sends raw bytes, at once.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        let sent = stream.write_all(bytes.as_ref());
        if sent.and_then(|()| stream.flush()).is_err() {
            self.end();
        }
    }

    /// Sends raw bytes, in two writes far enough apart to arrive in two reads.
    pub fn send_split(&mut self, bytes: impl AsRef<[u8]>, at: usize) {
        let bytes = bytes.as_ref();
        let (before, after) = bytes.split_at(at.min(bytes.len()));
        self.send(before);
        self.pause(SPLIT);
        self.send(after);
    }

    /// Sends raw bytes, one a write.
    pub fn drip(&mut self, bytes: impl AsRef<[u8]>) {
        for byte in bytes.as_ref() {
            self.send([*byte]);
            thread::yield_now();
        }
    }

    /// Sends the head of a stream of events; [`Peer::chunk`] is to follow.
    pub fn sse_head(&mut self) {
        let headers = mem::take(&mut self.headers);
        self.send(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
             transfer-encoding: chunked\r\n{headers}\r\n"
        ));
    }

    /// Sends an HTTP chunk; an empty one is not sent, as it would be the last.
    pub fn chunk(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        if !bytes.is_empty() {
            let size = format!("{:x}\r\n", bytes.len());
            self.send([size.as_bytes(), bytes, b"\r\n"].concat());
        }
    }

    /// Sends the chunk that ends the body.
    pub fn last_chunk(&mut self) {
        self.send("0\r\n\r\n");
    }

    /// Sleeps, but wakes when the service stops.
    pub fn pause(&mut self, duration: Duration) {
        self.shared.pause(duration);
    }

    /// Says nothing more, and ignores what the client says, until the client closes the
    /// connection or the service stops.
    pub fn stall(&mut self) {
        while self.fill().is_ok() {
            self.buffer.clear();
        }
        self.end();
    }

    /// Whether the client closes the connection within that time (or has closed it already).
    pub fn client_closed(&mut self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            // A timeout of zero means none at all, so there is always a little left.
            let left = deadline.saturating_duration_since(Instant::now());
            self.set_timeout(Some(left.max(Duration::from_millis(1))));
            match self.fill() {
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(_) => {
                    self.end();
                    return true;
                }
                Ok(()) if left.is_zero() => break,
                Ok(()) => {} // A request to come: it stays in the buffer.
            }
        }
        self.set_timeout(None);
        false
    }

    /// So many bytes, read from the client; fewer where it closes the connection before.
    pub fn receive(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() < count {
            if self.fill().is_err() {
                self.end();
                break;
            }
        }
        let rest = self.buffer.split_off(count.min(self.buffer.len()));
        mem::replace(&mut self.buffer, rest)
    }

    /// Passes bytes on between the client and a port of 127.0.0.1, in writes of at most `slice`,
    /// until either side ends; and so does the other, then.
    pub fn tunnel(&mut self, port: u16, slice: usize) {
        self.tunnel_until(port, slice, usize::MAX);
    }

    /// The same until `limit` bytes have come from the port. What becomes of the client's
    /// connection is up to the handler then.
    pub fn tunnel_until(&mut self, port: u16, slice: usize, limit: usize) {
        let Ok(mut far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
            return self.close();
        };
        let _ = far.set_nodelay(true);
        let _ = far.set_read_timeout(Some(GLANCE));
        self.set_timeout(Some(GLANCE));
        let is_not_yet = |kind| matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut);
        let (mut bytes, mut left) = ([0; 16 * 1024], limit);
        while left > 0 {
            match self.fill() {
                Err(e) if !is_not_yet(e.kind()) => return self.end(),
                _ => {}
            }
            let mut parts = self.buffer.chunks(slice);
            if parts.any(|part| far.write_all(part).is_err()) {
                return self.reset();
            }
            self.buffer.clear();
            let most = left.min(bytes.len());
            match far.read(&mut bytes[..most]) {
                Ok(0) => return self.close(),
                Ok(n) => {
                    left -= n;
                    bytes[..n].chunks(slice).for_each(|part| self.send(part));
                }
                Err(e) if is_not_yet(e.kind()) => {}
                Err(_) => return self.reset(),
            }
        }
        self.set_timeout(None);
    }

    /// Closes the connection in order: the client reads what was sent, and then its end.
    pub fn close(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.notify_close();
        }
        self.cut();
    }

    /// Closes the connection as [`Peer::close`] does, but for TLS's `close_notify`, which is left
    /// out: so ends a stream that somebody on the way has cut.
    pub fn cut(&mut self) {
        if let Some(stream) = &self.stream {
            let tcp = stream.tcp();
            let _ = tcp.shutdown(Shutdown::Write);
            // Bytes left unread would make a reset of it, which may overtake what was sent.
            let _ = tcp.set_nonblocking(true);
            while self.fill().is_ok() {
                self.buffer.clear();
            }
        }
        self.end();
    }

    /// Resets the connection: the client reads an error.
    pub fn reset(&mut self) {
        if let Some(stream) = &self.stream {
            let _ = SockRef::from(stream.tcp()).set_linger(Some(Duration::ZERO));
        }
        self.end();
    }

    /// Says no with that body, and puts on record why; a 401 is not for the record.
    pub(crate) fn refuse(&mut self, what: &str, refusal: &Refusal, body: &Value) {
        let Refusal(status, why) = refusal;
        if *status != 401 {
            self.shared.lock().refusals.push(format!("{what}: {why}"));
        }
        self.respond(*status, "application/json", body.to_string());
    }

    /// Sends a whole stream of events, with a pause between two `words`; what is `first` comes with
    /// the first of them, what is `last` and `[DONE]` with the last.
    pub(crate) fn send_events(
        &mut self,
        first: &[Value],
        words: impl Iterator<Item = Value>,
        last: &[Value],
    ) {
        let pace = self.shared.plan.pace;
        let line = |event: &Value| format!("data: {event}\n\n");
        let mut lines: String = first.iter().map(line).collect();
        self.sse_head();
        for (n, word) in words.enumerate() {
            if (n > 0 && !pace.is_zero()) || lines.len() > CHUNK {
                self.chunk(mem::take(&mut lines));
                self.pause(pace);
            }
            if self.stream.is_none() {
                return;
            }
            lines += &line(&word);
        }
        lines.extend(last.iter().map(line));
        lines += "data: [DONE]\n\n";
        // In one go: a client that leaves at the [DONE] has the end of the body at hand.
        self.send(format!("{:x}\r\n{lines}\r\n0\r\n\r\n", lines.len()));
    }

    /// Speaks TLS from here on; where the client does not, the connection ends.
    pub(crate) fn handshake(&mut self, config: &Arc<ServerConfig>) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        match stream.handshake(config) {
            Ok(()) => self.shared.lock().handshakes += 1,
            Err(_) => self.cut(),
        }
    }

    /// The next request, put on record; None once the connection has ended.
    pub(crate) fn next_request(&mut self) -> Option<Arc<Request>> {
        let request = match self.read_request() {
            Ok(Ok(request)) => Arc::new(request),
            Ok(Err(why)) => {
                // Where the next request begins is anyone's guess now, so there is none.
                gptalk::refuse(self, "http", &Refusal(400, why));
                self.close();
                return None;
            }
            Err(_) => {
                self.end();
                return None;
            }
        };
        let mut state = self.shared.lock();
        if self.shared.plan.keep_requests {
            state.requests.push(Arc::clone(&request));
        }
        let count = state.counts.entry(request.endpoint).or_default();
        self.nth = *count;
        *count += 1;
        Some(request)
    }

    /// Reads a request. The outer error is the connection's end, the inner one says what is
    /// malformed.
    fn read_request(&mut self) -> io::Result<Result<Request, String>> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if self.buffer.len() > HEAD_LIMIT {
                return Ok(Err("the head is too long".into()));
            }
            self.fill()?;
        };
        let prefix = &self.shared.plan.prefix;
        let parsed = Request::parse(&self.buffer[..end], self.connection, prefix)
            .and_then(|request| Ok((request.body_length()?, request)));
        let (length, mut request) = match parsed {
            Ok(parsed) => parsed,
            Err(why) => return Ok(Err(why)),
        };
        self.buffer.drain(..end + 4);
        while self.buffer.len() < length {
            self.fill()?;
        }
        let rest = self.buffer.split_off(length);
        request.body = mem::replace(&mut self.buffer, rest);
        Ok(Ok(request))
    }

    /// Reads once, to the end of the buffer. The client's closing is an error, too.
    fn fill(&mut self) -> io::Result<()> {
        let Some(stream) = &mut self.stream else {
            return Err(ErrorKind::NotConnected.into());
        };
        let mut bytes = [0; 16 * 1024];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.buffer.extend_from_slice(&bytes[..n]);
                    return Ok(());
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn set_timeout(&self, timeout: Option<Duration>) {
        if let Some(stream) = &self.stream {
            let _ = stream.tcp().set_read_timeout(timeout);
        }
    }

    /// Lets go of the connection. The service's hold on it comes last and under the lock, so that a
    /// connection no longer counted as open is closed indeed.
    fn end(&mut self) {
        if self.stream.take().is_some() {
            self.shared.lock().open.remove(&self.connection);
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.end();
    }
}

//! A small, strict chat service on loopback, for examples, tests and benches.
//!
//! It speaks two protocols, on one port: GPTalk's, and OpenAI's chat completions. Started as it is,
//! it answers like the real services would, and refuses with a 400 whatever the protocol does not
//! allow; [`Service::refusals`] says why. A test that wants something to go wrong overrides one
//! endpoint with [`Builder::on`] and has the connection in hand as a [`Peer`]:
//!
//! ```
//! use gptalk_service::{Endpoint, Service};
//!
//! let service = Service::builder()
//!     .on(Endpoint::Stream, |_request, peer| {
//!         peer.sse_head();
//!         peer.chunk("data: {\"content\": \"Hel\"}\n");
//!         peer.reset();
//!     })
//!     .start();
//! println!("{}", service.url());
//! ```
//!
//! [`Builder::tls`] makes it speak TLS, with certificates of a [`certificates::Authority`].
//!
//! One thread accepts, and one serves each connection; everything blocks.

mod builder;
pub mod certificates;
mod check;
mod gptalk;
mod http;
mod openai;
mod peer;
mod stream;
#[cfg(test)]
mod tests;

pub use builder::Builder;
pub use http::{Endpoint, Request};
pub use peer::Peer;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long [`Service::wait_until`] waits.
const PATIENCE: Duration = Duration::from_secs(5);

/// A pause short enough to go unnoticed, between two looks at something.
const A_MOMENT: Duration = Duration::from_millis(1);

/// A running service.
///
/// Dropping it stops it: the listener and every connection are closed and all threads joined,
/// promptly, even while a handler stalls or a stream is being paced. (A handler that waits by other
/// means than its [`Peer`] holds this up.) A handler that panics ends its own connection only.
pub struct Service {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<Vec<JoinHandle<()>>>>,
}

impl Service {
    /// Starts a service with all defaults, on a free port of 127.0.0.1.
    pub fn start() -> Service {
        Service::builder().start()
    }

    /// A service to configure first.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// Binds the port and starts accepting.
    ///
    /// # Panics
    ///
    /// Where the port is taken or no thread is to be had.
    fn launch(plan: Builder) -> Service {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, plan.port)).expect("binding the port");
        let port = listener.local_addr().expect("a bound address").port();
        let shared = Arc::new(Shared {
            plan,
            port,
            state: Mutex::default(),
            stopped: Condvar::new(),
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Service {
            shared,
            acceptor: Some(acceptor),
        }
    }

    /// The base URL: `http://127.0.0.1:PORT`, or what [`Builder::tls`] and [`Builder::origin`] make
    /// of that, and the prefix if there is one.
    pub fn url(&self) -> String {
        self.shared.origin() + &self.shared.plan.prefix
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// Every request so far, in order of arrival, where they are kept
    /// ([`Builder::keep_requests`]). A request has arrived once it is fully read.
    pub fn requests(&self) -> Vec<Request> {
        let state = self.shared.lock();
        state.requests.iter().map(|r| (**r).clone()).collect()
    }

    /// How many requests of that kind have arrived.
    pub fn count(&self, endpoint: Endpoint) -> usize {
        let state = self.shared.lock();
        state.counts.get(&endpoint).copied().unwrap_or(0)
    }

    /// How many connections have been accepted.
    pub fn connections(&self) -> usize {
        self.shared.lock().accepted
    }

    /// How many connections are open now.
    pub fn open_connections(&self) -> usize {
        self.shared.lock().open.len()
    }

    /// How many TLS handshakes have been completed. A client that refused the certificate has
    /// completed none, and can have sent nothing else.
    pub fn handshakes(&self) -> usize {
        self.shared.lock().handshakes
    }

    /// Waits up to five seconds for a condition; `false` says it did not come about.
    pub fn wait_until(&self, what: impl Fn(&Service) -> bool) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if what(self) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(A_MOMENT);
        }
    }

    /// What clients did wrong, for example `text: x-auth-appid is missing`.
    ///
    /// A 401 is not among them: whose login or key is good is the service's to say, and no mistake
    /// of a client's.
    pub fn refusals(&self) -> Vec<String> {
        self.shared.lock().refusals.clone()
    }

    /// Every login token handed out so far is answered with 401 from now on.
    pub fn revoke_logins(&self) {
        self.shared.lock().logins.clear();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.stop();
        let Some(acceptor) = self.acceptor.take() else {
            return;
        };
        // Only a connection wakes the acceptor, so make one; again, should descriptors be short.
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port()));
        while !acceptor.is_finished() {
            let _ = TcpStream::connect_timeout(&address, Duration::from_millis(50));
            thread::sleep(A_MOMENT);
        }
        // A handler that panicked has said so on stderr; to panic in a drop would abort.
        for thread in acceptor.join().unwrap_or_default() {
            let _ = thread.join();
        }
    }
}

/// Accepts until the service stops; the threads still serving are handed over to be joined.
fn accept(listener: &TcpListener, shared: &Arc<Shared>) -> Vec<JoinHandle<()>> {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let accepted = listener.accept();
        if shared.lock().stopping {
            return threads;
        }
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: they may come back.
            thread::sleep(A_MOMENT);
            continue;
        };
        threads.retain(|thread| !thread.is_finished());
        let peer = Peer::new(stream, shared);
        // Where no thread is to be had, the peer is dropped, and its connection with it.
        threads.extend(thread::Builder::new().spawn(move || serve(peer)));
    }
}

/// Serves one connection until either side closes it.
fn serve(mut peer: Peer) {
    let shared = Arc::clone(&peer.shared);
    if let Some(greet) = &shared.plan.on_connect {
        greet(&mut peer);
    }
    if let Some(config) = &shared.plan.tls {
        peer.handshake(config);
    }
    while let Some(request) = peer.next_request() {
        match shared.plan.handlers.get(&request.endpoint) {
            Some(handler) => handler(&request, &mut peer),
            None => peer.normal(&request),
        }
        if request.header("connection") == Some("close") {
            peer.close();
        }
    }
}

/// What the threads of one service have in common.
struct Shared {
    plan: Builder,
    port: u16,
    state: Mutex<State>,
    /// Signalled when `State::stopping` turns true.
    stopped: Condvar,
}

/// What changes while the service runs.
#[derive(Default)]
struct State {
    stopping: bool,
    accepted: usize,
    handshakes: usize,
    /// The open connections by number; stopping shuts them down, which wakes their threads.
    open: HashMap<usize, Arc<TcpStream>>,
    requests: Vec<Arc<Request>>,
    counts: HashMap<Endpoint, usize>,
    refusals: Vec<String>,
    /// The login tokens that are good.
    logins: HashMap<String, gptalk::Login>,
    /// The stream tokens not used yet, each with its prompt.
    streams: HashMap<String, String>,
}

impl Shared {
    /// The state. No code of a test runs while it is locked, so it is never poisoned.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("an unpoisoned state")
    }

    /// The scheme: what is spoken on its port.
    fn scheme(&self) -> &'static str {
        match self.plan.tls {
            Some(_) => "https",
            None => "http",
        }
    }

    /// Scheme and authority, where clients reach it.
    fn origin(&self) -> String {
        match &self.plan.origin {
            Some(origin) => origin.clone(),
            None => format!("{}://127.0.0.1:{}", self.scheme(), self.port),
        }
    }

    /// Whether a client that reached it so names it right in this `origin`.
    fn is_origin(&self, origin: &str) -> bool {
        let localhost = || format!("{}://localhost:{}", self.scheme(), self.port);
        origin == self.origin() || (self.plan.origin.is_none() && origin == localhost())
    }

    /// Sleeps, but not beyond the end of the service.
    fn pause(&self, duration: Duration) {
        let state = self.lock();
        let _ = self
            .stopped
            .wait_timeout_while(state, duration, |state| !state.stopping);
    }

    /// Wakes every thread, wherever it waits.
    fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        for stream in state.open.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.stopped.notify_all();
    }
}

/// Sixteen hex digits that no other call returns, nor one in another service.
fn unique() -> String {
    // Each RandomState has keys of its own.
    format!("{:016x}", RandomState::new().hash_one(()))
}

/// The time in Unix seconds.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

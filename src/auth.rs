//! The logins of the GPTalk protocol: one global book of tokens, shared by the whole process.
//!
//! Knows no HTTP: it says whether to use a token, to log in, or to wait for another's login, and
//! is told what came of it. A token serves [`USES`] chats. One entry for each service and
//! identity:
//!
//! ```text
//!                  lease()                             lease.served()
//!   ┌───────────┐ a token has a use left ┌──────────┐ the submission ┌──────────┐
//!   │   ready   │───────────────────────▶│  leased  │───────────────▶│ use spent│
//!   └───────────┘◀───────────────────────└──────────┘ was accepted   └──────────┘
//!     ▲       │      drop: the use comes back │ (in doubt: it is spent)
//!     │       │                               │ lease.refused(): HTTP 401, 403
//!     │       │ none has                      ▼
//!     │       │                        ┌─────────────┐
//!     │       ▼                        │token dropped│
//!     │   ┌────────┐ another logs in   └─────────────┘
//!     │   │ empty  │──────────────────▶ wait, then lease() again
//!     │   └────────┘
//!     │       │ nobody does
//!     │       ▼
//!     │  ┌─────────┐ login.succeeded()
//!     └──│login    │──▶ a lease on the new token
//!        │in flight│ drop (failed, cancelled, unwound): the next lease() logs in
//!        └─────────┘
//! ```
//!
//! No lock is held across I/O or a callback: a [`Login`] and a [`Lease`] are plain values, and
//! dropping them gives back what they hold. A chat that is suspended in a callback while it logs
//! in is *parked*: a chat that waits for it takes the login over, at once where both run on the
//! same thread (a chat inside the callback), else after [`PATIENCE`].
//!
//! Chats that wait are woken one by one: a login that ends wakes the first of them, and whoever found
//! something to do wakes the next, as long as there is more. To wake them all would have them fight
//! for the lock, and most of them go back to sleep.
//!
//! The child of a fork begins with an empty book.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use once_cell::sync::Lazy;

use crate::sys::{Inherit, PerProcess, lock};

/// How many chats a login token serves.
const USES: u32 = 5;
/// How long a login may be parked before a chat that waits for it takes it over.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which tokens a chat may use.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    /// The service's base URL.
    pub service: String,
    /// What the service tells users apart by.
    pub who: Vec<String>,
}

/// The auth: every login of the process.
static BOOK: Lazy<PerProcess<Book>> = Lazy::new(PerProcess::default);

/// Makes the book, before it is first needed.
pub(crate) fn open_book() {
    Lazy::force(&BOOK);
}

#[derive(Default)]
struct Book {
    entries: Mutex<Entries>,
    /// Random numbers that no login has had yet.
    fingerprints: Mutex<Vec<Fingerprint>>,
}

/// The services and identities, and what is known of each.
type Entries = BTreeMap<Arc<Identity>, Entry>;

#[derive(Default)]
struct Entry {
    tokens: Vec<Token>,
    login: Option<InFlight>,
    /// How many chats wait on `changed`.
    waiting: u32,
    /// A login ended, or a use came back.
    changed: Arc<Condvar>,
}

/// What a client logs in with where nothing is configured.
type Fingerprint = [u8; 16];

/// A random one. The system is asked for those of sixteen logins at once, for each time is a system
/// call; the child of a fork asks for itself.
pub(crate) fn random_fingerprint() -> Result<Fingerprint, getrandom::Error> {
    let mut left = lock(&BOOK.get().fingerprints);
    if let Some(fingerprint) = left.pop() {
        return Ok(fingerprint);
    }
    let mut fresh = [Fingerprint::default(); 16];
    getrandom::fill(fresh.as_flattened_mut())?;
    let [first, others @ ..] = fresh;
    left.extend(others);
    Ok(first)
}

/// Numbers tokens and logins, so that a late word about an old one is told from the present. The
/// child of a fork counts on, and so meets no number of its parent's again.
static LAST_ID: AtomicU64 = AtomicU64::new(0);

fn new_id() -> u64 {
    LAST_ID.fetch_add(1, Ordering::Relaxed) + 1
}

struct Token {
    id: u64,
    value: Arc<str>,
    /// Unix seconds; `None`: good for its uses.
    expires_at: Option<i64>,
    /// Uses that a chat holds or has spent.
    leased: u32,
    spent: u32,
}

struct InFlight {
    id: u64,
    thread: ThreadMark,
    /// Since when the chat that logs in is suspended in a callback.
    parked: Option<Instant>,
}

/// Tells threads apart while they live.
type ThreadMark = usize;

/// The address of a thread-local. (`std::thread::current` allocates, which on a host's main thread
/// is never given back.)
fn this_thread() -> ThreadMark {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

/// What a chat is to do.
pub(crate) enum Next {
    Use(Lease),
    LogIn(Login),
    Wait,
}

/// Unix seconds, now.
pub(crate) fn unix_now() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_secs() as i64,
        Err(before) => -(before.duration().as_secs() as i64),
    }
}

/// The child of a fork logs in for itself.
impl Inherit for Book {
    fn in_child(&self) -> Self {
        Book::default()
    }
}

/// Asks for a token with a number above `newer_than`; waits at most for `limit` while another chat
/// logs in.
pub(crate) fn lease(identity: &Arc<Identity>, newer_than: u64, limit: Duration) -> Next {
    let mut entries = lock(&BOOK.get().entries);
    let entry = entry_of(&mut entries, identity);
    if let Some(next) = entry.next(identity, newer_than) {
        return next;
    }
    entry.waiting += 1;
    let changed = entry.changed.clone();
    // What ended the wait does not matter: look again.
    entries = changed
        .wait_timeout(entries, limit)
        .unwrap_or_else(PoisonError::into_inner)
        .0;
    let entry = entry_of(&mut entries, identity);
    entry.waiting -= 1;
    let next = entry.next(identity, newer_than);
    if next.is_some() {
        let waiter = entry.waiter();
        drop(entries);
        wake(waiter);
    }
    next.unwrap_or(Next::Wait)
}

fn entry_of<'a>(entries: &'a mut Entries, identity: &Arc<Identity>) -> &'a mut Entry {
    if !entries.contains_key(identity) {
        // A good moment to forget what nobody will ask for again.
        let now = unix_now();
        entries.retain(|_, entry| entry.is_of_use(now));
    }
    entries.entry(identity.clone()).or_default()
}

/// Wakes one chat. To be called without the lock, which is the first that it wants.
fn wake(waiter: Option<Arc<Condvar>>) {
    if let Some(changed) = waiter {
        changed.notify_one();
    }
}

impl Entry {
    /// What a chat can do now; `None`: only wait.
    fn next(&mut self, identity: &Arc<Identity>, newer_than: u64) -> Option<Next> {
        let now = unix_now();
        // An expired token that chats still hold goes when they are done.
        self.tokens
            .retain(|token| token.leased > 0 || !token.is_expired(now));
        let me = this_thread();
        let is_stuck = |login: &InFlight| {
            login
                .parked
                .is_some_and(|since| login.thread == me || since.elapsed() >= PATIENCE)
        };
        let may_log_in = self.login.as_ref().is_none_or(is_stuck);
        // Those that wait will take all that is left: the next login need not wait until they have.
        let is_scarce =
            self.login.is_none() && self.waiting > 0 && self.waiting >= self.uses_left(now);
        let usable = |token: &&mut Token| {
            token.id > newer_than && token.uses_left() > 0 && !token.is_expired(now) && !is_scarce
        };
        if let Some(token) = self.tokens.iter_mut().find(usable) {
            token.leased += 1;
            return Some(Next::Use(Lease {
                identity: identity.clone(),
                token_id: token.id,
                token: token.value.clone(),
                newest: LAST_ID.load(Ordering::Relaxed),
                in_doubt: false,
                settled: false,
            }));
        }
        if !may_log_in {
            return None;
        }
        let id = new_id();
        self.login = Some(InFlight {
            id,
            thread: me,
            parked: None,
        });
        Some(Next::LogIn(Login {
            identity: identity.clone(),
            id,
            ended: false,
        }))
    }

    fn is_of_use(&self, now: i64) -> bool {
        let of_use = |token: &Token| token.leased > 0 || !token.is_expired(now);
        self.login.is_some() || self.waiting > 0 || self.tokens.iter().any(of_use)
    }

    /// Whom to wake: a chat that waits, where there is something to do for it.
    fn waiter(&self) -> Option<Arc<Condvar>> {
        let wanted = self.waiting > 0 && (self.login.is_none() || self.uses_left(unix_now()) > 0);
        wanted.then(|| self.changed.clone())
    }

    fn uses_left(&self, now: i64) -> u32 {
        let tokens = self.tokens.iter().filter(|token| !token.is_expired(now));
        tokens.map(Token::uses_left).sum()
    }

    /// A use of the token at that place is spent: nothing to wake anybody for.
    fn spend(&mut self, at: usize) -> Option<Arc<Condvar>> {
        self.tokens[at].spent += 1;
        if self.tokens[at].spent >= USES {
            self.tokens.swap_remove(at);
        }
        None
    }
}

impl Token {
    fn uses_left(&self) -> u32 {
        USES - self.leased - self.spent
    }

    fn is_expired(&self, now: i64) -> bool {
        self.expires_at.is_some_and(|at| at < now)
    }
}

/// The right to log in, which one chat has at a time.
pub(crate) struct Login {
    identity: Arc<Identity>,
    id: u64,
    ended: bool,
}

impl Login {
    /// The login brought a token: this chat has its first use.
    pub fn succeeded(mut self, value: &str, expires_at: Option<i64>) -> Lease {
        let value: Arc<str> = value.into();
        let token_id = new_id();
        let token = Token {
            id: token_id,
            value: value.clone(),
            expires_at,
            leased: 1,
            spent: 0,
        };
        self.end(Some(token));
        Lease {
            identity: self.identity.clone(),
            token_id,
            token: value,
            newest: token_id,
            in_doubt: false,
            settled: false,
        }
    }

    /// The chat leaves for a callback.
    pub fn park(&self) {
        self.update(|login| login.parked = Some(Instant::now()));
    }

    /// The chat is back.
    pub fn unpark(&self) {
        self.update(|login| {
            login.parked = None;
            login.thread = this_thread();
        });
    }

    fn end(&mut self, token: Option<Token>) {
        self.ended = true;
        let mut entries = lock(&BOOK.get().entries);
        let entry = entries.entry(self.identity.clone()).or_default();
        entry.tokens.extend(token);
        // Another chat may have taken the login over.
        entry.login.take_if(|login| login.id == self.id);
        let waiter = entry.waiter();
        drop(entries);
        wake(waiter);
    }

    fn update(&self, change: impl FnOnce(&mut InFlight)) {
        let mut entries = lock(&BOOK.get().entries);
        let login = entries
            .get_mut(&self.identity)
            .and_then(|entry| entry.login.as_mut());
        if let Some(login) = login.filter(|login| login.id == self.id) {
            change(login);
        }
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        if !self.ended {
            self.end(None);
        }
    }
}

/// One use of a token, held by a chat while it submits its text.
pub(crate) struct Lease {
    identity: Arc<Identity>,
    token_id: u64,
    token: Arc<str>,
    /// The number of the newest token when the lease was taken.
    newest: u64,
    /// The service may count the use, or may not.
    in_doubt: bool,
    settled: bool,
}

impl Lease {
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Tells tokens apart without showing them.
    pub fn token_id(&self) -> u64 {
        self.token_id
    }

    /// The service accepted the submission: the use is spent.
    pub fn served(mut self) {
        self.settle(Entry::spend);
    }

    /// Whether the use is spent, too, when the lease is dropped: the service has the submission and
    /// has not answered. A token that is used once too often is refused to a chat that cannot help it.
    pub fn set_in_doubt(&mut self, in_doubt: bool) {
        self.in_doubt = in_doubt;
    }

    /// The service refused the token: nobody is to use it again. The number of the newest token
    /// when the lease was taken: those up to it may be refused for the same reason, while a later
    /// one may be another chat's new login.
    pub fn refused(mut self) -> u64 {
        self.settle(|entry, at| {
            entry.tokens.swap_remove(at);
            None
        });
        self.newest
    }

    /// `change` says whom to wake.
    fn settle(&mut self, change: impl FnOnce(&mut Entry, usize) -> Option<Arc<Condvar>>) {
        self.settled = true;
        let mut entries = lock(&BOOK.get().entries);
        let waiter = entries.get_mut(&self.identity).and_then(|entry| {
            // The token may be gone: refused to another chat, or left behind in a fork's parent.
            let is_it = |token: &Token| token.id == self.token_id;
            let at = entry.tokens.iter().position(is_it)?;
            entry.tokens[at].leased -= 1;
            change(entry, at)
        });
        drop(entries);
        wake(waiter);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.settled {
            let in_doubt = self.in_doubt;
            self.settle(|entry, at| match in_doubt {
                true => entry.spend(at),
                false => entry.waiter(),
            });
        }
    }
}

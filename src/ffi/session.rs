//! The state behind a `gptalk_client`, and behind a thread's one-liners.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::api::{gptalk_callback, gptalk_status};
use super::contained;
use super::outcome::{Facts, Kept};
use crate::cancel::{CancelHandle, Watch};
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::message::Conversation;
use crate::protocol::Pieces;
use crate::reply::Reply;
use crate::stream::{Event, Stream};
use crate::sys::{lock, no_fork};

/// A client: options, connections, channels, one chat at a time, and the outcome of the last one.
///
/// The caller holds it as a pointer from `gptalk_client_new`; a chat holds it too while it runs,
/// so that it may be freed inside its own callback.
pub struct gptalk_client {
    pub(super) client: Mutex<Client>,
    /// Apart from the lock, for signal handlers.
    pub(super) cancel: CancelHandle,
    pub(super) channels: Mutex<Channels>,
    pub(super) session: Session,
    turn: AtomicU8,
    /// The piece that `gptalk_next` handed out.
    pub(super) piece: Mutex<Pieces>,
}

/// Who has the client's one chat.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Turn {
    /// Nobody.
    Idle = 0,
    /// `gptalk_client_chat`.
    Chat = 1,
    /// The pull form, between two calls.
    Pull = 2,
    /// The pull form, inside a call.
    Pulling = 3,
}

impl gptalk_client {
    pub fn new(client: Client) -> gptalk_client {
        gptalk_client {
            cancel: client.cancel_handle(),
            client: Mutex::new(client),
            channels: Mutex::default(),
            session: Session::default(),
            turn: AtomicU8::new(Turn::Idle as u8),
            piece: Mutex::default(),
        }
    }

    /// Takes the turn where it is as expected.
    pub(super) fn pass(&self, from: Turn, to: Turn) -> bool {
        let (from, to) = (from as u8, to as u8);
        self.turn
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.turn.load(Ordering::Acquire) == Turn::Idle as u8
    }

    pub(super) fn begin(&self, conversation: Result<Conversation, Error>) -> gptalk_status {
        // The child of a fork may clone the client, and have it chat.
        let _whole = no_fork();
        let channels = *lock(&self.channels);
        let stream = conversation.and_then(|conversation| lock(&self.client).stream(conversation));
        self.session.begin(stream, &channels)
    }
}

// The raw pointers of the ABI hide this from the compiler.
const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<gptalk_client>();
};

/// A function of the host's and what it is to be given.
#[derive(Clone, Copy)]
pub(super) struct Callback {
    function: unsafe extern "C-unwind" fn(*const c_char, usize, *mut c_void) -> c_int,
    userdata: *mut c_void,
}

// SAFETY: the pointer is the host's; it is only handed back to the host's function, on the thread
// that the host itself runs the chat on. The header says so.
unsafe impl Send for Callback {}

impl Callback {
    pub fn new(function: gptalk_callback, userdata: *mut c_void) -> Option<Callback> {
        function.map(|function| Callback { function, userdata })
    }

    /// Calls the host; whether it wants to go on. `text` ends with a NUL that does not count.
    ///
    /// Whatever the host throws passes through here: no lock may be held, and no `catch_unwind`
    /// may be on the way.
    fn call(self, text: &[u8]) -> bool {
        // SAFETY: `function` is a function of this signature, as the host promised when it gave
        // it; `text` is valid for the call and ends with a NUL.
        let result =
            unsafe { (self.function)(text.as_ptr().cast(), text.len() - 1, self.userdata) };
        result == 0
    }
}

/// The further channels of a client.
#[derive(Clone, Copy, Default)]
pub(super) struct Channels {
    reasoning: Option<Callback>,
    event: Option<Callback>,
    tick: Option<Callback>,
    log: Option<Callback>,
}

impl Channels {
    /// Where a channel's callback is; `None`: there is no such channel.
    pub fn slot(&mut self, name: &str) -> Option<&mut Option<Callback>> {
        match name {
            "reasoning" => Some(&mut self.reasoning),
            "event" => Some(&mut self.event),
            "tick" => Some(&mut self.tick),
            "log" => Some(&mut self.log),
            _ => None,
        }
    }
}

/// A chat that runs, or the outcome of the last one.
#[derive(Default)]
pub(super) struct Session {
    live: Mutex<Live>,
    /// What the reply is [ahead](Ahead) of the callbacks. Apart from the lock, which would cost a piece
    /// more than all else.
    ahead: AtomicU64,
}

/// How many bytes and pieces of text have been taken, and are not handed out yet.
#[derive(Clone, Copy)]
struct Ahead {
    bytes: usize,
    pieces: usize,
}

impl Ahead {
    fn pack(self) -> u64 {
        (self.bytes as u64) << 16 | self.pieces as u64
    }

    fn unpack(packed: u64) -> Ahead {
        Ahead {
            bytes: (packed >> 16) as usize,
            pieces: packed as usize & 0xFFFF,
        }
    }
}

/// How many pieces of text are taken at once at most.
const RUN: usize = 64;

#[derive(Default)]
struct Live {
    /// The chat that runs; away while it is being pulled, which may take its time on the network.
    stream: Option<Stream>,
    /// The last chat's, or as much as the host has been told of the one that runs.
    reply: Reply,
    error: Option<Error>,
    refusal: Option<Error>,
    begun: bool,
    kept: Kept,
}

/// What is done with the reply's text.
#[derive(Clone, Copy)]
pub(super) enum OnText {
    /// The callback form.
    Call(Option<Callback>),
    /// The pull form.
    Return,
}

/// What a pull brought, in the caller's buffer.
#[derive(Clone, Copy)]
enum Pulled {
    Text,
    Reasoning,
    Event,
    Tick,
    Log,
    End,
}

impl Session {
    /// A new chat: forgets the last one's outcome.
    pub fn begin(&self, stream: Result<Stream, Error>, channels: &Channels) -> gptalk_status {
        let mut live = lock(&self.live);
        *live = Live {
            begun: true,
            ..Live::default()
        };
        match stream {
            Ok(mut stream) => {
                if channels.event.is_some() {
                    stream = stream.with_events();
                }
                if channels.log.is_some() {
                    stream = stream.with_log();
                }
                live.stream = Some(stream);
            }
            Err(error) => live.error = Some(error),
        }
        live.status()
    }

    /// Runs the chat until it has ended: `false`. Or, with [`OnText::Return`], until there is text:
    /// `true`, and the text is in `pieces`, with a NUL behind it.
    pub fn run(
        &self,
        pieces: &mut Pieces,
        on_text: OnText,
        channels: Option<&Mutex<Channels>>,
    ) -> bool {
        let channel = |pick: fn(&Channels) -> Option<Callback>| {
            channels.and_then(|channels| pick(&lock(channels)))
        };
        let watch = self.begin_run(on_text);
        loop {
            let Some(pulled) = contained(|| self.pull(pieces, on_text)) else {
                self.broken();
                return false;
            };
            let callback = match pulled {
                Pulled::End => return false,
                Pulled::Text => match on_text {
                    OnText::Return => return true,
                    OnText::Call(callback) => callback,
                },
                Pulled::Reasoning => channel(|channels| channels.reasoning),
                Pulled::Event => channel(|channels| channels.event),
                Pulled::Tick => channel(|channels| channels.tick),
                Pulled::Log => channel(|channels| channels.log),
            };
            match (callback, &watch) {
                (Some(callback), Some(watch)) => self.hand_out(pieces, callback, watch),
                _ => self.ahead.store(0, Ordering::Relaxed),
            }
        }
    }

    /// What tells of a cancel without the lock.
    fn begin_run(&self, on_text: OnText) -> Option<Watch> {
        let mut live = lock(&self.live);
        let stream = live.stream.as_mut()?;
        if let OnText::Call(_) = on_text {
            stream.set_run(RUN);
        }
        Some(stream.watch().clone())
    }

    /// Calls the host with each piece, as long as it wants to go on.
    fn hand_out(&self, pieces: &mut Pieces, callback: Callback, watch: &Watch) {
        let Pieces { bytes, ends } = pieces;
        let mut start = 0;
        for (nth, &end) in ends.iter().enumerate() {
            let ahead = Ahead {
                bytes: bytes.len() - 1 - end,
                pieces: ends.len() - 1 - nth,
            };
            self.ahead.store(ahead.pack(), Ordering::Relaxed);
            // The NUL stands where the next piece begins.
            let next = std::mem::replace(&mut bytes[end], 0);
            let goes_on = callback.call(&bytes[start..=end]);
            bytes[end] = next;
            if !goes_on || ahead.pieces > 0 && watch.is_cancelled() {
                return self.cancel();
            }
            start = end;
        }
    }

    /// The next thing that happens; with [`OnText::Call`] all the text that is there, ahead of what
    /// is handed out. No lock is held while it is waited for: other threads may ask for the outcome
    /// so far.
    fn pull(&self, pieces: &mut Pieces, on_text: OnText) -> Pulled {
        loop {
            let mut live = lock(&self.live);
            let Some(stream) = &mut live.stream else {
                return Pulled::End;
            };
            if stream.look() {
                if let (Some(Event::Text(_)), OnText::Call(_)) = (stream.shown(), on_text) {
                    stream.take_texts(pieces);
                    let ahead = Ahead {
                        bytes: pieces.bytes.len() - 1,
                        pieces: pieces.ends.len(),
                    };
                    self.ahead.store(ahead.pack(), Ordering::Relaxed);
                    return Pulled::Text;
                }
                if let Some(event) = stream.shown() {
                    return fill(pieces, event);
                }
                live.end();
                return Pulled::End;
            }
            let Some(mut stream) = live.lend() else {
                return Pulled::End;
            };
            drop(live);
            stream.wait();
            lock(&self.live).take_back(stream);
        }
    }

    /// Ends the chat as cancelled, if it still runs.
    pub fn cancel(&self) {
        if let Some(stream) = &mut lock(&self.live).stream {
            self.cancel_stream(stream);
        }
    }

    /// Ends the chat, as cancelled if it still runs, and tells how it ended.
    pub fn finish(&self) -> gptalk_status {
        let mut live = lock(&self.live);
        // Taken out: should it panic, it goes.
        if let Some(mut stream) = live.stream.take() {
            self.cancel_stream(&mut stream);
            live.stream = Some(stream);
            live.end();
        }
        live.status()
    }

    /// What has been taken and not handed out goes back.
    fn cancel_stream(&self, stream: &mut Stream) {
        let ahead = Ahead::unpack(self.ahead.swap(0, Ordering::Relaxed));
        stream.give_back(ahead.bytes, ahead.pieces);
        stream.cancel();
    }

    /// How the last chat ended.
    pub fn outcome(&self) -> gptalk_status {
        lock(&self.live).status()
    }

    /// A panic came up. The stream goes, the text so far stays.
    fn broken(&self) {
        let mut live = lock(&self.live);
        live.error = Some(defect());
        let stream = live.lend();
        drop(live);
        contained(|| drop(stream));
    }

    /// Keeps why something was refused, to be asked for.
    pub fn refuse(&self, error: Error) -> gptalk_status {
        let status = gptalk_status::from(error.kind());
        lock(&self.live).refusal = Some(error);
        status
    }

    pub fn text(&self, key: &str) -> Option<*const c_char> {
        let mut live = lock(&self.live);
        let text = live.facts(self.ahead()).text(key)?;
        let runs = live.stream.is_some();
        Some(live.kept.keep(key, text, runs))
    }

    fn ahead(&self) -> Ahead {
        Ahead::unpack(self.ahead.load(Ordering::Relaxed))
    }

    pub fn number(&self, key: &str) -> Option<i64> {
        lock(&self.live).facts(self.ahead()).number(key)
    }

    /// Whether there has been a chat.
    pub fn has_begun(&self) -> bool {
        lock(&self.live).begun
    }
}

/// Takes an event as a piece, with a NUL behind it.
fn fill(pieces: &mut Pieces, event: Event<'_>) -> Pulled {
    let (pulled, text) = match event {
        Event::Text(text) => (Pulled::Text, text),
        Event::Reasoning(text) => (Pulled::Reasoning, text),
        Event::Json(text) => (Pulled::Event, text),
        Event::Log(text) => (Pulled::Log, text),
        Event::Tick => (Pulled::Tick, ""),
    };
    pieces.set(text);
    pulled
}

impl Live {
    fn end(&mut self) {
        match self.stream.take().map(Stream::finish) {
            Some(Ok(reply)) => self.reply = reply,
            Some(Err(error)) => {
                self.reply = error.reply().cloned().unwrap_or_default();
                self.error = Some(error);
            }
            None => {}
        }
        // A refusal inside the chat was before its end.
        self.refusal = None;
    }

    /// Gives the stream away to wait, without its texts; what else is known of the reply is copied,
    /// where it has changed.
    fn lend(&mut self) -> Option<Stream> {
        let mut stream = self.stream.take()?;
        let (known, reply) = (&mut self.reply, stream.reply());
        if known.url != reply.url {
            known.url.clone_from(&reply.url);
        }
        if known.request_id != reply.request_id {
            known.request_id.clone_from(&reply.request_id);
        }
        if known.model != reply.model {
            known.model.clone_from(&reply.model);
        }
        if known.finish_reason != reply.finish_reason {
            known.finish_reason.clone_from(&reply.finish_reason);
        }
        if known.usage != reply.usage {
            known.usage.clone_from(&reply.usage);
        }
        known.rewritten = reply.rewritten;
        known.http_status = reply.http_status;
        known.attempts = reply.attempts;
        known.pieces = reply.pieces;
        known.first_text = reply.first_text;
        stream.lend(&mut known.text, &mut known.reasoning);
        Some(stream)
    }

    fn take_back(&mut self, mut stream: Stream) {
        stream.lend(&mut self.reply.text, &mut self.reply.reasoning);
        self.stream = Some(stream);
    }

    fn facts(&self, ahead: Ahead) -> Facts<'_> {
        let reply = self.stream.as_ref().map_or(&self.reply, Stream::reply);
        let told = reply.text.len().saturating_sub(ahead.bytes);
        Facts {
            reply,
            text: reply.text.get(..told).unwrap_or_default(),
            pieces: reply.pieces.saturating_sub(ahead.pieces as u64),
            error: self.error.as_ref(),
            refusal: self.refusal.as_ref(),
            begun: self.begun,
        }
    }

    fn status(&self) -> gptalk_status {
        match &self.error {
            Some(error) => error.kind().into(),
            None => gptalk_status::GPTALK_OK,
        }
    }
}

/// The error of a panic.
pub(super) fn defect() -> Error {
    Error::new(
        ErrorKind::Internal,
        "a defect in gptalk was contained; please report what the library printed on stderr",
    )
}

/// Ends a chat on every way out, be it an exception of the host's.
pub(super) struct Ending<'a> {
    pub session: &'a Session,
    pub client: Option<&'a gptalk_client>,
    /// What the client's turn is to be given back from.
    pub turn: Turn,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        // A panic may not meet an exception on its way.
        contained(|| self.session.finish());
        if let Some(client) = self.client {
            client.pass(self.turn, Turn::Idle);
        }
    }
}

thread_local! {
    /// The outcome of this thread's last one-liner, and of what it was refused without a client.
    static ONE_LINER: RefCell<Arc<Session>> = RefCell::default();
}

/// This thread's one-liner session. While a thread ends it has none, and gets one that is
/// forgotten.
pub(super) fn one_liner() -> Arc<Session> {
    ONE_LINER
        .try_with(|session| session.borrow().clone())
        .unwrap_or_default()
}

/// Makes a session this thread's own.
pub(super) fn set_one_liner(session: Arc<Session>) {
    // The old one is dropped outside the borrow.
    let _old = ONE_LINER.try_with(|slot| slot.replace(session));
}

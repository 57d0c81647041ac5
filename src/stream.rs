//! A chat that runs: tries and waits, ticks and cancels, around the steps of a protocol.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cancel::{CancelHandle, Gate, Running, Watch};
use crate::config::Config;
use crate::error::{Error, ErrorKind};
use crate::protocol::{Chat, Out, Pieces, Step, hint};
use crate::reply::Reply;
use crate::transport::SLICE;

/// How often a tick comes while a chat waits.
const TICK: Duration = Duration::from_millis(100);
/// The wait before the first retry, which doubles at each one more, up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(8);

/// What [`Stream::next_event`] brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// New text of the reply.
    Text(&'a str),
    /// New text of a reasoning model's thoughts.
    Reasoning(&'a str),
    /// An event of the service as it came, in JSON; only [`with_events`](Stream::with_events).
    Json(&'a str),
    /// A line that says what the library does, without secrets; only
    /// [`with_log`](Stream::with_log).
    Log(&'a str),
    /// The chat waits on the network; about every 100 ms.
    Tick,
}

/// A reply as it streams in: a blocking iterator over its pieces of text.
///
/// It runs on the thread that pulls, and only while that pulls. Dropping it cancels the chat and
/// closes its connection.
///
/// ```no_run
/// for piece in gptalk::Client::new().stream("Tell me a joke")? {
///     print!("{}", piece?);
/// }
/// # Ok::<(), gptalk::Error>(())
/// ```
pub struct Stream {
    chat: Chat,
    config: Arc<Config>,
    running: Running,
    out: Out,
    /// What the last call handed out; cleared at the next.
    shown: Shown,
    phase: Phase,
    started: Instant,
    last_tick: Instant,
    outcome: Option<Error>,
    /// The iterator has reported the error.
    reported: bool,
}

enum Phase {
    Running,
    /// Waiting for the next try, until then.
    Waiting(Instant),
    /// The end, once what is in `out` has been handed out.
    Ending(Result<(), Error>),
    Over,
}

#[derive(Clone, Copy)]
enum Shown {
    Nothing,
    Text,
    Reasoning,
    Json,
    Log,
    Tick,
}

impl Stream {
    pub(crate) fn new(
        chat: Chat,
        config: Arc<Config>,
        gate: Arc<Gate>,
        started: Instant,
    ) -> Stream {
        let mut out = Out::default();
        out.reply.attempts = 1;
        // What `reply` tells is not ahead of what was handed out.
        out.run = 1;
        config.secrets().for_each(|secret| out.add_secret(secret));
        Stream {
            chat,
            config,
            running: Running::new(gate),
            out,
            shown: Shown::Nothing,
            phase: Phase::Running,
            started,
            last_tick: started,
            outcome: None,
            reported: false,
        }
    }

    /// Brings [`Event::Json`] too.
    pub fn with_events(mut self) -> Self {
        self.out.wants_events = true;
        self
    }

    /// Brings [`Event::Log`] too.
    pub fn with_log(mut self) -> Self {
        self.out.wants_log = true;
        self
    }

    /// From here on takes so many pieces at once, ahead of what it hands out.
    pub(crate) fn set_run(&mut self, longest: usize) {
        self.out.run = longest;
    }

    /// Cancels this chat, and the others that run on the same client.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.running.handle()
    }

    pub(crate) fn watch(&self) -> &Watch {
        self.running.watch()
    }

    /// The reply so far; whole when [`next_event`](Stream::next_event) has returned `None`.
    pub fn reply(&self) -> &Reply {
        &self.out.reply
    }

    /// Why the chat failed, once it has.
    pub fn error(&self) -> Option<&Error> {
        self.outcome.as_ref()
    }

    /// The next thing that happens; `None` at the end, of which [`finish`](Stream::finish) and
    /// [`error`](Stream::error) tell how it came. Blocks for about 100 ms at most.
    pub fn next_event(&mut self) -> Option<Event<'_>> {
        loop {
            if self.look() {
                return self.shown();
            }
            self.wait();
        }
    }

    /// Looks for the next thing that happens, or the end, without waiting: whether there is one,
    /// which is [`shown`](Stream::shown).
    pub(crate) fn look(&mut self) -> bool {
        if !matches!(self.shown, Shown::Nothing) {
            self.clear_shown();
            self.chat.unpark();
        }
        let Some(shown) = self.advance() else {
            return false;
        };
        self.shown = shown;
        if !matches!(shown, Shown::Nothing) {
            // The caller may take its time.
            self.chat.park();
        }
        true
    }

    #[inline]
    pub(crate) fn shown(&self) -> Option<Event<'_>> {
        Some(match self.shown {
            Shown::Nothing => return None,
            Shown::Text => Event::Text(self.out.text()),
            Shown::Reasoning => Event::Reasoning(self.out.reasoning()),
            Shown::Json => Event::Json(&self.out.event),
            Shown::Log => Event::Log(self.out.log.front().map_or("", String::as_str)),
            Shown::Tick => Event::Tick,
        })
    }

    /// Waits for a slice or two at most. Meanwhile the texts of the reply are not touched, and may be
    /// [elsewhere](Stream::lend).
    pub(crate) fn wait(&mut self) {
        match self.phase {
            Phase::Running if !self.chat.wait() => self.act(),
            Phase::Waiting(until) => {
                std::thread::sleep(SLICE.min(until.saturating_duration_since(Instant::now())));
            }
            _ => {}
        }
    }

    /// The text that is shown and what came with it, into `pieces`: whoever asks hands it out.
    pub(crate) fn take_texts(&mut self, pieces: &mut Pieces) {
        self.out.take_texts(pieces);
        self.out.reply.pieces += pieces.ends.len() as u64 - 1;
        self.shown = Shown::Nothing;
    }

    /// So much at the end of the text that was [taken](Stream::take_texts) is not handed out.
    pub(crate) fn give_back(&mut self, bytes: usize, pieces: usize) {
        self.out.give_back(bytes);
        self.out.reply.pieces -= pieces as u64;
    }

    /// Puts the texts of the reply into another's place, or back.
    pub(crate) fn lend(&mut self, text: &mut String, reasoning: &mut String) {
        std::mem::swap(&mut self.out.reply.text, text);
        std::mem::swap(&mut self.out.reply.reasoning, reasoning);
    }

    /// Reads the reply to its end.
    ///
    /// # Errors
    ///
    /// Why the chat failed; what had arrived is at [`Error::reply`].
    pub fn finish(mut self) -> Result<Reply, Error> {
        while self.next_event().is_some() {}
        match self.outcome.take() {
            Some(error) => Err(error.with_reply(std::mem::take(&mut self.out.reply))),
            None => Ok(std::mem::take(&mut self.out.reply)),
        }
    }

    /// Ends this chat now, as cancelled; what has come of the reply stays.
    pub fn cancel(&mut self) {
        if !matches!(self.phase, Phase::Over) {
            self.out.clear();
            self.shown = Shown::Nothing;
            self.end(Err(cancelled()));
        }
    }

    fn clear_shown(&mut self) {
        match std::mem::replace(&mut self.shown, Shown::Nothing) {
            Shown::Text => self.out.told_text(),
            Shown::Reasoning => self.out.told_reasoning(),
            Shown::Json => self.out.event.clear(),
            Shown::Log => drop(self.out.log.pop_front()),
            Shown::Tick | Shown::Nothing => {}
        }
    }

    /// Goes on as far as that needs no waiting; `None`: it has to wait.
    fn advance(&mut self) -> Option<Shown> {
        loop {
            let ready = self.ready();
            if !matches!(ready, Shown::Nothing) {
                return Some(ready);
            }
            let mut goes_on = false;
            match self.phase {
                Phase::Over => return Some(Shown::Nothing),
                Phase::Ending(_) => {
                    if let Phase::Ending(result) = std::mem::replace(&mut self.phase, Phase::Over) {
                        self.end(result);
                    }
                    continue;
                }
                _ if self.running.is_cancelled() => {
                    self.phase = Phase::Ending(Err(cancelled()));
                    continue;
                }
                Phase::Running => {
                    goes_on = match self.chat.run(&mut self.out) {
                        Ok(false) if self.chat.is_ready() => {
                            self.act();
                            true
                        }
                        Ok(had_run) => had_run,
                        Err(error) => {
                            self.phase = self.failed(error);
                            true
                        }
                    };
                    if !self.out.is_empty() {
                        continue;
                    }
                }
                Phase::Waiting(until) => {
                    if Instant::now() >= until {
                        self.out.reply.attempts += 1;
                        self.chat.restart();
                        self.phase = Phase::Running;
                        continue;
                    }
                }
            }
            // Nothing to hand out. Whoever drips empty events stops no clock.
            if self.last_tick.elapsed() >= TICK {
                self.last_tick = Instant::now();
                return Some(Shown::Tick);
            }
            if !goes_on {
                return None;
            }
        }
    }

    /// A step of the chat.
    #[inline]
    fn act(&mut self) {
        match self.chat.advance(&mut self.out) {
            Ok(Step::Going) => {}
            Ok(Step::Done) => self.phase = Phase::Ending(Ok(())),
            Err(error) => self.phase = self.failed(error),
        }
    }

    /// What is there to be handed out: log lines first, then the event, then what is in it.
    #[inline]
    fn ready(&mut self) -> Shown {
        if !self.out.log.is_empty() {
            Shown::Log
        } else if !self.out.event.is_empty() {
            Shown::Json
        } else if self.out.has_reasoning() {
            Shown::Reasoning
        } else if self.out.has_text() {
            self.out.reply.pieces += 1;
            self.out
                .reply
                .first_text
                .get_or_insert_with(|| self.started.elapsed());
            Shown::Text
        } else {
            Shown::Nothing
        }
    }

    /// What follows a failed try: a wait for the next one, or the end.
    fn failed(&mut self, error: Error) -> Phase {
        let tried = u64::from(self.out.reply.attempts);
        let is_last = tried > self.config.retries;
        let delivered = self.out.reply.pieces > 0 || self.out.has_text();
        if is_last || delivered || !is_worth_a_retry(&error) {
            return Phase::Ending(Err(error));
        }
        let wait = error.retry_after().unwrap_or_else(|| backoff(tried));
        let until = Instant::now() + wait;
        let is_too_late = |limit| until >= self.started + limit;
        if self.config.timeout.is_some_and(is_too_late) {
            return Phase::Ending(Err(error));
        }
        self.out.note(|| {
            format!(
                "try {tried} failed, the next in {} ms: {error}",
                wait.as_millis()
            )
        });
        Phase::Waiting(until)
    }

    fn end(&mut self, result: Result<(), Error>) {
        self.phase = Phase::Over;
        self.out.reply.duration = self.started.elapsed();
        // A cancel that found the chat running has its effect, be it at the very end.
        let result = match self.running.end() {
            true => result.and(Err(cancelled())),
            false => result,
        };
        if let Err(mut error) = result {
            error.redact(|text| self.out.redact(text));
            let hint = hint(&self.config, &error);
            self.outcome = Some(error.hinted(&hint));
        }
        // The connection goes now, not when the caller drops what it may keep.
        self.chat.stop(&mut self.out.reply);
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the chat was cancelled")
}

/// Whether the same chat may go well in a moment, and cannot happen twice by trying.
fn is_worth_a_retry(error: &Error) -> bool {
    match error.http_status() {
        Some(_) => error.is_retryable(),
        // Before a byte was sent; but a time limit is not given out again and again.
        None => {
            let broke = matches!(error.kind(), ErrorKind::Network | ErrorKind::Truncated);
            error.is_repeatable() && broke
        }
    }
}

/// Half a second, doubled at each retry up to eight seconds; a quarter of it at random, so that
/// clients that failed together do not come back together.
fn backoff(tried: u64) -> Duration {
    let doublings = tried.saturating_sub(1).min(4) as u32;
    let wait = (FIRST_WAIT * 2_u32.pow(doublings)).min(LONGEST_WAIT);
    let mut random = [0];
    // Without a random number the wait is the longest.
    let _ = getrandom::fill(&mut random);
    wait - wait / 4 * u32::from(random[0]) / 256
}

impl Iterator for Stream {
    type Item = Result<String, Error>;

    /// The next piece of text; an error once, at the end.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_event() {
                Some(Event::Text(text)) => return Some(Ok(text.to_owned())),
                Some(_) => {}
                None => break,
            }
        }
        if std::mem::replace(&mut self.reported, true) {
            return None;
        }
        self.outcome
            .clone()
            .map(|error| Err(error.with_reply(self.out.reply.clone())))
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("reply", &self.out.reply)
            .finish_non_exhaustive()
    }
}

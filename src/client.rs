//! Clients: options, connections, and the forms of a chat.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use once_cell::sync::Lazy;
use serde_json::{Map, Value};

use crate::auth::{self, unix_now};
use crate::cancel::{CancelHandle, Gate};
use crate::config::{Change, Config, Options, Protocol, read_environment};
use crate::error::Error;
#[cfg(doc)]
use crate::error::ErrorKind;
use crate::message::Conversation;
use crate::protocol::{Chat, Repairs, Setting};
use crate::reply::Reply;
use crate::stream::{Event, Stream};
use crate::sys::{PerProcess, lock, no_fork};
use crate::transport::{Limits, Pool, Route};

/// The process's options, and how often they have changed.
static DEFAULTS: Lazy<Mutex<Defaults>> = Lazy::new(Mutex::default);

#[derive(Clone, Default)]
struct Defaults {
    version: u64,
    options: Options,
}

/// Talks to a service.
///
/// A client is a set of options and a pool of connections. Threads may share one, by reference or
/// by clones, which share its connections; any number of chats may run on it at a time, each on
/// the thread that called it. It starts no thread itself.
///
/// ```no_run
/// use std::ops::ControlFlow;
///
/// let client = gptalk::Client::builder().base_url("http://127.0.0.1:8080").build()?;
/// let reply = client.chat("Tell me a joke", |piece| {
///     print!("{piece}");
///     ControlFlow::Continue(())
/// })?;
/// println!("\n({} pieces)", reply.pieces);
/// # Ok::<(), gptalk::Error>(())
/// ```
pub struct Client {
    options: Options,
    pool: Arc<Pool>,
    gate: Arc<Gate>,
    /// How often the options have changed.
    version: u64,
    /// The options resolved, until they or the process's defaults change.
    resolved: PerProcess<Mutex<Option<Arc<Resolved>>>>,
}

struct Resolved {
    /// Of the process's defaults, and of the client's options.
    versions: (u64, u64),
    config: Arc<Config>,
    route: Arc<Route>,
    repairs: Arc<Repairs>,
}

impl Client {
    /// A client with the process's defaults, the environment's and the built-in ones.
    pub fn new() -> Client {
        first_use();
        Client::bare()
    }

    fn bare() -> Client {
        Client {
            options: Options::default(),
            pool: Arc::default(),
            gate: Arc::default(),
            version: 0,
            resolved: PerProcess::default(),
        }
    }

    /// A client with options of its own.
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            client: Client::new(),
            failure: None,
        }
    }

    /// Sends a conversation and hands out the reply's text piece by piece, as it arrives.
    ///
    /// The callback runs on this thread, outside every lock: it may start other chats. It cancels
    /// the chat by returning [`ControlFlow::Break`].
    ///
    /// # Errors
    ///
    /// Every [`ErrorKind`] but `Busy`; what had arrived is at [`Error::reply`].
    pub fn chat(
        &self,
        conversation: impl Into<Conversation>,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply, Error> {
        let mut stream = self.stream(conversation)?;
        while let Some(event) = stream.next_event() {
            if let Event::Text(text) = event {
                if on_text(text).is_break() {
                    stream.cancel();
                }
            }
        }
        stream.finish()
    }

    /// Sends a conversation and returns the complete reply.
    ///
    /// # Errors
    ///
    /// As [`Client::chat`].
    pub fn complete(&self, conversation: impl Into<Conversation>) -> Result<Reply, Error> {
        self.stream(conversation)?.finish()
    }

    /// Sends a conversation; the reply is pulled from the returned stream. Nothing is sent before
    /// the first pull.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] where the options or the conversation cannot be used.
    pub fn stream(&self, conversation: impl Into<Conversation>) -> Result<Stream, Error> {
        let conversation = conversation.into();
        let started = Instant::now();
        let resolved = self.resolve()?;
        let config = &resolved.config;
        let total = config.timeout.map(|length| (started + length, length));
        let setting = Setting {
            config: config.clone(),
            pool: self.pool.clone(),
            route: resolved.route.clone(),
            limits: Limits {
                connect: config.connect_timeout,
                response: config.response_timeout,
                idle: config.idle_timeout,
                total,
            },
            moment: unix_now(),
            repairs: resolved.repairs.clone(),
        };
        let chat = Chat::new(setting, conversation)?;
        let gate = self.gate.clone();
        Ok(Stream::new(chat, config.clone(), gate, started))
    }

    /// Cancels the chats that run on this client, from any thread.
    pub fn cancel_handle(&self) -> CancelHandle {
        CancelHandle(self.gate.clone())
    }

    /// Sets an option by its name, as `gptalk_set` does.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] for an unknown name or a bad value; the option stays as it was.
    pub fn set(&mut self, key: &str, value: Option<&str>) -> Result<(), Error> {
        self.apply(Change::new(key, value)?);
        Ok(())
    }

    pub(crate) fn apply(&mut self, change: Change) {
        change.apply(&mut self.options);
        self.version += 1;
    }

    fn resolve(&self) -> Result<Arc<Resolved>, Error> {
        let (defaults, old) = {
            let _whole = no_fork();
            let defaults = lock(&DEFAULTS);
            let old = lock(self.resolved.get()).clone();
            if let Some(resolved) = &old {
                if resolved.versions == (defaults.version, self.version) {
                    return Ok(resolved.clone());
                }
            }
            (defaults.clone(), old)
        };
        let config = Config::resolve(&self.options, &defaults.options)?;
        let is_same = |old: &Arc<Resolved>| {
            old.config.base_url == config.base_url && old.config.model == config.model
        };
        let repairs = old.filter(is_same).map(|old| old.repairs.clone());
        let resolved = Arc::new(Resolved {
            versions: (defaults.version, self.version),
            route: Arc::new(Route::new(&config)),
            config: Arc::new(config),
            repairs: repairs.unwrap_or_default(),
        });
        *lock(self.resolved.get()) = Some(resolved.clone());
        Ok(resolved)
    }
}

impl Default for Client {
    fn default() -> Self {
        Client::new()
    }
}

/// The same options and shared connections; chats of its own.
impl Clone for Client {
    fn clone(&self) -> Self {
        Client {
            options: self.options.clone(),
            pool: self.pool.clone(),
            gate: Arc::default(),
            version: self.version,
            resolved: PerProcess::new(Mutex::new(lock(self.resolved.get()).clone())),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The options hold secrets.
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// Sets an option for the whole process, as `gptalk_set(NULL, ...)` does in C. It counts wherever a
/// client does not set it, from the next chat on.
///
/// # Errors
///
/// [`ErrorKind::Misuse`] for an unknown name or a bad value; the option stays as it was.
pub fn set_default(key: &str, value: Option<&str>) -> Result<(), Error> {
    apply_default(Change::new(key, value)?);
    Ok(())
}

pub(crate) fn apply_default(change: Change) {
    first_use();
    let _whole = no_fork();
    let mut defaults = lock(&DEFAULTS);
    change.apply(&mut defaults.options);
    defaults.version += 1;
}

/// The client of the one-liners.
static SHARED: Lazy<Client> = Lazy::new(Client::bare);

/// Makes what the process has one of, and reads the environment: once, and whole before a fork.
fn first_use() {
    if Lazy::get(&SHARED).is_none() {
        let _whole = no_fork();
        read_environment();
        crate::transport::prepare();
        auth::open_book();
        Lazy::force(&DEFAULTS);
        Lazy::force(&SHARED);
    }
}

/// The one-liner: [`Client::chat`] on a client of the whole process, whose options are the
/// [defaults](set_default) and the environment's.
///
/// # Errors
///
/// As [`Client::chat`].
pub fn chat(
    conversation: impl Into<Conversation>,
    on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Reply, Error> {
    shared().chat(conversation, on_text)
}

/// The one-liners' client.
pub(crate) fn shared() -> &'static Client {
    first_use();
    &SHARED
}

/// The one-liners' cancel handle, where there has been a one-liner. For signal handlers: it makes
/// nothing.
pub(crate) fn shared_gate() -> Option<&'static Gate> {
    Lazy::get(&SHARED).map(|client| &*client.gate)
}

/// Makes a [`Client`]. The options have the names and defaults that they have in C.
#[derive(Debug)]
#[must_use]
pub struct ClientBuilder {
    client: Client,
    failure: Option<Error>,
}

impl ClientBuilder {
    fn set(self, key: &str, value: impl fmt::Display) -> Self {
        self.option(key, &value.to_string())
    }

    fn ms(self, key: &str, limit: Option<Duration>) -> Self {
        // Below a millisecond it is one: 0 means no limit.
        self.set(key, limit.map_or(0, |limit| limit.as_millis().max(1)))
    }

    /// Sets an option by its name. A bad value is reported by [`build`](ClientBuilder::build).
    pub fn option(mut self, key: &str, value: &str) -> Self {
        if self.failure.is_none() {
            self.failure = self.client.set(key, Some(value)).err();
        }
        self
    }

    /// The wire protocol. Defaults to [`Protocol::Gptalk`].
    pub fn protocol(self, protocol: Protocol) -> Self {
        let name = match protocol {
            Protocol::Gptalk => "gptalk",
            Protocol::Openai => "openai",
        };
        self.option("protocol", name)
    }

    /// The service's URL; without a scheme it is `http` for loopback and private addresses, else
    /// `https`. For [`Protocol::Openai`] a host, `.../v1`, `.../v1/` and the full endpoint are all
    /// understood, and a query is kept. Defaults to [`GPTALK_BASE_URL`](crate::GPTALK_BASE_URL), or
    /// to `OPENAI_BASE_URL` in the environment and [`OPENAI_BASE_URL`](crate::OPENAI_BASE_URL).
    pub fn base_url(self, url: &str) -> Self {
        self.option("base_url", url)
    }

    /// The key of an OpenAI-compatible service. Over plain `http` it goes to loopback and private
    /// addresses alone: else the chat fails with [`ErrorKind::Misuse`], and nothing is sent.
    /// Defaults to `OPENAI_API_KEY` in the environment, or none.
    pub fn api_key(self, key: &str) -> Self {
        self.option("api_key", key)
    }

    /// The model. Defaults to `gpt-3.5-turbo` for GPTalk; else it is left out, which local
    /// servers take and others refuse.
    pub fn model(self, model: &str) -> Self {
        self.option("model", model)
    }

    /// How much chance there is in the reply. Defaults to 0 for GPTalk, else to the service's
    /// own.
    pub fn temperature(self, temperature: f64) -> Self {
        self.set("temperature", temperature)
    }

    /// The longest reply, in tokens; the GPTalk protocol has no such member. It is sent as
    /// `max_completion_tokens` where the service wants that. Defaults to the service's own.
    pub fn max_tokens(self, tokens: u64) -> Self {
        self.set("max_tokens", tokens)
    }

    /// Members that are merged over the request's body, replacing those of the same name.
    /// Defaults to none.
    pub fn body(self, members: Map<String, Value>) -> Self {
        self.set("body", Value::Object(members))
    }

    /// A header for every request, replacing the library's own of the same name. May be called
    /// several times. Defaults to none.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.set("header", format_args!("{name}: {value}"))
    }

    /// A proxy: an `http://`, `https://`, `socks5://` or `socks5h://` URL, with credentials, or
    /// `none`. Defaults to the environment's, as curl reads it, but never for loopback.
    pub fn proxy(self, url: &str) -> Self {
        self.option("proxy", url)
    }

    /// A PEM file of trusted roots. Defaults to the system's roots, else Mozilla's.
    pub fn ca_file(self, path: &str) -> Self {
        self.option("ca_file", path)
    }

    /// Until connected, TLS included, name resolution aside. Defaults to 10 s; `None`: no limit.
    pub fn connect_timeout(self, limit: Option<Duration>) -> Self {
        self.ms("connect_timeout_ms", limit)
    }

    /// From a request sent to its answer's header. Defaults to 300 s; `None`: no limit.
    pub fn response_timeout(self, limit: Option<Duration>) -> Self {
        self.ms("response_timeout_ms", limit)
    }

    /// Silence inside a reply. Defaults to 120 s; `None`: no limit.
    pub fn idle_timeout(self, limit: Option<Duration>) -> Self {
        self.ms("idle_timeout_ms", limit)
    }

    /// The whole chat, retries and their waits included. Defaults to `None`: no limit.
    pub fn timeout(self, limit: Option<Duration>) -> Self {
        self.ms("timeout_ms", limit)
    }

    /// How often a chat that failed before its first text is tried again. Defaults to 2.
    pub fn retries(self, retries: u32) -> Self {
        self.set("retries", retries)
    }

    /// The longest reply, in bytes, its reasoning and tool calls included. Defaults to 64 MiB.
    pub fn max_reply_bytes(self, bytes: u64) -> Self {
        self.set("max_reply_bytes", bytes)
    }

    /// The `user-agent` header. Defaults to `gptalk/<version>`.
    pub fn user_agent(self, user_agent: &str) -> Self {
        self.option("user_agent", user_agent)
    }

    /// The GPTalk protocol's application id. Defaults to
    /// [`GPTALK_APP_ID`](crate::GPTALK_APP_ID).
    pub fn app_id(self, app_id: &str) -> Self {
        self.option("app_id", app_id)
    }

    /// The GPTalk protocol's fingerprint, with which a client logs in. Defaults to a random one
    /// for each login.
    pub fn fingerprint(self, fingerprint: &str) -> Self {
        self.option("fingerprint", fingerprint)
    }

    /// The client.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] for the first option with a bad value.
    pub fn build(self) -> Result<Client, Error> {
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok(self.client),
        }
    }
}

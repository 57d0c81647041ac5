//! Every exported function, in the order of the header that is generated from this file.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::Arc;

use super::contained;
use super::session::{
    Callback, Ending, OnText, Session, Turn, defect, gptalk_client, one_liner, set_one_liner,
};
use crate::client::{Client, apply_default, shared, shared_gate};
use crate::config::{Change, shown};
use crate::error::{Error, ErrorKind};
use crate::message::Conversation;
use crate::protocol::Pieces;
use crate::sys::{lock, no_fork};

/// Outcome of a call. Values are frozen; new ones may be added: take an unknown one as a failure.
///
/// "retryable" tells whether another try may help; gptalk_status_name() has the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum gptalk_status {
    /// Done; of a chat: the reply is complete.
    GPTALK_OK = 0,
    /// gptalk_cancel(), a callback that returned nonzero, or gptalk_finish() before the end.
    GPTALK_CANCELLED = 1,
    /// The caller's mistake: NULL where it is not allowed, bad UTF-8 or JSON, an unknown option or
    /// channel, a bad value (in the environment too): nothing was sent.
    GPTALK_MISUSE = 2,
    /// This client is already in a chat (its own callback included): clone it.
    GPTALK_BUSY = 3,
    /// The login or the key was refused: HTTP 401, 403; a login answer without a token.
    GPTALK_AUTH = 4,
    /// HTTP 429, or a quota: see "retry_after_ms".
    GPTALK_RATE_LIMIT = 5,
    /// The service refused the request: any other 4xx, or a redirect.
    GPTALK_REQUEST = 6,
    /// The service failed: 5xx, or an error that it reported with status 200.
    GPTALK_SERVER = 7,
    /// Name resolution, connect, reset, proxy.
    GPTALK_NETWORK = 8,
    /// The TLS handshake failed, or a certificate was refused.
    GPTALK_TLS = 9,
    /// One of the time limits passed: "error_code" says which.
    GPTALK_TIMEOUT = 10,
    /// An answer that is not of the protocol: is "base_url" the right one, and "protocol"?
    GPTALK_PROTOCOL = 11,
    /// The reply was cut: what arrived has been delivered.
    GPTALK_TRUNCATED = 12,
    /// A line, a header, the reply or the messages are beyond their limit.
    GPTALK_LIMIT = 13,
    /// A defect of this library, contained: please report what it printed on stderr.
    GPTALK_INTERNAL = 14,
}

use gptalk_status::{GPTALK_BUSY, GPTALK_INTERNAL, GPTALK_MISUSE, GPTALK_OK};

/// Called with one piece of text: UTF-8, never half a character, `len` bytes and a NUL behind
/// them. It is valid only during the call: copy what you keep. The call is always on the thread
/// that called the library. `userdata` is what was given with the callback; the library does not
/// look at it.
///
/// Return 0 to go on, anything else to cancel the chat. (From Python's ctypes, Lua and the like:
/// return an explicit 0; a function that returns nothing gives garbage.) gptalk_chat(),
/// gptalk_client_chat() and gptalk_next() call callbacks, the other functions do not.
///
/// Inside, everything is allowed that is allowed elsewhere: another chat on another client or the
/// one-liner, gptalk_cancel(), gptalk_get(), gptalk_client_free() of the client itself. C++
/// exceptions may pass through, and Lua errors where they unwind the stack (LuaJIT, Lua built as
/// C++): the chat ends, and the client can be used again. longjmp() may not.
pub type gptalk_callback = Option<
    unsafe extern "C-unwind" fn(text: *const c_char, len: usize, userdata: *mut c_void) -> c_int,
>;

/// The one-liner: sends a conversation and calls `cb` for each piece of the streamed reply. Blocks
/// until the reply ends. Any number of threads may do so at a time.
///
/// `msgs_json`: an array of messages, of which gptalk_push() makes one,
///
/// ```json
/// [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
/// ```
///
/// or an object: a request body with "messages" and whatever else, whose members replace the
/// defaults. With an OpenAI-compatible service these may offer tools, send an image, ask for JSON:
///
/// ```json
/// {"messages": [{"role": "user", "content": [
///      {"type": "text", "text": "What is on this picture?"},
///      {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0..."}}]}],
///  "response_format": {"type": "json_schema", "json_schema": {"name": "picture", "strict": true,
///      "schema": {"type": "object", "required": ["objects"], "additionalProperties": false,
///          "properties": {"objects": {"type": "array", "items": {"type": "string"}}}}}}}
/// ```
///
/// The GPTalk protocol carries one text: several messages become lines "User: ...", "Assistant:
/// ...", and content other than text is GPTALK_MISUSE.
///
/// `cb` may be NULL: read "text" then. `userdata` is handed to `cb` as it is.
///
/// Returns GPTALK_OK when the reply is complete. The outcome is at gptalk_get(NULL, ...) on the
/// same thread. The options are those of gptalk_set(NULL, ...) and of the environment:
///
/// ```c
/// gptalk_set(NULL, "base_url", "http://127.0.0.1:8080");
/// if (gptalk_chat("[{\"role\":\"user\",\"content\":\"Hi\"}]", on_text, NULL) != GPTALK_OK)
///     fprintf(stderr, "%s\n", gptalk_get(NULL, "error"));
/// ```
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_chat(
    msgs_json: *const c_char,
    cb: gptalk_callback,
    userdata: *mut c_void,
) -> gptalk_status {
    let begun = contained(|| {
        // SAFETY: the caller gives NULL or a NUL-terminated string that lives through the call.
        let conversation = unsafe { conversation(msgs_json) };
        let stream = conversation.and_then(|conversation| shared().stream(conversation));
        let session = Arc::new(Session::default());
        session.begin(stream, &Default::default());
        set_one_liner(session.clone());
        session
    });
    let session = begun.unwrap_or_else(|| {
        let session = Arc::new(Session::default());
        session.begin(Err(defect()), &Default::default());
        set_one_liner(session.clone());
        session
    });
    {
        // On every way out, an exception of the callback's included.
        let _mine = Mine(session.clone());
        let _ending = Ending {
            session: &session,
            client: None,
            turn: Turn::Chat,
        };
        let on_text = OnText::Call(Callback::new(cb, userdata));
        session.run(&mut Pieces::default(), on_text, None);
    }
    session.outcome()
}

/// Makes a session the thread's own again, whatever one-liners ran inside its callback.
struct Mine(Arc<Session>);

impl Drop for Mine {
    fn drop(&mut self) {
        set_one_liner(self.0.clone());
    }
}

/// A client: options, connections, and one chat at a time. Making one is cheap and sends nothing.
/// Release it with gptalk_client_free(). NULL only on internal failure.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn gptalk_client_new() -> *mut gptalk_client {
    contained(|| into_raw(Client::new())).unwrap_or(std::ptr::null_mut())
}

/// A client with the same options and shared connections, but no chat state: neither channels nor
/// an outcome. For another thread, or for another chat at the same time; `client` may be in a
/// chat. Options set later on one do not affect the other. Release it with
/// gptalk_client_free(), before or after `client`. NULL for NULL, and on internal failure.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_client_clone(
    client: *const gptalk_client,
) -> *mut gptalk_client {
    // SAFETY: the caller gives NULL or a client that lives through the call.
    let Some(client) = (unsafe { client.as_ref() }) else {
        return std::ptr::null_mut();
    };
    let copy = || {
        let _whole = no_fork();
        let original = lock(&client.client);
        into_raw(original.clone())
    };
    contained(copy).unwrap_or(std::ptr::null_mut())
}

/// Releases a client, and with it every text that it gave out. NULL is fine. A chat begun by
/// gptalk_start() is cancelled. In a callback of the client's own it takes effect when the chat ends,
/// and does not end it.
///
/// No other thread may be in a call on the client, or make one later: cancel a chat that runs
/// there, and wait until its call has returned.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_client_free(client: *mut gptalk_client) {
    if !client.is_null() {
        contained(|| {
            // SAFETY: the caller gives a client that it got from `into_raw`, once.
            drop(unsafe { Arc::from_raw(client) });
        });
    }
}

/// Sends a conversation and calls `cb` for each piece of the streamed reply; see gptalk_chat().
/// The outcome is at gptalk_get(client, ...).
///
/// A client does one chat at a time: while it is in one, on any thread, this returns GPTALK_BUSY
/// and does not change the outcome: "error" does not tell of this failure. Where `client` is NULL,
/// here and below, the reason is at gptalk_get(NULL, "error").
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_client_chat(
    client: *mut gptalk_client,
    msgs_json: *const c_char,
    cb: gptalk_callback,
    userdata: *mut c_void,
) -> gptalk_status {
    // SAFETY: the caller gives NULL or a client that lives until the call, and no longer
    // necessarily: it may free it in a callback.
    let Some(client) = (unsafe { hold(client) }) else {
        return no_client("gptalk_client_chat");
    };
    if !client.pass(Turn::Idle, Turn::Chat) {
        return GPTALK_BUSY;
    }
    // On every way out, an exception of the callback's included.
    let _ending = Ending {
        session: &client.session,
        client: Some(&client),
        turn: Turn::Chat,
    };
    let begun = contained(|| {
        // SAFETY: the caller gives NULL or a NUL-terminated string that lives through the call.
        client.begin(unsafe { conversation(msgs_json) });
    });
    if begun.is_none() {
        return client.session.begin(Err(defect()), &Default::default());
    }
    let on_text = OnText::Call(Callback::new(cb, userdata));
    client
        .session
        .run(&mut Pieces::default(), on_text, Some(&client.channels));
    // Before the client is free for another chat, whose outcome this would be.
    client.session.outcome()
}

/// Sets an option. `key` and `value` are copied. `client` NULL: the process's defaults, which
/// count for the one-liner and wherever a client does not set the option itself. `value` NULL:
/// unset.
///
/// The value is checked at once: GPTALK_MISUSE for an unknown key or a bad value, which leaves the
/// option as it was; the reason is at gptalk_get(client, "error"). At each chat an option is
/// looked for in the client, in the process's defaults, in the environment (GPTALK_ and the key in
/// upper case, read once, at the library's first use; empty is as good as unset), and then built
/// in. While a chat runs, what is set counts from the next chat on.
///
/// | key | meaning | default |
/// |-----|---------|---------|
/// | protocol | gptalk, or openai: any service with OpenAI-compatible chat completions | gptalk |
/// | base_url | the service's URL: see below | https://gptalk.net, or https://api.openai.com/v1 for openai |
/// | api_key | openai only: see below | none |
/// | model | its name, passed on | gptalk: gpt-3.5-turbo; openai: left out |
/// | temperature | a number | gptalk: 0; openai: the service's own |
/// | max_tokens | openai only: the longest reply, in tokens | the service's own |
/// | body | a JSON object whose members replace those of the request body | none |
/// | header | "Name: value" for every request; each is set by a call of its own; NULL clears all | none |
/// | proxy | a http, https, socks5 or socks5h URL, with credentials; "none": direct | see below |
/// | ca_file | PEM file of trusted roots, read at once | the system's roots, else Mozilla's |
/// | connect_timeout_ms | until connected, TLS included, name resolution aside | 10000 |
/// | response_timeout_ms | from the request sent to the answer's header | 300000 |
/// | idle_timeout_ms | silence inside a reply | 120000 |
/// | timeout_ms | the whole chat, retries and their waits included | 0 |
/// | retries | how often a chat that failed before its first text is tried again | 2 |
/// | max_reply_bytes | the longest reply, its reasoning and tool calls included | 67108864 |
/// | user_agent | the request header of that name | gptalk/ and the version |
/// | app_id | the GPTalk protocol's application id | 2229 |
/// | fingerprint | what the GPTalk protocol logs in with | random for each login |
///
/// A time limit of 0 is none.
///
/// - base_url: without a scheme it is http for loopback and private addresses, else https. openai
///   takes a host (whose /v1 is meant), .../v1 or the full endpoint, with a query if need be, and
///   OPENAI_BASE_URL in the environment where no other is set. The public service of the GPTalk
///   protocol, https://gptalk.net, is known not to work: set your own.
/// - api_key: where none is set, OPENAI_API_KEY in the environment counts; "" is no key. Over
///   plain http a key goes to loopback and private addresses alone: else the chat is
///   GPTALK_MISUSE.
/// - model: local servers have one and want no name; others refuse a chat without.
/// - max_tokens: goes as max_completion_tokens where the service wants that.
/// - header: one of the same name is replaced. A client that has any goes without the process's.
/// - proxy: else the environment's, as curl reads it (http_proxy in lower case only; HTTPS_PROXY,
///   ALL_PROXY, NO_PROXY in both), but never for loopback. One that is set with this option is used
///   for loopback as well.
/// - ca_file: the system's roots are those of SSL_CERT_FILE and SSL_CERT_DIR, where one is set.
/// - retries: after a connect that failed, a login whose connection broke, HTTP 408, 409, 429 or
///   5xx; not where the wait would pass timeout_ms. The wait is the one that the service asks for,
///   else half a second, doubled at each up to eight, and up to a quarter shorter at random.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_set(
    client: *mut gptalk_client,
    key: *const c_char,
    value: *const c_char,
) -> gptalk_status {
    // SAFETY: the caller gives NULL or a client that lives through the call.
    let client = unsafe { client.as_ref() };
    let done = contained(|| {
        // SAFETY: the caller gives NULL or NUL-terminated strings that live through the call.
        let (key, value) = unsafe { (text("key", key)?, optional_text("value", value)?) };
        let change = Change::new(key, value)?;
        match client {
            Some(client) => {
                let _whole = no_fork();
                lock(&client.client).apply(change);
            }
            None => apply_default(change),
        }
        Ok(())
    });
    report(client, done)
}

/// Sets the callback of a further channel of the client's; `cb` NULL removes it, at once. Where the
/// channel had none before, it begins with the next chat for "event" and "log", and at once for the
/// others. `cb`, and what `userdata` points to, must outlive the client's chats, or be removed
/// between two of them.
///
/// | channel | what it brings |
/// |---------|----------------|
/// | reasoning | a reasoning model's thoughts, piece by piece |
/// | event | each event's JSON as it came, before its text |
/// | tick | an empty text about every 100 ms while the chat waits on the network |
/// | log | one line that says what the library does, secrets redacted |
///
/// While text keeps coming there need be no tick, and inside the system's name resolution there is
/// none. A nonzero return cancels the chat, as with any callback.
///
/// GPTALK_MISUSE: `client` is NULL, or there is no such channel; the reason is at "error".
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_on(
    client: *mut gptalk_client,
    channel: *const c_char,
    cb: gptalk_callback,
    userdata: *mut c_void,
) -> gptalk_status {
    // SAFETY: the caller gives NULL or a client that lives through the call.
    let Some(client) = (unsafe { client.as_ref() }) else {
        return no_client("gptalk_on");
    };
    let done = contained(|| {
        // SAFETY: the caller gives NULL or a NUL-terminated string that lives through the call.
        let name = unsafe { text("channel", channel) }?;
        let _whole = no_fork();
        let mut channels = lock(&client.channels);
        let slot = channels.slot(name).ok_or_else(|| {
            Error::misuse(format!(
                "{:?} is not a channel; the channels are reasoning, event, tick, log",
                shown(name)
            ))
        })?;
        *slot = Callback::new(cb, userdata);
        Ok(())
    });
    report(Some(client), done)
}

/// The pull form, for hosts that dislike callbacks: begins a chat. Then call gptalk_next() until
/// it returns NULL, and gptalk_finish() for the outcome.
///
/// ```c
/// status = gptalk_start(client, msgs_json);
/// if (status == GPTALK_OK) {
///     while ((text = gptalk_next(client, &len)) != NULL)
///         fwrite(text, 1, len, stdout);
///     status = gptalk_finish(client);
/// }
/// ```
///
/// GPTALK_BUSY: the client is in a chat already, which gptalk_finish() would end. GPTALK_MISUSE:
/// `client` is NULL, or the options or the messages cannot be used. Nothing is sent before the
/// first gptalk_next(), and nothing is read between two of them; but the chat runs, can be
/// cancelled, and its time counts. Each call may be on another thread.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_start(
    client: *mut gptalk_client,
    msgs_json: *const c_char,
) -> gptalk_status {
    // SAFETY: the caller gives NULL or a client that lives through the call.
    let Some(client) = (unsafe { client.as_ref() }) else {
        return no_client("gptalk_start");
    };
    if !client.pass(Turn::Idle, Turn::Pulling) {
        return GPTALK_BUSY;
    }
    let begun = contained(|| {
        // SAFETY: the caller gives NULL or a NUL-terminated string that lives through the call.
        client.begin(unsafe { conversation(msgs_json) })
    });
    let status = begun.unwrap_or_else(|| client.session.begin(Err(defect()), &Default::default()));
    let next = if status == GPTALK_OK {
        Turn::Pull
    } else {
        Turn::Idle
    };
    client.pass(Turn::Pulling, next);
    status
}

/// The next piece of the reply: blocks until there is one. NULL at the end and on error:
/// gptalk_finish() tells which. NULL too where no chat was started, or another thread is in a
/// call.
///
/// The piece is NUL-terminated and lives until the next call on the client (gptalk_cancel()
/// aside). `len` may be NULL, else it is set, to 0 with NULL. The client's channels are called
/// from inside.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_next(
    client: *mut gptalk_client,
    len: *mut usize,
) -> *const c_char {
    if !len.is_null() {
        // SAFETY: the caller gives NULL or a place for a size.
        unsafe { len.write(0) };
    }
    // SAFETY: the caller gives NULL or a client that lives until the call, and no longer
    // necessarily: it may free it in a callback.
    let Some(client) = (unsafe { hold(client) }) else {
        return std::ptr::null();
    };
    if !client.pass(Turn::Pull, Turn::Pulling) {
        return std::ptr::null();
    }
    // On every way out but the last, the chat ends here: an exception of a callback's included.
    let ending = Ending {
        session: &client.session,
        client: Some(&client),
        turn: Turn::Pulling,
    };
    // Taken out, so that no lock is held while a callback runs.
    let take = || std::mem::take(&mut *lock(&client.piece));
    let mut piece = contained(take).unwrap_or_default();
    if !client
        .session
        .run(&mut piece, OnText::Return, Some(&client.channels))
    {
        return std::ptr::null();
    }
    // Freed inside a callback: the piece would go with the client.
    if Arc::strong_count(&client) == 1 {
        return std::ptr::null();
    }
    if !len.is_null() {
        // SAFETY: the caller gives NULL or a place for a size. The NUL does not count.
        unsafe { len.write(piece.bytes.len() - 1) };
    }
    let mut kept = lock(&client.piece);
    *kept = piece;
    std::mem::forget(ending);
    client.pass(Turn::Pulling, Turn::Pull);
    kept.bytes.as_ptr().cast()
}

/// The outcome of the chat begun by gptalk_start(). Before gptalk_next() has returned NULL it
/// cancels the chat. May be called again, with the same answer; after gptalk_client_chat() it is
/// the outcome of that. GPTALK_MISUSE: `client` is NULL, or has had no chat. GPTALK_BUSY: inside a
/// callback of the client's, or while another thread is in its chat.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_finish(client: *mut gptalk_client) -> gptalk_status {
    // SAFETY: the caller gives NULL or a client that lives through the call.
    let Some(client) = (unsafe { client.as_ref() }) else {
        return no_client("gptalk_finish");
    };
    if client.pass(Turn::Pull, Turn::Pulling) {
        let status = contained(|| client.session.finish());
        client.pass(Turn::Pulling, Turn::Idle);
        return status.unwrap_or(GPTALK_INTERNAL);
    }
    if !client.is_idle() {
        return GPTALK_BUSY;
    }
    if !client.session.has_begun() {
        return client
            .session
            .refuse(Error::misuse("gptalk_finish: the client has had no chat"));
    }
    client.session.outcome()
}

/// Cancels the chat that runs: from any thread, any callback, any signal handler. The chat ends
/// with GPTALK_CANCELLED within 100 ms, except inside the system's name resolution; a callback
/// that runs is waited for. In the pull form the chat ends in the next call. `client` NULL: all
/// one-liner chats. Returns 1 where a chat was running, else 0: a later chat is not affected.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_cancel(client: *mut gptalk_client) -> c_int {
    // No `contained` here: nothing can panic, and a signal handler wants no more than atomics.
    // SAFETY: the caller gives NULL or a client that lives through the call.
    match unsafe { client.as_ref() } {
        Some(client) => client.cancel.cancel().into(),
        None => shared_gate().is_some_and(|gate| gate.cancel()).into(),
    }
}

/// About the last chat, or the last refused gptalk_set() or gptalk_on() after it; in a callback,
/// and on other threads, about the chat that runs, as far as that has come. `client` NULL: about
/// this thread's last one-liner. Returns NULL for what is not known, or not reported.
///
/// The text is borrowed until the next call on that client, on whatever thread, gptalk_cancel()
/// aside; `client` NULL: until this thread's next one-liner, and in its callbacks until the same
/// is asked for again. It ends with a NUL; of these texts "text" alone has a length, "text_len",
/// for NULs inside. Copy what you keep.
///
/// | key | meaning |
/// |-----|---------|
/// | error | what happened, to which URL, and what to do, in a sentence; never NULL after a failure |
/// | error_code | the service's own code, or a word of ours: see below |
/// | error_body | the first 4 KiB of the service's error answer |
/// | text | all of the reply so far, also after a failure |
/// | reasoning | all of the model's thoughts so far |
/// | message | the assistant's message as JSON, with its tool calls: gptalk_push(msgs, NULL, message) |
/// | finish_reason | why the model stopped, in the service's words: stop, length, tool_calls |
/// | usage | token counts, as the service's JSON |
/// | model | the model that answered |
/// | request_id | the service's name for the exchange, for its support and its logs |
/// | url | the URL of the last request, without its query |
///
/// The errors show no secret of the options: "***" stands in its place. "message" is NULL after a
/// failure before which nothing had arrived.
///
/// The stable words of "error_code":
///
/// | code | status | what happened |
/// |------|--------|---------------|
/// | dns | GPTALK_NETWORK | the host's name was not resolved |
/// | connect | GPTALK_NETWORK | nobody listens there, or no way leads there |
/// | proxy | GPTALK_NETWORK | the proxy was not reached, or did not let us through |
/// | closed | GPTALK_NETWORK | the service closed the connection instead of an answer |
/// | connect_timeout, response_timeout, idle_timeout, timeout | GPTALK_TIMEOUT | that option's time was up |
/// | header, line, reply, tool_calls, json | GPTALK_LIMIT | that was too long, or too many |
/// | empty | GPTALK_PROTOCOL | an answer with nothing of a reply in it |
/// | json, token, expires_at | GPTALK_PROTOCOL | that was not as it should be |
/// | plain_http | GPTALK_MISUSE | a key would have gone to a public address over plain http |
/// | rewritten | any | text that was delivered has changed since: "text" is the final one |
///
/// "message" and "usage" take a JSON pointer (RFC 6901) behind the key. A string comes without its
/// quotes, another value as JSON; a string that is JSON itself, as the arguments of a tool call
/// are, may be entered. A string with a NUL in it is NULL: ask for what it is in. A number beyond
/// 64 bits may lose digits: ask for the whole.
///
/// ```c
/// gptalk_get(client, "message/tool_calls/0/function/name")             // get_weather
/// gptalk_get(client, "message/tool_calls/0/function/arguments/city")   // Paris
/// gptalk_get(client, "message/tool_calls/1/id")                        // NULL: there is one call
/// ```
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_get(
    client: *const gptalk_client,
    key: *const c_char,
) -> *const c_char {
    let value = contained(|| {
        // SAFETY: the caller gives NULL or a NUL-terminated string that lives through the call.
        let key = unsafe { text("key", key) }.ok()?;
        // SAFETY: the caller gives NULL or a client that lives through the call.
        match unsafe { client.as_ref() } {
            Some(client) => client.session.text(key),
            // The thread's session keeps the text, until its next one-liner.
            None => one_liner().text(key),
        }
    });
    value.flatten().unwrap_or(std::ptr::null())
}

/// Numbers about the last chat. -1: not known, or not reported. `client` as for gptalk_get().
///
/// | key | meaning |
/// |-----|---------|
/// | http_status | of the last answer |
/// | retry_after_ms | how long the service asked to wait, at most 120000 |
/// | retryable | 1: nothing was delivered and another try may help; else 0 |
/// | attempts | how often the chat was tried |
/// | prompt_tokens, completion_tokens, total_tokens | as the service counts |
/// | reasoning_tokens, cached_tokens | how many of these were thoughts, or came out of its cache |
/// | text_len | the length of "text" in bytes, which may hold NULs |
/// | pieces | how many pieces of text were delivered |
/// | first_text_ms | from the chat's start to its first piece |
/// | duration_ms | from the chat's start to its end |
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_get_int(
    client: *const gptalk_client,
    key: *const c_char,
) -> i64 {
    let value = contained(|| {
        // SAFETY: the caller gives NULL or a NUL-terminated string that lives through the call.
        let key = unsafe { text("key", key) }.ok()?;
        // SAFETY: the caller gives NULL or a client that lives through the call.
        match unsafe { client.as_ref() } {
            Some(client) => client.session.number(key),
            None => one_liner().number(key),
        }
    });
    value.flatten().unwrap_or(-1)
}

/// A new JSON array: the messages of `msgs_json` (NULL: none) and one more, escaped. `role` is
/// "system", "user", "assistant", "tool" or another one that the service knows, and `content` what is
/// said; `role` NULL: `content` is a whole message's JSON. `msgs_json` is neither changed nor
/// released. Release the new array with gptalk_free().
///
/// NULL on bad input: `msgs_json` is no array of messages, `content` is NULL, something is not
/// UTF-8.
///
/// ```c
/// char *msgs = gptalk_push(NULL, "user", "Hi");
/// gptalk_client_chat(client, msgs, on_text, NULL);
/// char *more = gptalk_push(msgs, NULL, gptalk_get(client, "message"));
/// ```
///
/// A message of the role "tool" is a result for the last message in `msgs_json` that has tool
/// calls, and gets the id of the first of them that has none yet. So a tool round trip is: chat,
/// push "message", push a result for each of its tool calls in their order, chat again.
/// examples/c/tools.c is a whole program.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_push(
    msgs_json: *const c_char,
    role: *const c_char,
    content: *const c_char,
) -> *mut c_char {
    let pushed = contained(|| {
        // SAFETY: the caller gives NULL or NUL-terminated strings that live through the call.
        let (msgs, role, content) = unsafe {
            (
                optional_text("msgs_json", msgs_json)?,
                optional_text("role", role)?,
                text("content", content)?,
            )
        };
        let list = Conversation::pushed(msgs, role, content)?;
        CString::new(list).map_err(|_| defect())
    });
    match pushed {
        Some(Ok(list)) => list.into_raw(),
        Some(Err(_)) | None => std::ptr::null_mut(),
    }
}

/// Releases what gptalk_push() gave, and nothing else. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gptalk_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: the caller gives what `gptalk_push` made with `CString::into_raw`, once.
        drop(unsafe { CString::from_raw(text) });
    }
}

/// A status's name: "timeout" for GPTALK_TIMEOUT, "unknown" for a number that is none. Static: not
/// to be released.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn gptalk_status_name(status: c_int) -> *const c_char {
    let name = match status {
        0 => c"ok",
        1 => c"cancelled",
        2 => c"misuse",
        3 => c"busy",
        4 => c"auth",
        5 => c"rate_limit",
        6 => c"request",
        7 => c"server",
        8 => c"network",
        9 => c"tls",
        10 => c"timeout",
        11 => c"protocol",
        12 => c"truncated",
        13 => c"limit",
        14 => c"internal",
        _ => c"unknown",
    };
    name.as_ptr()
}

const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

/// The version of the library that runs: "0.1.0". Static: not to be released.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn gptalk_version() -> *const c_char {
    VERSION.as_ptr().cast()
}

/// The same as a number: major * 1000000 + minor * 1000 + patch.
#[unsafe(no_mangle)]
pub extern "C-unwind" fn gptalk_version_number() -> u32 {
    let number = |digits: &str| digits.parse().unwrap_or(0);
    number(env!("CARGO_PKG_VERSION_MAJOR")) * 1_000_000
        + number(env!("CARGO_PKG_VERSION_MINOR")) * 1_000
        + number(env!("CARGO_PKG_VERSION_PATCH"))
}

impl From<ErrorKind> for gptalk_status {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Cancelled => Self::GPTALK_CANCELLED,
            ErrorKind::Misuse => Self::GPTALK_MISUSE,
            ErrorKind::Busy => Self::GPTALK_BUSY,
            ErrorKind::Auth => Self::GPTALK_AUTH,
            ErrorKind::RateLimit => Self::GPTALK_RATE_LIMIT,
            ErrorKind::Request => Self::GPTALK_REQUEST,
            ErrorKind::Server => Self::GPTALK_SERVER,
            ErrorKind::Network => Self::GPTALK_NETWORK,
            ErrorKind::Tls => Self::GPTALK_TLS,
            ErrorKind::Timeout => Self::GPTALK_TIMEOUT,
            ErrorKind::Protocol => Self::GPTALK_PROTOCOL,
            ErrorKind::Truncated => Self::GPTALK_TRUNCATED,
            ErrorKind::Limit => Self::GPTALK_LIMIT,
            ErrorKind::Internal => Self::GPTALK_INTERNAL,
        }
    }
}

fn into_raw(client: Client) -> *mut gptalk_client {
    Arc::into_raw(Arc::new(gptalk_client::new(client))).cast_mut()
}

/// Holds a client for as long as a chat runs on it.
///
/// # Safety
///
/// `client` is NULL or a client that has not been freed.
unsafe fn hold(client: *mut gptalk_client) -> Option<Arc<gptalk_client>> {
    if client.is_null() {
        return None;
    }
    // SAFETY: it came from `Arc::into_raw` and has not been freed, so that it can be counted up;
    // the count is given back by the `Arc` that is returned.
    unsafe {
        Arc::increment_strong_count(client);
        Some(Arc::from_raw(client))
    }
}

/// A string argument, borrowed.
///
/// # Safety
///
/// `pointer` is NULL or a NUL-terminated string that lives for `'a`.
unsafe fn optional_text<'a>(name: &str, pointer: *const c_char) -> Result<Option<&'a str>, Error> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller says.
    let bytes = unsafe { CStr::from_ptr(pointer) };
    let text = bytes.to_str().map_err(|error| {
        Error::misuse(format!(
            "{name} is not UTF-8: look at byte {}",
            error.valid_up_to()
        ))
    })?;
    Ok(Some(text))
}

/// The same, where NULL is not allowed.
///
/// # Safety
///
/// As `optional_text`.
unsafe fn text<'a>(name: &str, pointer: *const c_char) -> Result<&'a str, Error> {
    // SAFETY: as the caller says.
    let text = unsafe { optional_text(name, pointer) }?;
    text.ok_or_else(|| Error::misuse(format!("{name} is NULL")))
}

/// The conversation in a string argument.
///
/// # Safety
///
/// As `optional_text`.
unsafe fn conversation(msgs_json: *const c_char) -> Result<Conversation, Error> {
    // SAFETY: as the caller says.
    Conversation::from_json(unsafe { text("msgs_json", msgs_json) }?)
}

/// The status of something that may be refused; keeps the reason where it can be asked for.
fn report(client: Option<&gptalk_client>, done: Option<Result<(), Error>>) -> gptalk_status {
    let error = match done {
        Some(Ok(())) => return GPTALK_OK,
        Some(Err(error)) => error,
        None => defect(),
    };
    match client {
        Some(client) => client.session.refuse(error),
        None => one_liner().refuse(error),
    }
}

fn no_client(function: &str) -> gptalk_status {
    report(
        None,
        Some(Err(Error::misuse(format!(
            "{function}: the client is NULL"
        )))),
    );
    GPTALK_MISUSE
}

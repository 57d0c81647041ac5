//! Chat with a language model, blocking and without threads.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! gptalk::chat("Tell me a joke", |piece| {
//!     print!("{piece}");
//!     ControlFlow::Continue(())
//! })?;
//! # Ok::<(), gptalk::Error>(())
//! ```
//!
//! The library sends a conversation to a chat service and hands out the reply as it streams in. It
//! starts no thread, has no runtime, installs no signal handler and prints nothing, so that it is
//! at home inside any process. The same library speaks C: see `include/gptalk.h`.
//!
//! # The forms of a chat
//!
//! | you want | call |
//! |---|---|
//! | the shortest program | [`chat`] |
//! | options of your own | [`Client::builder`], then [`Client::chat`] |
//! | a `for` loop over the pieces | [`Client::stream`] |
//! | the complete reply | [`Client::complete`] |
//! | ticks, log lines, the service's events | [`Stream::next_event`] |
//! | to stop it from another thread | [`Client::cancel_handle`] |
//!
//! All are the same loop over a [`Stream`]. A chat ends with a [`Reply`], or with an [`Error`] to
//! match on by its [`kind`](Error::kind), which keeps [what had arrived](Error::reply).
//!
//! # Options
//!
//! They have one name in Rust, in C and in the environment (`GPTALK_` and the name in upper case):
//! see [`ClientBuilder`]. Each is looked for at every chat: in the client, in the process's
//! [defaults](set_default), in the environment as it was at the library's first use, and then
//! built in.
//!
//! # Protocols
//!
//! [`Protocol::Gptalk`]: log in, use the token for at most 5 chats or until it expires, submit the
//! text, read the stream. Its logins are shared by all clients of the process. The public service
//! at <https://gptalk.net> does not work as far as is known ([`GPTALK_NET_WORKS`]), so set
//! [`base_url`](ClientBuilder::base_url).
//!
//! [`Protocol::Openai`]: chat completions as OpenAI defined them and as Ollama, llama.cpp, vLLM,
//! LM Studio, LiteLLM, OpenRouter, Azure and many others speak them. Whatever else a request is to
//! have goes beside the messages, and is passed through untouched:
//!
//! ```no_run
//! use gptalk::{Client, Conversation, Protocol};
//!
//! let client = Client::builder()
//!     .protocol(Protocol::Openai)
//!     .base_url("http://127.0.0.1:11434")
//!     .model("llama3.2-vision")
//!     .build()?;
//! let request = Conversation::from_json(
//!     r#"{
//!         "messages": [{"role": "user", "content": [
//!             {"type": "text", "text": "What is on this picture?"},
//!             {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0..."}}]}],
//!         "response_format": {"type": "json_schema", "json_schema": {"name": "picture",
//!             "schema": {"type": "object", "required": ["objects"], "properties": {
//!                 "objects": {"type": "array", "items": {"type": "string"}}}}}}
//!     }"#,
//! )?;
//! println!("{}", client.complete(request)?.text);
//! # Ok::<(), gptalk::Error>(())
//! ```
//!
//! Tools are such a member too. The model's calls are in [`Reply::tool_calls`]; [`Reply::message`]
//! is pushed on the conversation, then a [`Message::tool`] for each call, and the model is asked
//! again.

mod auth;
mod cancel;
mod client;
mod config;
mod error;
mod ffi;
#[cfg(gptalk_fuzzing)]
pub mod fuzzing;
mod json;
mod message;
mod protocol;
mod proxy;
mod reply;
mod sse;
mod stream;
#[cfg_attr(gptalk_fuzzing, allow(dead_code))] // Its sockets.
mod sys;
mod transport;
mod url;

pub use cancel::CancelHandle;
pub use client::{Client, ClientBuilder, chat, set_default};
pub use config::{
    GPTALK_APP_ID, GPTALK_BASE_URL, GPTALK_MODELS, GPTALK_NET_WORKS, OPENAI_BASE_URL, Protocol,
};
pub use error::{Error, ErrorKind};
pub use message::{Conversation, Message};
pub use reply::Reply;
pub use stream::{Event, Stream};

//! A chat in the terminal.
//!
//! ```text
//! cargo run --example chat -- "Привет, как дела?"      one message
//! cargo run --example chat                             a conversation: a line each, Ctrl-D ends it
//! cargo run --example chat -- --json FILE              a conversation from a file
//! ```
//!
//! It talks to the service that the environment names; without one it starts the built-in service
//! inside this process, which speaks both protocols:
//!
//! ```text
//! GPTALK_PROTOCOL=openai cargo run --example chat -- "Hi"
//! GPTALK_PROTOCOL=openai GPTALK_BASE_URL=http://127.0.0.1:11434 GPTALK_MODEL=llama3.2 \
//!     cargo run --example chat -- "Hi"
//! ```
//!
//! Ctrl-C stops the reply that runs, and the program where none does.

#![allow(unsafe_code)]

use std::error::Error;
use std::io::{self, BufRead, IsTerminal, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use gptalk::{CancelHandle, Client, Conversation, ErrorKind, Message};
use gptalk_service::Service;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chat: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut client = Client::new();
    let _service = match is_configured() {
        true => None,
        false => {
            let service = Service::builder().pace(Duration::from_millis(40)).start();
            eprintln!(
                "chat: GPTALK_BASE_URL is not set: talking to the built-in service at {}",
                service.url()
            );
            client.set("base_url", Some(&service.url()))?;
            Some(service)
        }
    };
    stop_on_ctrl_c(client.cancel_handle());

    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => converse(&client),
        ["--json", file] => {
            let json = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
            ask(&client, &Conversation::from_json(&json)?).map(drop)
        }
        [flag, ..] if flag.starts_with("--") => Err("usage: chat [TEXT | --json FILE]".into()),
        ref words => ask(&client, &Conversation::from(words.join(" ").as_str())).map(drop),
    }
}

/// Whether the environment names a service.
fn is_configured() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let is_openai = std::env::var("GPTALK_PROTOCOL").is_ok_and(|name| name == "openai");
    is_set("GPTALK_BASE_URL")
        || is_openai
            && ["OPENAI_BASE_URL", "OPENAI_API_KEY"]
                .into_iter()
                .any(is_set)
}

/// Reads lines and answers each, with all that was said before.
fn converse(client: &Client) -> Result<(), Box<dyn Error>> {
    let is_typed = io::stdin().is_terminal();
    let mut talk = Conversation::new();
    loop {
        if is_typed {
            print!("> ");
            io::stdout().flush()?;
        }
        let mut line = String::new();
        if io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            continue;
        }
        let mut next = talk.clone();
        next.push(Message::user(line.trim_end()));
        match ask(client, &next) {
            Ok(text) => {
                next.push(Message::assistant(text));
                talk = next;
            }
            // Typed by a person, who may want to try again; in a script it is the end.
            Err(error) if is_typed => eprintln!("chat: {error}"),
            Err(error) => return Err(error),
        }
    }
}

/// Sends a conversation and prints the reply as it comes; returns its text.
fn ask(client: &Client, talk: &Conversation) -> Result<String, Box<dyn Error>> {
    let mut out = io::stdout();
    let reply = client.chat(talk, |piece| {
        match out.write_all(piece.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => ControlFlow::Continue(()),
            // Nobody reads on: `chat | head`.
            Err(_) => ControlFlow::Break(()),
        }
    });
    // After a failure too, a line of its own for what follows.
    let _ = writeln!(out);
    match reply {
        Ok(reply) => Ok(reply.text),
        // Stopped by hand: what has come is the answer.
        Err(error) if error.kind() == ErrorKind::Cancelled => {
            Ok(error.into_reply().unwrap_or_default().text)
        }
        Err(error) => Err(error.into()),
    }
}

/// Makes Ctrl-C stop the reply that runs.
fn stop_on_ctrl_c(handle: CancelHandle) {
    static HANDLE: OnceLock<CancelHandle> = OnceLock::new();

    extern "C" fn stop(_signal: libc::c_int) {
        if !HANDLE.get().is_some_and(CancelHandle::cancel) {
            // SAFETY: `_exit` may be called in a signal handler.
            unsafe { libc::_exit(130) };
        }
    }

    HANDLE.get_or_init(|| handle);
    // SAFETY: the handler does nothing but what a signal handler may: atomics and `_exit`.
    unsafe { libc::signal(libc::SIGINT, stop as *const () as libc::sighandler_t) };
}

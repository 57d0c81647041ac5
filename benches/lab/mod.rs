//! What the bench and the budget (`tests/costs.rs`) have in common: replies that are rendered
//! beforehand, a service that sends them, and clients in C that read them.

// Neither of the two needs all of it.
#![allow(dead_code)]

mod client;
mod stream;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gptalk_service::{Builder, Endpoint, Service};

pub use client::{Client, Measured, c, curl};
pub use stream::{Stream, words};

/// How many texts a login of the GPTalk protocol is good for.
pub const LOGIN_USES: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    OpenAi,
    GpTalk,
}

impl Protocol {
    pub const BOTH: [Protocol; 2] = [Protocol::OpenAi, Protocol::GpTalk];

    pub fn name(self) -> &'static str {
        match self {
            Protocol::OpenAi => "openai",
            Protocol::GpTalk => "gptalk",
        }
    }
}

/// A service that answers every chat with the same bytes, and keeps nothing of it but counts.
pub struct Replies {
    pub service: Service,
    refused: Arc<AtomicUsize>,
}

impl Replies {
    pub fn start(stream: Stream) -> Replies {
        Replies::with(Service::builder(), stream, None)
    }

    /// With a pause before each token, which is a write of its own.
    pub fn paced(stream: Stream, pause: Duration) -> Replies {
        Replies::with(Service::builder(), stream, Some(pause))
    }

    pub fn with(builder: Builder, stream: Stream, pause: Option<Duration>) -> Replies {
        let stream = Arc::new(stream);
        let again = Arc::clone(&stream);
        let refused = Arc::new(AtomicUsize::new(0));
        let refusals = Arc::clone(&refused);
        // How many texts each login is still good for; its token is its place here.
        let logins = Arc::new(Mutex::new(Vec::new()));
        let texts = Arc::clone(&logins);
        let service = builder
            .keep_requests(false)
            .on(Endpoint::Chat, move |_, peer| stream.send(peer, pause))
            .on(Endpoint::Stream, move |_, peer| again.send(peer, pause))
            .on(Endpoint::Login, move |_, peer| {
                let mut logins = logins.lock().expect("logins");
                let token = logins.len().to_string();
                logins.push(LOGIN_USES);
                drop(logins);
                peer.respond(200, "application/json", token_answer(&token));
            })
            .on(Endpoint::Text, move |request, peer| {
                let token = request.header("authorization").unwrap_or_default();
                if spend(token, &mut texts.lock().expect("logins")).is_some() {
                    return peer.respond(200, "application/json", token_answer("stream"));
                }
                refusals.fetch_add(1, Ordering::Relaxed);
                peer.respond(401, "application/json", r#"{"code":401,"msg":"log in"}"#);
            });
        Replies {
            service: service.start(),
            refused,
        }
    }

    /// How many texts came with a token that was not good, or not any more.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    pub fn requests(&self) -> usize {
        let endpoints = [
            Endpoint::Login,
            Endpoint::Text,
            Endpoint::Stream,
            Endpoint::Chat,
            Endpoint::Other,
        ];
        let counts = endpoints
            .iter()
            .map(|&endpoint| self.service.count(endpoint));
        counts.sum()
    }
}

/// Takes a use off the login whose token it is.
fn spend(authorization: &str, logins: &mut [usize]) -> Option<()> {
    let token = authorization.strip_prefix("Bearer ")?;
    let uses = logins.get_mut(token.parse::<usize>().ok()?)?;
    *uses = uses.checked_sub(1)?;
    Some(())
}

fn token_answer(token: &str) -> String {
    format!(r#"{{"code":0,"data":{{"expires_at":9999999999,"token":"{token}"}},"msg":"ok"}}"#)
}

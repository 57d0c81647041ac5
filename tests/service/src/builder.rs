//! What a service is to be like.

use crate::{Endpoint, Peer, Request, Service};
use rustls::ServerConfig;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

type Reply = Box<dyn Fn(&str) -> String + Send + Sync>;
type Handler = Box<dyn Fn(&Request, &mut Peer) + Send + Sync>;
type Greeter = Box<dyn Fn(&mut Peer) + Send + Sync>;

/// A service to be: [`Service::builder`] makes one, [`Builder::start`] starts it.
#[must_use]
pub struct Builder {
    pub(crate) pace: Duration,
    pub(crate) prefix: String,
    pub(crate) port: u16,
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) origin: Option<String>,
    pub(crate) uses: u32,
    pub(crate) expires_in: i64,
    pub(crate) login_data: Option<Value>,
    pub(crate) api_key: Option<String>,
    pub(crate) keep_requests: bool,
    pub(crate) reply: Reply,
    pub(crate) handlers: HashMap<Endpoint, Handler>,
    pub(crate) on_connect: Option<Greeter>,
}

impl Builder {
    pub(crate) fn new() -> Builder {
        Builder {
            pace: Duration::ZERO,
            prefix: String::new(),
            port: 0,
            tls: None,
            origin: None,
            uses: 5,
            expires_in: 3600,
            login_data: None,
            api_key: None,
            keep_requests: true,
            reply: Box::new(|prompt| format!("You said: {prompt}")),
            handlers: HashMap::new(),
            on_connect: None,
        }
    }

    /// The pause between two words of the reply. Defaults to none.
    pub fn pace(mut self, pace: Duration) -> Builder {
        self.pace = pace;
        self
    }

    /// The path that all others are below, such as `/path`. Defaults to `""`.
    pub fn prefix(mut self, prefix: &str) -> Builder {
        self.prefix = prefix.to_owned();
        self
    }

    /// The port to listen on. Defaults to 0: any that is free.
    pub fn port(mut self, port: u16) -> Builder {
        self.port = port;
        self
    }

    /// Speaks TLS. Defaults to plain HTTP.
    pub fn tls(mut self, config: impl Into<Arc<ServerConfig>>) -> Builder {
        self.tls = Some(config.into());
        self
    }

    /// Where clients reach it, such as `https://chat.example`: by another name, or through
    /// something that stands before it. Defaults to its own address.
    pub fn origin(mut self, origin: &str) -> Builder {
        self.origin = Some(origin.to_owned());
        self
    }

    /// How many texts a login token serves. Defaults to 5.
    pub fn uses(mut self, uses: u32) -> Builder {
        self.uses = uses;
        self
    }

    /// How many seconds a login token lives, negative ones too. Defaults to 3600.
    pub fn expires_in(mut self, seconds: i64) -> Builder {
        self.expires_in = seconds;
        self
    }

    /// The `data` member of the login answer, for staging odd ones. Defaults to a token and its
    /// `expires_at`.
    ///
    /// If it is an object without the member `token`, a good token is filled in. Whatever
    /// `expires_at` it gives, the service itself lets the token live on.
    pub fn login_data(mut self, data: Value) -> Builder {
        self.login_data = Some(data);
        self
    }

    /// The key that the OpenAI-compatible endpoint asks for. Defaults to none: any key, or none,
    /// will do.
    pub fn api_key(mut self, key: &str) -> Builder {
        self.api_key = Some(key.to_owned());
        self
    }

    /// Whether requests are kept, for [`Service::requests`]; they are counted all the same. Defaults
    /// to true.
    pub fn keep_requests(mut self, keep: bool) -> Builder {
        self.keep_requests = keep;
        self
    }

    /// The text of the reply to a prompt. Defaults to an echo: `You said: <prompt>`.
    pub fn reply(mut self, reply: impl Fn(&str) -> String + Send + Sync + 'static) -> Builder {
        self.reply = Box::new(reply);
        self
    }

    /// Who answers an endpoint's requests. Defaults to [`Peer::normal`].
    ///
    /// Unless the handler closes the connection, it goes on to the next request.
    pub fn on(
        mut self,
        endpoint: Endpoint,
        handler: impl Fn(&Request, &mut Peer) + Send + Sync + 'static,
    ) -> Builder {
        self.handlers.insert(endpoint, Box::new(handler));
        self
    }

    /// What happens to a connection before a request is read from it, and before TLS is spoken: the
    /// bytes are those on the wire. Defaults to nothing.
    pub fn on_connect(mut self, greeter: impl Fn(&mut Peer) + Send + Sync + 'static) -> Builder {
        self.on_connect = Some(Box::new(greeter));
        self
    }

    /// Starts the service.
    ///
    /// # Panics
    ///
    /// Where the port is taken or no thread is to be had.
    pub fn start(self) -> Service {
        Service::launch(self)
    }
}

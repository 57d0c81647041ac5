//! The options: their names, their checks, and how their four layers make one configuration.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use once_cell::sync::{Lazy, OnceCell};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use serde_json::{Map, Number, Value};

use crate::auth::Identity;
use crate::error::{Error, words};
use crate::json::{Json, parse, parse_value};
use crate::proxy::{self, Proxy};
use crate::sys::PerProcess;
use crate::url::Url;

/// The public service's address, the default `base_url` of the GPTalk protocol. Its known client
/// is deprecated and marks the service as not working: set your own.
pub const GPTALK_BASE_URL: &str = "https://gptalk.net";
/// The default `base_url` of the OpenAI-compatible protocol.
pub const OPENAI_BASE_URL: &str = "https://api.openai.com/v1";
/// Whether the public GPTalk service works, as far as its known client tells.
pub const GPTALK_NET_WORKS: bool = false;
/// The models that the public GPTalk service is known for; other names are passed on as given.
pub const GPTALK_MODELS: &[&str] = &["gpt-3.5-turbo"];
/// The GPTalk protocol's application id.
pub const GPTALK_APP_ID: &str = "2229";

/// The name of every option, as C, the environment and the documents have it.
pub(crate) const OPTIONS: &[&str] = &[
    "protocol",
    "base_url",
    "api_key",
    "model",
    "temperature",
    "max_tokens",
    "body",
    "header",
    "proxy",
    "ca_file",
    "connect_timeout_ms",
    "response_timeout_ms",
    "idle_timeout_ms",
    "timeout_ms",
    "retries",
    "max_reply_bytes",
    "user_agent",
    "app_id",
    "fingerprint",
];

/// The wire protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// The GPTalk protocol.
    Gptalk,
    /// OpenAI-compatible chat completions.
    Openai,
}

/// The trusted roots of a `ca_file`, read when the option is set.
pub(crate) struct CaFile {
    pub certificates: Vec<CertificateDer<'static>>,
    /// What the TLS layer makes of them, at the first connection that needs it.
    pub tls: PerProcess<OnceCell<Arc<rustls::ClientConfig>>>,
}

/// One layer of options; what is `None` is left to the next layer.
#[derive(Clone, Default)]
pub(crate) struct Options {
    protocol: Option<Protocol>,
    base_url: Option<Url>,
    api_key: Option<String>,
    model: Option<String>,
    temperature: Option<Number>,
    max_tokens: Option<u64>,
    body: Option<Map<String, Value>>,
    headers: Vec<(String, String)>,
    proxy: Option<Option<Proxy>>,
    ca_file: Option<Arc<CaFile>>,
    connect_timeout: Option<u64>,
    response_timeout: Option<u64>,
    idle_timeout: Option<u64>,
    timeout: Option<u64>,
    retries: Option<u64>,
    max_reply_bytes: Option<u64>,
    user_agent: Option<String>,
    app_id: Option<String>,
    fingerprint: Option<String>,
}

impl Options {
    /// Sets an option by its name, or unsets it; the value is checked at once.
    pub fn set(&mut self, key: &str, value: Option<&str>) -> Result<(), Error> {
        Change::new(key, value)?.apply(self);
        Ok(())
    }
}

/// An option's new value, checked and, of a file, read: what is left to do cannot fail or wait.
pub(crate) struct Change(Box<dyn FnOnce(&mut Options)>);

impl Change {
    pub fn apply(self, options: &mut Options) {
        (self.0)(options);
    }

    /// The change that sets an option by its name, or unsets it.
    pub fn new(key: &str, value: Option<&str>) -> Result<Change, Error> {
        match key {
            "protocol" => put(
                |o| &mut o.protocol,
                value,
                |text| match text {
                    "gptalk" => Ok(Protocol::Gptalk),
                    "openai" => Ok(Protocol::Openai),
                    _ => Err(bad(key, text, "give gptalk or openai")),
                },
            ),
            "base_url" => put(|o| &mut o.base_url, value, |text| Url::parse(key, text)),
            "api_key" => put(
                |o| &mut o.api_key,
                value,
                |text| secret_text(key, text.trim_matches(' ')),
            ),
            "model" => put(|o| &mut o.model, value, |text| Ok(text.to_owned())),
            "temperature" => put(
                |o| &mut o.temperature,
                value,
                |text| match parse(text) {
                    Ok(Json::Number(number)) => Ok(number),
                    _ => Err(bad(key, text, "give a number such as 0.7")),
                },
            ),
            "max_tokens" => put(|o| &mut o.max_tokens, value, |text| whole(key, text)),
            "body" => put(
                |o| &mut o.body,
                value,
                |text| match parse_value(text) {
                    Ok(Value::Object(members)) => Ok(members),
                    Ok(_) => Err(Error::misuse("body: give a JSON object")),
                    Err(error) => Err(Error::misuse(format!("body: give a JSON object ({error})"))),
                },
            ),
            "header" => {
                let header = value.map(header).transpose()?;
                Ok(Change(Box::new(move |options| match header {
                    Some(header) => {
                        options.headers.retain(|(name, _)| *name != header.0);
                        options.headers.push(header);
                    }
                    None => options.headers.clear(),
                })))
            }
            "proxy" => put(
                |o| &mut o.proxy,
                value,
                |text| match text {
                    "none" => Ok(None),
                    _ => Proxy::parse(key, text).map(Some),
                },
            ),
            "ca_file" => put(
                |o| &mut o.ca_file,
                value,
                |path| read_ca_file(path).map(Arc::new),
            ),
            "connect_timeout_ms" => put(|o| &mut o.connect_timeout, value, |t| whole(key, t)),
            "response_timeout_ms" => put(|o| &mut o.response_timeout, value, |t| whole(key, t)),
            "idle_timeout_ms" => put(|o| &mut o.idle_timeout, value, |t| whole(key, t)),
            "timeout_ms" => put(|o| &mut o.timeout, value, |t| whole(key, t)),
            "retries" => put(|o| &mut o.retries, value, |t| whole(key, t)),
            "max_reply_bytes" => put(|o| &mut o.max_reply_bytes, value, |t| whole(key, t)),
            "user_agent" => put(
                |o| &mut o.user_agent,
                value,
                |text| match header_text(key, text)? {
                    text if text.is_empty() => Err(bad(key, &text, "unset it for the default")),
                    text => Ok(text),
                },
            ),
            "app_id" => put(|o| &mut o.app_id, value, |text| header_text(key, text)),
            "fingerprint" => put(
                |o| &mut o.fingerprint,
                value,
                |text| match text {
                    "" => Err(bad(key, text, "unset it for a random one")),
                    _ => Ok(text.to_owned()),
                },
            ),
            _ => Err(Error::misuse(format!(
                "{:?} is not an option; the options are {}",
                shown(key),
                OPTIONS.join(", ")
            ))),
        }
    }
}

/// What a chat runs with: every option resolved.
pub(crate) struct Config {
    pub protocol: Protocol,
    pub base_url: Url,
    /// Whether `base_url` is the protocol's default, which is worth a word where it fails.
    pub base_url_is_default: bool,
    pub api_key: Option<String>,
    pub model: Option<String>,
    pub temperature: Option<Number>,
    pub max_tokens: Option<u64>,
    pub body: Map<String, Value>,
    pub headers: Vec<(String, String)>,
    pub proxy: Option<Proxy>,
    pub ca_file: Option<Arc<CaFile>>,
    pub connect_timeout: Option<Duration>,
    pub response_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub timeout: Option<Duration>,
    pub retries: u64,
    pub max_reply_bytes: u64,
    pub user_agent: String,
    pub app_id: String,
    pub fingerprint: Option<String>,
    /// Whose logins a chat uses.
    pub identity: Arc<Identity>,
}

impl Config {
    /// Resolves the layers: the client's, the process's, the environment's, the built-in.
    pub fn resolve(client: &Options, process: &Options) -> Result<Config, Error> {
        let env = environment().options.as_ref().map_err(Clone::clone)?;
        let layers = [client, process, env];

        let protocol = first(layers, |o| o.protocol).unwrap_or(Protocol::Gptalk);
        // What OpenAI's own clients read counts behind everything that is set for this one.
        let openai_var = |name| match protocol {
            Protocol::Openai => environment_var(name).filter(|value| !value.is_empty()),
            Protocol::Gptalk => None,
        };
        let mut given = first(layers, |o| o.base_url.clone());
        if let (None, Some(url)) = (&given, openai_var("OPENAI_BASE_URL")) {
            given = Some(Url::parse("in the environment, OPENAI_BASE_URL", url)?);
        }
        let base_url_is_default = given.is_none();
        let base_url = match given {
            Some(url) => url,
            None => Url::parse(
                "base_url",
                match protocol {
                    Protocol::Gptalk => GPTALK_BASE_URL,
                    Protocol::Openai => OPENAI_BASE_URL,
                },
            )?,
        };
        if protocol == Protocol::Gptalk && base_url.query.is_some() {
            return Err(Error::misuse(
                "base_url: a query (?...) has no meaning in the gptalk protocol: leave it out",
            ));
        }
        let proxy = match first(layers, |o| o.proxy.clone()) {
            Some(proxy) => proxy,
            None => proxy::from_env(&base_url, |name| environment().vars.get(name).cloned())?,
        };
        let headers = layers.iter().map(|o| &o.headers).find(|h| !h.is_empty());
        let headers = headers.cloned().unwrap_or_default();
        let mut api_key = first(layers, |o| o.api_key.clone());
        if let (None, Some(key)) = (&api_key, openai_var("OPENAI_API_KEY")) {
            // Another service's key, given in another way, is not joined by OpenAI's.
            if !carries_a_key(&headers, &base_url) {
                let key = key.trim_matches(' ');
                api_key = Some(secret_text("in the environment, OPENAI_API_KEY", key)?);
            }
        }
        // A header of that name goes over the option, wherever the option is used.
        let mut own = headers.iter().filter(|(name, _)| name == "user-agent");
        let own_agent = own.next().map(|(_, value)| value.clone());
        let limit = |get: fn(&Options) -> Option<u64>, default: u64| {
            let ms = first(layers, get).unwrap_or(default);
            (ms > 0).then(|| Duration::from_millis(ms))
        };
        let app_id = first(layers, |o| o.app_id.clone());
        let app_id = app_id.unwrap_or_else(|| GPTALK_APP_ID.to_owned());
        let fingerprint = first(layers, |o| o.fingerprint.clone());
        let identity = identity(&base_url, &app_id, fingerprint.as_deref(), &headers);
        Ok(Config {
            protocol,
            base_url,
            base_url_is_default,
            api_key: api_key.filter(|key| !key.is_empty()),
            model: first(layers, |o| o.model.clone()).filter(|model| !model.is_empty()),
            temperature: first(layers, |o| o.temperature.clone()),
            max_tokens: first(layers, |o| o.max_tokens),
            body: first(layers, |o| o.body.clone()).unwrap_or_default(),
            headers,
            proxy,
            ca_file: first(layers, |o| o.ca_file.clone()),
            connect_timeout: limit(|o| o.connect_timeout, 10_000),
            response_timeout: limit(|o| o.response_timeout, 300_000),
            idle_timeout: limit(|o| o.idle_timeout, 120_000),
            timeout: limit(|o| o.timeout, 0),
            retries: first(layers, |o| o.retries).unwrap_or(2),
            max_reply_bytes: first(layers, |o| o.max_reply_bytes).unwrap_or(64 << 20),
            user_agent: own_agent
                .or_else(|| first(layers, |o| o.user_agent.clone()))
                .unwrap_or_else(|| concat!("gptalk/", env!("CARGO_PKG_VERSION")).to_owned()),
            app_id,
            fingerprint,
            identity: Arc::new(identity),
        })
    }

    /// The secrets of the configuration, which no error or log line may show.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let proxy = self.proxy.iter().flat_map(|proxy| &proxy.credentials);
        let headers = self.headers.iter().filter(|(name, _)| names_a_secret(name));
        let query = secrets_in_query(&self.base_url);
        proxy
            .map(|(_, password)| password.as_str())
            .chain(self.api_key.iter().flat_map(|key| secrets_in(key)))
            .chain(self.fingerprint.as_deref())
            .chain(headers.flat_map(|(_, value)| secrets_in(value)))
            .chain(query)
    }

    /// Whether a key goes with the request: the option, or in a header or the query.
    pub fn has_key(&self) -> bool {
        self.api_key.is_some() || carries_a_key(&self.headers, &self.base_url)
    }

    /// Whether a key would be readable on the way to the service.
    pub fn exposes_key(&self) -> bool {
        self.protocol == Protocol::Openai && !self.base_url.https && self.has_key()
    }
}

/// What a GPTalk service tells users apart by: the application, the fingerprint, and what the user's
/// own headers say of them.
fn identity(
    base_url: &Url,
    app_id: &str,
    fingerprint: Option<&str>,
    headers: &[(String, String)],
) -> Identity {
    let mut who = vec![
        app_id.to_owned(),
        fingerprint.unwrap_or_default().to_owned(),
    ];
    let headers = headers.iter().filter(|(name, _)| {
        name.starts_with("x-auth-") || name == "authorization" || name == "cookie"
    });
    who.extend(headers.map(|(name, value)| format!("{name}: {value}")));
    Identity {
        service: base_url.to_string(),
        who,
    }
}

/// Whether a key for the service goes in a header or the query. (A gateway's own credentials go in
/// other headers, beside it.)
fn carries_a_key(headers: &[(String, String)], url: &Url) -> bool {
    const KEYS: &[&str] = &[
        "authorization",
        "api-key",
        "x-api-key",
        "x-goog-api-key",
        "ocp-apim-subscription-key",
    ];
    headers
        .iter()
        .any(|(name, _)| KEYS.contains(&name.as_str()))
        || secrets_in_query(url).next().is_some()
}

fn secrets_in_query(url: &Url) -> impl Iterator<Item = &str> {
    let members = url.query.iter().flat_map(|query| query.split('&'));
    let members = members.filter_map(|member| member.split_once('='));
    members
        .filter(|(name, _)| names_a_secret(&name.to_ascii_lowercase()))
        .map(|(_, value)| value)
}

/// Whether a header or a query's member of this name (in lower case) carries a credential.
fn names_a_secret(name: &str) -> bool {
    const WORDS: &[&str] = &[
        "auth",
        "cookie",
        "credential",
        "jwt",
        "key",
        "passw",
        "secret",
        "session",
        "token",
    ];
    WORDS.iter().any(|word| name.contains(word))
}

/// A header's value, and what is secret in it by itself: `Bearer abc`, `sid=abc; user=def`.
fn secrets_in(value: &str) -> impl Iterator<Item = &str> {
    let words = value
        .split([' ', ';', ','])
        .filter(|word| !matches!(*word, "Bearer" | "Basic"));
    let secrets = words.map(|word| match word.split_once('=') {
        Some((_, secret)) if !secret.trim_matches('=').is_empty() => secret,
        _ => word,
    });
    std::iter::once(value).chain(secrets)
}

fn first<T>(layers: [&Options; 3], get: impl Fn(&Options) -> Option<T>) -> Option<T> {
    layers.into_iter().find_map(get)
}

/// What the library knows of the environment: read once, so that a host's `setenv` in another
/// thread can never race with it.
struct Environment {
    options: Result<Options, Error>,
    vars: BTreeMap<String, String>,
}

fn environment() -> &'static Environment {
    static ENVIRONMENT: Lazy<Environment> = Lazy::new(|| {
        const OTHERS: &[&str] = &[
            "http_proxy",
            "https_proxy",
            "HTTPS_PROXY",
            "all_proxy",
            "ALL_PROXY",
            "no_proxy",
            "NO_PROXY",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
            "OPENAI_API_KEY",
            "OPENAI_BASE_URL",
        ];
        let is_ours = |name: &str| name.starts_with("GPTALK_") || OTHERS.contains(&name);
        let all =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        let mut vars = BTreeMap::new();
        let mut not_text = None;
        for (name, value) in all.filter(|(name, _)| is_ours(name)) {
            match value.into_string() {
                Ok(value) => drop(vars.insert(name, value)),
                Err(_) => not_text = Some(name),
            }
        }
        let mut options = Options::default();
        let mut read = OPTIONS.iter().try_for_each(|key| {
            let name = format!("GPTALK_{}", key.to_ascii_uppercase());
            match vars.get(&name) {
                Some(value) if !value.is_empty() => options
                    .set(key, Some(value))
                    .map_err(|error| error.prefixed(format_args!("in the environment, {name}: "))),
                _ => Ok(()),
            }
        });
        if let Some(name) = not_text {
            read = Err(Error::misuse(format!(
                "in the environment, {name}: it is not UTF-8"
            )));
        }
        Environment {
            options: read.map(|()| options),
            vars,
        }
    });
    &ENVIRONMENT
}

/// Reads the environment now, at the library's first use.
pub(crate) fn read_environment() {
    environment();
}

/// A variable that is not an option of ours, as it was at the library's first use.
pub(crate) fn environment_var(name: &str) -> Option<&'static str> {
    environment().vars.get(name).map(String::as_str)
}

fn put<T: 'static>(
    place: fn(&mut Options) -> &mut Option<T>,
    value: Option<&str>,
    parse: impl FnOnce(&str) -> Result<T, Error>,
) -> Result<Change, Error> {
    let value = value.map(parse).transpose()?;
    Ok(Change(Box::new(move |options| *place(options) = value)))
}

fn bad(key: &str, value: &str, what_to_do: &str) -> Error {
    let value = shown(value);
    Error::misuse(format!(
        "{key}: {value:?} is not a value of it: {what_to_do}"
    ))
}

/// As much of the caller's own words as an error shows.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn whole(key: &str, text: &str) -> Result<u64, Error> {
    // A hundred years of milliseconds: the limit keeps every sum of times in range.
    match text.parse::<u64>() {
        Ok(n) if n <= 3_155_760_000_000 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(n),
        _ => Err(bad(key, text, "give a whole number, 0 or more")),
    }
}

/// Text that can stand in an HTTP header.
fn header_text(key: &str, text: &str) -> Result<String, Error> {
    if is_header_value(text) {
        // A header has no white space around it; nor has what is to be the same elsewhere.
        Ok(text.trim().to_owned())
    } else {
        Err(bad(
            key,
            text,
            "a header takes printable ASCII characters, at most 8 KiB",
        ))
    }
}

/// The same for a secret: the error does not show it.
fn secret_text(key: &str, text: &str) -> Result<String, Error> {
    if is_header_value(text) {
        Ok(text.to_owned())
    } else {
        Err(Error::misuse(format!(
            "{key}: the value has a character that is not printable ASCII, or more than 8 KiB: \
             is it quoted or cut?"
        )))
    }
}

fn is_header_value(text: &str) -> bool {
    text.len() <= 8 << 10 && text.bytes().all(is_header_byte)
}

/// Whether a byte can stand in the value of a header that we send.
pub(crate) fn is_header_byte(byte: u8) -> bool {
    (0x20..=0x7e).contains(&byte)
}

fn header(text: &str) -> Result<(String, String), Error> {
    let Some((name, value)) = text.split_once(':') else {
        return Err(Error::misuse("header: give it as \"Name: value\""));
    };
    let name = name.trim().to_ascii_lowercase();
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(token) {
        return Err(Error::misuse(
            "header: what stands before the colon is not a header name; give \"Name: value\"",
        ));
    }
    const OURS: &[&str] = &[
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    if OURS.contains(&name.as_str()) {
        return Err(Error::misuse(format!(
            "header: {name} is the connection's own: it cannot be set"
        )));
    }
    let value = secret_text(&format!("header {name}"), value.trim())?;
    Ok((name, value))
}

fn read_ca_file(path: &str) -> Result<CaFile, Error> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| {
            let why = match error {
                pem::Error::Io(error) => words(&error),
                _ => "it is no PEM, or not all of it".to_owned(),
            };
            Error::misuse(format!(
                "ca_file: {path:?} cannot be read: {why}; give a PEM file of trusted roots"
            ))
        })?;
    let usable = {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add_parsable_certificates(certificates.iter().cloned())
            .0
    };
    if usable == 0 {
        return Err(Error::misuse(format!(
            "ca_file: {path:?} holds no certificate: give a PEM file of trusted roots"
        )));
    }
    Ok(CaFile {
        certificates,
        tls: PerProcess::default(),
    })
}

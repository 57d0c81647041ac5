//! What a service's no means, and what to do about it.

use std::time::{Duration, SystemTime};

use super::json::{parse_json, text_of};
use super::{Out, SHOWN_ERROR};
use crate::config::{Config, GPTALK_BASE_URL, Protocol};
use crate::error::{Error, ErrorKind};
use crate::json::Json;
use crate::transport::Answer;
use crate::url::is_private_host;

/// The longest wait that a service may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// The longest error code that is one.
const MAX_CODE: usize = 256;

/// Where services that run at home listen, unless told otherwise.
const KNOWN_PORTS: &[(u16, &str)] = &[
    (11434, "Ollama"),
    (1234, "LM Studio"),
    (8000, "vLLM"),
    (8080, "llama.cpp"),
    (4000, "LiteLLM"),
];

/// The error that an answer with another status than 2xx means. `what` was asked for at `url`.
pub(super) fn refusal(
    what: &str,
    url: &str,
    answer: &Answer,
    bytes: &[u8],
    config: &Config,
    out: &Out,
) -> Error {
    let status = answer.status;
    let kind = match status {
        401 | 403 => ErrorKind::Auth,
        429 => ErrorKind::RateLimit,
        300..=499 => ErrorKind::Request,
        500..=599 => ErrorKind::Server,
        _ => ErrorKind::Protocol,
    };
    let text = String::from_utf8_lossy(bytes);
    let said = parse_json(&text).map(|json| service_error(&json));
    let said = said.unwrap_or_default();
    let words = match &said.words {
        Some(words) => out.excerpt(words.as_bytes()),
        None => out.excerpt(title(bytes).unwrap_or(bytes)),
    };
    let advice = match status {
        300..=399 => {
            let target = answer.header("location").unwrap_or_default();
            let target = target.split(['?', '#']).next().unwrap_or_default();
            match out.excerpt(target.as_bytes()).as_str() {
                "" => "; redirects are not followed".to_owned(),
                target => format!(
                    "; redirects are not followed, this one leads to {target}: set base_url to it"
                ),
            }
        }
        429 if said.is_quota => "; the quota is used up: another try is of no use".into(),
        429 => "; wait before the next try".into(),
        500 | 502..=599 => "; try again later".into(),
        _ => match config.protocol {
            Protocol::Gptalk => gptalk_advice(status).to_owned(),
            Protocol::Openai => openai_advice(status, &said, &words, config),
        },
    };
    let colon = if words.is_empty() { "" } else { ": " };
    Error::new(
        kind,
        format!("{url} refused {what} with HTTP {status}{colon}{words}{advice}"),
    )
    .with_http_status(status)
    .with_retry_after(retry_after(answer))
    .with_retryable(matches!(status, 408 | 409 | 429 | 500..=599) && !said.is_quota)
    .with_body(out.beginning(bytes, SHOWN_ERROR))
    .with_service_code(said.code)
}

/// The error that a service reports in an answer of status 200, `text` as it came.
pub(super) fn reported(json: &Json<'_>, text: &str, url: &str, out: &Out) -> Error {
    let said = service_error(json);
    let words = said.words.or_else(|| text_of(json)).unwrap_or_default();
    let is_final = said.is_quota || said.is_request || words.contains(WRONG_PATH);
    let words = out.excerpt(words.as_bytes());
    let advice = match words.contains(WRONG_PATH) {
        true => WHERE_TO_LOOK,
        false => "",
    };
    Error::new(
        ErrorKind::Server,
        format!("{url} reported an error: {words}{advice}"),
    )
    .with_retryable(!is_final)
    .with_body(out.beginning(text.as_bytes(), SHOWN_ERROR))
    .with_service_code(said.code)
}

/// What a service says of an error.
#[derive(Default)]
pub(super) struct ServiceError {
    pub words: Option<String>,
    pub code: Option<String>,
    /// The quota is used up.
    pub is_quota: bool,
    /// It says that the request is wrong.
    pub is_request: bool,
}

/// Reads an error: every shape that is known.
pub(super) fn service_error(json: &Json<'_>) -> ServiceError {
    let json = json.first().unwrap_or(json);
    // Cloudflare has a list of them.
    let error = json
        .get("error")
        .filter(|error| !matches!(error, Json::Null));
    let error = error.or_else(|| json.get("errors")?.first());
    let inner = error.filter(|error| error.is_object()).unwrap_or(json);
    let words = ["message", "msg", "detail"]
        .iter()
        .find_map(|name| inner.get(name).and_then(text_of))
        .or_else(|| error.and_then(text_of));
    // OpenRouter has the words of the service behind it here.
    let raw = inner.get("metadata").and_then(|data| data.get("raw"));
    let words = match (words, raw.and_then(text_of)) {
        (Some(words), Some(raw)) => Some(format!("{words}: {raw}")),
        (words, raw) => words.or(raw),
    };
    let codes: Vec<String> = ["code", "error_code", "type"]
        .iter()
        .filter_map(|name| inner.get(name).and_then(text_of))
        .filter(|code| code.len() <= MAX_CODE)
        .collect();
    ServiceError {
        words,
        is_quota: codes.iter().any(|code| code == "insufficient_quota"),
        is_request: codes.iter().any(|code| is_of_the_request(code)),
        code: codes.into_iter().next(),
    }
}

/// Whether a code says that the same request will fail again.
fn is_of_the_request(code: &str) -> bool {
    const WORDS: &[&str] = &[
        "authentication_error",
        "context_length_exceeded",
        "exceed_context_size_error",
        "invalid_api_key",
        "invalid_request_error",
        "model_not_found",
        "not_found_error",
        "permission_error",
    ];
    match code.parse() {
        Ok(status) => matches!(status, 400..=499) && !matches!(status, 408 | 409 | 429),
        Err(_) => WORDS.contains(&code),
    }
}

/// What a refusal says, without the request that FastAPI repeats in it.
pub(super) fn complaint(bytes: &[u8]) -> String {
    fn forget_input(json: &mut Json<'_>) {
        match json {
            Json::Object(members) => {
                members.retain(|(name, _)| name != "input");
                members
                    .iter_mut()
                    .for_each(|(_, value)| forget_input(value));
            }
            Json::Array(items) => items.iter_mut().for_each(forget_input),
            _ => {}
        }
    }
    let text = String::from_utf8_lossy(bytes);
    match parse_json(&text) {
        Some(mut json) => {
            forget_input(&mut json);
            json.to_string()
        }
        None => text.into_owned(),
    }
}

fn gptalk_advice(status: u16) -> &'static str {
    match status {
        401 | 403 => "; it does not accept who you are",
        404 | 405 | 501 => {
            "; is base_url the right one? If it is an OpenAI-compatible service, set protocol to \
             openai (GPTALK_PROTOCOL)"
        }
        _ => "",
    }
}

fn openai_advice(status: u16, said: &ServiceError, words: &str, config: &Config) -> String {
    let words = words.to_ascii_lowercase();
    let says = |texts: &[&str]| texts.iter().any(|text| words.contains(text));
    let is_of_model = says(&["model"]);
    let is_absent = said.code.as_deref() == Some("model_not_found")
        || is_of_model
            && (status == 404 || says(&["not found", "not exist", "unknown", "valid model"]));
    let is_missing =
        is_of_model && says(&["required", "must provide", "provide a model", "missing"]);
    match (status, &config.model) {
        (401 | 403, _) if !config.has_key() => {
            "; no key was sent: set api_key (GPTALK_API_KEY, OPENAI_API_KEY)".into()
        }
        (401 | 403, _) => "; is api_key the one for this service?".into(),
        (400, _) if says(&["api key"]) => "; is api_key the one for this service?".into(),
        (400 | 404 | 422, Some(model)) if is_absent => {
            format!("; model is \"{model}\": is it one that the service has?")
        }
        (400 | 404 | 422, None) if is_absent || is_missing => {
            "; name a model that the service has: set model (GPTALK_MODEL)".into()
        }
        (404 | 405 | 501, _) if !is_gptalk_address(config) => WHERE_TO_LOOK.to_owned(),
        _ => String::new(),
    }
}

/// What LM Studio says of a wrong path, with status 200.
const WRONG_PATH: &str = "Unexpected endpoint";

/// What a wrong path has for advice.
pub(super) const WHERE_TO_LOOK: &str = "; set base_url to what stands before /chat/completions in the service's \
     documents, such as http://127.0.0.1:11434/v1, and protocol to gptalk if it is a GPTalk service";

/// What is known of a failure that no single answer tells: the end of its sentence, or nothing.
pub(crate) fn hint(config: &Config, error: &Error) -> String {
    let url = &config.base_url;
    if error.code() == Some("connect") {
        let known = KNOWN_PORTS.iter().find(|(port, _)| *port == url.port);
        let known = known.filter(|_| is_private_host(&url.host));
        return match known {
            Some((port, name)) if config.protocol == Protocol::Openai => {
                format!("; is {name} running on {port}?")
            }
            _ => format!("; is the service running there?{}", public_service(config)),
        };
    }
    let is_theirs = matches!(
        error.kind(),
        ErrorKind::Network
            | ErrorKind::Tls
            | ErrorKind::Timeout
            | ErrorKind::Auth
            | ErrorKind::Request
            | ErrorKind::Server
            | ErrorKind::Protocol
    );
    if !is_theirs {
        return String::new();
    }
    match config.protocol {
        // These say so themselves.
        Protocol::Gptalk if matches!(error.http_status(), Some(404 | 405 | 501)) => {
            public_service(config)
        }
        Protocol::Gptalk if is_openai_address(config) || config.api_key.is_some() => {
            "; an api_key or such a base_url is for an OpenAI-compatible service: set protocol to \
             openai (GPTALK_PROTOCOL)"
                .to_owned()
        }
        Protocol::Gptalk => public_service(config),
        Protocol::Openai if is_gptalk_address(config) => {
            "; base_url is a GPTalk service's: set protocol to gptalk (GPTALK_PROTOCOL)".to_owned()
        }
        Protocol::Openai => String::new(),
    }
}

fn public_service(config: &Config) -> String {
    match config.protocol {
        Protocol::Gptalk if config.base_url_is_default => format!(
            "; the public service {GPTALK_BASE_URL} is known not to work: set base_url \
             (GPTALK_BASE_URL) to a service of your own"
        ),
        _ => String::new(),
    }
}

fn is_openai_address(config: &Config) -> bool {
    let url = &config.base_url;
    let is_local = is_private_host(&url.host);
    // A GPTalk service may well be at one of the ports that others have too.
    let is_known_port = matches!(url.port, 11434 | 1234);
    url.path.ends_with("/v1")
        || url.path.ends_with("/chat/completions")
        || url.host == "api.openai.com"
        || is_local && is_known_port
}

fn is_gptalk_address(config: &Config) -> bool {
    let url = &config.base_url;
    url.host == "gptalk.net"
        || url.host.ends_with(".gptalk.net")
        || url.path.contains("/api/chatgpt")
}

/// What an HTML page is titled: its cause, where its source would only show its style.
fn title(bytes: &[u8]) -> Option<&[u8]> {
    let find = |text: &[u8], word: &[u8]| {
        text.windows(word.len())
            .position(|window| window.eq_ignore_ascii_case(word))
    };
    let start = find(bytes, b"<title>")? + b"<title>".len();
    let length = find(&bytes[start..], b"</title>")?;
    Some(&bytes[start..start + length]).filter(|title| !title.trim_ascii().is_empty())
}

/// How long the service asks to wait: `retry-after-ms`, or `Retry-After` as seconds or a date
/// (RFC 9110, section 10.2.3). Nonsense is as good as nothing.
fn retry_after(answer: &Answer) -> Option<Duration> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let date = |text: &str| {
        let until = httpdate::parse_http_date(text.trim()).ok()?;
        let wait = until.duration_since(SystemTime::now()).unwrap_or_default();
        Some(wait.as_secs_f64())
    };
    let sane = |seconds: &f64| seconds.is_finite() && *seconds >= 0.0;
    let ms = answer.header("retry-after-ms").and_then(number);
    let seconds = ms.map(|ms| ms / 1000.0).filter(sane).or_else(|| {
        let text = answer.header("retry-after")?;
        number(text).or_else(|| date(text)).filter(sane)
    })?;
    Some(Duration::from_secs_f64(
        seconds.min(MAX_RETRY_AFTER.as_secs_f64()),
    ))
}

//! The GPTalk protocol: what the service answers when left to itself, and what it refuses.

use crate::check::{
    Checked, Refusal, check, check_absent, check_header, check_http, origin_of, sole_header,
};
use crate::{Endpoint, Peer, Request, Shared, State, now, unique};
use serde_json::{Value, json};

/// How many seconds a client's clock may be off.
const CLOCK_SKEW: i64 = 300;

/// What is known of a login token.
pub(crate) struct Login {
    expires_at: i64,
    uses_left: u32,
}

/// Answers a request.
pub(crate) fn answer(request: &Request, peer: &mut Peer) {
    let shared = &*peer.shared;
    let data = match request.endpoint {
        Endpoint::Login => login(request, shared),
        Endpoint::Text => text(request, shared),
        Endpoint::Stream => match stream(request, shared) {
            Ok(prompt) => return send_reply(&prompt, peer),
            Err(refusal) => Err(refusal),
        },
        _ => Err(Refusal(404, "no such path".into())),
    };
    match data {
        Ok(data) => {
            let body = json!({"code": 0, "data": data, "msg": "ok"});
            peer.respond(200, "application/json", body.to_string());
        }
        Err(refusal) => refuse(peer, request.endpoint.name(), &refusal),
    }
}

/// Says no, the way this protocol does.
pub(crate) fn refuse(peer: &mut Peer, what: &str, refusal: &Refusal) {
    let Refusal(status, why) = refusal;
    peer.refuse(what, refusal, &json!({"code": status, "msg": why}));
}

/// Checks a login and makes the `data` of its answer.
fn login(request: &Request, shared: &Shared) -> Checked<Value> {
    check_request(request, shared, "POST")?;
    check_absent(request, "authorization")?;
    let body = request.json();
    let fingerprint = body["fingerprint"].as_str().unwrap_or_default();
    check(
        fingerprint.len() == 32 && fingerprint.bytes().all(is_lower_hex),
        "fingerprint is not 32 lower-case hex digits",
    )?;
    check(
        body == json!({"fingerprint": fingerprint, "platform": "fingerprint"}),
        "the body is not a fingerprint and the platform \"fingerprint\"",
    )?;

    let plan = &shared.plan;
    let (mut data, expires_at) = match &plan.login_data {
        Some(data) => (data.clone(), i64::MAX),
        None => {
            let expires_at = now().saturating_add(plan.expires_in);
            (json!({"expires_at": expires_at}), expires_at)
        }
    };
    if let Some(members) = data.as_object_mut() {
        members
            .entry("token")
            .or_insert_with(|| format!("login-{}", unique()).into());
    }
    if let Some(token) = data["token"].as_str() {
        let login = Login {
            expires_at,
            uses_left: plan.uses,
        };
        shared.lock().logins.insert(token.to_owned(), login);
    }
    Ok(data)
}

/// Checks a text and makes the `data` of its answer: a token for its reply.
fn text(request: &Request, shared: &Shared) -> Checked<Value> {
    check_request(request, shared, "POST")?;
    let body = request.json();
    check_text(request, &body)?;

    let mut state = shared.lock();
    spend_login(request, &mut state)?;
    // A client that does not percent-encode it, or does so twice, will not get it back intact.
    let token = format!("s+{}/&=%25 é", unique());
    let prompt = body["content"].as_str().unwrap_or_default();
    state.streams.insert(token.clone(), prompt.to_owned());
    Ok(json!({"token": token}))
}

/// Checks the twelve members of a text; others are the caller's own and free.
fn check_text(request: &Request, body: &Value) -> Checked {
    let timestamp = sole_header(request, "x-auth-timestamp")?;
    let user_agent = sole_header(request, "user-agent")?;
    check(body.is_object(), "the body is not a JSON object")?;
    let fixed = [
        ("accept", json!("stream")),
        ("from", json!(1)),
        ("is_mobile", json!(0)),
        ("user_agent", json!(user_agent)),
        ("is_open_ctx", json!(0)),
        ("prompt", json!("")),
        ("roid", json!(111)),
        ("ctx_msg_count", json!(3)),
        ("created_at", json!(timestamp.parse::<i64>().ok())),
    ];
    for (name, value) in fixed {
        let is = &body[name];
        check(*is == value, &format!("{name} is {is}, not {value}"))?;
    }
    check(body["content"].is_string(), "content is not a string")?;
    check(
        body["model"]
            .as_str()
            .is_some_and(|model| !model.is_empty()),
        "model is not a name",
    )?;
    check(
        body["temperature"].is_number(),
        "temperature is not a number",
    )
}

/// Takes one use off the request's login token.
fn spend_login(request: &Request, state: &mut State) -> Checked {
    sole_header(request, "authorization")
        .ok()
        .and_then(|value| state.logins.get_mut(value.strip_prefix("Bearer ")?))
        .filter(|login| login.expires_at >= now())
        .and_then(|login| {
            login.uses_left = login.uses_left.checked_sub(1)?;
            Some(())
        })
        .ok_or_else(|| Refusal(401, "login required".into()))
}

/// Checks a stream's request, and takes its token for the prompt.
fn stream(request: &Request, shared: &Shared) -> Checked<String> {
    check_request(request, shared, "GET")?;
    check_absent(request, "authorization")?;
    check(request.body.is_empty(), "there is a body")?;
    let (_, query) = request.target.split_once('?').unwrap_or_default();
    let token = query
        .strip_prefix("token=")
        .and_then(percent_decode)
        .ok_or_else(|| Refusal(400, "the query is not a percent-encoded token".into()))?;
    let prompt = shared.lock().streams.remove(&token);
    prompt.ok_or_else(|| Refusal(403, "the token is unknown or used".into()))
}

/// Sends the reply to a prompt: a line a word, each with the whole reply so far.
fn send_reply(prompt: &str, peer: &mut Peer) {
    let reply = (peer.shared.plan.reply)(prompt);
    let mut end = 0;
    let lines = reply.split_inclusive(char::is_whitespace).map(|word| {
        end += word.len();
        json!({"content": reply[..end]})
    });
    peer.send_events(&[], lines, &[]);
}

/// Checks what is asked of every request.
fn check_request(request: &Request, shared: &Shared, method: &str) -> Checked {
    check_http(request, shared, method)?;
    let host = sole_header(request, "host")?;
    check_header(request, "origin", &origin_of(host, shared))?;
    check_header(request, "accept", "*/*")?;
    check_header(request, "x-auth-openid", "")?;
    check_header(request, "x-auth-platform", "")?;
    let app_id = sole_header(request, "x-auth-appid")?;
    check(!app_id.is_empty(), "x-auth-appid is empty")?;
    let timestamp = sole_header(request, "x-auth-timestamp")?;
    check(
        timestamp
            .parse()
            .is_ok_and(|t: i64| now().abs_diff(t) <= CLOCK_SKEW.unsigned_abs()),
        &format!("x-auth-timestamp is {timestamp:?}, not now"),
    )
}

/// Decodes what may hold, undisguised, only letters, digits and `-._~`.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'-' | b'.' | b'_' | b'~' => byte,
            _ if byte.is_ascii_alphanumeric() => byte,
            _ => return None,
        });
    }
    String::from_utf8(decoded).ok()
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

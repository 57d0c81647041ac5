//! The OpenAI-compatible protocol: chat completions, streamed and whole, and what is refused.

use crate::check::{Checked, Refusal, check, check_absent, check_http, sole_header};
use crate::{Builder, Peer, Request, Shared, now, unique};
use serde_json::{Map, Value, json};

/// How many characters of a call's arguments make a piece.
const PIECE: usize = 8;

/// What the assistant answers.
struct Reply {
    /// The function it calls; None where it talks.
    function: Option<String>,
    /// Its words, or the arguments of the call: in a stream, each is an event.
    pieces: Vec<String>,
    finish_reason: &'static str,
}

/// Answers a request.
pub(crate) fn answer(request: &Request, peer: &mut Peer) {
    peer.header("x-request-id", &format!("req_{}", unique()));
    let body = request.json();
    let checked = check_request(request, &peer.shared).and_then(|()| check_body(&body));
    if let Err(refusal) = checked {
        return refuse(peer, &refusal);
    }
    let reply = Reply::to(&body, &peer.shared.plan);
    if body["stream"] == true {
        send_stream(&body, &reply, peer);
    } else {
        send_whole(&body, &reply, peer);
    }
}

/// Says no, the way this protocol does.
fn refuse(peer: &mut Peer, refusal: &Refusal) {
    let Refusal(status, why) = refusal;
    let code = (*status == 401).then_some("invalid_api_key");
    let error = json!({
        "message": why, "type": "invalid_request_error", "param": null, "code": code,
    });
    peer.refuse("chat", refusal, &json!({"error": error}));
}

/// Checks all of a request but its body.
fn check_request(request: &Request, shared: &Shared) -> Checked {
    check_http(request, shared, "POST")?;
    check_absent(request, "origin")?;
    for (name, _) in &request.headers {
        let ours = !name.starts_with("x-auth-");
        check(ours, &format!("{name} is of the other protocol"))?;
    }
    let mut key = None;
    if request.header("authorization").is_some() {
        key = sole_header(request, "authorization")?.strip_prefix("Bearer ");
        check(
            key.is_some(),
            "authorization does not begin with \"Bearer \"",
        )?;
    }
    let wanted = shared.plan.api_key.as_deref();
    if wanted.is_some() && key != wanted {
        return Err(Refusal(401, "Incorrect API key provided".into()));
    }
    Ok(())
}

/// Checks the members that the protocol knows; others are the caller's own and free.
fn check_body(body: &Value) -> Checked {
    check(body.is_object(), "the body is not a JSON object")?;
    check_messages(list(&body["messages"]))?;
    let has = |name| body.get(name).is_some();
    let may_be = |name, is: fn(&Value) -> bool| body.get(name).is_none_or(is);
    check(may_be("model", is_name), "model is not a name")?;
    check(
        may_be("temperature", Value::is_number),
        "temperature is not a number",
    )?;
    check(
        may_be("stream", Value::is_boolean),
        "stream is not a boolean",
    )?;
    check(
        may_be("stream_options", Value::is_object),
        "stream_options is not an object",
    )?;
    check(
        !has("stream_options") || body["stream"] == true,
        "stream_options is given, but no stream is asked for",
    )?;
    check(
        !has("max_tokens") || !has("max_completion_tokens"),
        "max_tokens and max_completion_tokens are both given",
    )
}

/// Checks that there are messages, and what each must have.
fn check_messages(messages: &[Value]) -> Checked {
    check(!messages.is_empty(), "messages is not a list of messages")?;
    for (n, message) in messages.iter().enumerate() {
        let role = &message["role"];
        check(is_name(role), &format!("messages[{n}] has no role"))?;
        match role.as_str() {
            Some("system" | "user" | "assistant") => {
                let calls = role == "assistant" && !list(&message["tool_calls"]).is_empty();
                let content = message.get("content");
                check(
                    content.is_some_and(|content| calls || !content.is_null()),
                    &format!("messages[{n}] has no content"),
                )?;
            }
            Some("tool") => check(
                call_of(message, &messages[..n]).is_some(),
                &format!("messages[{n}] is the result of no tool call before it"),
            )?,
            _ => {}
        }
    }
    Ok(())
}

impl Reply {
    /// The reply to a request's body: what a tool says, else a call of one, else the plan's.
    fn to(body: &Value, plan: &Builder) -> Reply {
        let messages = list(&body["messages"]);
        let prompt = messages.iter().rfind(|message| message["role"] == "user");
        let prompt = prompt.map(text_of).unwrap_or_default();

        let result = messages.last().filter(|last| last["role"] == "tool");
        let mut functions = list(&body["tools"]).iter().map(|tool| &tool["function"]);
        match (result, functions.find(|f| f["name"].is_string())) {
            (Some(result), _) => {
                let call = call_of(result, messages);
                let name = call.and_then(|call| call["function"]["name"].as_str());
                let name = name.unwrap_or_default();
                Reply::text(&format!("{name} says: {}", text_of(result)), body)
            }
            (None, Some(function)) => Reply::call(function, &prompt),
            (None, None) => Reply::text(&(plan.reply)(&prompt), body),
        }
    }

    /// A text, cut where the request's limit is.
    fn text(text: &str, body: &Value) -> Reply {
        let limit = body["max_tokens"].as_u64();
        let limit = limit.or(body["max_completion_tokens"].as_u64());
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        let limit = limit.unwrap_or(usize::MAX);

        let mut pieces: Vec<String> = words(text).map(str::to_owned).collect();
        let finish_reason = if pieces.len() > limit {
            "length"
        } else {
            "stop"
        };
        pieces.truncate(limit);
        Reply {
            function: None,
            pieces,
            finish_reason,
        }
    }

    /// A call that gives the prompt's last word for whatever the function requires.
    fn call(function: &Value, prompt: &str) -> Reply {
        let word = prompt.split_whitespace().next_back().unwrap_or_default();
        let word = word.trim_end_matches(|c: char| c.is_ascii_punctuation());
        let required = list(&function["parameters"]["required"]).iter();
        let arguments: Map<String, Value> = required
            .filter_map(|name| Some((name.as_str()?.to_owned(), word.into())))
            .collect();
        let arguments: Vec<char> = Value::from(arguments).to_string().chars().collect();
        Reply {
            function: function["name"].as_str().map(str::to_owned),
            pieces: arguments.chunks(PIECE).map(String::from_iter).collect(),
            finish_reason: "tool_calls",
        }
    }

    /// The assistant's message, with that text, or with a call with these arguments.
    fn message(&self, text: &str) -> Value {
        let Some(name) = &self.function else {
            return json!({"role": "assistant", "content": text});
        };
        let call = json!({
            "id": format!("call_{}", unique()),
            "type": "function",
            "function": {"name": name, "arguments": text},
        });
        json!({"role": "assistant", "content": null, "tool_calls": [call]})
    }

    /// What the first event of a stream holds: the message without its pieces.
    fn first_delta(&self) -> Value {
        let mut delta = self.message("");
        if self.function.is_some() {
            delta["tool_calls"][0]["index"] = json!(0);
        }
        delta
    }

    /// What the event of a piece holds.
    fn delta(&self, piece: &str) -> Value {
        match self.function {
            None => json!({"content": piece}),
            Some(_) => json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}),
        }
    }

    /// The usage, where a word is a token.
    fn usage(&self, body: &Value) -> Value {
        let texts = list(&body["messages"]).iter().map(text_of);
        let prompt: usize = texts.map(|text| words(&text).count()).sum();
        let completion = self.pieces.len();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        })
    }
}

/// Sends a reply piece by piece.
fn send_stream(body: &Value, reply: &Reply, peer: &mut Peer) {
    let with_usage = body["stream_options"]["include_usage"] == true;
    let mut blank = completion("chat.completion.chunk", body);
    if with_usage {
        blank["usage"] = Value::Null;
    }
    let chunk = |delta, finish_reason| {
        let mut chunk = blank.clone();
        chunk["choices"] = choices("delta", delta, finish_reason);
        chunk
    };
    let first = chunk(reply.first_delta(), None);
    let pieces = reply.pieces.iter();
    let pieces = pieces.map(|piece| chunk(reply.delta(piece), None));
    let mut last = vec![chunk(json!({}), Some(reply.finish_reason))];
    if with_usage {
        let mut chunk = blank.clone();
        chunk["choices"] = json!([]);
        chunk["usage"] = reply.usage(body);
        last.push(chunk);
    }
    peer.send_events(&[first], pieces, &last);
}

/// Sends a reply in one.
fn send_whole(body: &Value, reply: &Reply, peer: &mut Peer) {
    let message = reply.message(&reply.pieces.concat());
    let mut whole = completion("chat.completion", body);
    whole["choices"] = choices("message", message, Some(reply.finish_reason));
    whole["usage"] = reply.usage(body);
    peer.respond(200, "application/json", whole.to_string());
}

/// What a completion has, whole or in chunks, beside its choices and its usage.
fn completion(object: &str, body: &Value) -> Value {
    json!({
        "id": format!("chatcmpl-{}", unique()),
        "object": object,
        "created": now(),
        "model": body["model"].as_str().unwrap_or("built-in"),
    })
}

/// The `choices` of a completion: one.
fn choices(name: &str, value: Value, finish_reason: Option<&str>) -> Value {
    json!([{"index": 0, name: value, "finish_reason": finish_reason}])
}

/// The call, by the assistant in one of the messages, that a tool's message is the result of.
fn call_of<'a>(result: &Value, messages: &'a [Value]) -> Option<&'a Value> {
    let id = result["tool_call_id"].as_str()?;
    let said = messages.iter().filter(|m| m["role"] == "assistant");
    let mut calls = said.flat_map(|message| list(&message["tool_calls"]));
    calls.rfind(|call| call["id"] == id)
}

/// The text of a message: its content, or that of its text parts.
fn text_of(message: &Value) -> String {
    let content = &message["content"];
    match content.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let parts = list(content).iter();
            let texts: Vec<&str> = parts.filter_map(|part| part["text"].as_str()).collect();
            texts.join(" ")
        }
    }
}

/// Words, each with the space after it.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(char::is_whitespace)
}

/// The elements of an array; none of anything else.
fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn is_name(value: &Value) -> bool {
    value.as_str().is_some_and(|name| !name.is_empty())
}

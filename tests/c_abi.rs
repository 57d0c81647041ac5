//! The C side: what `include/gptalk.h` promises, kept by C and C++ programs that are compiled here
//! and run against services staged here.
//!
//! `tests/c/contract.c`, `tests/c/openai.c` and `tests/c/process.c` have a subcommand for each
//! promise; a test stages the service that it needs. A program that keeps its promise says nothing
//! at all, so that every test shows too that the library prints nothing.
//!
//! Rust and a C compiler are all that is needed. Where C++, valgrind, strace or nm are missing, a
//! test says what it leaves out, and passes.

#![cfg(target_os = "linux")]

mod programs;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, process};

use gptalk_service::certificates::Authority;
use gptalk_service::{Builder, Endpoint, Peer, Request, Service};
use programs::{
    Done, ROOT, command, compile, compile_shared, compiler, has_cpp, left_out, libraries, run,
    say_nothing, send_hel, stalls, succeeds, succeeds_silently, works,
};
use serde_json::{Value, json};

// ---- programs ----

fn contract() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        compile_shared(
            "contract",
            compiler("cc", &["-std=c99", "tests/c/contract.c"]),
        )
    })
}

fn on_openai() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| compile_shared("openai", compiler("cc", &["-std=c99", "tests/c/openai.c"])))
}

/// The example of a model that calls a function.
fn tools() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        compile_shared("tools", compiler("cc", &["-std=c99", "examples/c/tools.c"]))
    })
}

fn on_process() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        compile_shared(
            "process",
            compiler("cc", &["-std=c99", "tests/c/process.c"]),
        )
    })
}

fn on_clock() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| compile_shared("clock", compiler("cc", &["-std=c99", "tests/c/clock.c"])))
}

/// None where there is no C++ compiler.
fn contract_in_cpp() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let source = ["-std=c++17", "tests/c/contract.cpp"];
        has_cpp().then(|| compile_shared("contract-cpp", compiler("c++", &source)))
    });
    built.as_deref()
}

fn promise(program: &Path, name: &str, args: &[&str]) -> Command {
    let mut command = command(program);
    command.arg(name).args(args);
    command
}

/// A promise of contract.c.
#[track_caller]
fn keeps(name: &str, args: &[&str]) {
    succeeds_silently(promise(contract(), name, args));
}

/// A promise of openai.c.
#[track_caller]
fn openai_keeps(name: &str, args: &[&str]) {
    succeeds_silently(promise(on_openai(), name, args));
}

/// A promise of process.c.
#[track_caller]
fn process_keeps(name: &str, args: &[&str]) {
    succeeds_silently(promise(on_process(), name, args));
}

/// A promise of contract.cpp.
#[track_caller]
fn cpp_keeps(name: &str, args: &[&str]) {
    match contract_in_cpp() {
        Some(program) => succeeds_silently(promise(program, name, args)),
        None => left_out("C++: there is no c++"),
    }
}

// ---- services ----

/// A service that is left to itself; a promise of contract.c is kept with it alone.
#[track_caller]
fn keeps_with_a_service(name: &str) -> Service {
    let service = Service::start();
    keeps(name, &[&service.url()]);
    assert_nothing_refused(&service);
    service
}

#[track_caller]
fn assert_nothing_refused(service: &Service) {
    assert_eq!(service.refusals(), [""; 0]);
}

/// A service one of whose endpoints is answered by a handler.
fn service(endpoint: Endpoint, handler: fn(&mut Peer)) -> Service {
    Service::builder()
        .on(endpoint, move |_, peer| handler(peer))
        .start()
}

/// A service that takes its time for each answer.
fn slow(pause: Duration) -> Builder {
    let answer = move |request: &_, peer: &mut Peer| {
        peer.pause(pause);
        peer.normal(request);
    };
    Service::builder()
        .on(Endpoint::Login, answer)
        .on(Endpoint::Text, answer)
        .on(Endpoint::Stream, answer)
}

/// The endpoints, and the parts of their URLs by which a program knows that it waits there.
const HEADERS: [(Endpoint, &str); 3] = [
    (Endpoint::Login, "user/login"),
    (Endpoint::Text, "chatapi/text"),
    (Endpoint::Stream, "chatapi/stream"),
];

// ---- each function ----

#[test]
fn the_one_liner_calls_back_or_keeps_the_text() {
    keeps_with_a_service("one_liner");
}

#[test]
fn a_clone_has_the_options_and_the_connections() {
    let service = keeps_with_a_service("client");
    assert_eq!(service.connections(), 1);
}

#[test]
fn every_option_takes_good_values_and_refuses_bad_ones() {
    let service = Service::start();
    keeps(
        "options",
        &[&service.url(), &format!("{ROOT}/tests/c/root.pem")],
    );
    assert_nothing_refused(&service);

    let texts: Vec<_> = service
        .requests()
        .into_iter()
        .filter(|r| r.endpoint == Endpoint::Text)
        .collect();
    let [set, unset, ..] = &texts[..] else {
        panic!("{texts:?}");
    };
    let body = set.json();
    assert_eq!(body["model"], "a-model");
    assert_eq!(body["temperature"], 0.5);
    assert_eq!(body["extra"], serde_json::json!([1, 2]));
    assert_eq!(set.header("x-one"), Some("1"));
    assert_eq!(set.header("x-two"), Some("2"));
    assert_eq!(set.header("x-three"), None);
    assert_eq!(set.header("user-agent"), Some("tester/1"));
    assert_eq!(set.header("x-auth-appid"), Some("77"));
    assert_eq!(
        service.requests()[0].json()["fingerprint"],
        "0123456789abcdef0123456789abcdef"
    );

    let body = unset.json();
    assert_eq!(body["model"], "gpt-3.5-turbo");
    assert_eq!(body["temperature"], 0);
    assert_eq!(body["extra"], serde_json::Value::Null);
    assert_eq!(unset.header("x-one"), None);
    assert_eq!(unset.header("x-two"), None);
    assert_eq!(unset.header("x-auth-appid"), Some("2229"));
}

#[test]
fn options_are_looked_for_in_the_client_the_process_and_the_environment() {
    let services = ["client", "process", "environment"]
        .map(|name| Service::builder().reply(|_| name.into()).start());
    let [client, process, environment] = services.each_ref().map(Service::url);
    let mut command = promise(contract(), "layers", &[&client, &process, &environment]);
    command.env("GPTALK_BASE_URL", &environment);
    succeeds_silently(command);
}

#[test]
fn what_is_set_while_a_chat_runs_counts_from_the_next_on() {
    keeps_with_a_service("set_while_chatting");
}

#[test]
fn every_channel_brings_what_it_should() {
    let service = slow(Duration::from_millis(450))
        .login_data(serde_json::json!({"token": "SENTINEL-0123456789", "expires_at": i64::MAX}))
        .start();
    keeps("channels", &[&service.url()]);
}

#[test]
fn a_nonzero_return_on_any_channel_cancels() {
    let service = slow(Duration::from_millis(150)).start();
    for channel in ["event", "tick", "log"] {
        keeps("channel_cancels", &[&service.url(), channel]);
    }
}

#[test]
fn the_pull_form_brings_the_pieces_and_then_the_outcome() {
    keeps_with_a_service("pull");
}

#[test]
fn the_pull_form_tells_of_a_failure_at_its_end() {
    let service = service(Endpoint::Stream, |peer| {
        send_hel(peer);
        peer.reset();
    });
    keeps("pull_fails", &[&service.url()]);
}

#[test]
fn nothing_is_sent_before_the_first_pull() {
    let service = keeps_with_a_service("start_alone");
    assert_eq!(service.connections(), 0);
}

#[test]
fn a_pulled_chat_is_left_by_finish_and_by_free() {
    for way in ["finish", "free"] {
        let service = stalls(Endpoint::Stream, send_hel);
        keeps("pull_left", &[&service.url(), way]);
    }
}

#[test]
fn before_any_chat_nothing_is_known() {
    keeps("outcome_before", &[]);
}

#[test]
fn after_a_success_every_key_tells_of_it() {
    keeps_with_a_service("outcome_of_success");
}

#[test]
fn after_a_failure_every_key_tells_of_it() {
    let service = Service::builder()
        .on(Endpoint::Text, |request, peer| match peer.nth() {
            0 => peer.send(
                "HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\ncontent-length: 37\r\n\r\n\
                 {\"code\":\"slow_down\",\"msg\":\"Too fast\"}",
            ),
            _ => peer.normal(request),
        })
        .start();
    keeps("outcome_of_failure", &[&service.url()]);
}

#[test]
fn an_option_refused_inside_a_chat_is_not_its_outcome() {
    keeps_with_a_service("refused_while_chatting");
}

#[test]
fn after_a_cut_the_text_so_far_is_there() {
    let service = service(Endpoint::Stream, |peer| {
        send_hel(peer);
        peer.close();
    });
    keeps("outcome_of_a_cut", &[&service.url()]);
}

#[test]
fn push_escapes_and_refuses() {
    keeps_with_a_service("push");
}

#[test]
fn names_and_versions_agree() {
    keeps("names", &[env!("CARGO_PKG_VERSION")]);
}

// ---- misuse ----

#[test]
fn null_is_misuse_wherever_it_is_not_allowed() {
    let service = keeps_with_a_service("nulls");
    assert_eq!(service.count(Endpoint::Text), 1);
}

#[test]
fn bad_utf8_and_bad_json_are_misuse_and_send_nothing() {
    let service = keeps_with_a_service("bad_strings");
    assert_eq!(service.connections(), 0);
}

#[test]
fn a_bad_value_in_the_environment_is_misuse_at_the_chat() {
    let service = Service::start();
    let mut command = promise(contract(), "bad_environment", &[&service.url()]);
    command.env("GPTALK_RETRIES", "many");
    succeeds_silently(command);
    assert_eq!(service.connections(), 0);
}

// ---- callbacks ----

#[test]
fn a_callback_cancels_and_the_connection_is_closed() {
    let service = stalls(Endpoint::Stream, send_hel);
    keeps("callback_cancels", &[&service.url()]);
    keeps_with_a_service("last_piece_cancels");
}

#[test]
fn the_length_tells_of_a_nul_in_the_text() {
    let service = service(Endpoint::Stream, |peer| {
        peer.sse_head();
        peer.chunk("data: {\"content\": \"a\\u0000b\"}\n\ndata: [DONE]\n\n");
        peer.last_chunk();
    });
    keeps("embedded_nul", &[&service.url()]);
}

#[test]
fn a_chat_inside_a_callback_is_busy_on_its_own_client_alone() {
    keeps_with_a_service("nested");
}

#[test]
fn one_liners_nest() {
    keeps_with_a_service("nested_one_liners");
}

#[test]
fn a_chat_inside_the_tick_of_a_login_does_not_wait_for_it() {
    let service = Service::builder()
        // Not the first: the tick may come before it is sent.
        .on(Endpoint::Login, |request, peer| {
            match request.header("x-stall") {
                Some(_) => peer.stall(),
                None => peer.normal(request),
            }
        })
        .start();
    keeps("nested_in_login", &[&service.url()]);
    assert_nothing_refused(&service);
}

#[test]
fn a_client_may_be_freed_in_its_own_callback() {
    let service = slow(Duration::from_millis(150)).start();
    keeps("freed_in_callback", &[&service.url()]);
}

#[test]
fn a_client_may_be_freed_while_it_is_pulled() {
    keeps_with_a_service("freed_while_pulling");
}

#[test]
fn a_chat_may_be_cancelled_in_its_own_callback() {
    keeps_with_a_service("cancelled_in_callback");
}

// ---- cancel ----

#[test]
fn a_thread_cancels_in_every_phase() {
    for (endpoint, phase) in HEADERS {
        let service = stalls(endpoint, say_nothing);
        keeps("cancel_from_thread", &[&service.url(), phase, "closed"]);
    }
    let service = stalls(Endpoint::Stream, send_hel);
    keeps("cancel_from_thread", &[&service.url(), "body", "closed"]);
}

#[test]
fn a_signal_handler_cancels_in_every_phase() {
    for (endpoint, phase) in HEADERS {
        let service = stalls(endpoint, say_nothing);
        keeps("cancel_from_signal", &[&service.url(), phase, "closed"]);
    }
    let service = stalls(Endpoint::Stream, send_hel);
    keeps("cancel_from_signal", &[&service.url(), "body", "closed"]);
}

#[test]
fn cancel_works_while_a_chat_waits_for_a_retry() {
    for way in ["cancel_from_thread", "cancel_from_signal"] {
        let service = Service::builder()
            .on(Endpoint::Text, |request, peer| match peer.nth() {
                0 => peer.send("HTTP/1.1 503 Busy\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n"),
                _ => peer.normal(request),
            })
            .start();
        keeps(way, &[&service.url(), "chatapi/text", "You said: Hi"]);
    }
}

#[test]
fn cancel_works_while_another_chat_logs_in() {
    let service = stalls(Endpoint::Login, say_nothing);
    keeps("cancel_while_another_logs_in", &[&service.url()]);
}

#[test]
fn cancel_finds_nothing_where_nothing_runs() {
    keeps_with_a_service("cancel_nothing");
}

#[test]
fn cancel_of_null_ends_all_one_liners_and_no_other() {
    let service = service(Endpoint::Stream, |peer| {
        send_hel(peer);
        peer.stall();
    });
    keeps("cancel_one_liners", &[&service.url()]);
}

#[test]
fn a_cancel_that_races_the_end_agrees_with_the_outcome() {
    // Most cancels come while the [DONE] is awaited, with all of the text there.
    let service = service(Endpoint::Stream, |peer| {
        peer.sse_head();
        peer.chunk("data: {\"content\": \"You said: Hi\"}\n\n");
        peer.pause(Duration::from_millis(2));
        peer.chunk("data: [DONE]\n\n");
        peer.last_chunk();
    });
    keeps("cancel_races", &[&service.url()]);
}

// ---- threads ----

#[test]
fn of_two_threads_on_one_client_one_is_busy() {
    let service = keeps_with_a_service("two_threads");
    assert_eq!(service.count(Endpoint::Text), 1);
}

#[test]
fn sixteen_threads_with_clones_log_in_no_more_often_than_they_must() {
    let service = keeps_with_a_service("sixteen_threads");
    assert_eq!(service.count(Endpoint::Text), 400);
    assert_eq!(service.count(Endpoint::Login), 80);
}

#[test]
fn one_liners_of_threads_are_each_their_own() {
    let service = keeps_with_a_service("one_liners_of_threads");
    assert_eq!(service.count(Endpoint::Text), 80);
    assert_eq!(service.count(Endpoint::Login), 16);
}

// ---- the OpenAI-compatible protocol ----

/// A service that is left to itself; a promise of openai.c is kept with it alone.
#[track_caller]
fn openai_keeps_with_a_service(name: &str) -> Service {
    let service = Service::start();
    openai_keeps(name, &[&service.url()]);
    assert_nothing_refused(&service);
    service
}

/// A service whose chats are answered by a handler.
fn chats(handler: impl Fn(&Request, &mut Peer) + Send + Sync + 'static) -> Service {
    Service::builder().on(Endpoint::Chat, handler).start()
}

/// An event of a stream, with what a service says beside its choices.
fn event(choice: Value) -> String {
    let event = json!({"id": "chatcmpl-7", "model": "a-model", "choices": [choice]});
    format!("data: {event}\n\n")
}

fn delta(delta: Value) -> String {
    event(json!({"index": 0, "delta": delta}))
}

/// The events of a reply with two tool calls, whose arguments come by turns.
fn two_calls(names: [&str; 2], arguments: [&str; 2]) -> Vec<String> {
    let call = |index: usize, id| {
        let function = json!({"name": names[index], "arguments": ""});
        json!({"index": index, "id": id, "type": "function", "function": function})
    };
    let calls = [call(0, "call_a"), call(1, "call_b")];
    let mut events = vec![delta(
        json!({"role": "assistant", "content": null, "tool_calls": calls}),
    )];
    let mut rest = arguments.map(str::chars);
    while rest.iter().any(|rest| !rest.as_str().is_empty()) {
        for (index, rest) in rest.iter_mut().enumerate() {
            let piece: String = rest.take(5).collect();
            let call = json!({"index": index, "function": {"arguments": piece}});
            events.push(delta(json!({"tool_calls": [call]})));
        }
    }
    events.push(event(json!({"delta": {}, "finish_reason": "tool_calls"})));
    events
}

fn send_reply(peer: &mut Peer, events: &[String]) {
    peer.sse_head();
    events.iter().for_each(|event| peer.chunk(event));
    peer.chunk("data: [DONE]\n\n");
    peer.last_chunk();
}

/// Sends the beginning of a reply, and closes the connection.
fn cuts(event: String) -> Service {
    chats(move |_, peer| {
        peer.sse_head();
        peer.chunk(&event);
        peer.close();
    })
}

/// Two tool calls whose arguments have everything in them that a pointer may meet.
fn calls_of_every_kind() -> Service {
    let arguments = json!({
        "city": "Zürich 🙂",
        "страна": "Швейцария",
        "lines": "one\n\"two\"\\",
        "whole": 7,
        "half": -0.5,
        "yes": true,
        "null": null,
        "empty text": "",
        "list": [1, [2, "three"], {"x": null}],
        "no list": {},
        "a/b": "a slash",
        "m~n": "a tilde",
        "~1": "a tilde and a one",
        "": "nothing for a name",
        "inner": json!({"deep": ["down"]}).to_string(),
        "number text": "42",
    })
    .to_string();
    // Half a character, which no JSON of ours can hold.
    let arguments = arguments.replacen('{', r#"{"half a smile": "\ud83d", "#, 1);
    let mut events = two_calls(["get_weather", "get \"time\""], [&arguments, "in words"]);
    let usage = r#"{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12,"#.to_owned()
        + r#""prompt_tokens_details":{"cached_tokens":3},"#
        + r#""completion_tokens_details":{"reasoning_tokens":2},"#
        + r#""cost":0.25,"":{"":"nothing twice"}}"#;
    events.push(format!("data: {{\"choices\":[],\"usage\":{usage}}}\n\n"));
    chats(move |_, peer| send_reply(peer, &events))
}

/// A text that is JSON, in pieces.
fn text_of_json() -> Service {
    chats(|_, peer| {
        let pieces = ["{\"objects\": [\"a ", "cat\", \"a m", "at\"]}"];
        let mut events: Vec<_> = pieces
            .iter()
            .map(|piece| delta(json!({"content": piece})))
            .collect();
        events.push(event(json!({"finish_reason": "stop"})));
        send_reply(peer, &events);
    })
}

/// Every other chat is answered with two calls, the others as the service does it.
fn parallel_calls() -> Service {
    let events = two_calls(
        ["get_weather", "get_bearings"],
        [r#"{"city": "Zürich"}"#, r#"{"city": "Bern"}"#],
    );
    chats(move |request, peer| match peer.nth() % 2 {
        0 => send_reply(peer, &events),
        _ => peer.normal(request),
    })
}

#[test]
fn the_one_liner_speaks_the_openai_protocol() {
    let service = openai_keeps_with_a_service("one_liner");
    assert_eq!(service.requests().len(), 2);
    assert_eq!(service.count(Endpoint::Chat), 2);
}

#[test]
fn a_clone_has_the_protocol_and_the_key() {
    let service = Service::builder().api_key("sk-right").start();
    openai_keeps("client", &[&service.url()]);
    assert_nothing_refused(&service);
}

#[test]
fn the_pull_form_speaks_the_openai_protocol() {
    openai_keeps_with_a_service("pull");
}

#[test]
fn every_channel_brings_what_it_should_of_the_openai_protocol() {
    let pause = Duration::from_millis(450);
    let service = chats(move |request, peer| {
        if peer.nth() == 0 {
            peer.header("retry-after-ms", "1");
            let key = request.header("authorization").unwrap_or_default();
            return peer.respond(500, "text/plain", format!("out of order: {key}"));
        }
        peer.pause(pause);
        peer.sse_head();
        let said = |name: &str, text: &str| {
            format!("data: {{\"choices\":[{{\"delta\":{{\"{name}\":\"{text}\"}}}}]}}\n\n")
        };
        peer.chunk(said("reasoning_content", "Let me "));
        peer.chunk(said("reasoning_content", "see."));
        peer.pause(pause);
        peer.chunk(said("content", "Hel"));
        peer.chunk(said("content", "lo"));
        peer.chunk("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
        peer.chunk("data: [DONE]\n\n");
        peer.last_chunk();
    });
    openai_keeps("channels", &[&service.url()]);
}

#[test]
fn after_a_success_every_key_tells_of_the_openai_reply() {
    openai_keeps_with_a_service("outcome");
}

#[test]
fn a_refused_key_is_an_auth_error_that_does_not_show_it() {
    let service = Service::builder().api_key("sk-right").start();
    let echo = chats(|request, peer| {
        let key = request.header("authorization").unwrap_or_default();
        let code = key.trim_start_matches("Bearer ");
        let error = json!({"message": format!("You said {key}, {code}"), "code": code});
        peer.respond(401, "application/json", json!({"error": error}).to_string());
    });
    openai_keeps("refused_key", &[&service.url(), &echo.url()]);
    assert_nothing_refused(&service);
}

#[test]
fn of_a_cut_openai_reply_the_message_so_far_is_there() {
    let call = json!({"index": 0, "id": "call_a", "type": "function",
        "function": {"name": "get_weather", "arguments": "{\"city\":\"Zü"}});
    let services = [
        json!({"content": "Hel"}),
        json!({"tool_calls": [call]}),
        json!({"role": "assistant", "content": ""}),
    ]
    .map(|said| cuts(delta(said)));
    let [text, call, nothing] = services.each_ref().map(Service::url);
    openai_keeps("cut", &[&text, &call, &nothing]);
}

#[test]
fn a_pointer_leads_into_the_message_and_the_usage() {
    let (calls, text) = (calls_of_every_kind(), text_of_json());
    openai_keeps("pointer_keys", &[&calls.url(), &text.url()]);
}

#[test]
fn what_was_handed_out_stays_until_its_key_is_asked_for_again() {
    let (calls, text) = (calls_of_every_kind(), text_of_json());
    openai_keeps("lifetimes", &[&calls.url(), &text.url()]);
}

#[test]
fn a_callback_may_ask_for_every_key_while_the_chat_runs() {
    openai_keeps_with_a_service("asked_in_callback");
}

#[test]
fn a_tool_round_trip_needs_no_json_parser() {
    let service = openai_keeps_with_a_service("round_trip");
    let asked = service.requests();
    assert_eq!(asked.len(), 4);
    let last = asked[3].json()["messages"].take();
    let roles = [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
        "tool",
    ];
    for (at, role) in roles.into_iter().enumerate() {
        assert_eq!(last[at]["role"], role, "{at}");
    }
    for (call, result) in [(1, 2), (5, 6)] {
        let id = &last[call]["tool_calls"][0]["id"];
        assert!(id.is_string());
        assert_eq!(last[result]["tool_call_id"], *id);
    }
    assert_ne!(last[2]["tool_call_id"], last[6]["tool_call_id"]);
}

#[test]
fn results_of_parallel_tool_calls_are_pushed_one_after_the_other() {
    let service = parallel_calls();
    openai_keeps("parallel_calls", &[&service.url()]);
    assert_nothing_refused(&service);
    let mut last = service.requests().pop().expect("a request").json();
    let Value::Array(mut messages) = last["messages"].take() else {
        panic!("{last}");
    };
    messages.retain(|message| message["role"] == "tool");
    let result = |content, id| json!({"role": "tool", "content": content, "tool_call_id": id});
    let both = [result("one", "call_a"), result("two", "call_b")];
    assert_eq!(messages, [both.clone(), both].concat());
}

#[test]
fn a_tools_result_gets_the_id_of_the_first_call_without_one() {
    openai_keeps("push_of_tools", &[]);
}

#[test]
fn an_openai_chat_may_be_cancelled_in_its_own_callback() {
    for channel in ["text", "event", "reasoning"] {
        let service = stalls(Endpoint::Chat, |peer| {
            peer.sse_head();
            peer.chunk(delta(json!({"reasoning_content": "Hm."})));
            let function = json!({"name": "get_weather", "arguments": "{\"city\": \"Bern\"}"});
            peer.chunk(delta(
                json!({"tool_calls": [{"index": 0, "id": "call_a", "function": function}]}),
            ));
            peer.chunk(delta(json!({"content": "Hel"})));
        });
        openai_keeps("cancelled_in_callback", &[&service.url(), channel]);
        assert_nothing_refused(&service);
    }
    openai_keeps_with_a_service("cancelled_one_liner");
}

#[test]
fn a_chat_inside_a_callback_may_be_of_the_other_protocol() {
    openai_keeps_with_a_service("nested");
}

#[test]
fn an_openai_client_may_be_freed_in_its_own_callback() {
    openai_keeps_with_a_service("freed_in_callback");
}

/// Runs the example, in a command that is to run it.
#[track_caller]
fn run_tools(mut command: Command, question: &[&str]) -> (Done, Service) {
    let service = Service::start();
    command.env("GPTALK_BASE_URL", service.url()).args(question);
    let done = run(command);
    assert_nothing_refused(&service);
    (done, service)
}

#[test]
fn the_example_of_tools_makes_the_round_trip() {
    let program = tools();
    let (done, service) = run_tools(command(program), &[]);
    assert_eq!(
        done.out,
        "[get_weather {\"city\":\"Zürich\"}]\n\
         get_weather says: 18 °C, sunny\n\
         (23 tokens)\n"
    );
    assert_eq!(done.err, "");
    assert!(done.status.success(), "{}", done.status);
    assert_eq!(service.count(Endpoint::Chat), 2);

    let (done, _) = run_tools(command(program), &["Is it warm in Lisboa?"]);
    assert_eq!(
        done.out,
        "[get_weather {\"city\":\"Lisboa\"}]\n\
         get_weather says: 15 °C, rain\n\
         (21 tokens)\n"
    );
}

#[test]
fn the_example_of_tools_gives_up_on_a_model_that_never_stops() {
    let events = two_calls(["no_such_tool", "get_weather"], ["", "{}"]);
    let service = chats(move |_, peer| send_reply(peer, &events));
    let mut command = command(tools());
    command.env("GPTALK_BASE_URL", service.url());
    let done = run(command);
    assert_eq!(done.out, "[get_weather {}]\n".repeat(8));
    assert!(done.err.contains("after 8 rounds"), "{}", done.err);
    assert_eq!(service.count(Endpoint::Chat), 8);
    let last = service.requests().pop().expect("a request").json();
    let results = ["there is no such tool", "which city?"];
    for (at, result) in results.into_iter().enumerate() {
        assert_eq!(last["messages"][2 + at]["content"], result);
    }
}

#[test]
fn the_example_of_tools_tells_of_a_failure() {
    let service = Service::builder().api_key("sk-right").start();
    let mut command = command(tools());
    command.env("GPTALK_BASE_URL", service.url());
    command.env("GPTALK_API_KEY", "sk-wrong");
    let done = run(command);
    assert_eq!(done.status.code(), Some(1));
    assert_eq!(done.out, "");
    assert!(done.err.contains("api_key"), "{}", done.err);
    assert!(done.err.ends_with(" (auth)\n"), "{}", done.err);
}

// ---- C++ ----

#[test]
fn an_exception_passes_through_the_text_callback() {
    let service = stalls(Endpoint::Stream, send_hel);
    cpp_keeps("throw_from_text", &[&service.url()]);
    let service = Service::start();
    cpp_keeps("throw_from_one_liner", &[&service.url()]);
    cpp_keeps("throw_after_free", &[&service.url()]);
}

#[test]
fn an_exception_passes_through_the_tick_while_a_header_is_awaited() {
    for (endpoint, phase) in HEADERS {
        let service = stalls(endpoint, say_nothing);
        cpp_keeps("throw_from_tick", &[&service.url(), phase]);
    }
}

#[test]
fn an_exception_passes_through_the_tick_of_the_pull_form() {
    let service = stalls(Endpoint::Login, say_nothing);
    cpp_keeps("throw_from_tick_while_pulling", &[&service.url(), "login"]);
    let service = stalls(Endpoint::Stream, send_hel);
    cpp_keeps("throw_from_tick_while_pulling", &[&service.url(), "stream"]);
}

#[test]
fn an_exception_passes_through_the_other_channels() {
    let service = Service::start();
    cpp_keeps("throw_from_channels", &[&service.url()]);
}

// ---- the process ----

#[test]
fn no_thread_is_started() {
    let service = slow(Duration::from_millis(150)).start();
    let by_name = format!("http://localhost:{}", service.port());
    process_keeps("no_thread", &[&service.url(), &by_name]);
}

#[test]
fn no_thread_is_needed() {
    let service = Service::start();
    process_keeps("no_more_processes", &[&service.url()]);
}

#[test]
fn no_system_call_makes_a_thread_or_touches_a_signal() {
    const CALLS: &str = "trace=clone,clone3,fork,vfork,rt_sigaction,rt_sigprocmask,sigaltstack";
    let trace =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("c_abi-trace.{}", process::id()));
    let strace = || {
        let mut command = command("strace");
        command.args(["-f", "-qq", "-e", CALLS, "-o"]).arg(&trace);
        command
    };
    if !works(strace().arg("true")) {
        return left_out("system calls: strace does not work here");
    }
    let service = Service::start();
    let calls = |name: &str| {
        let mut command = strace();
        command.arg(on_process()).args([name, &service.url()]);
        succeeds_silently(command);
        let lines = fs::read_to_string(&trace).expect("a trace");
        // `PID NAME(...`
        let name = |line: &str| {
            let call = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
            call.split('(').next().unwrap_or_default().to_owned()
        };
        lines.lines().map(name).collect::<Vec<_>>()
    };
    let (baseline, chat) = (calls("nothing"), calls("chat_alone"));
    let _ = fs::remove_file(&trace);
    assert_eq!(service.count(Endpoint::Text), 2);
    assert_eq!(chat, baseline);
}

#[test]
fn the_environment_is_looked_at_once() {
    let (service, failing) = (Service::start(), failing());
    let stranger = Authority::new("a stranger").issue(&["127.0.0.1"]);
    let secure = Service::builder().tls(stranger.config()).start();
    let urls = [service.url(), failing.url(), secure.url()];
    let urls = urls.each_ref().map(String::as_str);
    process_keeps("environment_once", &urls);
}

#[test]
fn signal_dispositions_and_the_mask_stay_as_they_were() {
    let service = slow(Duration::from_millis(150)).start();
    process_keeps("signals_untouched", &[&service.url()]);
}

#[test]
fn a_peer_that_breaks_the_connection_does_not_kill() {
    for end in [Peer::close, Peer::reset] {
        let service = Service::builder()
            .on(Endpoint::Login, |request, peer| {
                peer.normal(request);
                peer.close();
            })
            .on_connect(move |peer| {
                if peer.nth() > 0 {
                    end(peer);
                }
            })
            .start();
        process_keeps("broken_pipe", &[&service.url()]);
    }
}

#[test]
fn a_storm_of_signals_changes_nothing() {
    let steady = slow(Duration::from_millis(50))
        .pace(Duration::from_millis(50))
        .start();
    let silent = service(Endpoint::Stream, |peer| {
        send_hel(peer);
        peer.stall();
    });
    for way in ["restart", "interrupt"] {
        process_keeps("signal_storm", &[&steady.url(), &silent.url(), way]);
    }
}

#[test]
fn the_child_of_a_fork_has_its_own_connection_and_login() {
    let service = Service::start();
    process_keeps("fork_after_use", &[&service.url()]);
    assert_nothing_refused(&service);
    // Of the client and the one-liner, in the parent and in the child.
    assert_eq!(service.connections(), 4);
    assert_eq!(service.count(Endpoint::Text), 8);
    assert_eq!(service.count(Endpoint::Login), 2);
    let token = |connection: usize| -> BTreeSet<String> {
        let requests = service
            .requests()
            .into_iter()
            .filter(|r| r.connection == connection);
        requests
            .filter_map(|r| r.header("authorization").map(str::to_owned))
            .collect()
    };
    assert_eq!(token(0), token(1));
    assert_eq!(token(2), token(3));
    assert!(token(0).is_disjoint(&token(2)));
}

#[test]
fn no_process_logs_in_with_the_fingerprint_of_another() {
    // A login whose token has expired when it comes serves one chat.
    let service = Service::builder()
        .login_data(json!({"expires_at": 1}))
        .start();
    process_keeps("fork_and_log_in", &[&service.url()]);
    let logins = service.requests().into_iter();
    let logins = logins.filter(|request| request.endpoint == Endpoint::Login);
    let fingerprints: BTreeSet<String> = logins
        .map(|login| login.json()["fingerprint"].to_string())
        .collect();
    // Two of the parent, and two of each child.
    assert_eq!((service.count(Endpoint::Login), fingerprints.len()), (6, 6));
}

#[test]
fn a_fork_inside_a_callback_leaves_the_chat_alone() {
    let service = Service::start();
    process_keeps("fork_inside_a_chat", &[&service.url()]);
    assert_nothing_refused(&service);
}

#[test]
fn the_child_of_a_fork_chats_though_another_thread_did() {
    let service = Service::builder()
        .on(Endpoint::Stream, |request, peer| match peer.nth() {
            0 | 1 => {
                send_hel(peer);
                peer.stall();
            }
            _ => peer.normal(request),
        })
        .start();
    process_keeps("fork_while_chatting", &[&service.url()]);
    assert_nothing_refused(&service);
}

#[test]
fn a_fork_at_any_moment_leaves_the_child_able_to_chat() {
    let service = Service::start();
    process_keeps("fork_at_any_moment", &[&service.url()]);
    assert_nothing_refused(&service);
}

#[test]
fn a_fork_at_any_moment_leaves_the_options_whole() {
    let service = Service::start();
    process_keeps("fork_while_setting", &[&service.url()]);
    assert_nothing_refused(&service);
    // Of each child, and of the parent at last.
    assert_eq!(service.count(Endpoint::Text), 61);
}

#[test]
fn the_child_of_a_fork_clones_a_client_that_another_thread_was_using() {
    let service = Service::start();
    process_keeps("fork_and_clone", &[&service.url()]);
    assert_nothing_refused(&service);
}

#[test]
fn a_child_of_a_fork_counts_its_own_chats() {
    let service = Service::start();
    process_keeps("first_chats_of_a_child", &[&service.url()]);
}

#[test]
fn the_hosts_own_fork_handlers_may_use_the_library() {
    let service = Service::start();
    process_keeps("fork_with_handlers", &[&service.url()]);
    assert_eq!(service.requests()[1].json()["model"], "forked");
}

/// The service, whatever the date in a request's header.
fn undated(service: Builder) -> Builder {
    let expires_at = unix_now() + 60 * 60;
    service
        .on(Endpoint::Login, move |_, peer| {
            let token = format!("token-{}", peer.nth());
            let data = format!(r#"{{"token": "{token}", "expires_at": {expires_at}}}"#);
            peer.respond(200, "application/json", format!(r#"{{"data": {data}}}"#));
        })
        .on(Endpoint::Text, |_, peer| {
            peer.respond(200, "application/json", r#"{"data": {"token": "stream"}}"#);
        })
        .on(Endpoint::Stream, |_, peer| {
            let lines = ["You ", "You said: ", "You said: Hi"]
                .map(|content| format!("data: {{\"content\": \"{content}\"}}\n\n"))
                .concat();
            let body = format!("{lines}data: [DONE]\n\n");
            peer.respond(200, "text/event-stream", body);
        })
}

fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("a date after 1970").as_secs()
}

#[test]
fn a_clock_that_jumps_costs_a_login_and_no_more() {
    let service = undated(Service::builder()).start();
    succeeds_silently(promise(on_clock(), "jumps", &[&service.url()]));
    let bearer: Vec<_> = service
        .requests()
        .iter()
        .filter_map(|request| request.header("authorization").map(str::to_owned))
        .collect();
    assert_eq!(
        bearer,
        [0, 0, 1, 1].map(|n| format!("Bearer token-{n}")),
        "the new token is good at the earlier date too"
    );
}

#[test]
fn a_panic_is_an_internal_error_and_leaves_everything_usable() {
    let silent = Service::builder()
        .on(Endpoint::Stream, |_, peer| {
            send_hel(peer);
            peer.stall();
        })
        .start();
    let service = Service::start();
    let done = run(promise(
        on_clock(),
        "panics",
        &[&silent.url(), &service.url()],
    ));
    assert!(done.status.success(), "{}\n{}", done.status, done.err);
    // The report that the header speaks of.
    assert_eq!(done.err.matches("panicked at").count(), 4, "{}", done.err);
    assert!(silent.wait_until(|silent| silent.open_connections() == 0));
}

#[test]
fn a_small_stack_is_enough() {
    // 128 KiB are promised of a release build. The frames of a debug build are larger.
    let kib = if cfg!(debug_assertions) { "512" } else { "128" };
    // As deep as JSON may be, in what is sent and in what comes.
    let deep = format!("{}{}", "[".repeat(120), "]".repeat(120));
    let event = format!("{{\"x\": {deep}, \"content\": \"You said: Hi\"}}");
    let service = Service::builder().on(Endpoint::Stream, move |_, peer| {
        peer.sse_head();
        peer.chunk(format!("data: {event}\n\ndata: [DONE]\n\n"));
        peer.last_chunk();
    });
    let service = service.start();
    process_keeps("small_stack", &[&service.url(), kib, "119"]);
}

#[test]
fn closed_and_exhausted_descriptors_are_survived() {
    let service = Service::start();
    process_keeps("closed_descriptors", &[&service.url()]);
    process_keeps("no_descriptors_left", &[&service.url()]);
    assert_nothing_refused(&service);
}

#[test]
fn a_comma_locale_changes_nothing() {
    let service = Service::start();
    process_keeps("comma_locale", &[&service.url()]);
    for request in service.requests() {
        if request.endpoint == Endpoint::Text {
            assert_eq!(request.json()["temperature"], 0.5);
        }
    }
}

#[test]
fn a_stream_of_whatever_length_takes_little_memory() {
    // 16 MB of cumulative lines, whose text is 32 kB; 30,000 chunks of 4 bytes, 7 MB.
    let cumulative = |_: &Request, peer: &mut Peer| {
        let text = "All work and no play makes Jack. ".repeat(993);
        peer.sse_head();
        for line in 1..=1000 {
            let content = &text[..text.len() * line / 1000];
            peer.chunk(format!("data: {{\"content\": \"{content}\"}}\n"));
        }
        peer.chunk("data: [DONE]\n\n");
        peer.last_chunk();
    };
    let chunks = |_: &Request, peer: &mut Peer| {
        let chunk = |text| {
            json!({
                "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1,
                "model": "tiny", "system_fingerprint": "fp_0123456789",
                "choices": [{"index": 0, "delta": {"content": text}, "logprobs": null, "finish_reason": null}],
            })
        };
        let event = format!("data: {}\n\n", chunk("yes "));
        peer.sse_head();
        for _ in 0..300 {
            peer.chunk(event.repeat(100));
        }
        peer.chunk("data: [DONE]\n\n");
        peer.last_chunk();
    };
    let service = Service::builder()
        .on(Endpoint::Stream, cumulative)
        .on(Endpoint::Chat, chunks);
    let service = service.start();
    process_keeps("bounded_memory", &["gptalk", &service.url(), "32769"]);
    process_keeps("bounded_memory", &["openai", &service.url(), "120000"]);
}

#[test]
fn chats_leave_nothing_behind() {
    let service = Service::start();
    let failing = failing();
    process_keeps("no_growth", &[&service.url(), &failing.url()]);
}

fn failing() -> Service {
    service(Endpoint::Text, |peer| {
        peer.respond(500, "text/plain", "out of order")
    })
}

/// A command that a program and its arguments are to follow; None where there is no valgrind.
fn valgrind() -> Option<Command> {
    if !works(Command::new("valgrind").arg("--version")) {
        left_out("memory: there is no valgrind");
        return None;
    }
    let mut command = command("valgrind");
    command.args(["-q", "--leak-check=full", "--error-exitcode=9"]);
    Some(command)
}

/// Keeps a promise without an error of memory, where there is valgrind.
#[track_caller]
fn keeps_memory(program: &Path, name: &str, args: &[&str]) {
    if let Some(mut valgrind) = valgrind() {
        valgrind.arg(program).arg(name).args(args);
        succeeds_silently(valgrind);
    }
}

/// A program of tests/c with the sanitizers of addresses, leaks and undefined behaviour in it. None
/// where the compiler has none.
fn sanitized(name: &str) -> Option<PathBuf> {
    const FLAGS: [&str; 4] = [
        "-std=c99",
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ];
    let probe = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sanitizer-probe");
    let mut cc = compiler("cc", &FLAGS);
    cc.arg("tests/c/header.c").args(["-shared", "-fPIC", "-o"]);
    if !works(cc.arg(probe)) {
        left_out("the sanitizers: cc has none");
        return None;
    }
    let mut source = compiler("cc", &FLAGS);
    source.arg(format!("tests/c/{name}.c"));
    Some(compile_shared(&format!("{name}-sanitized"), source))
}

#[test]
fn the_sanitizers_find_nothing() {
    let Some(process) = sanitized("process") else {
        return;
    };
    let (service, failing) = (Service::start(), failing());
    let (url, failing) = (service.url(), failing.url());
    succeeds_silently(promise(&process, "every_way", &[&url, &failing]));
    let contract = sanitized("contract").expect("sanitizers");
    for name in ["one_liner", "client", "pull", "freed_while_pulling"] {
        succeeds_silently(promise(&contract, name, &[&url]));
    }
}

#[test]
fn valgrind_finds_nothing() {
    let (service, failing) = (Service::start(), failing());
    keeps_memory(on_process(), "every_way", &[&service.url(), &failing.url()]);
    keeps_memory(contract(), "freed_while_pulling", &[&service.url()]);
    for name in [
        "nested",
        "nested_one_liners",
        "cancelled_in_callback",
        "sixteen_threads",
    ] {
        keeps_memory(contract(), name, &[&service.url()]);
    }
    for way in ["finish", "free"] {
        let service = stalls(Endpoint::Stream, send_hel);
        keeps_memory(contract(), "pull_left", &[&service.url(), way]);
    }
    if let Some(program) = contract_in_cpp() {
        let service = stalls(Endpoint::Stream, send_hel);
        keeps_memory(program, "throw_from_text", &[&service.url()]);
    }
}

#[test]
fn valgrind_finds_nothing_in_the_openai_protocol() {
    let service = Service::start();
    for name in ["round_trip", "nested", "freed_in_callback"] {
        keeps_memory(on_openai(), name, &[&service.url()]);
    }
    let (calls, text, parallel) = (calls_of_every_kind(), text_of_json(), parallel_calls());
    for name in ["pointer_keys", "lifetimes"] {
        keeps_memory(on_openai(), name, &[&calls.url(), &text.url()]);
    }
    keeps_memory(on_openai(), "parallel_calls", &[&parallel.url()]);
    keeps_memory(on_openai(), "push_of_tools", &[]);
}

#[test]
fn valgrind_finds_nothing_in_the_example_of_tools() {
    let Some(mut command) = valgrind() else {
        return;
    };
    command.arg(tools());
    let (done, _) = run_tools(command, &[]);
    assert!(done.status.success(), "{}\n{}", done.status, done.err);
    assert_eq!(done.err, "");
    assert!(done.out.ends_with("(23 tokens)\n"), "{}", done.out);
}

// ---- the libraries ----

#[test]
fn a_host_may_load_the_library_and_let_it_go() {
    let source = compiler("cc", &["-std=c99", "tests/c/plugin.c"]);
    let program = compile("plugin", source, &["-ldl", "-lpthread"]);
    let service = Service::start();
    let mut command = command(program);
    command
        .arg(libraries().join("libgptalk.so"))
        .arg(service.url());
    succeeds_silently(command);
    assert_eq!(service.count(Endpoint::Text), 8);
}

#[test]
fn the_static_archive_links_and_runs() {
    for (name, promised) in [("contract", "one_liner"), ("openai", "round_trip")] {
        let mut source = compiler("cc", &["-std=c99", &format!("tests/c/{name}.c")]);
        source.arg(libraries().join("libgptalk.a"));
        let program = compile(
            &format!("static-{name}"),
            source,
            &["-lpthread", "-ldl", "-lm"],
        );
        let service = Service::start();
        succeeds_silently(promise(&program, promised, &[&service.url()]));
        fs::remove_file(program).expect("a program of 40 MB to remove");
    }
}

#[test]
fn the_header_compiles_in_every_standard_with_its_numbers_frozen() {
    for standard in ["-std=c99", "-std=c11", "-std=c17", "-std=c2x"] {
        let options = [
            standard,
            "-Wstrict-prototypes",
            "-Wc++-compat",
            "-fsyntax-only",
        ];
        let mut command = compiler("cc", &options);
        command.arg("tests/c/header.c");
        succeeds(command);
    }
    if !has_cpp() {
        return left_out("the header in C++: there is no c++");
    }
    for standard in ["-std=c++11", "-std=c++17", "-std=c++20"] {
        let mut command = compiler("c++", &[standard, "-fsyntax-only", "-x", "c++"]);
        command.arg("tests/c/header.c");
        succeeds(command);
    }
}

fn header() -> String {
    fs::read_to_string(format!("{ROOT}/include/gptalk.h")).expect("the header")
}

/// A header without its comments.
fn code_of(mut text: &str) -> String {
    let mut code = String::new();
    while let Some((before, rest)) = text.split_once("/*") {
        code += before;
        text = rest.split_once("*/").expect("the end of a comment").1;
    }
    code + text
}

/// The functions that the header declares.
fn declared() -> BTreeSet<String> {
    let code = code_of(&header());
    let calls = code.split('(').filter_map(|before| {
        let name = before
            .rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .next()?;
        name.starts_with("gptalk_").then(|| name.to_owned())
    });
    calls.collect()
}

#[test]
fn the_header_declares_the_functions_of_the_contract() {
    let contract = [
        "gptalk_cancel",
        "gptalk_chat",
        "gptalk_client_chat",
        "gptalk_client_clone",
        "gptalk_client_free",
        "gptalk_client_new",
        "gptalk_finish",
        "gptalk_free",
        "gptalk_get",
        "gptalk_get_int",
        "gptalk_next",
        "gptalk_on",
        "gptalk_push",
        "gptalk_set",
        "gptalk_start",
        "gptalk_status_name",
        "gptalk_version",
        "gptalk_version_number",
    ];
    assert_eq!(declared(), contract.map(str::to_owned).into());
}

/// A library of the header's functions that do nothing: the ABI with its types as C has them, which
/// the debug information of Rust would tell in Rust's.
fn hollow_library() -> PathBuf {
    let mut source = String::from("#include \"gptalk.h\"\n");
    for declaration in code_of(&header()).split(';') {
        let is_directive = |line: &&str| line.starts_with('#') || line.contains("extern");
        let lines: Vec<_> = declaration
            .lines()
            .filter(|line| !is_directive(line))
            .collect();
        let code = lines.join(" ");
        if code.contains('(') && !code.contains("typedef") {
            source += &format!("{code} {{ __builtin_trap(); }}\n");
        }
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hollow.c");
    fs::write(&path, source).expect("a temporary file");
    let mut command = Command::new("cc");
    command.args(["-g", "-shared", "-fPIC", "-Wl,-soname,libgptalk.so.0.1"]);
    command.arg(format!("-I{ROOT}/include")).arg(path);
    compile("libhollow.so", command, &[])
}

/// What was promised with the last release: `abidw --no-corpus-path --no-comp-dir-path
/// --no-show-locs` of the hollow library of its header. A function that joins is added to it.
#[test]
fn the_abi_is_that_of_the_last_release() {
    if !works(Command::new("abidiff").arg("--version")) {
        return left_out("the ABI's baseline: there is no abidiff");
    }
    let mut abidiff = Command::new("abidiff");
    abidiff
        .current_dir(ROOT)
        .arg("tests/abi/libgptalk.so.0.1.abi");
    let output = abidiff.arg(hollow_library()).output().expect("abidiff");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn the_shared_library_exports_what_the_header_declares_and_nothing_else() {
    let mut nm = Command::new("nm");
    nm.args(["-D", "--defined-only"])
        .arg(libraries().join("libgptalk.so"));
    let Ok(output) = nm.output() else {
        return left_out("the exported symbols: there is no nm");
    };
    assert!(output.status.success(), "{nm:?}");
    let listed = String::from_utf8(output.stdout).expect("symbols in UTF-8");
    let exported: BTreeSet<String> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .map(str::to_owned)
        .collect();
    assert_eq!(exported, declared());
}

#[test]
fn the_header_explains_every_key() {
    let keys = [
        // Options
        "protocol base_url api_key model temperature max_tokens body header proxy ca_file",
        "connect_timeout_ms response_timeout_ms idle_timeout_ms timeout_ms retries max_reply_bytes",
        "user_agent app_id fingerprint",
        // Channels
        "reasoning event tick log",
        // Outcome
        "error error_code error_body text reasoning message finish_reason usage model request_id url",
        "http_status retry_after_ms retryable attempts prompt_tokens completion_tokens total_tokens",
        "reasoning_tokens cached_tokens text_len pieces first_text_ms duration_ms",
    ];
    // The first cells of the tables.
    let header = header();
    let cells = header
        .lines()
        .filter_map(|line| line.trim().strip_prefix("* | ")?.split('|').next());
    let explained: BTreeSet<&str> = cells.flat_map(|cell| cell.trim().split(", ")).collect();
    for key in keys.iter().flat_map(|keys| keys.split(' ')) {
        assert!(
            explained.contains(key),
            "{key} is not in the header's tables"
        );
    }
}

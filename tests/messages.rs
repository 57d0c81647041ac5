//! Conversations: what is understood, what is refused and where, and that nothing of the refused
//! is sent.

mod observer;
mod programs;

use std::time::Duration;

use gptalk::{Client, Conversation, Error, ErrorKind, Message};
use gptalk_service::{Endpoint, Service};
use observer::hold_until_cured;
use serde_json::{Value, json};

#[track_caller]
fn read(json: &str) -> Conversation {
    Conversation::from_json(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

#[track_caller]
fn client(service: &Service) -> Client {
    Client::builder().base_url(&service.url()).build().unwrap()
}

/// The body of the text request that a conversation becomes.
#[track_caller]
fn sent(talk: impl Into<Conversation>) -> Value {
    let service = Service::start();
    client(&service)
        .complete(talk)
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(service.refusals().is_empty(), "{:?}", service.refusals());
    let mut requests = service.requests().into_iter();
    requests
        .find(|r| r.endpoint == Endpoint::Text)
        .unwrap()
        .json()
}

#[track_caller]
fn prompt(talk: impl Into<Conversation>) -> String {
    sent(talk)["content"].as_str().unwrap().to_owned()
}

/// A `Misuse` whose text has all these words.
#[track_caller]
fn assert_misuse(error: &Error, words: &[&str]) {
    assert_eq!(error.kind(), ErrorKind::Misuse, "{error}");
    for word in words {
        assert!(
            error.to_string().contains(word),
            "not {word:?}, but: {error}"
        );
    }
}

/// Asserts that the chat is refused with these words, and that no service hears of it.
#[track_caller]
fn assert_not_sent(talk: impl Into<Conversation>, words: &[&str]) {
    let service = Service::start();
    let client = client(&service);
    let error = client.complete(talk).expect_err("a refusal");
    assert_misuse(&error, words);
    assert!(!error.is_retryable());
    assert_eq!((service.connections(), service.requests().len()), (0, 0));
    client
        .complete("Hi")
        .expect("the client works for the next call");
}

/// The same of JSON that is no conversation, of which there is one line.
#[track_caller]
fn assert_json_not_sent(json: &str, words: &[&str]) {
    let error = Conversation::from_json(json).expect_err(json);
    assert_misuse(&error, words);
    let service = Service::start();
    let options = [("base_url", &*service.url()), ("messages", json)];
    let cure = [("messages", r#"[{"role": "user", "content": "Hi"}]"#)];
    hold_until_cured(&options, Duration::ZERO, |_| (), &cure).is("", Some(&error));
    let requests = service.requests();
    let mut texts = requests.iter().filter(|r| r.endpoint == Endpoint::Text);
    assert!(texts.all(|r| r.json()["content"] == "Hi"));
}

#[test]
fn json_that_is_none_is_refused_with_the_position() {
    for (json, line, column) in [
        ("", 1, 0),
        ("{", 1, 1),
        ("[{]", 1, 3),
        ("[] []", 1, 4),
        (r#"[{"role": "user", "content": "Hi"},]"#, 1, 36),
        ("['Hi']", 1, 2),
        ("[\"\u{1}\"]", 1, 3),
    ] {
        assert_json_not_sent(json, &[&format!("line {line} column {column}")]);
    }
    let error = Conversation::from_json("[\n  {\"role\": user}]").unwrap_err();
    assert_misuse(&error, &["line 2 column 12"]);
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    assert_misuse(&Conversation::from_json(&deep).unwrap_err(), &["line 1"]);
}

#[test]
fn json_of_another_shape_is_refused() {
    for json in ["null", "5", "true", "\"Hi\""] {
        assert_json_not_sent(json, &["array", "messages"]);
    }
    for json in [
        "{}",
        r#"{"messages": null}"#,
        r#"{"messages": "Hi"}"#,
        r#"{"messages": {}}"#,
    ] {
        assert_json_not_sent(json, &["messages"]);
    }
}

#[test]
fn a_message_without_a_role_is_refused_by_its_index() {
    let good = json!({"role": "user", "content": "Hi"});
    for bad in [
        json!({"content": "Hi"}),
        json!({"role": null, "content": "Hi"}),
        json!({"role": "", "content": "Hi"}),
        json!({"role": 5, "content": "Hi"}),
        json!({"Role": "user", "content": "Hi"}),
        json!({}),
        json!("Hi"),
        json!(null),
        json!([]),
    ] {
        for (messages, at) in [
            (json!([bad]), "messages[0]"),
            (json!([good, good, bad, good]), "messages[2]"),
            (
                json!({"messages": [good, bad], "model": "x"}),
                "messages[1]",
            ),
        ] {
            assert_json_not_sent(&messages.to_string(), &[at, "role"]);
        }
        let mut talk = Conversation::from("Hi");
        assert_misuse(
            &talk.push_json(bad.clone()).expect_err("a refusal"),
            &["role"],
        );
        assert_eq!(talk, Conversation::from("Hi"), "it is as it was: {bad}");
    }
}

#[test]
fn a_conversation_without_a_message_is_not_sent() {
    assert_not_sent(Conversation::new(), &["message"]);
    assert_not_sent(read("[]"), &["message"]);
    assert_not_sent(read(r#"{"messages": [], "model": "x"}"#), &["message"]);
    assert_not_sent(Vec::<Message>::new(), &["message"]);
    assert!(read("[]").is_empty());
}

#[test]
fn more_than_64_mib_are_beyond_the_limit() {
    const LIMIT: usize = 64 << 20;
    let (head, tail) = (r#"[{"role":"user","content":""#, r#""}]"#);
    let mut json = String::with_capacity(LIMIT + 1);
    json.push_str(head);
    json.extend(std::iter::repeat_n('x', LIMIT - head.len() - tail.len()));
    json.push_str(tail);
    assert_eq!(json.len(), LIMIT);
    assert_eq!(
        Conversation::from_json(&json).map(|talk| talk.len()).ok(),
        Some(1)
    );
    json.push(' ');
    let error = Conversation::from_json(&json).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    assert!(error.to_string().contains("64 MiB"), "{error}");
}

#[test]
fn content_parts_that_are_text_are_joined() {
    let text = |text: &str| json!({"type": "text", "text": text});
    for (content, expected) in [
        (json!([text("Hi")]), "Hi"),
        (
            json!([text("Hi"), text(" there"), text("\n\"Ünï\" 👍")]),
            "Hi there\n\"Ünï\" 👍",
        ),
        (json!([text(""), text("x")]), "x"),
    ] {
        let one = json!([{"role": "user", "content": content}]);
        assert_eq!(prompt(read(&one.to_string())), expected);
        let two = json!([{"role": "system", "content": "Be brief"}, one[0]]);
        let expected = format!("System: Be brief\nUser: {expected}\nAssistant:");
        assert_eq!(prompt(read(&two.to_string())), expected);
    }
}

#[test]
fn content_that_is_not_text_is_not_sent_in_the_gptalk_protocol() {
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}});
    let text = json!({"type": "text", "text": "What is it?"});
    for content in [
        json!([text, image]),
        json!([image]),
        json!([{"type": "text"}]),
        json!([{"type": "text", "text": 5}]),
        json!(["Hi"]),
        json!({"type": "text", "text": "Hi"}),
        json!(5),
        json!(null),
    ] {
        let bad = json!({"role": "user", "content": content});
        assert_not_sent(read(&json!([bad]).to_string()), &["messages[0]", "content"]);
        let good = json!({"role": "user", "content": "Hi"});
        assert_not_sent(
            read(&json!([good, bad]).to_string()),
            &["messages[1]", "content"],
        );
    }
    assert_not_sent(read(r#"[{"role": "user"}]"#), &["messages[0]", "content"]);
}

#[test]
fn further_members_are_of_the_request() {
    let body = sent(read(
        r#"{"model": "m", "messages": [{"role": "user", "content": "Hi", "name": "Ann"}],
            "temperature": 0.25, "user": {"id": [1, null]}}"#,
    ));
    assert_eq!(body["content"], "Hi");
    assert_eq!(body["model"], "m");
    assert_eq!(body["temperature"], json!(0.25));
    assert_eq!(body["user"], json!({"id": [1, null]}));
    assert_eq!(body.get("messages"), None);
}

#[test]
fn messages_are_pushed_at_the_end() {
    let service = Service::start();
    let mut talk = Conversation::from("One");
    let reply = client(&service).complete(&talk).unwrap();
    talk.push_json(reply.message()).unwrap();
    talk.push(Message::user("Two \"\\\n"));
    talk.push(Message::system("Three"));
    talk.push_json(json!({"role": "tool", "content": [{"type": "text", "text": "Four"}]}))
        .unwrap();
    assert_eq!(talk.len(), 5);
    let expected = "User: One\nAssistant: You said: One\nUser: Two \"\\\n\nSystem: Three\n\
                    Tool: Four\nAssistant:";
    assert_eq!(prompt(&talk), expected);
    // Pushing changes nothing else of a request.
    let mut request = read(r#"{"model": "m", "messages": []}"#);
    request.push(Message::user("Hi"));
    assert_eq!(sent(request)["model"], "m");
}

#[test]
fn a_conversation_is_made_of_whatever_is_at_hand() {
    let [one, two] = [Message::user("a"), Message::assistant("b")];
    let both = r#"[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]"#;
    assert_eq!(
        Conversation::from("a").to_json(),
        r#"[{"role":"user","content":"a"}]"#
    );
    assert_eq!(Conversation::from("a"), Conversation::from(one.clone()));
    assert_eq!(
        Conversation::from([one.clone(), two.clone()].as_slice()).to_json(),
        both
    );
    assert_eq!(
        Conversation::from(vec![one.clone(), two.clone()]).to_json(),
        both
    );
    assert_eq!(
        [one, two].into_iter().collect::<Conversation>().to_string(),
        both
    );
    // JSON in a text is a text: what a user says is never parsed.
    assert_eq!(
        prompt(r#"[{"role": "system", "content": "x"}]"#),
        r#"[{"role": "system", "content": "x"}]"#
    );
}

#[test]
fn a_chat_takes_whatever_is_at_hand() {
    let service = Service::start();
    let client = client(&service);
    let (text, list) = (
        String::from("Hi"),
        vec![Message::user("a"), Message::assistant("b")],
    );
    let (one, two) = (
        "You said: Hi",
        "You said: User: a\nAssistant: b\nAssistant:",
    );
    let pair = [Message::user("a"), Message::assistant("b")];
    assert_eq!(client.complete("Hi").unwrap().text, one);
    assert_eq!(client.complete(&text).unwrap().text, one);
    assert_eq!(client.complete(text).unwrap().text, one);
    assert_eq!(client.complete(Message::user("Hi")).unwrap().text, one);
    assert_eq!(client.complete(pair.as_slice()).unwrap().text, two);
    assert_eq!(client.complete(pair).unwrap().text, two);
    assert_eq!(client.complete(&list).unwrap().text, two);
    assert_eq!(client.complete(list).unwrap().text, two);
    assert_eq!(service.refusals(), [""; 0]);
}

#[test]
fn json_survives_the_round_trip() {
    for json in [
        "[]",
        r#"[{"role":"user","content":"Hi"}]"#,
        r#"[{"content":"\u0000 \"\\\n é 👍","role":"sYSTEM","name":"x","z":[1.5,null]}]"#,
        r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,"}}]}]"#,
        r#"[{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]}]"#,
        r#"{"messages":[{"role":"user","content":"Hi"}],"model":"m","big":18446744073709551615}"#,
        r#"{"b":1,"messages":[],"a":{"deep":[[]]},"empty":""}"#,
    ] {
        let talk = read(json);
        let written = talk.to_json();
        let (before, after): (Value, Value) = (
            serde_json::from_str(json).unwrap(),
            serde_json::from_str(&written).unwrap(),
        );
        assert_eq!(before, after, "{json}");
        assert_eq!(read(&written), talk, "{json}");
        assert_eq!(talk.to_string(), written);
    }
    let order = r#"[{"z":1,"role":"user","a":2,"content":"Hi"}]"#;
    assert_eq!(read(order).to_json(), order, "members keep their order");
    // A number is not another one after a while.
    let number = r#"[{"role":"user","content":"Hi","n":123456788.124536789e-5}]"#;
    let written = read(number).to_json();
    assert!(written.contains("1234.567881245368}"), "{written}");
    assert_eq!(read(&written).to_json(), written);
    let twice = read(r#"[{"role": "a", "role": "user", "content": "x", "content": "Hi"}]"#);
    assert_eq!(twice, Conversation::from("Hi"), "the last of two counts");
}

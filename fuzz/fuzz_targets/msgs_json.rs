//! Conversations in JSON: what is read is what is sent, and an error says where it is.

#![no_main]

use gptalk::{Conversation, ErrorKind, Message, Protocol};
use gptalk_fuzz::{before_the_stream, chat, check_request, client, sized};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|json: &str| {
    let mut talk = match Conversation::from_json(json) {
        Ok(talk) => talk,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Misuse);
            let words = error.to_string();
            let places = ["line ", "messages[", "\"messages\""];
            assert!(places.iter().any(|place| words.contains(place)), "{words}");
            return;
        }
    };
    assert_eq!(Conversation::from_json(&talk.to_json()).unwrap(), talk);
    let mut options = client(Protocol::Openai).build().unwrap();
    if talk.is_empty() {
        assert!(options.stream(&talk).is_err());
        return;
    }
    let sent = chat(&options, &talk, [sized(500, "")]).sent;
    assert_eq!(body_of(&sent[0])["messages"], messages(&talk));

    options.set("protocol", Some("gptalk")).unwrap();
    match options.stream(&talk) {
        Ok(_) => {
            let sent = chat(&options, &talk, before_the_stream()).sent;
            let body = body_of(&sent[1]);
            assert!(body.is_object());
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Misuse);
            assert!(error.to_string().contains("messages["), "{error}");
        }
    }

    talk.push(Message::user("x"));
    talk.push(Message::tool("y"));
    let again = Conversation::from_json(&talk.to_json()).unwrap();
    assert_eq!(again.len(), talk.len());
});

fn messages(talk: &Conversation) -> Value {
    match serde_json::from_str(&talk.to_json()).unwrap() {
        Value::Object(mut request) => request["messages"].take(),
        messages => messages,
    }
}

fn body_of(sent: &[u8]) -> Value {
    serde_json::from_slice(check_request(sent).expect("a request")).unwrap()
}

//! A reply of an OpenAI-compatible service, whatever it sends: what it comes to does not depend on
//! how it arrives, nor on whether each event is parsed, and what has been handed out of a reply that
//! is cut is what the whole one begins with.

#![no_main]

use gptalk::{Conversation, Protocol};
use gptalk_fuzz::{OK, body_and_how, chat, client, hot_chat};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (body, how) = body_and_how(data);
    let mut client = client(Protocol::Openai);
    if how.choice & 1 != 0 {
        client = client.max_reply_bytes(40);
    }
    let client = client.build().unwrap();
    let talk = Conversation::from("Hi");
    let whole = chat(&client, &talk, [how.at_once(OK, body)]);
    let parts = chat(&client, &talk, [how.in_parts(OK, body)]);
    assert_eq!(parts.essence(), whole.essence());
    // No more than two halves of a character are longer than what they came in.
    if how.choice & 1 != 0 {
        assert!(whole.reply.text.len() + whole.reply.reasoning.len() <= 40 + 6);
    }

    if how.choice & 2 != 0 {
        let hot = hot_chat(&client, &talk, [how.in_parts(OK, body)]);
        assert_eq!(hot.essence(), whole.without_events().essence());
        return;
    }
    // Cut anywhere: the last piece may be of a line that is whole by chance.
    let mut random = how.random;
    let cut = random.below(body.len() + 1);
    let begun = chat(&client, &talk, [how.at_once(OK, &body[..cut])]);
    let (begun, whole) = (begun.pieces(), whole.pieces());
    let sure = begun.split_last().map_or(&[][..], |(_, sure)| sure);
    assert!(whole.starts_with(sure), "{begun:?} of {whole:?}");
});

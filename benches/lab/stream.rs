//! Streams of events, as bytes on the wire.

use std::time::Duration;

use gptalk_service::Peer;

use super::Protocol;

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                    transfer-encoding: chunked\r\n\r\n";

/// An answer, from its status line to the last chunk.
pub struct Stream {
    bytes: Vec<u8>,
    /// Where writes end, in a stream that is paced: the head's, and each token's.
    writes: Vec<usize>,
}

/// So many words of so many bytes each, as they stand in JSON.
pub fn words(count: usize, bytes: usize) -> Vec<String> {
    const TEXT: &str =
        "whatever is well said by anyone belongs to everyone who has ears to hear it ";
    let letters = TEXT.chars().cycle();
    let word = |n: usize| {
        letters
            .clone()
            .skip(n * 7 % TEXT.len())
            .take(bytes)
            .collect()
    };
    (0..count).map(word).collect()
}

impl Stream {
    /// These words, a chunk each.
    pub fn of(protocol: Protocol, words: &[String]) -> Stream {
        match protocol {
            Protocol::OpenAi => Stream::openai("content", words, 1),
            Protocol::GpTalk => Stream::gptalk(words, 1),
        }
    }

    /// A reply of twenty tokens.
    pub fn short(protocol: Protocol) -> Stream {
        Stream::of(protocol, &words(20, 4))
    }

    /// Chat completions, a chunk of HTTP for so many bytes of events; the words are in a member of
    /// the delta: `content`, or `reasoning_content`.
    pub fn openai(member: &str, words: &[String], chunk: usize) -> Stream {
        let event = |delta: &str, finish_reason: &str| {
            format!(
                "data: {{\"id\":\"chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT\",\"object\":\"chat.completion.chunk\",\
                 \"created\":1741569952,\"model\":\"gpt-4.1-2025-04-14\",\"choices\":[{{\"index\":0,\
                 \"delta\":{{{delta}}},\"finish_reason\":{finish_reason}}}]}}\n\n"
            )
        };
        let mut writer = Writer::new(chunk);
        writer.event(&[&event("\"role\":\"assistant\",\"content\":\"\"", "null")]);
        let whole = event(&format!("\"{member}\":\"|\""), "null");
        let (before, after) = whole.split_once('|').expect("a place for the word");
        for word in words {
            writer.event(&[before, word, after]);
        }
        writer.ends(&[&event("", "\"stop\""), "data: [DONE]\n\n"])
    }

    /// The GPTalk protocol's lines, each with all the words so far.
    pub fn gptalk(words: &[String], chunk: usize) -> Stream {
        let mut writer = Writer::new(chunk);
        let mut text = String::new();
        for word in words {
            text += word;
            writer.event(&["data: {\"content\": \"", &text, "\"}\n"]);
        }
        writer.ends(&["data: [DONE]\n"])
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Sends it at once; or, with a pause, a word a write.
    pub fn send(&self, peer: &mut Peer, pause: Option<Duration>) {
        let Some(pause) = pause else {
            return peer.send(&self.bytes);
        };
        let mut from = 0;
        for &to in &self.writes {
            peer.send(&self.bytes[from..to]);
            peer.pause(pause);
            from = to;
        }
        peer.send(&self.bytes[from..]);
    }
}

struct Writer {
    stream: Stream,
    pending: String,
    chunk: usize,
}

impl Writer {
    fn new(chunk: usize) -> Writer {
        Writer {
            stream: Stream {
                bytes: HEAD.into(),
                writes: vec![HEAD.len()],
            },
            pending: String::new(),
            chunk,
        }
    }

    fn event(&mut self, parts: &[&str]) {
        self.pending.extend(parts.iter().copied());
        if self.pending.len() >= self.chunk {
            self.flush();
            self.stream.writes.push(self.stream.bytes.len());
        }
    }

    fn flush(&mut self) {
        if !self.pending.is_empty() {
            let bytes = &mut self.stream.bytes;
            bytes.extend(format!("{:x}\r\n", self.pending.len()).bytes());
            bytes.extend_from_slice(self.pending.as_bytes());
            bytes.extend_from_slice(b"\r\n");
            self.pending.clear();
        }
    }

    /// The last events, each a chunk, and the end of the body.
    fn ends(mut self, last: &[&str]) -> Stream {
        for event in last {
            self.flush();
            self.pending += event;
        }
        self.flush();
        self.stream.bytes.extend_from_slice(b"0\r\n\r\n");
        self.stream
    }
}

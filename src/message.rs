//! Conversations: what is said to a service.

use std::fmt;
use std::io::{self, Write};

use serde_json::{Map, Value, json};

use crate::error::{Error, ErrorKind};
use crate::json::parse_value;

/// The longest conversation as JSON, in bytes.
const MAX_JSON: usize = 64 << 20;

/// One message with text for content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message {
            role: role.into(),
            content: content.into(),
        }
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Message::new("user", content)
    }

    /// What the model said before.
    pub fn assistant(content: impl Into<String>) -> Self {
        Message::new("assistant", content)
    }

    /// How the model is to behave.
    pub fn system(content: impl Into<String>) -> Self {
        Message::new("system", content)
    }

    /// What a tool has answered; see [`Conversation::push`].
    pub fn tool(content: impl Into<String>) -> Self {
        Message::new("tool", content)
    }
}

/// A list of messages, and optionally further members of the request.
///
/// What every chat begins with. A `&str` is a conversation of one user message; a [`Message`] or
/// a list of them is one, and so is JSON through [`Conversation::from_json`].
///
/// ```
/// use gptalk::{Conversation, Message};
///
/// let mut talk = Conversation::from("Tell me a joke");
/// talk.push(Message::assistant("Knock, knock."));
/// talk.push(Message::user("Who's there?"));
/// assert_eq!(Conversation::from_json(&talk.to_json())?.len(), 3);
/// # Ok::<(), gptalk::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Objects, each with a role.
    messages: Vec<Value>,
    /// Members of the request besides `messages`.
    members: Map<String, Value>,
}

impl Conversation {
    /// An empty conversation, to be pushed on.
    pub fn new() -> Self {
        Conversation::default()
    }

    /// Reads an array of messages, or an object with the member `messages` and whatever else the
    /// request is to have: `{"messages": [...], "temperature": 0.7}`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] says what is wrong and where; [`ErrorKind::Limit`] above 64 MiB.
    pub fn from_json(json: &str) -> Result<Self, Error> {
        if json.len() > MAX_JSON {
            return Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "the messages are {} bytes of JSON, more than 64 MiB",
                    json.len()
                ),
            ));
        }
        let value = parse_value(json)
            .map_err(|error| Error::misuse(format!("the messages are not valid JSON: {error}")))?;
        let (messages, members) = match value {
            Value::Array(messages) => (messages, Map::new()),
            Value::Object(mut members) => match members.shift_remove("messages") {
                Some(Value::Array(messages)) => (messages, members),
                _ => {
                    return Err(Error::misuse(
                        "the request object has no member \"messages\" that is an array",
                    ));
                }
            },
            _ => {
                return Err(Error::misuse(
                    "the messages are neither a JSON array nor an object with \"messages\"",
                ));
            }
        };
        for (at, message) in messages.iter().enumerate() {
            check(message).map_err(|why| Error::misuse(format!("messages[{at}]: {why}")))?;
        }
        Ok(Conversation { messages, members })
    }

    /// The messages as a JSON array, or the whole request object where it has further members.
    pub fn to_json(&self) -> String {
        if self.members.is_empty() {
            return self.messages_json();
        }
        let mut request = self.members.clone();
        request.insert("messages".into(), self.messages.clone().into());
        Value::Object(request).to_string()
    }

    /// Adds a message at the end.
    ///
    /// One of the role `tool` is a result for the last message that has tool calls: it gets the
    /// id of the first of them that has none yet as its `tool_call_id`.
    pub fn push(&mut self, message: Message) {
        let message = self.message(&message.role, &message.content);
        self.messages.push(message);
    }

    fn message(&self, role: &str, content: &str) -> Value {
        let mut message = json!({"role": role, "content": content});
        if let ("tool", Some(id)) = (role, self.open_call()) {
            message["tool_call_id"] = json!(id);
        }
        message
    }

    /// The id of the first of the last tool calls that has no result yet.
    fn open_call(&self) -> Option<&str> {
        let calls = |message| {
            let calls = Value::as_array(Value::get(message, "tool_calls")?)?;
            (!calls.is_empty()).then_some(calls)
        };
        let at = self
            .messages
            .iter()
            .rposition(|message| calls(message).is_some())?;
        let results = self.messages[at..].iter();
        let mut results: Vec<_> = results
            .filter_map(|result| text(result, "tool_call_id"))
            .collect();
        let mut ids = calls(&self.messages[at])?
            .iter()
            .filter_map(|call| text(call, "id"));
        // Two calls may have the same id.
        ids.find(|id| match results.iter().position(|known| known == id) {
            Some(at) => {
                results.swap_remove(at);
                false
            }
            None => true,
        })
    }

    /// Adds a message given as JSON, such as [`Reply::message`](crate::Reply::message).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Misuse`] where it is no object with a role.
    pub fn push_json(&mut self, message: Value) -> Result<(), Error> {
        check(&message).map_err(Error::misuse)?;
        self.messages.push(message);
        Ok(())
    }

    /// A list of messages as JSON and one message more: what `gptalk_push` does.
    pub(crate) fn pushed(
        list: Option<&str>,
        role: Option<&str>,
        content: &str,
    ) -> Result<String, Error> {
        let mut talk = match list {
            Some(list) => Conversation::from_json(list)?,
            None => Conversation::new(),
        };
        if !talk.members.is_empty() {
            return Err(Error::misuse(
                "a message is pushed on an array, not on a request object",
            ));
        }
        talk.push_json(match role {
            Some(role) => talk.message(role, content),
            None => {
                // As deep as it may be in a list, which is to be read again.
                let list = parse_value(&format!("[{content}]"))
                    .map_err(|error| Error::misuse(format!("the message is not JSON: {error}")))?;
                match list {
                    Value::Array(mut messages) if messages.len() == 1 => messages.remove(0),
                    _ => return Err(Error::misuse("the message is not one JSON value")),
                }
            }
        })?;
        Ok(talk.messages_json())
    }

    /// How many messages it has.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether it has no message yet. Such a conversation cannot be sent.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The messages alone, as a JSON array.
    pub(crate) fn messages_json(&self) -> String {
        serde_json::to_string(&self.messages).unwrap_or_default()
    }

    pub(crate) fn members(&self) -> &Map<String, Value> {
        &self.members
    }

    /// Role and content of each message, in order.
    pub(crate) fn messages(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.messages.iter().map(|message| {
            let role = text(message, "role").unwrap_or_default();
            (role, message.get("content").unwrap_or(&Value::Null))
        })
    }
}

/// A request's body being written, in JSON: our members, but for those that the user has of the same
/// name, and then the user's. Those of the `body` option replace the conversation's.
pub(crate) struct RequestBody<'a> {
    json: Vec<u8>,
    talk: &'a Conversation,
    option: &'a Map<String, Value>,
}

impl<'a> RequestBody<'a> {
    pub fn new(talk: &'a Conversation, option: &'a Map<String, Value>) -> Self {
        let mut json = Vec::with_capacity(256);
        json.push(b'{');
        RequestBody { json, talk, option }
    }

    /// The user's own member of that name.
    pub fn given(&self, name: &str) -> Option<&'a Value> {
        self.option
            .get(name)
            .or_else(|| self.talk.members.get(name))
    }

    pub fn text(&mut self, name: &str, text: &str) {
        self.ours(name, |json| Ok(serde_json::to_writer(json, text)?));
    }

    /// What is JSON as it is displayed: a number, a [`Value`], JSON itself.
    pub fn json(&mut self, name: &str, value: impl fmt::Display) {
        self.ours(name, |json| write!(json, "{value}"));
    }

    /// The conversation's. They may be long: nothing is copied on the way.
    pub fn messages(&mut self) {
        let messages = &self.talk.messages;
        self.ours("messages", |json| {
            Ok(serde_json::to_writer(json, messages)?)
        });
    }

    pub fn finish(mut self) -> Vec<u8> {
        let (talk, option) = (self.talk.members.iter(), self.option);
        let members = talk
            .filter(|(name, _)| !option.contains_key(*name))
            .chain(option);
        for (name, value) in members {
            self.write(name, |json| Ok(serde_json::to_writer(json, value)?));
        }
        match self.json.last_mut() {
            Some(last @ b',') => *last = b'}',
            _ => self.json.push(b'}'),
        }
        self.json
    }

    fn ours(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) {
        if self.given(name).is_none() {
            self.write(name, write);
        }
    }

    fn write(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) {
        // Writing into memory does not fail.
        let _ = serde_json::to_writer(&mut self.json, name);
        self.json.push(b':');
        let _ = write(&mut self.json);
        self.json.push(b',');
    }
}

fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}

fn check(message: &Value) -> Result<(), &'static str> {
    match message.as_object().map(|message| message.get("role")) {
        None => Err("a message is a JSON object with \"role\" and \"content\""),
        Some(Some(Value::String(role))) if !role.is_empty() => Ok(()),
        Some(_) => {
            Err("the message needs a \"role\" that is text: \"system\", \"user\", \"assistant\"")
        }
    }
}

impl fmt::Display for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_json())
    }
}

impl From<Message> for Conversation {
    fn from(message: Message) -> Self {
        Conversation::from([message].as_slice())
    }
}

impl From<&[Message]> for Conversation {
    fn from(messages: &[Message]) -> Self {
        messages.iter().cloned().collect()
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Self {
        messages.into_iter().collect()
    }
}

impl From<&str> for Conversation {
    fn from(text: &str) -> Self {
        Message::user(text).into()
    }
}

impl From<String> for Conversation {
    fn from(text: String) -> Self {
        Message::user(text).into()
    }
}

impl From<&String> for Conversation {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl<const N: usize> From<[Message; N]> for Conversation {
    fn from(messages: [Message; N]) -> Self {
        messages.into_iter().collect()
    }
}

impl From<&Vec<Message>> for Conversation {
    fn from(messages: &Vec<Message>) -> Self {
        messages.as_slice().into()
    }
}

impl From<&Conversation> for Conversation {
    fn from(conversation: &Conversation) -> Self {
        conversation.clone()
    }
}

impl FromIterator<Message> for Conversation {
    fn from_iter<I: IntoIterator<Item = Message>>(messages: I) -> Self {
        let mut conversation = Conversation::new();
        messages
            .into_iter()
            .for_each(|message| conversation.push(message));
        conversation
    }
}

//! Tool calls, put together from the pieces that services send.

use serde_json::{Map, Value, json};

use super::seam::Seam;
use crate::protocol::json::{Halves, parse_json};

/// How many calls a reply may have.
pub(super) const MAX_CALLS: usize = 1024;

/// The tool calls of a reply.
#[derive(Default)]
pub(super) struct Calls(Vec<Call>);

#[derive(Default)]
struct Call {
    index: Option<u64>,
    id: String,
    kind: String,
    name: String,
    arguments: String,
    seam: Seam,
    /// Members that are not of the protocol and that a service wants back (Gemini's signatures).
    others: Map<String, Value>,
}

impl Calls {
    /// One element of a `tool_calls` array; how many bytes it added.
    ///
    /// Services number the calls (`index`), or leave that out (Ollama), or number all of them 0;
    /// the `id` comes once, with each piece, or never; so does the name.
    pub fn add(&mut self, piece: &Value, halves: Halves) -> usize {
        let text =
            |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let function = piece.get("function").unwrap_or(&Value::Null);
        let index = piece.get("index").and_then(Value::as_u64);
        let (id, name) = (text(piece.get("id")), text(function.get("name")));
        let found = match index {
            Some(_) => self.0.iter_mut().rfind(|call| call.index == index),
            None if !id.is_empty() => self.0.iter_mut().rfind(|call| call.id == id),
            None => self.0.last_mut(),
        };
        let known = found.filter(|call| !call.is_over(index, &id, &name));
        let call = match known {
            Some(call) => call,
            None => {
                self.0.push(Call {
                    index,
                    ..Call::default()
                });
                // One has just been pushed.
                let Some(call) = self.0.last_mut() else {
                    return 0;
                };
                call
            }
        };
        let mut added = 0;
        if call.id.is_empty() {
            added += id.len();
            call.id = id;
        }
        if call.kind.is_empty() {
            call.kind = text(piece.get("type"));
        }
        // A name may come in pieces, or whole with every piece.
        if call.name != name && call.arguments.is_empty() {
            added += name.len();
            call.name.push_str(&name);
        }
        let arguments = match function.get("arguments") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => call.seam.join(text, halves).into_owned(),
            // Whole, and not in a string.
            Some(other) => other.to_string(),
        };
        added += arguments.len();
        call.arguments.push_str(&arguments);
        for (name, value) in piece.as_object().into_iter().flatten() {
            if !matches!(name.as_str(), "index" | "id" | "type" | "function") {
                added += name.len() + value.to_string().len();
                call.others.insert(name.clone(), value.clone());
            }
        }
        added
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The calls as they stand in an assistant's message.
    pub fn finish(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.0)
            .into_iter()
            .map(Call::finish)
            .collect()
    }
}

impl Call {
    /// Whether a piece with this index, id and name begins another call.
    fn is_over(&self, index: Option<u64>, id: &str, name: &str) -> bool {
        let same_id = !id.is_empty() && id == self.id;
        if name.is_empty() || self.name.is_empty() || same_id {
            return false;
        }
        let other_id = !id.is_empty() && !self.id.is_empty();
        match self.arguments.is_empty() {
            true => index.is_none() || other_id,
            false => {
                self.arguments.ends_with('}') && parse_json(self.arguments.as_bytes()).is_some()
            }
        }
    }

    fn finish(mut self) -> Value {
        self.arguments.push_str(self.seam.end());
        if self.id.is_empty() {
            // The tool's result has to name it.
            let mut random = [0; 8];
            let _ = getrandom::fill(&mut random);
            self.id = format!("call_{:016x}", u64::from_be_bytes(random));
        }
        let or = |text: String, otherwise: &str| match text.as_str() {
            "" => otherwise.to_owned(),
            _ => text,
        };
        let mut call = json!({
            "id": self.id,
            "type": or(self.kind, "function"),
            "function": {"name": self.name, "arguments": or(self.arguments, "{}")},
        });
        if let Some(members) = call.as_object_mut() {
            members.extend(self.others);
        }
        call
    }
}

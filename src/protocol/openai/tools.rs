//! Tool calls, put together from the pieces that services send.

use serde_json::{Map, Value, json};

use super::seam::Seam;
use crate::json::Json;
use crate::protocol::json::{Brackets, Halves};

/// How many calls a reply may have.
const MAX_CALLS: usize = 1024;

/// A reply has more than [`MAX_CALLS`].
pub(super) struct TooMany;

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
    brackets: Brackets,
    seam: Seam,
    /// Members that are not of the protocol, and that a service wants back (Gemini's signatures).
    others: Map<String, Value>,
}

impl Calls {
    /// A piece of a call; how many bytes it added.
    ///
    /// Services number the calls (`index`), or leave that out (Ollama), or number all of them 0;
    /// the `id` comes once, with each piece, or never; so does the name.
    pub fn add(&mut self, piece: &Json<'_>, halves: Halves) -> Result<usize, TooMany> {
        let text = |owner: &Json<'_>, name| {
            let text = owner.get(name).and_then(Json::as_str);
            text.unwrap_or_default().to_owned()
        };
        let function = piece.get("function").unwrap_or(&Json::Null);
        let index = piece.get("index").and_then(Json::as_u64);
        let (id, name) = (text(piece, "id"), text(function, "name"));
        let mut arguments = match function.get("arguments") {
            None | Some(Json::Null) => String::new(),
            Some(Json::String(text)) => text.to_string(),
            // Whole, and not in a string.
            Some(other) => other.to_string(),
        };
        let calls = &self.0;
        let may_be = |call: &Call| index.is_none() || call.index.is_none() || call.index == index;
        let same_id = calls
            .iter()
            .rposition(|call| !id.is_empty() && call.id == id && may_be(call));
        let found = same_id.or_else(|| match index {
            Some(_) => calls.iter().rposition(|call| call.index == index),
            None => calls.len().checked_sub(1),
        });
        let is_blank = arguments.trim().is_empty();
        let is_new = |call: &Call| same_id.is_none() && call.is_over(index, &id, &name, is_blank);
        let at = match found.filter(|at| !is_new(&calls[*at])) {
            Some(at) => at,
            None if calls.len() == MAX_CALLS => return Err(TooMany),
            None => {
                self.0.push(Call {
                    index,
                    ..Call::default()
                });
                self.0.len() - 1
            }
        };
        let call = &mut self.0[at];
        if call.brackets.closed && is_blank {
            arguments.clear();
        }
        let arguments = call.seam.join(&arguments, halves);
        let mut added = arguments.len();
        // A name may come in pieces, or whole with every piece.
        if call.name != name && call.arguments.is_empty() {
            added += name.len();
            call.name.push_str(&name);
        }
        if call.id.is_empty() {
            added += id.len();
            call.id = id;
        }
        if call.kind.is_empty() {
            call.kind = text(piece, "type");
        }
        call.brackets.feed_all(arguments.as_bytes());
        call.arguments.push_str(&arguments);
        for (name, value) in piece.as_object().into_iter().flatten() {
            if !matches!(&**name, "index" | "id" | "type" | "function") {
                let value = value.to_value();
                added += name.len() + value.to_string().len();
                call.others.insert(name.to_string(), value);
            }
        }
        Ok(added)
    }

    /// The calls as they stand in an assistant's message.
    pub fn finish(&mut self) -> Vec<Value> {
        let calls = std::mem::take(&mut self.0).into_iter();
        calls
            .filter(|call| !(call.name.is_empty() && call.arguments.is_empty()))
            .map(Call::finish)
            .collect()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl Call {
    /// Whether a piece with this index, id and name begins another call.
    fn is_over(&self, index: Option<u64>, id: &str, name: &str, is_blank: bool) -> bool {
        let has_other_id = !id.is_empty() && !self.id.is_empty();
        if has_other_id && self.brackets.closed {
            return true;
        }
        if name.is_empty() || self.name.is_empty() {
            return false;
        }
        let repeats = name == self.name && is_blank;
        has_other_id
            || (self.arguments.is_empty() && index.is_none())
            || (self.brackets.closed && !repeats)
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

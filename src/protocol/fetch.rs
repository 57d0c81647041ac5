//! Answers that are wanted whole.

use super::json::{Brackets, parse_json};
use super::{MAX_ERROR, MAX_JSON};
use crate::error::{Error, ErrorKind};
use crate::transport::{Answer, Exchange, Part};

/// An answer that is wanted whole.
pub(super) struct Fetch {
    exchange: Exchange,
    answer: Option<Answer>,
    bytes: Vec<u8>,
    /// How much of it the brackets have seen.
    looked_at: usize,
    brackets: Brackets,
}

impl Fetch {
    pub fn new(exchange: Exchange) -> Fetch {
        Fetch {
            exchange,
            answer: None,
            bytes: Vec::new(),
            looked_at: 0,
            brackets: Brackets::default(),
        }
    }

    /// One that has begun: the rest of an error answer.
    pub fn rest_of(exchange: Exchange, answer: Answer) -> Fetch {
        Fetch {
            exchange,
            answer: Some(answer),
            bytes: Vec::new(),
            looked_at: 0,
            brackets: Brackets::default(),
        }
    }

    pub fn shown_url(&self) -> &str {
        self.exchange.shown_url()
    }

    /// Whether the service may have the whole request.
    pub fn is_sent(&self) -> bool {
        self.answer.is_some() || self.exchange.is_sent()
    }

    /// Whether the request went out again, since the connection before had broken.
    pub fn was_sent_again(&self) -> bool {
        self.exchange.was_sent_again()
    }

    /// One step; `None`: nothing yet. Of an error answer, no more than its beginning.
    pub fn advance(&mut self) -> Result<Option<(Answer, Vec<u8>)>, Error> {
        let Some(answer) = &mut self.answer else {
            self.answer = self.exchange.advance()?;
            return Ok(None);
        };
        let is_error = !is_success(answer.status);
        let limit = if is_error { MAX_ERROR } else { MAX_JSON };
        let ended = match answer.body.read() {
            Ok(Part::Data(part)) => {
                let n = part.len();
                self.bytes.extend_from_slice(part);
                answer.body.consume(n);
                self.bytes.len() > limit
            }
            // Whoever has sent a whole document need not end the body too.
            Ok(Part::Pending) => is_whole(&self.bytes, &mut self.looked_at, &mut self.brackets),
            Ok(Part::End) => true,
            // The status says more than the way the body ended.
            Err(_) if is_error => true,
            // So does a whole document.
            Err(_) if is_whole(&self.bytes, &mut self.looked_at, &mut self.brackets) => true,
            Err(error) => return Err(error),
        };
        if self.bytes.len() > limit && !is_error {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("{} answered with more than 1 MiB of JSON", self.shown_url()),
            ));
        }
        if !ended {
            return Ok(None);
        }
        self.bytes.truncate(limit);
        let bytes = std::mem::take(&mut self.bytes);
        Ok(self.answer.take().map(|answer| (answer, bytes)))
    }
}

/// Whether a status means that the answer is what was asked for.
pub(super) fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

/// Whether a JSON document has become whole. Parsed once, when its last bracket has come: then it is
/// one, or never will be.
fn is_whole(bytes: &[u8], looked_at: &mut usize, brackets: &mut Brackets) -> bool {
    if brackets.closed || !matches!(bytes.first(), Some(b'{' | b'[')) {
        return false;
    }
    let new = &bytes[std::mem::replace(looked_at, bytes.len())..];
    brackets.feed(new).is_some() && parse_json(&String::from_utf8_lossy(bytes)).is_some()
}

//! Where two pieces of one text meet: a character whose UTF-16 halves came in two events.

use std::borrow::Cow;

use crate::protocol::json::Halves;

/// How a half without its other half stands in the text.
const HALF: &str = "\u{FFFD}";

/// The end of a text that grows by pieces.
#[derive(Default)]
pub(super) struct Seam {
    /// A high surrogate that waits for the low one.
    high: Option<u16>,
}

impl Seam {
    /// Whether no half waits.
    pub fn is_closed(&self) -> bool {
        self.high.is_none()
    }

    /// The next piece, with the half that waited and without one that has to wait.
    #[inline]
    pub fn join<'a>(&mut self, piece: &'a str, halves: Halves) -> Cow<'a, str> {
        match piece.is_empty() || (self.high.is_none() && halves.high.is_none()) {
            true => Cow::Borrowed(piece),
            false => Cow::Owned(self.join_halves(piece, halves)),
        }
    }

    fn join_halves(&mut self, piece: &str, halves: Halves) -> String {
        let mut joined = String::with_capacity(piece.len() + HALF.len());
        let mut rest = piece;
        if let Some(high) = self.high.take() {
            let low = halves.low.filter(|_| rest.starts_with(HALF));
            let pair = [high, low.unwrap_or_default()];
            match (low, char::decode_utf16(pair).next()) {
                (Some(_), Some(Ok(whole))) => {
                    joined.push(whole);
                    rest = &rest[HALF.len()..];
                }
                _ => joined.push_str(HALF),
            }
        }
        if let (Some(high), Some(head)) = (halves.high, rest.strip_suffix(HALF)) {
            self.high = Some(high);
            rest = head;
        }
        joined.push_str(rest);
        joined
    }

    /// The text is over: a half that waited will not come whole.
    pub fn end(&mut self) -> &'static str {
        self.high.take().map_or("", |_| HALF)
    }
}

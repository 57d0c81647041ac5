//! Bytes in, lines out: the line discipline of event streams.
//!
//! A line ends with LF, CR or CRLF, which may be split over two reads; a byte order mark is
//! dropped once, at the start. Knows nothing of HTTP, JSON or chats.
//! Source: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.

/// The longest line that is gathered, in bytes.
pub(crate) const MAX_LINE: usize = 16 << 20;

/// A line is longer than [`MAX_LINE`].
#[derive(Debug)]
pub(crate) struct LineTooLong;

/// Finds the lines in a stream of bytes that arrives in parts.
///
/// ```text
/// next(part) ──▶ Some(line)   call again with what is left of the part
///            └─▶ None         the part is used up: its unfinished line is kept
/// rest()     ──▶ the last line, which has no line end
/// ```
#[derive(Default)]
pub(crate) struct Lines {
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// The line handed out was in `partial`: forget it at the next call.
    handed_out: bool,
    /// The last line ended with CR: a LF that follows belongs to it.
    after_cr: bool,
    /// A first line has begun: a byte order mark is now text.
    begun: bool,
}

impl Lines {
    /// The next whole line, without its end; takes what it used off `part`.
    pub fn next<'a>(&'a mut self, part: &mut &'a [u8]) -> Result<Option<&'a [u8]>, LineTooLong> {
        if std::mem::take(&mut self.handed_out) {
            self.partial.clear();
        }
        if self.after_cr && !part.is_empty() {
            self.after_cr = false;
            *part = part.strip_prefix(b"\n").unwrap_or(part);
        }
        let end = memchr::memchr2(b'\n', b'\r', part);
        if self.partial.len() + end.unwrap_or(part.len()) > MAX_LINE {
            return Err(LineTooLong);
        }
        let Some(end) = end else {
            self.partial.extend_from_slice(part);
            *part = &[];
            return Ok(None);
        };
        self.after_cr = part[end] == b'\r';
        let (head, tail) = (&part[..end], &part[end + 1..]);
        *part = tail;
        let line = if self.partial.is_empty() {
            head
        } else {
            self.partial.extend_from_slice(head);
            self.handed_out = true;
            &self.partial
        };
        Ok(Some(without_bom(line, &mut self.begun)))
    }

    /// Whether a line begins with what follows.
    pub fn is_at_start(&self) -> bool {
        self.handed_out || self.partial.is_empty()
    }

    /// What has been read elsewhere: the beginning of a line, in pieces.
    pub fn begin_with(&mut self, pieces: &[&[u8]]) {
        self.partial.clear();
        pieces
            .iter()
            .for_each(|piece| self.partial.extend_from_slice(piece));
        (self.handed_out, self.after_cr) = (false, false);
    }

    /// The line that `part` goes on with, from its beginning; what follows its end, too.
    pub fn peek<'a>(&'a self, part: &'a [u8]) -> impl Iterator<Item = &'a u8> {
        let partial: &[u8] = if self.handed_out { &[] } else { &self.partial };
        let rest = part.strip_prefix(b"\n").filter(|_| self.after_cr);
        partial.iter().chain(rest.unwrap_or(part))
    }

    /// What has come of a line whose end has not, of a stream that is read in another way from
    /// here on.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.rest();
        self.partial
    }

    /// What stands behind the last line end.
    pub fn rest(&mut self) -> &[u8] {
        if std::mem::take(&mut self.handed_out) {
            self.partial.clear();
        }
        without_bom(&self.partial, &mut self.begun)
    }
}

fn without_bom<'a>(line: &'a [u8], begun: &mut bool) -> &'a [u8] {
    if std::mem::replace(begun, true) {
        line
    } else {
        line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line)
    }
}

/// A line's field name and its value: what follows the colon and its one optional space. A comment
/// is a field without a name.
pub(crate) fn field(line: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b':', line) {
        Some(colon) => {
            let value = &line[colon + 1..];
            (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
        }
        None => (line, &[]),
    }
}

//! The body of a host's answer.
//!
//! libgit2 gets it in chunks of the gate's own writing: it ends where the gate says that it ends.

/// How the host says where its body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    Known(u64),
    Chunked,
    /// With the connection.
    Unsaid,
}

/// The longest line that says a chunk's size, or what follows the last.
const LINE_BYTES_MAX: usize = 1024;

/// Takes a body out of what the host sends.
pub(super) struct Body(State);

enum State {
    /// So many bytes are the body's; then what follows.
    Bytes {
        rest: u64,
        in_chunk: bool,
    },
    /// The line that ends a chunk, then the one that says the next one's size.
    Size {
        line: Vec<u8>,
        after_chunk: bool,
    },
    /// Lines behind the last chunk, up to an empty one.
    Trailer {
        line: Vec<u8>,
    },
    Unsaid,
    Complete,
}

impl Body {
    pub(super) const fn new(length: Length) -> Self {
        Self(match length {
            Length::Known(0) => State::Complete,
            Length::Known(rest) => State::Bytes { rest, in_chunk: false },
            Length::Chunked => State::Size { line: Vec::new(), after_chunk: false },
            Length::Unsaid => State::Unsaid,
        })
    }

    pub(super) const fn is_complete(&self) -> bool {
        matches!(self.0, State::Complete)
    }

    /// Whether the body may end here, because the connection does.
    pub(super) const fn may_end(&self) -> bool {
        matches!(self.0, State::Complete | State::Unsaid)
    }

    /// What of these bytes is the body's; nothing, if they are not in the form of one. What follows it is dropped.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Option<Vec<u8>> {
        let mut taken = Vec::with_capacity(bytes.len());
        while !bytes.is_empty() {
            match &mut self.0 {
                State::Complete => break,
                State::Unsaid => {
                    taken.extend_from_slice(bytes);
                    break;
                }
                State::Bytes { rest, in_chunk } => {
                    let count = usize::try_from(*rest).unwrap_or(usize::MAX).min(bytes.len());
                    taken.extend_from_slice(&bytes[..count]);
                    bytes = &bytes[count..];
                    *rest -= count as u64;
                    if *rest == 0 {
                        self.0 = match in_chunk {
                            true => State::Size { line: Vec::new(), after_chunk: true },
                            false => State::Complete,
                        };
                    }
                }
                State::Size { line, after_chunk } => {
                    if !read_line(line, &mut bytes)? {
                        break;
                    }
                    self.0 = match (line.is_empty(), *after_chunk) {
                        (true, true) => State::Size { line: Vec::new(), after_chunk: false },
                        (false, false) => match chunk_size(line)? {
                            0 => State::Trailer { line: Vec::new() },
                            rest => State::Bytes { rest, in_chunk: true },
                        },
                        _ => return None,
                    };
                }
                State::Trailer { line } => {
                    if !read_line(line, &mut bytes)? {
                        break;
                    }
                    self.0 = match line.is_empty() {
                        true => State::Complete,
                        false => State::Trailer { line: Vec::new() },
                    };
                }
            }
        }
        Some(taken)
    }
}

/// Whether the line is complete, its end taken off; nothing, if it is too long or ends in another way.
fn read_line(line: &mut Vec<u8>, bytes: &mut &[u8]) -> Option<bool> {
    while let Some((byte, rest)) = bytes.split_first() {
        *bytes = rest;
        if *byte == b'\n' {
            return (line.pop()? == b'\r').then_some(true);
        }
        line.push(*byte);
        if line.len() > LINE_BYTES_MAX {
            return None;
        }
    }
    Some(false)
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|b| *b == b';').next()?.trim_ascii_end();
    let right = !digits.is_empty() && digits.len() <= 15 && digits.iter().all(u8::is_ascii_hexdigit);
    right.then(|| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok())?
}

/// Bytes as one chunk; none make the end.
pub(super) fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the text in pieces of every size.
    fn check(length: Length, text: &str, expected: Option<(&str, bool)>) {
        for size in 1..=text.len().max(1) {
            let mut body = Body::new(length);
            let taken: Option<Vec<_>> = text.as_bytes().chunks(size).map(|piece| body.take(piece)).collect();
            let taken = taken.map(|pieces| String::from_utf8(pieces.concat()).unwrap());
            let found = taken.as_deref().map(|taken| (taken, body.is_complete()));
            assert_eq!(found, expected, "{text:?} in pieces of {size}");
        }
    }

    #[test]
    fn a_body_ends_where_it_says() {
        check(Length::Known(5), "hello", Some(("hello", true)));
        check(Length::Known(5), "hello HTTP/1.1 302", Some(("hello", true)));
        check(Length::Known(5), "hell", Some(("hell", false)));
        check(Length::Known(0), "x", Some(("", true)));
        check(Length::Unsaid, "hello", Some(("hello", false)));
        check(Length::Chunked, "5\r\nhello\r\n0\r\n\r\nHTTP/1.1 302", Some(("hello", true)));
        check(Length::Chunked, "3;x=y\r\nhel\r\n0002 \r\nlo\r\n0\r\nX: y\r\n\r\n", Some(("hello", true)));
        check(Length::Chunked, "A\r\n0123456789\r\n", Some(("0123456789", false)));
        for wrong in [
            "5\nhello\r\n",
            "\r\n",
            "+5\r\nhello\r\n",
            "5\r\nhello0\r\n\r\n",
            "fffffffffffffffff\r\n",
            "x\r\n",
        ] {
            check(Length::Chunked, wrong, None);
        }
    }
}

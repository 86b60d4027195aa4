//! The beginning of a host's answer.
//!
//! libgit2 gets a head of the gate's own writing: nothing that is read in two ways passes, and no second answer
//! on the same connection is ever looked at.

use super::body::Length;

/// The most that is read of an answer's head.
pub(super) const BYTES_MAX: usize = 64 * 1024;

const END: &[u8] = b"\r\n\r\n";
const STATUS: std::ops::Range<usize> = 9..12;

/// What a part of a head tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// More must be read.
    Incomplete,
    /// It is not HTTP.
    Unknown,
    /// A refusal, by its status.
    Refused(u16),
    /// Success: the head for libgit2, how long the body is, and where it begins.
    Passed { head: Vec<u8>, length: Length, body_at: usize },
}

impl Reply {
    pub(super) fn parse(read: &[u8]) -> Self {
        if !begins_as_http(read) {
            return Self::Unknown;
        }
        let Some(end) = read.windows(END.len()).position(|window| window == END) else {
            return if read.len() > BYTES_MAX { Self::Unknown } else { Self::Incomplete };
        };
        match &read[STATUS] {
            b"200" => match own_head(&read[..end]) {
                Some((head, length)) => Self::Passed { head, length, body_at: end + END.len() },
                None => Self::Unknown,
            },
            digits => {
                Self::Refused(digits.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0')))
            }
        }
    }
}

/// Whether the text, as far as it is there, is a version and a status, and nothing before them: libgit2 would skip
/// line ends, and what follows would not be looked at.
fn begins_as_http(read: &[u8]) -> bool {
    read.iter().zip(b"HTTP/1.x nnn ").all(|(found, wanted)| match wanted {
        b'x' => matches!(found, b'0' | b'1'),
        b'n' => found.is_ascii_digit(),
        b' ' => matches!(found, b' ' | b'\r'),
        _ => found == wanted,
    })
}

/// The head for a body in the gate's own chunks, and how long the host's is.
fn own_head(head: &[u8]) -> Option<(Vec<u8>, Length)> {
    let text = String::from_utf8_lossy(head);
    let (mut kind, mut length, mut coding) = (None, None, None);
    for (name, value) in text.split("\r\n").skip(1).filter_map(|line| line.split_once(':')) {
        let value = value.trim_matches([' ', '\t']);
        let place = match name.to_ascii_lowercase().as_str() {
            "content-type" => &mut kind,
            "content-length" => &mut length,
            "transfer-encoding" => &mut coding,
            _ => continue,
        };
        if value.chars().any(|c| !c.is_ascii() || c.is_ascii_control()) || place.replace(value).is_some() {
            return None;
        }
    }
    let length = match (length, coding) {
        (_, Some(coding)) if coding.eq_ignore_ascii_case("chunked") => Length::Chunked,
        (_, Some(_)) => return None,
        (Some(length), None) => {
            let digits = length.bytes().all(|b| b.is_ascii_digit());
            Length::Known(length.parse().ok().filter(|_| digits)?)
        }
        (None, None) => Length::Unsaid,
    };
    let kind = kind.map_or_else(String::new, |kind| format!("Content-Type: {kind}\r\n"));
    let own = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{kind}Transfer-Encoding: chunked\r\n\r\n");
    Some((own.into_bytes(), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_begins_as_http_is_an_answer() {
        for text in ["", "H", "HTTP/1.1", "HTTP/1.0 2", "HTTP/1.1 302", "HTTP/1.1 200 OK\r\nX: y\r\n"] {
            assert_eq!(Reply::parse(text.as_bytes()), Reply::Incomplete, "{text:?}");
        }
        for text in [
            "\nHTTP/1.1 302 Found\r\n\r\n",
            "\r\nHTTP/1.1 302 Found\r\n\r\n",
            " HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1  302 Found\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 20x OK\r\n\r\n",
            "http/1.1 200 OK\r\n\r\n",
            "SSH-2.0-x",
            "\0",
        ] {
            assert_eq!(Reply::parse(text.as_bytes()), Reply::Unknown, "{text:?}");
        }
        assert_eq!(Reply::parse(b"HTTP/1.0 302\r\n\r\n"), Reply::Refused(302));
        assert_eq!(Reply::parse(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 302 \r\n\r\n"), Reply::Refused(100));
        let endless = format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(BYTES_MAX / 6 + 1));
        assert_eq!(Reply::parse(endless.as_bytes()), Reply::Unknown);
    }

    #[test]
    fn the_head_is_written_anew() {
        const OWN: &str =
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n";
        let passed =
            |lines: &str| match Reply::parse(format!("HTTP/1.1 200 OK\r\n{lines}\r\nbody").as_bytes()) {
                Reply::Passed { head, length, body_at } => {
                    assert_eq!(body_at, "HTTP/1.1 200 OK\r\n\r\n".len() + lines.len());
                    assert_eq!(String::from_utf8(head).unwrap(), OWN);
                    Some(length)
                }
                _ => None,
            };
        let lines = "connection: keep-alive\r\nCONTENT-length:  7 \r\nLocation: /x\r\nContent-Type: a/b\r\n";
        assert_eq!(passed(lines), Some(Length::Known(7)));
        let lines = "Content-Length: 7\r\nTransfer-Encoding: Chunked\r\nContent-Type: a/b\r\n";
        assert_eq!(passed(lines), Some(Length::Chunked));
        assert_eq!(passed("Content-Type: a/b\r\n"), Some(Length::Unsaid));
        for lines in [
            "Content-Length: 7\r\nContent-Length: 8\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: +1\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Content-Type: a\nLocation: /x\r\n",
        ] {
            assert_eq!(passed(lines), None, "{lines:?}");
        }
    }
}

//! Looks at the objects of a pack while it arrives.
//!
//! libgit2 allocates what an object says that it unpacks to, and a few megabytes can say gigabytes. So the sizes are
//! read here first. The streams are unpacked for that, with the library that libgit2 uses, but nothing is kept of
//! them.

use flate2::{Decompress, FlushDecompress, Status};

/// The bytes of an id.
const ID_BYTES: usize = 20;

/// The most bytes of a number.
const NUMBER_BYTES_MAX: usize = 9;
const TOO_LONG: Refusal = Refusal::Malformed("an object's size is too long");

/// Why a pack does not pass.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is not in the form of a pack.
    Malformed(&'static str),
    /// An object unpacks to so many bytes.
    TooLarge(u64),
}

/// An answer with a pack: lines, then the pack in lines with a band in front.
pub(super) struct PackWatch {
    pack: Pack,
    line: Line,
    begun: bool,
}

enum Line {
    Length(Vec<u8>),
    Band { rest: usize },
    Content { rest: usize, of_pack: bool },
}

impl PackWatch {
    pub(super) fn new(object_bytes_max: u64) -> Self {
        Self { pack: Pack::new(object_bytes_max), line: Line::Length(Vec::new()), begun: false }
    }

    /// Looks at the next bytes of the answer.
    pub(super) fn look(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            match &mut self.line {
                Line::Length(digits) => {
                    digits.push(bytes[0]);
                    bytes = &bytes[1..];
                    if digits.len() == 4 {
                        self.line = match line_length(digits)? {
                            0 => Line::Length(Vec::new()),
                            rest => Line::Band { rest },
                        };
                    }
                }
                Line::Band { rest } => {
                    let (rest, of_pack) = (*rest, bytes[0] == 1);
                    // What libgit2 skips before the pack, and what it takes for its beginning, must be the same here.
                    if self.begun && !matches!(bytes[0], 1..=3) {
                        return Err(Refusal::Malformed("another line comes after the pack has begun"));
                    }
                    self.begun |= of_pack;
                    bytes = &bytes[1..];
                    self.line = Line::content(rest - 1, of_pack);
                }
                Line::Content { rest, of_pack } => {
                    let (content, others) = bytes.split_at((*rest).min(bytes.len()));
                    if *of_pack {
                        self.pack.look(content)?;
                    }
                    bytes = others;
                    self.line = Line::content(*rest - content.len(), *of_pack);
                }
            }
        }
        Ok(())
    }
}

impl Line {
    fn content(rest: usize, of_pack: bool) -> Self {
        if rest == 0 { Self::Length(Vec::new()) } else { Self::Content { rest, of_pack } }
    }
}

/// How much follows the four digits.
fn line_length(digits: &[u8]) -> Result<usize, Refusal> {
    let wrong = Refusal::Malformed("a line has no length");
    let text = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
    match text.and_then(|text| usize::from_str_radix(text, 16).ok()) {
        Some(0) => Ok(0),
        Some(length) if length > 4 => Ok(length - 4),
        _ => Err(wrong),
    }
}

struct Pack {
    object_bytes_max: u64,
    /// Those that have not ended.
    objects: u32,
    state: State,
    stream: Decompress,
}

enum State {
    Head(Vec<u8>),
    /// An object's type and size.
    Object(Vec<u8>),
    /// The distance to the object that a delta of this size changes.
    Distance {
        size: u64,
    },
    /// The id of the object that a delta of this size changes.
    Base {
        size: u64,
        rest: usize,
    },
    /// What unpacks to an object, or to a delta with this beginning.
    Stream {
        size: u64,
        delta: Option<Vec<u8>>,
    },
    /// The checksum, and what libgit2 does not look at.
    End,
}

impl Pack {
    fn new(object_bytes_max: u64) -> Self {
        Self { object_bytes_max, objects: 0, state: State::Head(Vec::new()), stream: Decompress::new(true) }
    }

    fn look(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        while let Some((byte, rest)) = bytes.split_first() {
            match &mut self.state {
                State::End => return Ok(()),
                State::Stream { .. } => {
                    bytes = self.unpack(bytes)?;
                    continue;
                }
                State::Head(head) => {
                    head.push(*byte);
                    if head.len() == 12 {
                        self.objects = objects_in(head)?;
                        self.begin_object();
                    }
                }
                State::Object(head) => {
                    head.push(*byte);
                    if byte & 0x80 == 0 {
                        let (kind, size) = kind_and_size(head)?;
                        self.begin_content(kind, size)?;
                    }
                }
                State::Distance { size } => {
                    if byte & 0x80 == 0 {
                        self.state = State::Stream { size: *size, delta: Some(Vec::new()) };
                    }
                }
                State::Base { size, rest: 1 } => {
                    self.state = State::Stream { size: *size, delta: Some(Vec::new()) };
                }
                State::Base { rest, .. } => *rest -= 1,
            }
            bytes = rest;
        }
        Ok(())
    }

    fn begin_object(&mut self) {
        self.state = if self.objects == 0 { State::End } else { State::Object(Vec::new()) };
    }

    fn begin_content(&mut self, kind: u8, size: u64) -> Result<(), Refusal> {
        self.check(size)?;
        self.state = match kind {
            1..=4 => State::Stream { size, delta: None },
            6 => State::Distance { size },
            7 => State::Base { size, rest: ID_BYTES },
            _ => return Err(Refusal::Malformed("an object has no known type")),
        };
        Ok(())
    }

    const fn check(&self, size: u64) -> Result<(), Refusal> {
        if size > self.object_bytes_max { Err(Refusal::TooLarge(size)) } else { Ok(()) }
    }

    /// Unpacks until the stream or the bytes end, and gives the bytes that follow.
    fn unpack<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], Refusal> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let (read, unpacked) = (self.stream.total_in(), self.stream.total_out());
            let status = self.stream.decompress(bytes, &mut buffer, FlushDecompress::None);
            let status = status.map_err(|_| Refusal::Malformed("an object cannot be unpacked"))?;
            let counted = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
            bytes = &bytes[counted(self.stream.total_in(), read)..];
            let content = &buffer[..counted(self.stream.total_out(), unpacked)];
            let ended = status == Status::StreamEnd;
            self.check_stream(content, ended)?;
            if ended {
                self.stream.reset(true);
                self.objects -= 1;
                self.begin_object();
                return Ok(bytes);
            }
            if bytes.is_empty() && content.len() < buffer.len() {
                return Ok(bytes);
            }
        }
    }

    /// Whether what was unpacked last fits what the object said.
    fn check_stream(&mut self, content: &[u8], ended: bool) -> Result<(), Refusal> {
        let State::Stream { size, delta } = &mut self.state else { return Ok(()) };
        let total = self.stream.total_out();
        if total > *size || ended && total < *size {
            return Err(Refusal::Malformed("an object is not as long as it says"));
        }
        let Some(beginning) = delta else { return Ok(()) };
        beginning.extend(content.iter().take(2 * NUMBER_BYTES_MAX - beginning.len()));
        match size_of_result(beginning) {
            Some(result) => self.check(result),
            None if ended => Err(Refusal::Malformed("a delta does not say what it makes")),
            None => Ok(()),
        }
    }
}

/// The number of objects that a pack's head tells.
fn objects_in(head: &[u8]) -> Result<u32, Refusal> {
    match head {
        [b'P', b'A', b'C', b'K', 0, 0, 0, 2 | 3, count @ ..] if count.len() == 4 => {
            Ok(count.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
        }
        _ => Err(Refusal::Malformed("it does not begin as one")),
    }
}

/// An object's type and the size of what its stream unpacks to.
fn kind_and_size(head: &[u8]) -> Result<(u8, u64), Refusal> {
    let (first, others) = head.split_first().ok_or(Refusal::Malformed("an object has no head"))?;
    let (high, _) = number(others).or(others.is_empty().then_some((0, 0))).ok_or(TOO_LONG)?;
    let size = high.checked_mul(16).ok_or(TOO_LONG)? | u64::from(first & 0x0f);
    Ok((first >> 4 & 7, size))
}

/// What the delta that begins so makes, if so much of it is there.
fn size_of_result(delta: &[u8]) -> Option<u64> {
    let (_, length) = number(delta)?;
    number(&delta[length..]).map(|(result, _)| result)
}

/// A number in groups of seven bits, the lowest first, and its length.
fn number(bytes: &[u8]) -> Option<(u64, usize)> {
    let length = bytes.iter().take(NUMBER_BYTES_MAX).position(|byte| byte & 0x80 == 0)? + 1;
    let groups = bytes[..length].iter().rev();
    Some((groups.fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f)), length))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::ZlibEncoder};

    use super::*;

    const LIMIT: u64 = 1000;

    fn deflated(content: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn head(kind: u8, size: u64) -> Vec<u8> {
        let mut bytes = vec![kind << 4 | u8::try_from(size & 15).unwrap()];
        let mut rest = size >> 4;
        while rest > 0 {
            *bytes.last_mut().unwrap() |= 0x80;
            bytes.push(u8::try_from(rest & 0x7f).unwrap());
            rest >>= 7;
        }
        bytes
    }

    fn object(kind: u8, size: u64, base: &[u8], content: &[u8]) -> Vec<u8> {
        [head(kind, size), base.to_vec(), deflated(content)].concat()
    }

    fn blob(bytes: usize) -> Vec<u8> {
        object(3, bytes as u64, &[], &vec![b'x'; bytes])
    }

    fn pack(objects: &[Vec<u8>]) -> Vec<u8> {
        let count = u32::try_from(objects.len()).unwrap().to_be_bytes();
        [b"PACK\0\0\0\x02".to_vec(), count.to_vec(), objects.concat(), vec![7; 20]].concat()
    }

    /// A delta that says what it changes and what it makes.
    fn delta(result: u64) -> Vec<u8> {
        let mut bytes = vec![0x05];
        let mut rest = result;
        loop {
            let more = rest > 0x7f;
            bytes.push(u8::try_from(rest & 0x7f).unwrap() | if more { 0x80 } else { 0 });
            rest >>= 7;
            if !more {
                break;
            }
        }
        bytes.extend([0x01, b'y']);
        bytes
    }

    fn lines(band: u8, content: &[u8]) -> Vec<u8> {
        let line = |piece: &[u8]| [format!("{:04x}", piece.len() + 5).as_bytes(), &[band], piece].concat();
        content.chunks(100).flat_map(line).collect()
    }

    /// Looks at the answer in pieces of several sizes: all see the same.
    fn check(answer: &[u8], expected: Result<(), Refusal>) {
        for size in [1, 2, 7, 64, 1000, 100_000] {
            let mut watch = PackWatch::new(LIMIT);
            let found = answer.chunks(size).try_for_each(|piece| watch.look(piece));
            assert_eq!(found, expected, "in pieces of {size}");
        }
    }

    fn check_pack(objects: &[Vec<u8>], expected: Result<(), Refusal>) {
        check(&[b"0008NAK\n".to_vec(), lines(1, &pack(objects)), b"0000".to_vec()].concat(), expected);
    }

    #[test]
    fn objects_within_the_limit_pass() {
        let small = delta(1000);
        let by_distance = object(6, small.len() as u64, &[0x81, 0x02], &small);
        let by_id = object(7, small.len() as u64, &[0xff; 20], &small);
        check_pack(&[blob(0), blob(1), blob(15), blob(16), blob(1000), by_distance, by_id], Ok(()));
        check_pack(&[], Ok(()));
        let progress = lines(2, b"counting");
        check(
            &[b"0008NAK\n", &progress[..], &lines(1, &pack(&[blob(9)])), &progress, b"0000"].concat(),
            Ok(()),
        );
    }

    #[test]
    fn what_unpacks_to_more_is_refused_by_what_it_says() {
        check_pack(&[blob(3), blob(1001)], Err(Refusal::TooLarge(1001)));
        // Ten bytes that say they are a terabyte.
        check_pack(&[object(3, 1 << 40, &[], b"x")], Err(Refusal::TooLarge(1 << 40)));
        let large = delta(1 << 35);
        check_pack(&[object(6, large.len() as u64, &[0x05], &large)], Err(Refusal::TooLarge(1 << 35)));
        check_pack(&[object(7, large.len() as u64, &[0; 20], &large)], Err(Refusal::TooLarge(1 << 35)));
        check_pack(&[object(7, 5000, &[0; 20], &vec![0; 5000])], Err(Refusal::TooLarge(5000)));
    }

    #[test]
    fn what_is_no_pack_is_refused() {
        let wrong = |text| Err(Refusal::Malformed(text));
        check_pack(&[object(3, 5, &[], b"longer than five")], wrong("an object is not as long as it says"));
        check_pack(&[object(3, 50, &[], b"short")], wrong("an object is not as long as it says"));
        check_pack(&[object(5, 1, &[], b"x")], wrong("an object has no known type"));
        check_pack(&[object(7, 1, &[0; 20], &[0x80])], wrong("a delta does not say what it makes"));
        check_pack(&[[head(3, 5), b"no stream".to_vec()].concat()], wrong("an object cannot be unpacked"));
        check(&lines(1, b"not a pack at all"), wrong("it does not begin as one"));
        for text in ["PACK", "0001", "0004", "00+5", "xxxx"] {
            check(text.as_bytes(), wrong("a line has no length"));
        }
    }

    /// libgit2 drops what comes before the answer: a pack that hides another one.
    #[test]
    fn a_pack_that_comes_too_early_is_refused() {
        let hidden = lines(1, &pack(&[blob(3)]));
        let refused = Err(Refusal::Malformed("another line comes after the pack has begun"));
        check(&[&hidden[..], b"0008NAK\n", &hidden].concat(), refused);
    }
}

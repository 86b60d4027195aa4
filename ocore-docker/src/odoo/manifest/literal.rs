//! Literals of Python: what `ast.literal_eval` accepts, but for numbers that are complex.

use super::ManifestError;

/// A place in a text: line and column, each from 1, the column in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Literal {
    pub(super) position: Position,
    pub(super) value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    None,
    Bool(bool),
    /// As it is written, without its sign: nothing here counts with it.
    Number(String),
    Text(String),
    Bytes,
    List(Vec<Literal>),
    Tuple(Vec<Literal>),
    Set(Vec<Literal>),
    Dictionary(Vec<(Literal, Literal)>),
}

impl Value {
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::Bytes => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Set(_) => "a set",
            Self::Dictionary(_) => "a dictionary",
        }
    }

    /// Whether a set can hold it, and a dictionary have it as a key.
    fn is_hashable(&self) -> bool {
        match self {
            Self::List(_) | Self::Set(_) | Self::Dictionary(_) => false,
            Self::Tuple(items) => items.iter().all(|item| item.value.is_hashable()),
            Self::None | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::Bytes => true,
        }
    }
}

/// How deep literals may lie in each other. Python's own parser ends at 200 brackets.
const DEPTH_MAX: usize = 100;

type Parsed<T> = Result<T, ManifestError>;

/// Reads a text that is one literal, with comments and white space around it.
pub(super) fn parse(text: &str) -> Parsed<Literal> {
    let mut parser =
        Parser { rest: text.strip_prefix('\u{feff}').unwrap_or(text), line: 1, column: 1, depth: 0 };
    parser.space();
    if parser.rest.is_empty() {
        return Err(parser.error("the file is empty: a dictionary is expected"));
    }
    let literal = parser.literal()?;
    parser.space();
    match parser.peek() {
        None => Ok(literal),
        Some(_) => {
            Err(parser.error("there is more than one literal: a manifest is a dictionary and nothing else"))
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
    column: usize,
    depth: usize,
}

/// How a string was introduced: `r'…'`, `b"…"`.
struct Prefix {
    length: usize,
    is_raw: bool,
    is_bytes: bool,
}

impl<'a> Parser<'a> {
    const fn position(&self) -> Position {
        Position { line: self.line, column: self.column }
    }

    fn error(&self, reason: impl Into<String>) -> ManifestError {
        ManifestError::new(self.position(), reason)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.rest = &self.rest[next.len_utf8()..];
        // `\r\n` ends one line, and `\r` alone does too.
        if next == '\n' || (next == '\r' && !self.rest.starts_with('\n')) {
            (self.line, self.column) = (self.line + 1, 1);
        } else {
            self.column += 1;
        }
        Some(next)
    }

    fn skip(&mut self, count: usize) {
        for _ in 0..count {
            self.next();
        }
    }

    fn takes(&mut self, expected: char) -> bool {
        let takes = self.peek() == Some(expected);
        if takes {
            self.next();
        }
        takes
    }

    fn taken_while(&mut self, is_part: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest;
        let length = rest.find(|next| !is_part(next)).unwrap_or(rest.len());
        self.skip(rest[..length].chars().count());
        &rest[..length]
    }

    /// White space, line ends, comments, and `\` at the end of a line.
    fn space(&mut self) {
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\n' | '\r' | '\u{c}') => {
                    self.next();
                }
                Some('#') => {
                    self.taken_while(|next| next != '\n' && next != '\r');
                }
                Some('\\') if self.rest[1..].starts_with(['\n', '\r']) => self.skip(2),
                _ => return,
            }
        }
    }

    fn literal(&mut self) -> Parsed<Literal> {
        let position = self.position();
        let value = match self.peek() {
            Some('[') => Value::List(self.bracket(|it| it.items(']').map(|(items, _)| items))?),
            Some('(') => self.bracket(Self::parenthesis)?,
            Some('{') => self.bracket(Self::brace)?,
            Some('+' | '-') => self.signed()?,
            Some('0'..='9' | '.') => self.number()?,
            Some(_) if self.prefix().is_some() => self.strings()?,
            Some(next) if next == '_' || next.is_alphabetic() => self.word()?,
            Some(next) => return Err(self.error(format!("{next:?} is not expected: a value is"))),
            None => return Err(self.error("the file ends where a value is expected")),
        };
        Ok(Literal { position, value })
    }

    fn bracket<T>(&mut self, inside: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == DEPTH_MAX {
            return Err(self.error(format!("more than {DEPTH_MAX} brackets are open")));
        }
        self.depth += 1;
        self.next();
        let inside = inside(self)?;
        self.depth -= 1;
        Ok(inside)
    }

    /// Values up to the closing bracket, and whether the last one has a comma.
    fn items(&mut self, close: char) -> Parsed<(Vec<Literal>, bool)> {
        let (mut items, mut has_comma) = (Vec::new(), false);
        loop {
            self.space();
            if self.takes(close) {
                return Ok((items, has_comma));
            }
            self.after_comma(items.is_empty() || has_comma, close)?;
            items.push(self.literal()?);
            self.space();
            has_comma = self.takes(',');
        }
    }

    fn after_comma(&self, is_after: bool, close: char) -> Parsed<()> {
        match self.peek() {
            _ if is_after => Ok(()),
            None => Err(self.error(format!("the file ends where `,` or `{close}` is expected"))),
            Some(next) => Err(self.error(format!("{next:?} is not expected: `,` or `{close}` is"))),
        }
    }

    fn parenthesis(&mut self) -> Parsed<Value> {
        let (mut items, has_comma) = self.items(')')?;
        match items.pop() {
            Some(only) if items.is_empty() && !has_comma => Ok(only.value),
            last => Ok(Value::Tuple(items.into_iter().chain(last).collect())),
        }
    }

    fn brace(&mut self) -> Parsed<Value> {
        self.space();
        if self.takes('}') {
            return Ok(Value::Dictionary(Vec::new()));
        }
        let first = self.key()?;
        self.space();
        if self.peek() == Some(':') { self.dictionary(first) } else { self.set(first) }
    }

    fn set(&mut self, first: Literal) -> Parsed<Value> {
        if !self.takes(',') {
            self.after_comma(self.peek() == Some('}'), '}')?;
        }
        let (items, _) = self.items('}')?;
        match items.iter().find(|item| !item.value.is_hashable()) {
            Some(item) => Err(unhashable(item)),
            None => Ok(Value::Set(std::iter::once(first).chain(items).collect())),
        }
    }

    fn dictionary(&mut self, mut key: Literal) -> Parsed<Value> {
        let mut entries = Vec::new();
        loop {
            self.space();
            if !self.takes(':') {
                return Err(self.error("`:` and a value are expected after the key"));
            }
            self.space();
            entries.push((key, self.literal()?));
            self.space();
            let has_comma = self.takes(',');
            self.space();
            if self.takes('}') {
                return Ok(Value::Dictionary(entries));
            }
            self.after_comma(has_comma, '}')?;
            key = self.key()?;
        }
    }

    fn key(&mut self) -> Parsed<Literal> {
        let key = self.literal()?;
        if key.value.is_hashable() { Ok(key) } else { Err(unhashable(&key)) }
    }

    fn signed(&mut self) -> Parsed<Value> {
        self.next();
        self.space();
        match self.peek() {
            Some('0'..='9' | '.') => self.number(),
            _ => Err(self.error("a number is expected after its sign")),
        }
    }

    fn number(&mut self) -> Parsed<Value> {
        let position = self.position();
        let mut written = self.taken_while(is_part_of_number).to_owned();
        let is_decimal = !written.starts_with("0x") && !written.starts_with("0X");
        if is_decimal && written.ends_with(['e', 'E']) && self.rest.starts_with(['+', '-']) {
            written.extend(self.next());
            written.push_str(self.taken_while(is_part_of_number));
        }
        if is_number(&written) {
            return Ok(Value::Number(written));
        }
        Err(ManifestError::new(position, format!("{written:?} is no number")))
    }

    fn word(&mut self) -> Parsed<Value> {
        let position = self.position();
        let word = self.taken_while(|next| next == '_' || next.is_alphanumeric());
        match word {
            "None" => Ok(Value::None),
            "True" => Ok(Value::Bool(true)),
            "False" => Ok(Value::Bool(false)),
            word if self.peek().is_some_and(|next| next == '"' || next == '\'') => Err(ManifestError::new(
                position,
                format!("a string cannot begin with {word}: write it without"),
            )),
            word => {
                let reason =
                    format!("{word} is a name: a manifest is data, which is not run; write its value");
                Err(ManifestError::new(position, reason))
            }
        }
    }

    /// The prefix of a string, if one begins here.
    fn prefix(&self) -> Option<Prefix> {
        let length = self.rest.find(['"', '\'']).filter(|length| *length <= 2)?;
        let letters = self.rest[..length].to_ascii_lowercase();
        let prefix = |is_raw, is_bytes| Some(Prefix { length, is_raw, is_bytes });
        match letters.as_str() {
            "" | "u" => prefix(false, false),
            "r" => prefix(true, false),
            "b" => prefix(false, true),
            "br" | "rb" => prefix(true, true),
            _ => None,
        }
    }

    /// Strings that follow each other are one.
    fn strings(&mut self) -> Parsed<Value> {
        let (mut text, mut kind) = (String::new(), None);
        while let Some(prefix) = self.prefix() {
            if *kind.get_or_insert(prefix.is_bytes) != prefix.is_bytes {
                return Err(self.error("strings and bytes cannot be put together"));
            }
            self.string(&prefix, &mut text)?;
            self.space();
        }
        Ok(if kind == Some(true) { Value::Bytes } else { Value::Text(text) })
    }

    fn string(&mut self, prefix: &Prefix, text: &mut String) -> Parsed<()> {
        let begin = self.position();
        self.skip(prefix.length);
        let quote = self.next().unwrap_or('"');
        let triple: String = std::iter::repeat_n(quote, 3).collect();
        let is_long = self.rest.starts_with(&triple[..2]);
        if is_long {
            self.skip(2);
        }
        loop {
            if is_long && self.rest.starts_with(&triple) {
                self.skip(3);
                return Ok(());
            }
            let position = self.position();
            match self.next() {
                None => return Err(ManifestError::new(begin, "the string has no end")),
                Some('\n' | '\r') if !is_long => {
                    return Err(ManifestError::new(begin, "the string does not end on its line"));
                }
                Some(next) if next == quote && !is_long => return Ok(()),
                Some('\\') if prefix.is_raw => {
                    text.push('\\');
                    text.extend(self.next());
                }
                Some('\\') => {
                    let escaped = self.escaped(prefix.is_bytes);
                    text.push_str(&escaped.map_err(|reason| ManifestError::new(position, reason))?);
                }
                Some(next) if prefix.is_bytes && !next.is_ascii() => {
                    return Err(ManifestError::new(position, format!("bytes cannot hold {next:?}")));
                }
                // Python reads every line end as `\n`.
                Some('\r') if self.takes('\n') => text.push('\n'),
                Some('\r') => text.push('\n'),
                Some(next) => text.push(next),
            }
        }
    }

    /// What stands for the characters after a backslash.
    fn escaped(&mut self, is_bytes: bool) -> Result<String, String> {
        let Some(next) = self.next() else { return Ok("\\".to_owned()) };
        let simple = match next {
            '\\' | '\'' | '"' => next,
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '\r' => {
                self.takes('\n');
                return Ok(String::new());
            }
            '\n' => return Ok(String::new()),
            '0'..='7' => self.octal(next)?,
            'x' => self.hexadecimal(2)?,
            'u' if !is_bytes => self.hexadecimal(4)?,
            'U' if !is_bytes => self.hexadecimal(8)?,
            'N' if !is_bytes => return Err("\\N{…} is not supported: write the character itself".to_owned()),
            other => return Ok(format!("\\{other}")),
        };
        Ok(simple.to_string())
    }

    fn octal(&mut self, first: char) -> Result<char, String> {
        let digits = self.rest.bytes().take(2).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
        let written = format!("{first}{}", &self.rest[..digits]);
        self.skip(digits);
        let code = u32::from_str_radix(&written, 8).map_err(|error| error.to_string())?;
        char::from_u32(code).ok_or_else(|| format!("\\{written} is no character"))
    }

    fn hexadecimal(&mut self, digits: usize) -> Result<char, String> {
        let written: String = self.rest.chars().take(digits).take_while(char::is_ascii_hexdigit).collect();
        if written.len() < digits {
            return Err(format!("{digits} hexadecimal digits are expected"));
        }
        self.skip(digits);
        let code = u32::from_str_radix(&written, 16).map_err(|error| error.to_string())?;
        // Half of a pair that only UTF-16 knows: Python keeps it, but it is in no name or version.
        Ok(if (0xd800..0xe000).contains(&code) {
            char::REPLACEMENT_CHARACTER
        } else {
            char::from_u32(code).ok_or_else(|| format!("{written} is no character"))?
        })
    }
}

fn unhashable(literal: &Literal) -> ManifestError {
    let reason = format!("{} can be no key, and in no set", literal.value.kind());
    ManifestError::new(literal.position, reason)
}

const fn is_part_of_number(next: char) -> bool {
    matches!(next, '0'..='9' | 'a'..='z' | 'A'..='Z' | '_' | '.')
}

/// `12`, `1_000`, `0x1F`, `0o7`, `0b1`, `1.`, `.5`, `1e-3`.
fn is_number(written: &str) -> bool {
    let lower = written.to_ascii_lowercase();
    let of = |digits: &str, radix: u32| {
        digits.split('_').all(|part| !part.is_empty() && part.chars().all(|digit| digit.is_digit(radix)))
    };
    for (prefix, radix) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(digits) = lower.strip_prefix(prefix) {
            return of(digits.strip_prefix('_').unwrap_or(digits), radix);
        }
    }
    let (mantissa, exponent) = match lower.split_once('e') {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (lower.as_str(), None),
    };
    let is_exponent = |text: &str| of(text.strip_prefix(['+', '-']).unwrap_or(text), 10);
    if !exponent.is_none_or(is_exponent) {
        return false;
    }
    match mantissa.split_once('.') {
        Some(("", "")) => false,
        Some((whole, fraction)) => [whole, fraction].iter().all(|part| part.is_empty() || of(part, 10)),
        // `017` is an error in Python 3, `00` is not.
        None => {
            let is_zero = mantissa.bytes().all(|byte| matches!(byte, b'0' | b'_'));
            of(mantissa, 10) && (exponent.is_some() || is_zero || !mantissa.starts_with('0'))
        }
    }
}

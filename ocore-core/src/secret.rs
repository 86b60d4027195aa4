//! Secrets, and how they are kept out of everything that is stored or shown.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use aho_corasick::{AhoCorasick, AhoCorasickKind, BuildError, MatchKind};
use base64::{Engine as _, engine::general_purpose};
use zeroize::Zeroizing;

/// The shortest text that is hidden, in bytes. Shorter ones would black out half of every log, and protect nothing.
pub const HIDDEN_LENGTH_MIN: usize = 4;

/// A value that must not be seen: a token, a password, a private key.
///
/// It has no `Display`, no `Serialize`, and its `Debug` says nothing. Its memory is overwritten when it is dropped.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// A secret value.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(Arc::new(Zeroizing::new(value.into())))
    }

    /// The value itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What stands where a secret was.
pub const REDACTED: &str = "[secret]";

/// The shortest part of a secret that is hidden where a text was cut, in bytes.
const PART_LENGTH_MIN: usize = 8;

/// How many secrets that adapters made known are remembered: tokens that are renewed every hour must not fill the
/// memory. An adapter makes its secret known whenever it uses it.
const LEARNT_MAX: usize = 1000;

/// Replaces every known secret: the value itself, each line of one that has several, and the forms in which
/// programs print them (Base64, hexadecimal, URL-encoded, JSON-escaped).
///
/// Whoever hands over a text may have cut it before, through a secret. So the end of a text, and what stands before an
/// ellipsis, is replaced if a secret may begin there; the beginning, if one may end there: parts of at least eight
/// bytes.
#[derive(Clone, Default)]
pub struct Redactor(Arc<RwLock<Known>>);

#[derive(Default)]
struct Known {
    /// What is never forgotten.
    kept: Vec<Hidden>,
    /// What adapters made known, oldest first.
    learnt: VecDeque<Hidden>,
    search: Search,
}

/// A secret value, with all of its forms: the first is the value itself.
struct Hidden(Vec<Zeroizing<String>>);

/// How the forms are found in a text.
#[derive(Default)]
enum Search {
    /// There is nothing to find.
    #[default]
    Nothing,
    Fast(Box<Automata>),
    /// The automata could not be built: each form is looked for alone.
    Slow(Vec<Zeroizing<String>>),
}

/// The forms, and how they begin and end.
struct Automata {
    whole: AhoCorasick,
    begin: AhoCorasick,
    end: AhoCorasick,
    /// The forms that are long enough to be hidden in part: the patterns of `begin` and `end`.
    long: Vec<Zeroizing<String>>,
    length_max: usize,
}

impl Redactor {
    /// A redactor that knows these secrets.
    #[must_use]
    pub fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        let redactor = Self::default();
        for secret in secrets {
            redactor.hide(&secret);
        }
        redactor
    }

    /// From now on this value is replaced. Values shorter than [`HIDDEN_LENGTH_MIN`] are not.
    pub fn hide(&self, secret: &Secret) {
        self.learn(secret, |known, hidden| known.kept.push(hidden));
    }

    /// As [`hide`](Self::hide), but only for as long as not a thousand others were made known in this way after it.
    pub(crate) fn hide_for_now(&self, secret: &Secret) {
        self.learn(secret, |known, hidden| {
            known.learnt.push_back(hidden);
            let surplus = known.learnt.len().saturating_sub(LEARNT_MAX);
            known.learnt.drain(..surplus);
        });
    }

    fn learn(&self, secret: &Secret, add: impl FnOnce(&mut Known, Hidden)) {
        let hidden = Hidden(forms(secret.expose()).collect());
        let Some(value) = hidden.0.first() else { return };
        if self.0.read().unwrap_or_else(PoisonError::into_inner).knows(value) {
            return;
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        add(&mut known, hidden);
        known.search = Search::of(known.hidden().flat_map(|hidden| &hidden.0));
    }

    /// The text with every known secret replaced by [`REDACTED`].
    #[must_use]
    pub fn redact(&self, text: &str) -> String {
        self.0.read().unwrap_or_else(PoisonError::into_inner).search.redact(text)
    }
}

impl Known {
    fn hidden(&self) -> impl Iterator<Item = &Hidden> {
        self.kept.iter().chain(&self.learnt)
    }

    fn knows(&self, value: &str) -> bool {
        self.hidden().any(|hidden| hidden.0.first().is_some_and(|form| **form == *value))
    }
}

impl Search {
    fn of<'a>(forms: impl Iterator<Item = &'a Zeroizing<String>>) -> Self {
        let forms: Vec<Zeroizing<String>> = forms.cloned().collect();
        match Automata::new(&forms) {
            Ok(automata) => Self::Fast(Box::new(automata)),
            Err(_) => Self::Slow(forms),
        }
    }

    fn redact(&self, text: &str) -> String {
        match self {
            Self::Nothing => text.to_owned(),
            Self::Fast(automata) => automata.redact(text),
            Self::Slow(forms) => {
                forms.iter().fold(text.to_owned(), |text, form| text.replace(&**form, REDACTED))
            }
        }
    }
}

impl Automata {
    fn new(forms: &[Zeroizing<String>]) -> Result<Self, BuildError> {
        let mut builder = AhoCorasick::builder();
        // Built anew for every secret that is learnt, and that many times faster than a DFA.
        builder.kind(Some(AhoCorasickKind::ContiguousNFA));
        let long: Vec<_> = forms.iter().filter(|form| form.len() > PART_LENGTH_MIN).cloned().collect();
        let begin = builder.build(long.iter().map(|form| &form.as_bytes()[..PART_LENGTH_MIN]))?;
        let end = builder.build(long.iter().map(|form| &form.as_bytes()[form.len() - PART_LENGTH_MIN..]))?;
        // Leftmost-longest: where one secret is the beginning of another, the longer one is taken whole.
        builder.match_kind(MatchKind::LeftmostLongest);
        let whole = builder.build(forms.iter().map(|form| form.as_bytes()))?;
        let length_max = long.iter().map(|form| form.len()).max().unwrap_or(0);
        Ok(Self { whole, begin, end, long, length_max })
    }

    fn redact(&self, text: &str) -> String {
        let mut clean = String::with_capacity(text.len());
        self.whole.replace_all_with(text, &mut clean, |_, _, to| {
            to.push_str(REDACTED);
            true
        });
        if let Some(end) = self.part_at_begin(&clean) {
            clean.replace_range(..end, REDACTED);
        }
        let mut cuts: Vec<usize> = clean.match_indices('…').map(|(at, _)| at).collect();
        cuts.push(clean.len());
        for cut in cuts.into_iter().rev() {
            let cut = clean[..cut].trim_end_matches('"').len();
            if let Some(begin) = self.part_at_end(&clean[..cut]) {
                clean.replace_range(begin..cut, REDACTED);
            }
        }
        clean
    }

    /// Up to where the text may be the rest of a secret.
    fn part_at_begin(&self, text: &str) -> Option<usize> {
        let window = &text.as_bytes()[..text.len().min(self.length_max)];
        let found = self.end.find_overlapping_iter(window).filter(|found| {
            self.long[found.pattern().as_usize()].as_bytes().ends_with(&window[..found.end()])
        });
        found.map(|found| found.end()).max()
    }

    /// From where on the text may be the beginning of a secret.
    fn part_at_end(&self, text: &str) -> Option<usize> {
        let from = text.len().saturating_sub(self.length_max);
        let window = &text.as_bytes()[from..];
        let mut found = self.begin.find_overlapping_iter(window).filter(|found| {
            self.long[found.pattern().as_usize()].as_bytes().starts_with(&window[found.start()..])
        });
        found.next().map(|found| from + found.start())
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor(…)")
    }
}

/// The forms in which a secret may be printed.
fn forms(value: &str) -> impl Iterator<Item = Zeroizing<String>> {
    let lines = value.lines().map(str::trim).filter(|line| *line != value);
    let texts: Vec<&str> = std::iter::once(value).chain(lines).collect();
    let forms: Vec<String> = texts.into_iter().flat_map(|text| encodings(text.trim())).collect();
    forms.into_iter().filter(|form| form.len() >= HIDDEN_LENGTH_MIN).map(Zeroizing::new)
}

fn encodings(text: &str) -> Vec<String> {
    if text.len() < HIDDEN_LENGTH_MIN {
        return Vec::new();
    }
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let url = percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
    let url_lower = lower_escapes(&url);
    let json = serde_json::to_string(text).unwrap_or_default();
    let json = json.trim_matches('"').to_owned();
    let mut all = vec![text.to_owned(), hex.to_uppercase(), hex, url, url_lower, json];
    all.push(percent_encode_reserved(text));
    all.extend(base64_cores(text));
    all
}

/// Percent-encoding as URL libraries do it: the unreserved characters of RFC 3986 stay.
fn percent_encode_reserved(text: &str) -> String {
    const RESERVED: percent_encoding::AsciiSet =
        percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    percent_encoding::utf8_percent_encode(text, &RESERVED).to_string()
}

fn lower_escapes(url: &str) -> String {
    let mut lower = String::with_capacity(url.len());
    let mut escape = 0;
    for c in url.chars() {
        escape = if c == '%' { 3_u32 } else { escape };
        lower.push(if escape > 0 { c.to_ascii_lowercase() } else { c });
        escape = escape.saturating_sub(1);
    }
    lower
}

/// Base64 of a text that may stand anywhere in what was encoded, as in `user:token`: for each of the three
/// alignments, the digits that depend on the text alone.
fn base64_cores(text: &str) -> Vec<String> {
    let mut cores = Vec::new();
    for engine in [&general_purpose::STANDARD_NO_PAD, &general_purpose::URL_SAFE_NO_PAD] {
        for shift in 0..3 {
            let shifted = [vec![0; shift], text.as_bytes().to_vec()].concat();
            let encoded = engine.encode(&shifted);
            let from = (shift * 8).div_ceil(6);
            let to = shifted.len() * 8 / 6;
            cores.extend(encoded.get(from..to).map(str::to_owned));
        }
    }
    // A short core would also match what is no secret.
    cores.retain(|core| core.len() >= 6);
    cores
}

/// The longest line that is kept, in bytes.
pub const LINE_LENGTH_MAX: usize = 64 * 1024;

/// A line from outside made safe to store and show: redacted, cut at 64 KiB, control characters and those that
/// change the reading direction escaped, so that no line can pretend to be another.
#[must_use]
pub fn printable(redactor: &Redactor, line: &str) -> String {
    let clean = redactor.redact(line);
    let end = clean.floor_char_boundary(LINE_LENGTH_MAX);
    let (kept, cut) = clean.split_at(end);
    let mut safe = String::with_capacity(kept.len());
    for c in kept.trim_end_matches(['\r', '\n']).chars() {
        if c == '\t' || is_printable(c) {
            safe.push(c);
        } else {
            safe.extend(c.escape_unicode());
        }
    }
    if !cut.is_empty() {
        safe.push_str(" [line cut]");
    }
    safe
}

/// Whether a character shows as itself, and leaves its neighbours where they are.
pub(crate) fn is_printable(c: char) -> bool {
    !(c.is_control() || is_bidi(c))
}

const fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "pa55+w/ord \"x\"";

    #[track_caller]
    fn check(text: &str) {
        let redacted = Redactor::new([Secret::new(VALUE)]).redact(text);
        assert!(redacted.contains(REDACTED), "{text:?} became {redacted:?}");
    }

    #[test]
    fn every_form_of_a_secret_is_replaced() {
        check(&format!("token={VALUE}!"));
        check(&general_purpose::STANDARD.encode(VALUE));
        for user in ["", "u:", "us:", "user:"] {
            check(&general_purpose::STANDARD.encode(format!("{user}{VALUE}@host")));
            check(&general_purpose::URL_SAFE.encode(format!("{user}{VALUE}@host")));
        }
        check(&VALUE.bytes().map(|b| format!("{b:02x}")).collect::<String>());
        check("https://u:pa55%2Bw%2Ford%20%22x%22@host");
        check("https://u:pa55%2bw%2ford%20%22x%22@host");
        check(&serde_json::to_string(VALUE).unwrap());
    }

    #[test]
    fn each_line_of_a_key_is_a_secret() {
        let redactor = Redactor::new([Secret::new("-----BEGIN-----\nAAAABBBB\nCCCCDDDD\n-----END-----\n")]);
        assert_eq!(redactor.redact("x AAAABBBB y"), "x [secret] y");
        assert_eq!(redactor.redact("x CCCCDDDD"), "x [secret]");
    }

    #[test]
    fn a_part_that_a_cut_left_is_hidden() {
        let token = "github_pat_11ABCDEFG0123456789";
        let redactor = Redactor::new([Secret::new(token), Secret::new("a short one")]);
        for kept in PART_LENGTH_MIN..token.len() {
            let (head, tail) = (&token[..kept], &token[token.len() - kept..]);
            assert_eq!(redactor.redact(&format!("x {head}")), "x [secret]");
            assert_eq!(redactor.redact(&format!("{tail} y")), "[secret] y");
            assert_eq!(
                redactor.redact(&format!("to \"https://u:{head}\"…: no")),
                "to \"https://u:[secret]\"…: no"
            );
            let encoded = general_purpose::STANDARD.encode(format!("user:{token}@host"));
            let cut = redactor.redact(&encoded[..encoded.len() - 20]);
            assert!(cut.ends_with(REDACTED), "{cut}");
        }
        assert_eq!(redactor.redact("x github_pat_11 y"), "x github_pat_11 y", "there is no cut");
        assert_eq!(redactor.redact("github"), "github");
    }

    #[test]
    fn secrets_that_are_renewed_do_not_fill_the_memory() {
        let redactor = Redactor::new([Secret::new("for ever")]);
        for number in 0..LEARNT_MAX + 2 {
            // Building anew each time would make this test slow; the limit is what counts here.
            let mut known = redactor.0.write().unwrap();
            known.learnt.push_back(Hidden(vec![Zeroizing::new(format!("token {number}"))]));
        }
        redactor.hide_for_now(&Secret::new("the last"));
        assert_eq!(redactor.redact("for ever, the last, token 1001"), "[secret], [secret], [secret]");
        redactor.hide_for_now(&Secret::new("the last"));
        redactor.hide_for_now(&Secret::new("for ever"));
        let known = redactor.0.read().unwrap();
        assert_eq!((known.learnt.len(), known.kept.len()), (LEARNT_MAX, 1), "nothing is learnt twice");
    }

    #[test]
    fn what_cannot_be_searched_for_fast_is_searched_for_slowly() {
        let slow = Search::Slow(vec![Zeroizing::new(VALUE.to_owned())]);
        assert_eq!(slow.redact(&format!("x {VALUE} y")), "x [secret] y");
    }

    #[test]
    fn a_secret_has_no_debug() {
        assert_eq!(format!("{:?}", Secret::new(VALUE)), "Secret(…)");
        assert_eq!(format!("{:?}", Redactor::new([Secret::new(VALUE)])), "Redactor(…)");
    }

    #[test]
    fn a_line_cannot_pretend_to_be_another() {
        let safe = printable(&Redactor::default(), "a\u{1b}[2Jb\rc\u{202e}d\n");
        assert_eq!(safe, "a\\u{1b}[2Jb\\u{d}c\\u{202e}d");
        let long = printable(&Redactor::default(), &"ä".repeat(LINE_LENGTH_MAX));
        assert!(long.len() <= LINE_LENGTH_MAX + 20 && long.ends_with(" [line cut]"));
    }

    #[test]
    fn a_secret_across_the_cut_is_hidden() {
        let line = format!("{}{VALUE}", "x".repeat(LINE_LENGTH_MAX - 5));
        assert!(!printable(&Redactor::new([Secret::new(VALUE)]), &line).contains("pa55"));
    }
}

//! Manifests are read as Python reads them: its own `ast.literal_eval` is asked about the same texts.

use ocore_docker::odoo::Manifest;
use proptest::prelude::*;

use crate::program::asked;

/// Reads a list of texts, and writes for each the version of that manifest, or that it is none.
const REFERENCE: &str = r#"
import ast, json, sys, warnings
warnings.simplefilter("ignore")
answers = []
for text in json.load(sys.stdin):
    try:
        manifest = ast.literal_eval(text)
        is_one = isinstance(manifest, dict) and isinstance(manifest.get("version"), str)
        answers.append(manifest["version"] if is_one else None)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        answers.append(None)
json.dump([None if it is None else [ord(c) for c in it] for it in answers], sys.stdout)
"#;

fn python(texts: &[String]) -> Vec<Option<String>> {
    let output = asked("python3", &["-c", REFERENCE], &serde_json::to_vec(texts).unwrap());
    let answers: Vec<Option<Vec<u32>>> = serde_json::from_slice(&output).unwrap();
    let text = |codes: Vec<u32>| {
        codes.into_iter().map(|code| char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    };
    answers.into_iter().map(|answer| answer.map(text)).collect()
}

/// The version of a manifest that has one: what is without, is none for Python's side too.
fn ours(text: &str) -> Option<String> {
    Manifest::parse(text).ok().map(|manifest| manifest.version)
}

fn compare(texts: &[String]) {
    for (text, expected) in texts.iter().zip(python(texts)) {
        assert_eq!(ours(text), expected, "{text}");
    }
}

/// Strings as they are written in a manifest, right and wrong.
const VALUES: [&str; 62] = [
    "'a'",
    "\"a\"",
    "'''a'''",
    "\"\"\"a\nb\"\"\"",
    "''",
    "''''''",
    "'' 'a'",
    "'a' \"b\"",
    "'a'\n'b'",
    "('a' 'b')",
    "(\n'a'  # why\n'b')",
    "u'a'",
    "U'a'",
    "r'\\n'",
    "R'\\''",
    "rb'a'",
    "b'a'",
    "br'a'",
    "f'a'",
    "ur'a'",
    "'a' b'b'",
    "'\\n\\t\\\\\\'\\\"\\a\\b\\f\\v\\r'",
    "'\\x41\\u00e9\\U0001F600'",
    "'\\101\\0\\777'",
    "'\\q'",
    "'\\x4'",
    "'\\u12'",
    "'\\\nb'",
    "'a\nb'",
    "'a",
    "'''a''",
    "'ä'",
    "b'ä'",
    "'''a'b''c'''",
    "\"\"\"a\\\"\"\"\"",
    "'a',",
    "('a')",
    "(('a'))",
    "('a',)",
    "['a']",
    "{'a'}",
    "{'a': 1}",
    "1",
    "None",
    "True",
    "name",
    "dict()",
    "'a' + 'b'",
    "'a'.upper()",
    "'a' % 1",
    "-'a'",
    "'a' if 1 else 'b'",
    "''\"a\"''",
    "'a' # comment\n",
    "\\\n'a'",
    "'\u{a0}'",
    "'#'",
    "'{'",
    "'''\r\n'''",
    "'\\\r\nb'",
    "rb'' b''",
    "'tab\there'",
];

#[test]
fn strings_are_read_as_python_reads_them() {
    let texts: Vec<_> = VALUES.iter().map(|value| format!("{{'version': {value}}}")).collect();
    compare(&texts);
    let read = texts.iter().filter(|text| ours(text).is_some()).count();
    assert!((25..50).contains(&read), "{read} of them are manifests");
}

/// Other keys' values, right and wrong, beside a version.
const OTHERS: [&str; 63] = [
    "0",
    "00",
    "017",
    "1_000",
    "1__0",
    "1_",
    "_1",
    "0x1F",
    "0x_1f",
    "0xg",
    "0o17",
    "0o8",
    "0b11",
    "0b2",
    "1.",
    ".5",
    ".",
    "1.5e3",
    "1e-3",
    "1e",
    "1e+",
    "1_0.0_1",
    "1._0",
    "- 5",
    "+5",
    "--5",
    "-.5",
    "[]",
    "[,]",
    "[1,]",
    "[1,,]",
    "[1 2]",
    "()",
    "(,)",
    "(1)",
    "(1,)",
    "(1, 2)",
    "{}",
    "{,}",
    "{1}",
    "{1,}",
    "{1, 2}",
    "{1: 2}",
    "{1: 2,}",
    "{1: 2, 3}",
    "{1, 2: 3}",
    "{1: }",
    "{: 1}",
    "{1: 2 3: 4}",
    "[[[]]]",
    "[)",
    "[1",
    "",
    "1 2",
    "True",
    "None",
    "[None, (True,), {'x': [1.5]}]",
    "{[]}",
    "{[1]: 2}",
    "{(1, [2])}",
    "{(1,): 2}",
    "{1, {2}}",
    "[*[1]]",
];

#[test]
fn other_values_are_read_as_python_reads_them() {
    let texts: Vec<_> = OTHERS.iter().map(|value| format!("{{'other': {value}, 'version': '1'}}")).collect();
    compare(&texts);
    let read = texts.iter().filter(|text| ours(text).is_some()).count();
    assert!((25..45).contains(&read), "{read} of them are manifests");
}

#[test]
fn what_stands_around_is_read_as_python_reads_it() {
    let around = [
        "{}", " {}", "\t{}", "\n\n{}", "# a\n{}", "{}\n# a", "{};", "{} {}", "{},", "({})", "({}\n)",
        "x = {}", "{}\n\n",
    ];
    compare(&around.map(|around| around.replace("{}", "{'version': '1'}")));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    /// Many texts of few pieces at once: a Python for each would take its time.
    #[test]
    fn what_chance_writes_is_read_as_python_reads_it(
        texts in proptest::collection::vec(
            proptest::collection::vec(
                proptest::sample::select(vec![
                    "'", "\"", "'''", "\\", "a", "\n", "r", "b", " ", "#", "(", ")", "[", "]", "{", "}", ",", ":", "1", "é",
                ]),
                0..8,
            ),
            200,
        )
    ) {
        let texts: Vec<_> = texts.into_iter().map(|pieces| format!("{{'version': 'x', 'o': {}}}", pieces.concat())).collect();
        for (text, expected) in texts.iter().zip(python(&texts)) {
            prop_assert_eq!(ours(text), expected, "{}", text);
        }
    }
}

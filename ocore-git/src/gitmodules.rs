//! A strict reader of `.gitmodules`: only sections, `path` and `url`; nothing is included, nothing is run.

use std::collections::BTreeMap;

use ocore_core::port::{Error, Result};

/// The most that is read.
pub(crate) const BYTES_MAX: u64 = 1 << 20;

/// The URL of each submodule by its path.
pub(crate) fn parse(content: &[u8]) -> Result<BTreeMap<String, String>> {
    let text = std::str::from_utf8(content).map_err(|_| wrong(0, "is not UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // What belongs to one submodule may stand in several sections; of several values the last one counts.
    let mut submodules: BTreeMap<String, Submodule> = BTreeMap::new();
    let (mut before_first, mut current) = (true, None);
    for (index, line) in text.lines().enumerate() {
        let (line, number) = (line.trim(), index + 1);
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with('[') {
            (before_first, current) = (false, parse_section(line, number)?);
            continue;
        }
        if before_first {
            return Err(wrong(number, "stands before the first section"));
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = parse_value(value.trim(), number)?;
        let Some(name) = current.clone() else { continue };
        let submodule = submodules.entry(name).or_default();
        match key.trim().to_ascii_lowercase().as_str() {
            "path" => submodule.path = Some(value),
            "url" => submodule.url = Some(value),
            _ => {}
        }
    }
    Ok(submodules.into_values().filter_map(|submodule| Some((submodule.path?, submodule.url?))).collect())
}

#[derive(Default)]
struct Submodule {
    path: Option<String>,
    url: Option<String>,
}

fn wrong(line: usize, reason: &str) -> Error {
    Error::permanent(format!("read .gitmodules: line {line} {reason}"))
}

/// The submodule's name, or nothing for a section that is none.
fn parse_section(line: &str, number: usize) -> Result<Option<String>> {
    let (kind, rest) = line[1..].split_once(' ').unwrap_or((line, ""));
    let named = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split_once("\"]"));
    let Some((name, after)) = named.filter(|_| kind.eq_ignore_ascii_case("submodule")) else {
        return Ok(None);
    };
    if !after.trim_start().is_empty() && !after.trim_start().starts_with(['#', ';']) {
        return Err(wrong(number, "has more than a section's name"));
    }
    // git keeps a submodule's repository under its name: a name must not lead elsewhere.
    let harmful = name.split(['/', '\\']).any(|part| part == ".." || part.is_empty());
    if harmful || name.starts_with('-') || name.chars().any(char::is_control) {
        return Err(wrong(
            number,
            "has a submodule's name that is refused: .., - in front, or a control character",
        ));
    }
    Ok(Some(name.to_owned()))
}

fn parse_value(value: &str, number: usize) -> Result<String> {
    let quoted = value.strip_prefix('"').and_then(|rest| rest.split_once('"'));
    let quoted = quoted.filter(|(_, after)| after.is_empty() || after.trim_start().starts_with(['#', ';']));
    let plain = match quoted {
        Some((quoted, _)) => quoted,
        None => value.split(['#', ';']).next().unwrap_or("").trim_end(),
    };
    if plain.contains(['"', '\\']) || plain.chars().any(char::is_control) {
        return Err(wrong(
            number,
            "has a value that is refused: a quote, a backslash or a control character in it",
        ));
    }
    if plain.starts_with('-') {
        return Err(wrong(number, "has a value that begins with a hyphen, as if it were an option"));
    }
    Ok(plain.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_urls_are_read() {
        let text = "# comment\n[core]\n\turl = ignored\n[submodule \"a\"]\n\tpath = lib/a\n\turl = \"https://x/y\"\n\
                    \tupdate = !touch /tmp/x\n[submodule \"b\"]\nPATH=b\nurl=../b.git\n";
        let found = parse(text.as_bytes()).unwrap();
        let expected = [("b", "../b.git"), ("lib/a", "https://x/y")];
        assert_eq!(found, expected.map(|(path, url)| (path.to_owned(), url.to_owned())).into());
    }

    #[test]
    fn what_git_reads_is_read() {
        let check = |text: &str, expected: &[(&str, &str)]| {
            let expected =
                expected.iter().map(|(path, url)| ((*path).to_owned(), (*url).to_owned())).collect();
            assert_eq!(parse(text.as_bytes()).unwrap(), expected, "{text:?}");
        };
        check("\u{feff}[submodule \"a\"]\npath = a\nurl = u\n", &[("a", "u")]);
        check("[submodule \"a\"] # ours\npath = a # here\nurl = \"u#1\" ; there\n", &[("a", "u#1")]);
        check("[SubModule  \"a\"]\r\npath = a\r\nurl = u\r\n", &[("a", "u")]);
        let split = "[submodule \"a\"]\npath = a\n[submodule \"b\"]\npath=b\nurl=v\n[submodule \"a\"]\nurl = u\nurl = w\n";
        check(split, &[("a", "w"), ("b", "v")]);
        check("[submodule \"a\"]\npath = a\n[core]\nurl = u\n", &[]);
    }

    #[test]
    fn what_has_been_an_attack_is_refused() {
        for text in [
            "[submodule \"../../x\"]\n",
            "[submodule \"-x\"]\n",
            "[submodule \"a\"]\nurl = --upload-pack=x\n",
            "[submodule \"a\"]\npath = \"a\\r\"\n",
            "[submodule \"a\"]\npath = a\u{1}b\n",
            "path = x\n",
            "[submodule \"a\"] path = x\n",
            "[submodule \"a\"]\nurl = \"u\"v\"\n",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}

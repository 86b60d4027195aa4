//! A strict reader of `.gitmodules`: only sections, `path` and `url`; nothing is included, nothing is run.

use std::collections::BTreeMap;

use ocore_core::port::{Error, Result};

/// The most that is read.
pub(crate) const BYTES_MAX: u64 = 1 << 20;

/// The URL of each submodule by its path.
pub(crate) fn parse(content: &[u8]) -> Result<BTreeMap<String, String>> {
    let text = std::str::from_utf8(content).map_err(|_| wrong(0, "is not UTF-8"))?;
    let mut sections: Vec<Section> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let (line, number) = (line.trim(), index + 1);
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if line.starts_with('[') {
            sections.push(Section { name: parse_section(line, number)?, path: None, url: None });
            continue;
        }
        let section = sections.last_mut().ok_or_else(|| wrong(number, "stands before the first section"))?;
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = parse_value(value.trim(), number)?;
        // The last one counts, as git has it.
        match key.trim().to_ascii_lowercase().as_str() {
            "path" => section.path = Some(value),
            "url" => section.url = Some(value),
            _ => {}
        }
    }
    let complete = sections.into_iter().filter(|section| section.name.is_some());
    Ok(complete.filter_map(|section| Some((section.path?, section.url?))).collect())
}

struct Section {
    name: Option<String>,
    path: Option<String>,
    url: Option<String>,
}

fn wrong(line: usize, reason: &str) -> Error {
    Error::permanent(format!("read .gitmodules: line {line} {reason}"))
}

/// The submodule's name, or nothing for a section that is none.
fn parse_section(line: &str, number: usize) -> Result<Option<String>> {
    let Some(name) = line.strip_prefix("[submodule \"").and_then(|rest| rest.strip_suffix("\"]")) else {
        return Ok(None);
    };
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
    let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let plain = quoted.unwrap_or(value);
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
    fn what_has_been_an_attack_is_refused() {
        for text in [
            "[submodule \"../../x\"]\n",
            "[submodule \"-x\"]\n",
            "[submodule \"a\"]\nurl = --upload-pack=x\n",
            "[submodule \"a\"]\npath = \"a\\r\"\n",
            "[submodule \"a\"]\npath = a\u{1}b\n",
            "path = x\n",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}

//! A module's manifest: one dictionary of literals, which is read and never run.

mod literal;

use std::collections::BTreeSet;

pub use literal::Position;
use literal::{Literal, Value, parse};

/// What of a manifest counts when a module is built, installed and updated. Other keys are read over.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Manifest {
    /// `version`, as it is written; `1.0` where there is none, as in Odoo.
    pub version: String,
    /// `depends`; `base` where there is none.
    pub depends: Vec<String>,
    /// `installable`; true where there is none.
    pub installable: bool,
    /// `auto_install`.
    pub auto_install: AutoInstall,
    /// `external_dependencies`, `python`: names of distributions, with or without a condition, or of Python modules.
    pub python: Vec<String>,
    /// `external_dependencies`, `bin`: names of programs.
    pub programs: Vec<String>,
}

/// When a module is installed without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AutoInstall {
    /// Never.
    No,
    /// As soon as all that it depends on is installed.
    WithAllDependencies,
    /// As soon as these, of those that it depends on, are installed.
    With(BTreeSet<String>),
}

/// Why a manifest cannot be read: where, and what is wrong there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {}, column {}: {reason}", position.line, position.column)]
#[non_exhaustive]
pub struct ManifestError {
    /// Where it is.
    pub position: Position,
    /// What is wrong, in words.
    pub reason: String,
}

impl ManifestError {
    fn new(position: Position, reason: impl Into<String>) -> Self {
        Self { position, reason: reason.into() }
    }
}

impl Manifest {
    /// Reads a manifest: what Python's `ast.literal_eval` accepts, which is what Odoo reads it with.
    ///
    /// # Errors
    ///
    /// Text that is no dictionary of literals, such as a call or a name; and a key that counts here with a value of
    /// another type than Odoo expects. Both with line and column, each from 1.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let literal = parse(text)?;
        let Value::Dictionary(entries) = &literal.value else {
            let reason = format!("a manifest is a dictionary, this is {}", literal.value.kind());
            return Err(ManifestError::new(literal.position, reason));
        };
        let key = |name: &str| find(entries, name);
        let external = match key("external_dependencies") {
            Some(Literal { value: Value::Dictionary(entries), .. }) => entries.as_slice(),
            other => other
                .map_or(Ok(&[][..]), |it| Err(unexpected("external_dependencies", "a dictionary", it)))?,
        };
        let version = key("version").map(|it| text_of("version", it)).transpose()?;
        let depends = key("depends").map(|it| texts_of("depends", it)).transpose()?;
        let installable = key("installable").map(|it| flag_of("installable", it)).transpose()?;
        let names = |kind: &str| find(external, kind).map(|it| texts_of(kind, it)).transpose();
        let manifest = Self {
            version: version.unwrap_or_else(|| "1.0".to_owned()),
            depends: depends.unwrap_or_else(|| vec!["base".to_owned()]),
            installable: installable.unwrap_or(true),
            auto_install: key("auto_install").map_or(Ok(AutoInstall::No), auto_install)?,
            python: names("python")?.unwrap_or_default(),
            programs: names("bin")?.unwrap_or_default(),
        };
        Ok(manifest)
    }
}

/// The last one counts, as in Python.
fn find<'a>(entries: &'a [(Literal, Literal)], name: &str) -> Option<&'a Literal> {
    let is_it = |key: &Literal| matches!(&key.value, Value::Text(text) if text == name);
    entries.iter().rfind(|(key, _)| is_it(key)).map(|(_, value)| value)
}

fn unexpected(key: &str, expected: &str, found: &Literal) -> ManifestError {
    let reason = format!("{key:?} must be {expected}, this is {}", found.value.kind());
    ManifestError::new(found.position, reason)
}

fn text_of(key: &str, found: &Literal) -> Result<String, ManifestError> {
    match &found.value {
        Value::Text(text) => Ok(text.clone()),
        _ => Err(unexpected(key, "a string", found)),
    }
}

fn texts_of(key: &str, found: &Literal) -> Result<Vec<String>, ManifestError> {
    match &found.value {
        Value::List(items) | Value::Tuple(items) | Value::Set(items) => {
            items.iter().map(|item| text_of(key, item)).collect()
        }
        // Only a missing comma in a tuple of one makes it a string: Odoo would take its letters.
        _ => Err(unexpected(key, "a list of strings", found)),
    }
}

/// Odoo asks whether it is true in Python's sense: `1` is.
fn flag_of(key: &str, found: &Literal) -> Result<bool, ManifestError> {
    match &found.value {
        Value::Bool(flag) => Ok(*flag),
        Value::None => Ok(false),
        Value::Number(number) => Ok(!is_zero(number)),
        _ => Err(unexpected(key, "True or False", found)),
    }
}

/// Whether a number that was read is zero, however it is written: `0x0`, `0.0e5`.
fn is_zero(number: &str) -> bool {
    let lower = number.to_ascii_lowercase();
    let digits = match lower.strip_prefix("0x") {
        Some(digits) => digits,
        None => lower.split('e').next().unwrap_or("").trim_start_matches("0b").trim_start_matches("0o"),
    };
    digits.bytes().all(|byte| matches!(byte, b'0' | b'.' | b'_'))
}

fn auto_install(found: &Literal) -> Result<AutoInstall, ManifestError> {
    match &found.value {
        Value::List(_) | Value::Tuple(_) | Value::Set(_) => {
            texts_of("auto_install", found).map(|names| AutoInstall::With(names.into_iter().collect()))
        }
        _ if flag_of("auto_install", found)? => Ok(AutoInstall::WithAllDependencies),
        _ => Ok(AutoInstall::No),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: &str = "# Copyright somebody
{
    'name': \"Sale: margins\",
    'version': '17.0.1.2.0',
    'summary': 'One ' 'two'
               \" three\",
    'depends': ['sale', 'sale_stock',],  # and more
    'data': ('views/a.xml',),
    'external_dependencies': {'python': ['phonenumbers>=8'], 'bin': [\"wkhtmltopdf\"]},
    'auto_install': ['sale'],
    'sequence': -5, 'price': 1_0.5e3, 'odd': None, 'raw': r'\\d', 'bytes': b'\\x00',
    \"description\": \"\"\"
Line 'one'
\\u00e9\"\"\",
}
";

    #[test]
    fn the_usual_is_read() {
        let manifest = Manifest::parse(USUAL).unwrap();
        assert_eq!(manifest.version, "17.0.1.2.0");
        assert_eq!(manifest.depends, ["sale", "sale_stock"]);
        assert!(manifest.installable);
        assert_eq!(manifest.auto_install, AutoInstall::With(["sale".to_owned()].into()));
        assert_eq!(manifest.python, ["phonenumbers>=8"]);
        assert_eq!(manifest.programs, ["wkhtmltopdf"]);
    }

    #[test]
    fn what_is_not_written_is_as_in_odoo() {
        let manifest = Manifest::parse("{}").unwrap();
        assert_eq!((manifest.version.as_str(), manifest.installable), ("1.0", true));
        assert_eq!(manifest.depends, ["base"]);
        assert_eq!(manifest.auto_install, AutoInstall::No);
    }

    #[test]
    fn truth_is_pythons() {
        let check = |text: &str, expected: bool| {
            let manifest =
                Manifest::parse(&format!("{{'installable': {text}, 'auto_install': {text}}}")).unwrap();
            assert_eq!(manifest.installable, expected, "{text}");
            assert_eq!(manifest.auto_install == AutoInstall::WithAllDependencies, expected, "{text}");
        };
        check("True", true);
        check("1", true);
        check("False", false);
        check("0", false);
        check("-1", true);
        check("0xa", true);
        check("0x0", false);
        check("0b1", true);
        check("0o0", false);
        check("0.1", true);
        check("0.0e5", false);
        check("None", false);
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        assert_eq!(Manifest::parse("{'version': '1', 'version': '2'}").unwrap().version, "2");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let check = |text: &str, expected: &str| {
            assert_eq!(Manifest::parse(text).unwrap_err().to_string(), expected, "{text}");
        };
        check("[]", "line 1, column 1: a manifest is a dictionary, this is a list");
        check(
            "{'depends': ('sale')}",
            "line 1, column 13: \"depends\" must be a list of strings, this is a string",
        );
        check(
            "{\n 'depends': ['a',\n  3]}",
            "line 3, column 3: \"depends\" must be a string, this is a number",
        );
        check("{'version': 17.0}", "line 1, column 13: \"version\" must be a string, this is a number");
        check(
            "{'installable': 'no'}",
            "line 1, column 17: \"installable\" must be True or False, this is a string",
        );
        let external = "line 1, column 27: \"external_dependencies\" must be a dictionary, this is a list";
        check("{'external_dependencies': ['x']}", external);
    }
}

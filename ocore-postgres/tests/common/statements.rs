//! The SQL that stands in source files, and what a server was sent of it.

use std::{fs, path::Path};

use ocore_test_postgres::Cluster;

/// With these settings a server writes down every statement that it is sent, and counts the calls of functions.
pub(crate) const RECORDED: &[(&str, &str)] = &[("log_statement", "all"), ("track_functions", "all")];

/// What statements, and the parts that some are put together from, begin with.
const BEGINNINGS: [&str; 24] = [
    "ALTER", "ANALYZE", "AND", "BEGIN", "COMMENT", "COMMIT", "CREATE", "DELETE", "DROP", "FROM", "GRANT",
    "INSERT", "LIMIT", "LOCK", "OR", "ORDER", "REVOKE", "ROLLBACK", "SELECT", "SET", "TRUNCATE", "UPDATE",
    "WHERE", "WITH",
];

/// A text in a source file that reads as SQL, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) file: String,
    pub(crate) text: String,
}

impl Written {
    /// Whether it stands in one of these statements; anything may be in the place of what `{…}` puts in.
    pub(crate) fn is_in(&self, statements: &[String]) -> bool {
        let parts: Vec<&str> =
            self.text.split('{').map(|part| part.split_once('}').map_or(part, |(_, part)| part)).collect();
        statements.iter().any(|statement| {
            let mut rest = statement.as_str();
            parts.iter().all(|part| rest.split_once(part).map(|(_, after)| rest = after).is_some())
        })
    }
}

/// Every text that reads as SQL in the source files of a folder of this package, but for their tests.
pub(crate) fn written_in(folder: &str) -> Vec<Written> {
    let mut written = Vec::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut written);
    written
}

fn read(folder: &Path, written: &mut Vec<Written>) {
    for entry in fs::read_dir(folder).expect("the sources are there") {
        let path = entry.expect("the sources can be read").path();
        if path.is_dir() {
            if !path.ends_with("tests") {
                read(&path, written);
            }
            continue;
        }
        let source = fs::read_to_string(&path).expect("the sources can be read");
        let file = path.file_name().expect("it is a file").to_string_lossy().into_owned();
        let is_test = file == "tests.rs";
        let texts = if is_test { Vec::new() } else { texts(&source) };
        let sql = texts.into_iter().filter(|text| reads_as_sql(text));
        written.extend(sql.map(|text| Written { file: file.clone(), text }));
    }
}

fn reads_as_sql(text: &str) -> bool {
    // `ACL - name` is a line of a dump's table of contents.
    BEGINNINGS.contains(&text.split(' ').next().unwrap_or_default().trim_end_matches(';'))
        && !text.contains(" - ")
}

/// The string literals of a source file, each in one line.
fn texts(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n").replace("'\"'", "' '");
    let (mut texts, mut rest) = (Vec::new(), code.as_str());
    while let Some((_, after)) = rest.split_once('"') {
        let (mut text, mut characters) = (String::new(), after.char_indices());
        rest = loop {
            match characters.next() {
                Some((at, '"')) => break &after[at + 1..],
                Some((_, '\\')) => text.extend(characters.next().map(|(_, it)| it)),
                Some((_, it)) => text.push(it),
                None => break "",
            }
        };
        texts.push(one_line(&text));
    }
    texts
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every statement that the server was sent, in one line each.
pub(crate) fn sent_to(cluster: &Cluster) -> Vec<String> {
    let mut sent = Vec::new();
    let mut is_statement = false;
    for line in cluster.log().lines() {
        // The second and later lines of an entry begin with a tab.
        if let Some(more) = line.strip_prefix('\t').filter(|_| is_statement) {
            let statement: &mut String = sent.last_mut().expect("it has begun");
            *statement = format!("{statement} {}", one_line(more)).trim().to_owned();
            continue;
        }
        let entry = line.split_once("LOG:  ").map_or("", |(_, entry)| entry);
        let statement = entry.strip_prefix("statement: ");
        let statement =
            statement.or_else(|| entry.strip_prefix("execute ")?.split_once(": ").map(|(_, it)| it));
        is_statement = statement.is_some();
        sent.extend(statement.map(one_line));
    }
    sent
}

#[test]
fn a_text_that_no_statement_holds_is_noticed() {
    let source = "let a = sql.query(\"SELECT \\\n    a FROM b\"); // \"x\"\nlet c = format!(\"DROP {} NOW\", d); e('\"', \"UPDATE\")";
    let found = texts(source);
    assert_eq!(found, ["SELECT a FROM b", "x", "DROP {} NOW", "UPDATE"]);
    let sent = ["SELECT a FROM b WHERE c".to_owned(), "DROP \"table\" NOW".to_owned()];
    let is_in = |text: &str| Written { file: String::new(), text: text.to_owned() }.is_in(&sent);
    assert!(is_in("SELECT a FROM b") && is_in("DROP {} NOW") && is_in("WHERE c"));
    assert!(!is_in("SELECT b") && !is_in("DROP {} THEN") && !is_in("NOW {} DROP"));
}

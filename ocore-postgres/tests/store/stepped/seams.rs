//! Seams in a schema: a session waits before every statement of its functions, and within those that lock.

use sqlx::PgConnection;

use super::orders::{Kind, Tables};
use crate::place::Place;

/// A place at which a session waits, and what it does next.
#[derive(Debug, Clone)]
pub(crate) struct Seam {
    /// The number of the server's lock; `None` if it waits at the gate.
    pub(crate) number: Option<i32>,
    pub(crate) kind: Kind,
    pub(crate) place: String,
}

impl Seam {
    /// What the server says of a seam.
    pub(crate) fn read(notice: &str) -> Option<Self> {
        let mut words = notice.strip_prefix("seam ")?.splitn(3, ' ');
        let number = words.next()?.parse().ok()?;
        let kind = read_kind(words.next()?)?;
        Some(Self { number: Some(number), kind, place: words.next()?.to_owned() })
    }
}

fn read_kind(text: &str) -> Option<Kind> {
    let Some((kind, tables)) = text.split_once('(') else { return (text == "Looks").then_some(Kind::Looks) };
    let tables = tables.strip_suffix(')')?.parse().ok()?;
    Some(if kind == "Locks" { Kind::Locks(tables) } else { Kind::LooksAndLocks(tables) })
}

/// Cuts the seams into the schema, for so many sessions, whose roles it makes. They pass until somebody holds their locks.
pub(crate) async fn cut(place: &Place, db: &mut PgConnection, sessions: usize) {
    let mut text = include_str!("seams.sql").to_owned();
    for session in 0..sessions {
        let role = role(place, session);
        text += &format!(
            "CREATE SEQUENCE ocore.seams_{session};
             CREATE ROLE \"{role}\" LOGIN PASSWORD 'x'; ALTER ROLE \"{role}\" SET stepped.session = '{session}';
             -- Other plans would find other rows first.
             ALTER ROLE \"{role}\" SET plan_cache_mode = force_generic_plan;
             ALTER ROLE \"{role}\" SET enable_seqscan = off;"
        );
    }
    text += &format!(
        "GRANT USAGE ON SCHEMA \"{0}\" TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA \"{0}\" TO PUBLIC;
         GRANT ALL ON ALL SEQUENCES IN SCHEMA \"{0}\" TO PUBLIC",
        place.schema
    );
    sqlx::raw_sql(place.text(&text)).execute(&mut *db).await.expect("the seams can be made");
    let functions = sqlx::query_scalar(
        "SELECT p.proname::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
             JOIN pg_language l ON l.oid = p.prolang
         WHERE n.nspname = $1 AND l.lanname = 'plpgsql' AND p.proname NOT IN ('pause', 'seam', 'row_seam')",
    );
    let functions: Vec<String> =
        functions.bind(&place.schema).fetch_all(&mut *db).await.expect("the functions can be read");
    for function in functions {
        cut_into(place, db, &function).await;
    }
}

pub(crate) fn role(place: &Place, session: usize) -> String {
    format!("{}-{session}", place.schema)
}

/// Cuts the seams into a function.
pub(crate) async fn cut_into(place: &Place, db: &mut PgConnection, function: &str) {
    let cut = place.text(&instrument(&definition(place, db, function).await));
    sqlx::raw_sql(cut).execute(db).await.unwrap_or_else(|error| panic!("{function}: {error}"));
}

/// A function as it is, written for a schema named `ocore`.
pub(crate) async fn definition(place: &Place, db: &mut PgConnection, function: &str) -> String {
    let definition = sqlx::query_scalar(
        "SELECT pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE n.nspname = $1 AND p.proname = $2",
    );
    let definition = definition.bind(&place.schema).bind(function).fetch_one(db).await;
    let definition: String = definition.expect("there is one function of this name");
    definition.replace(&format!("\"{}\".", place.schema), "ocore.")
}

/// The function with a seam before every statement that looks at data or changes them.
pub(crate) fn instrument(definition: &str) -> String {
    let (head, body) = definition.split_once("\nBEGIN\n").expect("it is a function of several statements");
    let (_, name) = head.split_once("ocore.").expect("it is in the schema");
    let name = name.split('(').next().unwrap_or_default();
    let mut cut = format!("{head}\nBEGIN\n");
    let is_comment = |line: &&str| line.trim_start().starts_with("--");
    let body: String = body.split_inclusive('\n').filter(|line| !is_comment(line)).collect();
    for part in body.split_inclusive(';') {
        let mut rest = part;
        while let Some((control, after)) = control(rest) {
            // Nothing can stand before the condition of an `ELSIF`: it is looked at together with the `IF`.
            if !control.trim_start().starts_with("ELSIF ") {
                cut += &seam(name, control);
            }
            cut += control;
            rest = after;
        }
        cut += &seam(name, rest);
        cut += rest;
    }
    cut
}

/// What is in front of a statement: the words that say whether, or how often, it is run.
fn control(text: &str) -> Option<(&str, &str)> {
    let start = text.trim_start();
    let end = if start.starts_with("ELSE\n") {
        "ELSE\n"
    } else if ["IF ", "ELSIF ", "WHEN "].iter().any(|word| start.starts_with(word)) {
        "THEN\n"
    } else if start.starts_with("FOR ") {
        "LOOP\n"
    } else {
        return None;
    };
    let at = text.find(end).expect("what begins ends") + end.len();
    Some(text.split_at(at))
}

/// The seam before a statement, if it needs one.
fn seam(function: &str, statement: &str) -> String {
    let has = |word: &str| statement.contains(word);
    let tables = tables(statement);
    let (kind, next) = if has("INSERT ") {
        // Of a unique index it may wait for another's row without having found one.
        (Kind::LooksAndLocks(tables), String::new())
    } else if ["FOR UPDATE", "UPDATE ", "DELETE ", ".begin("].into_iter().any(has) {
        (Kind::Looks, format!("{:?}", Kind::Locks(tables)))
    } else if has("SELECT") || has("PERFORM") || has("ocore.") {
        (Kind::Looks, String::new())
    } else {
        return String::new();
    };
    let begin: Vec<_> = statement.split_whitespace().take(6).collect();
    let place = format!("{function}: {}", begin.join(" ")).replace('\'', "");
    format!("PERFORM ocore.seam('{kind:?}', '{place}', '{next}');\n")
}

/// The tables that a statement speaks of.
fn tables(statement: &str) -> Tables {
    // `begin` updates a deployment.
    let tables = [".lanes", ".workers", ".deployments", ".begin("].into_iter().zip([1, 2, 4, 4]);
    let spoken = tables.filter(|(table, _)| statement.contains(table)).fold(0, |all, (_, bit)| all | bit);
    if spoken == 0 { Tables::MAX } else { spoken }
}

#[test]
fn a_seam_is_before_every_statement_that_looks_or_locks() {
    let definition = "CREATE FUNCTION ocore.f(it text)\nAS $function$\nDECLARE\n    a text;\nBEGIN
    -- Why; not how.
    SELECT l.name INTO a FROM ocore.lanes l FOR UPDATE;
    IF a IS NULL THEN
        RETURN;
    ELSIF a = 'b' THEN
        INSERT INTO ocore.deployments VALUES (1);
    ELSE
        a := ocore.runnable(a);
    END IF;
    FOR b IN\n        SELECT 1\n    LOOP\n        RETURN NEXT b;\n    END LOOP;
END $function$";
    let cut = instrument(definition);
    let parts: Vec<_> = cut.split("PERFORM ocore.seam").collect();
    let (seams, rest): (Vec<_>, Vec<_>) = parts[1..].iter().filter_map(|part| part.split_once('\n')).unzip();
    assert_eq!(
        seams,
        [
            "('Looks', 'f: SELECT l.name INTO a FROM ocore.lanes', 'Locks(1)');",
            "('LooksAndLocks(4)', 'f: INSERT INTO ocore.deployments VALUES (1);', '');",
            "('Looks', 'f: a := ocore.runnable(a);', '');",
            "('Looks', 'f: FOR b IN SELECT 1 LOOP', '');",
        ]
    );
    let without = parts[0].to_owned() + &rest.concat();
    assert_eq!(without, definition.replace("    -- Why; not how.\n", ""));
}

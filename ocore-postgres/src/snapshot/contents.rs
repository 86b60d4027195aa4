//! What is in a database at one moment: taken with a dump, and compared with what the dump gives back.

use std::collections::BTreeMap;

use ocore_core::port::{Context, Error, Result};

use super::{
    Fingerprint,
    manifest::{Contents, Counters, Extension, Table},
    server::{Argument::Text, Session, column, name},
};

/// Tables whose rows a dump holds: not those of extensions, nor of the server itself. And whether a column is of a type
/// that is hashed as text: one without a hash function, or one (an enum) whose hash is of a number that a dump does not keep.
const TABLES: &str = "SELECT n.nspname::text, c.relname::text, EXISTS (SELECT 1 FROM pg_attribute AS a \
       JOIN pg_type AS t ON t.oid = a.atttypid WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
       AND (t.typnamespace <> 'pg_catalog'::regnamespace OR NOT EXISTS (SELECT 1 FROM pg_opclass AS o \
       JOIN pg_am AS m ON m.oid = o.opcmethod AND m.amname = 'hash' WHERE o.opcdefault \
       AND o.opcintype = CASE t.typname WHEN 'varchar' THEN 'text'::regtype ELSE t.oid END))) \
     FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
     WHERE c.relkind = 'r' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' \
     AND NOT EXISTS (SELECT 1 FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid \
       AND d.deptype = 'e') ORDER BY 1, 2";

/// Every role that owns something, or was granted something, in this database.
const ROLES: &str = "SELECT DISTINCT r.rolname::text FROM pg_shdepend AS s JOIN pg_roles AS r ON r.oid = s.refobjid \
     WHERE s.refclassid = 'pg_authid'::regclass \
     AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1";

const EXTENSIONS: &str = "SELECT e.extname::text, e.extversion::text, n.nspname::text, \
     pg_get_userbyid(n.nspowner)::text FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace \
     WHERE e.extname <> 'plpgsql' ORDER BY 1";

/// What `ALTER FUNCTION` may have changed of an extension's functions, written so that it can be said again.
const FUNCTIONS: &str = "SELECT p.oid::regprocedure::text, \
       concat_ws(' ', CASE p.provolatile WHEN 'i' THEN 'IMMUTABLE' WHEN 's' THEN 'STABLE' ELSE 'VOLATILE' END, \
       'PARALLEL', CASE p.proparallel WHEN 's' THEN 'SAFE' WHEN 'r' THEN 'RESTRICTED' ELSE 'UNSAFE' END, \
       CASE WHEN p.proisstrict THEN 'STRICT' ELSE 'CALLED ON NULL INPUT' END) \
     FROM pg_proc AS p JOIN pg_depend AS d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' \
     JOIN pg_extension AS e ON e.oid = d.refobjid \
     WHERE p.prokind IN ('f', 'w') AND e.extname <> 'plpgsql' ORDER BY 1";

/// Takes stock of the database of a session, in the session's transaction.
pub(super) async fn take_stock(
    session: &mut Session,
    context: &Context,
    fingerprint: Fingerprint,
) -> Result<Contents> {
    let mut contents = Contents { functions: functions(session).await?, ..Contents::default() };
    for row in session.rows(ROLES, &[]).await? {
        contents.roles.push(column(&row, 0)?);
    }
    for row in session.rows(EXTENSIONS, &[]).await? {
        let extension =
            Extension { version: column(&row, 1)?, schema: column(&row, 2)?, schema_owner: column(&row, 3)? };
        contents.extensions.insert(column(&row, 0)?, extension);
    }
    let objects = session.row("SELECT count(*) FROM pg_largeobject_metadata", &[]).await?;
    contents.large_objects = objects.map(|row| column(&row, 0)).transpose()?.unwrap_or(0);
    if fingerprint != Fingerprint::None {
        contents.tables = tables(session, context, fingerprint).await?;
    }
    Ok(contents)
}

/// The functions of extensions, and what may have been changed of them.
pub(super) async fn functions(session: &mut Session) -> Result<BTreeMap<String, String>> {
    let rows = session.rows(FUNCTIONS, &[]).await?;
    rows.iter().map(|row| Ok((column(row, 0)?, column(row, 1)?))).collect()
}

async fn tables(
    session: &mut Session,
    context: &Context,
    fingerprint: Fingerprint,
) -> Result<BTreeMap<String, Table>> {
    let mut tables = BTreeMap::new();
    for row in session.rows(TABLES, &[]).await? {
        if context.is_cancelled() {
            return Err(Error::cancelled());
        }
        let (schema, table, as_text): (String, String, bool) =
            (column(&row, 0)?, column(&row, 1)?, column(&row, 2)?);
        let quoted = format!("{}.{}", name(&schema), name(&table));
        // Types without a hash function are hashed as text.
        let hash = if as_text { "hashtextextended(t::text, 0)" } else { "hash_record_extended(t.*, 0)" };
        let sum = match fingerprint {
            Fingerprint::Rows => format!("coalesce(sum({hash}::numeric), 0)::text"),
            Fingerprint::Counts | Fingerprint::None => "NULL".to_owned(),
        };
        let question = format!("SELECT count(*), {sum} FROM ONLY {quoted} AS t");
        let Some(row) = session.row(&question, &[]).await? else { continue };
        tables.insert(format!("{schema}.{table}"), Table { rows: column(&row, 0)?, hash: column(&row, 1)? });
    }
    Ok(tables)
}

/// How much room the tables take up, without their indexes: about what a dump of them will have.
pub(super) async fn tables_bytes(session: &mut Session) -> Result<u64> {
    let question = "SELECT coalesce(sum(pg_table_size(oid)), 0)::bigint FROM pg_class \
                    WHERE relkind = 'r' AND relnamespace <> 'pg_catalog'::regnamespace";
    let bytes = session.row(question, &[]).await?.map(|row| column::<i64>(&row, 0)).transpose()?;
    Ok(u64::try_from(bytes.unwrap_or(0)).unwrap_or(0))
}

/// What differs between what was dumped and what was restored, in words; nothing if they are equal.
pub(super) fn difference(dumped: &Contents, restored: &Contents) -> Option<String> {
    if dumped.large_objects != restored.large_objects {
        let (before, now) = (dumped.large_objects, restored.large_objects);
        return Some(format!("{now} large objects instead of {before}"));
    }
    let tables = dumped.tables.iter().find_map(|(name, table)| match restored.tables.get(name) {
        None => Some(format!("table {name} is missing")),
        Some(now) if now.rows != table.rows => {
            Some(format!("table {name} has {} rows instead of {}", now.rows, table.rows))
        }
        Some(now) if now.hash != table.hash => Some(format!("table {name} has other values")),
        Some(_) => None,
    });
    let function = || dumped.functions.iter().find(|(name, is)| restored.functions.get(*name) != Some(is));
    tables.or_else(|| function().map(|(name, is)| format!("function {name} of an extension is not {is}")))
}

/// How much has been written to a database so far, by the server's own count. Whoever asks is in another database; the
/// sequences are counted by whoever is in it.
pub(super) async fn counters(session: &mut Session, database: &str, sequences: String) -> Result<Counters> {
    let question = "SELECT (tup_inserted + tup_updated + tup_deleted)::bigint, stats_reset::text \
                    FROM pg_stat_database WHERE datname = $1";
    let row = session.row(question, &[Text(database)]).await?;
    let row = row.ok_or_else(|| Error::transient(format!("database {database} is not there any more")))?;
    Ok(Counters { rows: column(&row, 0)?, reset_at: column(&row, 1)?, sequences })
}

/// A digest of the last values of all sequences of the session's database.
pub(super) async fn sequences(session: &mut Session) -> Result<String> {
    let question = "SELECT coalesce(md5(string_agg(schemaname || '.' || sequencename || '=' || coalesce(last_value, 0), \
                    ' ' ORDER BY schemaname, sequencename)), '') FROM pg_sequences";
    Ok(session.text(question, &[]).await?.unwrap_or_default())
}

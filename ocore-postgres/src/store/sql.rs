//! SQL as it is sent: with the schema's name, and prepared or not.

use sqlx::{
    AssertSqlSafe, FromRow, Postgres, SqlSafeStr as _, SqlStr,
    postgres::{PgArguments, PgRow},
    query::{Query, QueryAs, QueryScalar},
};

/// How statements are written here: every name is in this schema.
const WRITTEN: &str = "ocore.";

/// Longer names are cut by the server, silently.
const NAME_BYTES_MAX: usize = 63;

/// Where the store's tables are, and how they are asked.
#[derive(Debug, Clone)]
pub(super) struct Sql {
    schema: String,
    /// The schema's name as it stands in statements, with its dot, unless it is the usual one.
    prefix: Option<String>,
    prepared: bool,
}

impl Sql {
    /// # Errors
    /// What is wrong with the name.
    pub(super) fn new(schema: &str, prepared: bool) -> Result<Self, String> {
        if schema.is_empty() || schema.len() > NAME_BYTES_MAX || schema.contains('\0') {
            return Err(format!("a schema's name has 1 to {NAME_BYTES_MAX} bytes and no NUL: {schema:?}"));
        }
        let quoted = format!("\"{}\".", schema.replace('"', "\"\""));
        let prefix = (schema != "ocore").then_some(quoted);
        Ok(Self { schema: schema.to_owned(), prefix, prepared })
    }

    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// Whether statements are prepared once per connection and sent by name afterwards.
    pub(super) const fn is_prepared(&self) -> bool {
        self.prepared
    }

    /// A fixed text, in this schema.
    pub(super) fn text(&self, text: &'static str) -> SqlStr {
        match &self.prefix {
            None => text.into_sql_str(),
            // Only the schema's name is put in, and that quoted.
            Some(prefix) => AssertSqlSafe(text.replace(WRITTEN, prefix)).into_sql_str(),
        }
    }

    pub(super) fn query<'q>(&self, text: &'static str) -> Query<'q, Postgres, PgArguments> {
        sqlx::query(self.text(text)).persistent(self.prepared)
    }

    pub(super) fn rows<'q, T>(&self, text: &'static str) -> QueryAs<'q, Postgres, T, PgArguments>
    where
        T: for<'r> FromRow<'r, PgRow>,
    {
        sqlx::query_as(self.text(text)).persistent(self.prepared)
    }

    pub(super) fn scalar<'q, T>(&self, text: &'static str) -> QueryScalar<'q, Postgres, T, PgArguments>
    where
        (T,): for<'r> FromRow<'r, PgRow>,
    {
        sqlx::query_scalar(self.text(text)).persistent(self.prepared)
    }
}

#[cfg(test)]
mod tests {
    use super::Sql;

    #[test]
    fn a_name_is_quoted_and_an_impossible_one_refused() {
        let text = |schema: &str| {
            Sql::new(schema, true).map(|sql| sql.text("SELECT ocore.now()").as_str().to_owned())
        };
        assert_eq!(text("ocore").unwrap(), "SELECT ocore.now()");
        assert_eq!(text("a\"b").unwrap(), "SELECT \"a\"\"b\".now()");
        for impossible in ["", "a\0b", &"x".repeat(64)] {
            assert!(text(impossible).unwrap_err().contains("1 to 63 bytes"));
        }
    }
}

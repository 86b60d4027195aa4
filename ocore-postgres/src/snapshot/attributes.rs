//! What a database is beside its contents: no dump holds it, and a clone does not inherit it.

use ocore_core::port::{Error, Result};
use serde::{Deserialize, Serialize};

use super::server::{Argument::Text, Session, column, literal, name};

/// Everything of a database that is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attributes {
    pub(super) owner: String,
    pub(super) encoding: String,
    pub(super) locale: Locale,
    pub(super) tablespace: String,
    pub(super) is_template: bool,
    pub(super) connection_limit: i32,
    /// `None`: never granted, never revoked.
    pub(super) access: Option<Vec<Grant>>,
    pub(super) comment: Option<String>,
    pub(super) settings: Vec<Setting>,
}

/// By which rules the database sorts and classifies characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Locale {
    /// `c`, `i` (ICU) or `b` (built in).
    pub(super) provider: String,
    pub(super) collate: String,
    pub(super) ctype: String,
    /// The name that ICU or the built-in provider uses.
    pub(super) name: Option<String>,
    pub(super) rules: Option<String>,
    /// Of the library, when the database was made.
    pub(super) version: Option<String>,
}

/// A privilege on the database. The role is `None` for everybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Grant {
    pub(super) role: Option<String>,
    pub(super) privilege: String,
    pub(super) grantable: bool,
}

/// `ALTER DATABASE … SET`, or `ALTER ROLE … IN DATABASE … SET`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Setting {
    pub(super) role: Option<String>,
    pub(super) parameter: String,
    pub(super) value: String,
}

/// Where databases are, unless said otherwise.
const DEFAULT_TABLESPACE: &str = "pg_default";

/// Parameters whose values are lists of names, quoted one by one.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

impl Attributes {
    /// Those of a database, or `None` if it is not there.
    pub(super) async fn read(session: &mut Session, database: &str) -> Result<Option<Self>> {
        // As JSON, because the columns differ from one version of the server to the next.
        let question = "SELECT pg_get_userbyid(datdba)::text, pg_encoding_to_char(encoding)::text, \
                        to_jsonb(d)::text, shobj_description(d.oid, 'pg_database'), \
                        (SELECT spcname::text FROM pg_tablespace AS t WHERE t.oid = d.dattablespace) \
                        FROM pg_database AS d WHERE datname = $1";
        let Some(row) = session.row(question, &[Text(database)]).await? else { return Ok(None) };
        let catalog: Catalog = serde_json::from_str(&column::<String>(&row, 2)?)
            .map_err(|error| Error::permanent(format!("understand pg_database: {error}")))?;
        let access = match catalog.datacl {
            None => None,
            Some(_) => Some(grants(session, database).await?),
        };
        Ok(Some(Self {
            owner: column(&row, 0)?,
            encoding: column(&row, 1)?,
            locale: Locale {
                provider: catalog.datlocprovider.unwrap_or_else(|| "c".to_owned()),
                collate: catalog.datcollate,
                ctype: catalog.datctype,
                name: catalog.datlocale.or(catalog.daticulocale),
                rules: catalog.daticurules,
                version: catalog.datcollversion,
            },
            tablespace: column(&row, 4)?,
            is_template: catalog.datistemplate,
            connection_limit: catalog.datconnlimit,
            access,
            comment: column(&row, 3)?,
            settings: settings(session, database).await?,
        }))
    }

    /// Makes an empty database like it, closed and hidden from those who list databases.
    pub(super) fn create(&self, database: &str, template: &str) -> String {
        let Locale { provider, collate, ctype, name: locale, rules, .. } = &self.locale;
        let mut sql = format!(
            "CREATE DATABASE {} TEMPLATE {} OWNER {} ENCODING {} LC_COLLATE {} LC_CTYPE {} \
             IS_TEMPLATE true ALLOW_CONNECTIONS false",
            name(database),
            name(template),
            name(&self.owner),
            literal(&self.encoding),
            literal(collate),
            literal(ctype),
        );
        // That of the template may be used by everybody, but named by few.
        if self.tablespace != DEFAULT_TABLESPACE {
            sql += &format!(" TABLESPACE {}", name(&self.tablespace));
        }
        let locale = locale.as_deref().unwrap_or_default();
        match provider.as_str() {
            "i" => sql += &format!(" LOCALE_PROVIDER icu ICU_LOCALE {}", literal(locale)),
            "b" => sql += &format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {}", literal(locale)),
            _ => {}
        }
        if let Some(rules) = rules {
            sql += &format!(" ICU_RULES {}", literal(rules));
        }
        sql
    }

    /// Gives a database all of them that can be given later: each statement can be run again.
    pub(super) fn dress(&self, database: &str) -> Vec<String> {
        let database = name(database);
        let mut statements = vec![
            format!("ALTER DATABASE {database} OWNER TO {}", name(&self.owner)),
            format!(
                "ALTER DATABASE {database} WITH CONNECTION LIMIT {} IS_TEMPLATE {}",
                self.connection_limit, self.is_template
            ),
            format!(
                "COMMENT ON DATABASE {database} IS {}",
                self.comment.as_deref().map_or("NULL".into(), literal)
            ),
            format!("ALTER DATABASE {database} RESET ALL"),
        ];
        statements.extend(self.access_statements(&database));
        statements.extend(self.settings.iter().map(|setting| setting.statement(&database)));
        statements
    }

    fn access_statements(&self, database: &str) -> Vec<String> {
        let owner = name(&self.owner);
        let Some(grants) = &self.access else {
            return vec![
                format!("GRANT CONNECT, TEMPORARY ON DATABASE {database} TO PUBLIC"),
                format!("GRANT ALL ON DATABASE {database} TO {owner}"),
            ];
        };
        let mut statements = vec![
            format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC"),
            format!("REVOKE ALL ON DATABASE {database} FROM {owner}"),
        ];
        statements.extend(grants.iter().map(|grant| {
            let Grant { role, privilege, grantable } = grant;
            let to = role.as_deref().map_or("PUBLIC".into(), name);
            let option = if *grantable { " WITH GRANT OPTION" } else { "" };
            format!("GRANT {privilege} ON DATABASE {database} TO {to}{option}")
        }));
        statements
    }

    /// Every role that they name.
    pub(super) fn roles(&self) -> impl Iterator<Item = &String> {
        let granted = self.access.iter().flatten().filter_map(|grant| grant.role.as_ref());
        let set = self.settings.iter().filter_map(|setting| setting.role.as_ref());
        std::iter::once(&self.owner).chain(granted).chain(set)
    }
}

impl Setting {
    fn statement(&self, database: &str) -> String {
        let Self { role, parameter, value } = self;
        let parameter: Vec<_> = parameter.split('.').map(name).collect();
        let value = if LISTS.contains(&self.parameter.as_str()) { list(value) } else { literal(value) };
        let who = match role {
            Some(role) => format!("ROLE {} IN DATABASE {database}", name(role)),
            None => format!("DATABASE {database}"),
        };
        format!("ALTER {who} SET {} TO {value}", parameter.join("."))
    }
}

/// A list of names as it is stored, `"$user", public`, each name quoted for SQL.
fn list(value: &str) -> String {
    let mut names = vec![String::new()];
    let mut quoted = false;
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        let last = names.last_mut().expect("there is always one");
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                last.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(String::new()),
            ' ' if !quoted => {}
            other => last.push(other),
        }
    }
    let names: Vec<_> = names.iter().map(|name| literal(name)).collect();
    names.join(", ")
}

#[derive(Deserialize)]
struct Catalog {
    datcollate: String,
    datctype: String,
    datistemplate: bool,
    datconnlimit: i32,
    datacl: Option<serde_json::Value>,
    datlocprovider: Option<String>,
    daticulocale: Option<String>,
    datlocale: Option<String>,
    daticurules: Option<String>,
    datcollversion: Option<String>,
}

async fn grants(session: &mut Session, database: &str) -> Result<Vec<Grant>> {
    let question = "SELECT CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END, \
                    a.privilege_type::text, a.is_grantable FROM pg_database AS d, aclexplode(d.datacl) AS a \
                    WHERE d.datname = $1 ORDER BY 1 NULLS FIRST, 2";
    let rows = session.rows(question, &[Text(database)]).await?;
    let grants = rows.iter().map(|row| {
        Ok(Grant { role: column(row, 0)?, privilege: column(row, 1)?, grantable: column(row, 2)? })
    });
    grants.collect()
}

async fn settings(session: &mut Session, database: &str) -> Result<Vec<Setting>> {
    let question = "SELECT CASE WHEN s.setrole <> 0 THEN pg_get_userbyid(s.setrole)::text END, \
                    split_part(c.entry, '=', 1), substr(c.entry, strpos(c.entry, '=') + 1) \
                    FROM pg_database AS d JOIN pg_db_role_setting AS s ON s.setdatabase = d.oid, \
                    unnest(s.setconfig) WITH ORDINALITY AS c (entry, place) \
                    WHERE d.datname = $1 ORDER BY 1 NULLS FIRST, c.place";
    let rows = session.rows(question, &[Text(database)]).await?;
    let settings = rows
        .iter()
        .map(|row| Ok(Setting { role: column(row, 0)?, parameter: column(row, 1)?, value: column(row, 2)? }));
    settings.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_quoted_name_by_name() {
        assert_eq!(list(r#""$user", public"#), "'$user', 'public'");
        assert_eq!(list(r#""a,b""c", d'e"#), r#"'a,b"c', 'd''e'"#);
        let setting = Setting { role: None, parameter: "a.b".into(), value: "x, y".into() };
        assert_eq!(setting.statement("d"), r#"ALTER DATABASE d SET "a"."b" TO 'x, y'"#);
    }
}

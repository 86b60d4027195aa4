use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::Result;

/// Who is in a new store.
pub const FIRST_ROWS: [&str; 2] = ["Ada Lovelace", "Alan Turing"];

/// The application's data: one file per row, and the schema that all of them have.
///
/// A migration rewrites row by row, so that one that is killed leaves data that no release can work with: it is the
/// engine that must put it back. Every row knows its own schema, so that a migration which is run on such data, or
/// twice, fails.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// The store in this directory.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The schema of the data; `None` if there is none yet.
    ///
    /// # Errors
    /// The directory cannot be read, or somebody else has written to it.
    pub fn schema(&self) -> Result<Option<u32>> {
        let text = self.read("schema")?;
        let parsed = text.map(|text| text.trim().parse()).transpose();
        parsed.map_err(|error| format!("the file schema: {error}").into())
    }

    /// Every row, in the order of their numbers.
    ///
    /// # Errors
    /// The directory cannot be read, or somebody else has written to it.
    pub fn rows(&self) -> Result<Vec<Value>> {
        self.row_files()?.iter().map(|path| read_row(path).map(Value::Object)).collect()
    }

    /// Adds a person.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn add(&self, name: &str) -> Result<()> {
        let schema = self.schema()?.ok_or("there is no data yet")?;
        let mut row = first_row(name);
        (1..schema).try_for_each(|from| raise(&mut row, from))?;
        let number = self.row_files()?.len() + 1;
        self.write(&format!("rows/{number:06}.json"), &Value::Object(row).to_string())
    }

    /// Brings the data to `schema`, from the one that it has; makes it if there is none. `pause` is called before
    /// each row. Returns the schema that the data had.
    ///
    /// # Errors
    /// The data is of a newer schema, or a migration before has not ended.
    pub fn migrate(&self, schema: u32, deployment: &str, pause: impl Fn()) -> Result<u32> {
        fs::create_dir_all(self.directory.join("rows"))?;
        let found = self.schema()?;
        if found.is_none() {
            for (index, name) in FIRST_ROWS.iter().enumerate() {
                let row = Value::Object(first_row(name));
                self.write(&format!("rows/{:06}.json", index + 1), &row.to_string())?;
            }
        }
        let from = found.unwrap_or(1);
        if from > schema {
            return Err(format!("the data has schema {from}; it cannot go back to {schema}").into());
        }
        for next in from..schema {
            for path in self.row_files()? {
                pause();
                let mut row = read_row(&path)?;
                raise(&mut row, next).map_err(|error| format!("{}: {error}", path.display()))?;
                replace(&path, &Value::Object(row).to_string())?;
            }
        }
        if found != Some(schema) {
            self.append("migrations", &format!("{} to {schema} by {deployment}", found.unwrap_or(0)))?;
            self.write("schema", &schema.to_string())?;
        }
        Ok(found.unwrap_or(0))
    }

    /// Notes in the data itself that a release serves: what a release that is undone has written must be gone.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn note_release(&self, deployment: &str) -> Result<()> {
        if self.releases()?.iter().any(|known| known == deployment) {
            return Ok(());
        }
        self.append("releases", deployment)
    }

    /// The deployments that have ever served this data, in their order.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn releases(&self) -> Result<Vec<String>> {
        self.lines("releases")
    }

    /// The migrations of this data, one line each: `FROM to TO by DEPLOYMENT`.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn migrations(&self) -> Result<Vec<String>> {
        self.lines("migrations")
    }

    fn lines(&self, name: &str) -> Result<Vec<String>> {
        Ok(self.read(name)?.unwrap_or_default().lines().map(str::to_owned).collect())
    }

    fn append(&self, name: &str, line: &str) -> Result<()> {
        let text = self.read(name)?.unwrap_or_default();
        self.write(name, &format!("{text}{line}\n"))
    }

    fn read(&self, name: &str) -> Result<Option<String>> {
        match fs::read_to_string(self.directory.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            read => read.map(Some).map_err(|error| format!("read {name}: {error}").into()),
        }
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        replace(&self.directory.join(name), text)
    }

    fn row_files(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(self.directory.join("rows"))?.collect::<Result<Vec<_>, _>>()?;
        let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        paths.sort();
        Ok(paths)
    }
}

/// Writes beside and renames: a reader sees the old text or the new.
fn replace(path: &Path, text: &str) -> Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(fs::rename(&beside, path)?)
}

fn read_row(path: &Path) -> Result<Map<String, Value>> {
    let text = fs::read_to_string(path)?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()).into())
}

/// A person in schema 1: the whole name in one field.
fn first_row(name: &str) -> Map<String, Value> {
    Map::from_iter([("schema".to_owned(), json!(1)), ("name".to_owned(), json!(name))])
}

/// Schema 2 splits the name, schema 3 adds a greeting, and each later one a field of its own.
fn raise(row: &mut Map<String, Value>, from: u32) -> Result<()> {
    if row.get("schema") != Some(&json!(from)) {
        return Err(format!("the row is not of schema {from}: a migration before was broken off").into());
    }
    match from {
        1 => {
            let name = row.remove("name").ok_or("the row has no name")?;
            let name = name.as_str().unwrap_or_default();
            let (first, last) = name.rsplit_once(' ').unwrap_or(("", name));
            row.insert("first".to_owned(), json!(first));
            row.insert("last".to_owned(), json!(last));
        }
        2 => {
            let greeting = format!("Dear {}", row["first"].as_str().unwrap_or_default());
            row.insert("greeting".to_owned(), json!(greeting));
        }
        _ => {
            row.insert(format!("field_{}", from + 1), json!(true));
        }
    }
    row.insert("schema".to_owned(), json!(from + 1));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_rewrites_every_row_and_is_noted() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        assert_eq!(store.migrate(1, "a", || ()).unwrap(), 0);
        store.add("Grace Hopper").unwrap();
        assert_eq!(store.migrate(3, "b", || ()).unwrap(), 1);
        assert_eq!(store.schema().unwrap(), Some(3));
        let hopper = json!({"schema": 3, "first": "Grace", "last": "Hopper", "greeting": "Dear Grace"});
        assert_eq!(store.rows().unwrap()[2], hopper);
        assert_eq!(store.migrations().unwrap(), ["0 to 1 by a", "1 to 3 by b"]);
        let error = store.migrate(2, "c", || ()).unwrap_err().to_string();
        assert!(error.contains("cannot go back"), "{error}");
    }

    #[test]
    fn data_that_was_left_half_migrated_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        store.migrate(1, "a", || ()).unwrap();
        store.migrate(2, "b", || ()).unwrap();
        fs::write(directory.path().join("schema"), "1").unwrap();
        let error = store.migrate(2, "c", || ()).unwrap_err().to_string();
        assert!(error.contains("broken off"), "{error}");
    }
}

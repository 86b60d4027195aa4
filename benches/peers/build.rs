//! Two of the peers ask their users to run the migrations that lie in their packages: they are read from there.

use std::{env, fs, path::Path, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=Cargo.lock");
    let cargo = env::var_os("CARGO").expect("cargo says where it is");
    let metadata = Command::new(cargo)
        .args(["metadata", "--locked", "--format-version", "1"])
        .output()
        .expect("cargo can be run");
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).expect("it is JSON");
    let out = env::var("OUT_DIR").expect("cargo says where to");
    for (package, folder) in [("sqlxmq", "migrations"), ("fang", "postgres_migrations/migrations")] {
        let packages = metadata["packages"].as_array().expect("there are packages");
        let package = packages.iter().find(|one| one["name"] == package).expect("it is a dependency");
        let manifest = Path::new(package["manifest_path"].as_str().expect("it is a path"));
        let sql = migrations(&manifest.with_file_name("").join(folder));
        let name = package["name"].as_str().expect("it is a name");
        fs::write(Path::new(&out).join(format!("{name}.sql")), sql).expect("it can be written");
    }
}

/// Everything that leads up, in the order of the names.
fn migrations(folder: &Path) -> String {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .expect("the package has it")
        .map(|entry| entry.expect("it is there").path())
        .collect();
    entries.sort();
    let mut sql = String::new();
    for entry in entries {
        let file = if entry.is_dir() { entry.join("up.sql") } else { entry };
        let name = file.file_name().expect("a file has a name").to_string_lossy().into_owned();
        if name == "up.sql" || name.ends_with(".up.sql") {
            sql.push_str(&fs::read_to_string(&file).expect("it can be read"));
            sql.push('\n');
        }
    }
    sql
}

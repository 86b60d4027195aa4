use std::path::PathBuf;

use super::{
    super::attributes::{Grant, Locale, Setting},
    *,
};

/// A manifest with a value in every place.
fn full() -> Manifest {
    let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let attributes = Attributes {
        owner: "odoo".into(),
        encoding: "UTF8".into(),
        locale: Locale {
            provider: "i".into(),
            collate: "C.UTF-8".into(),
            ctype: "C.UTF-8".into(),
            name: Some("und-x-icu".into()),
            rules: None,
            version: Some("153.120".into()),
        },
        tablespace: "pg_default".into(),
        is_template: false,
        connection_limit: 33,
        access: Some(vec![Grant { role: None, privilege: "TEMPORARY".into(), grantable: false }]),
        comment: Some("the shop".into()),
        settings: vec![Setting {
            role: Some("odoo".into()),
            parameter: "work_mem".into(),
            value: "8MB".into(),
        }],
    };
    let extension = Extension { version: "1.1".into(), schema: "public".into(), schema_owner: "odoo".into() };
    let dump = Dumped {
        file: "database.dump.zst".into(),
        format: "custom+zstd".into(),
        raw_bytes: 300,
        stored_bytes: 100,
        blake3: "af".repeat(32),
        entries: 7,
        pg_dump: "15.18".into(),
        pg_restore: "15.18".into(),
        duration_ms: 12,
        contents: Contents {
            roles: vec!["odoo".into()],
            extensions: [("unaccent".into(), extension)].into(),
            functions: [("public.unaccent(text)".into(), "IMMUTABLE PARALLEL SAFE STRICT".into())].into(),
            large_objects: 2,
            tables: [("public.sale".into(), Table { rows: 3, hash: Some("-5".into()) })].into(),
        },
        verified: Verified { level: 2, at },
    };
    let copied = Copied {
        source: Source { database: "shop".into(), oid: 16384, server: "15.18".into(), size_bytes: 7_000_000 },
        attributes,
        counters: Counters { rows: 9, reset_at: None, sequences: "d41d8cd98f00b204".into() },
        strategy: "clone_then_dump".into(),
        because: "configured".into(),
        clone: Some(Cloned { database: "shop__ocs_1".into(), oid: 16385, duration_ms: 600 }),
        dump: Some(dump),
    };
    Manifest {
        version: VERSION,
        reference: "00000000-0000-0000-0000-00000000002a-web-7".into(),
        deployment: DeploymentId::from_u128(42),
        instance: InstanceName::new("web").unwrap(),
        taken_at: at,
        data: Held::Database(Box::new(copied)),
    }
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/manifest-v{VERSION}/{name}.json"))
}

/// Snapshots are older than the program that restores them: the files stay for ever, and a new form has a new version.
#[test]
fn manifests_that_an_older_ocore_wrote_are_read() {
    for (name, data) in [("database", full().data), ("absent", Held::Absent), ("unmanaged", Held::Unmanaged)]
    {
        let (path, manifest) = (golden(name), Manifest { data, ..full() });
        if std::env::var_os("OCORE_BLESS").is_some() && !path.exists() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, manifest.seal().unwrap()).unwrap();
        }
        let stored = fs::read(&path).unwrap();
        assert_eq!(Manifest::open(&stored).unwrap(), manifest, "{name}");
        assert_eq!(
            manifest.seal().unwrap(),
            stored,
            "{name}: this would be another form under the same version"
        );
    }
}

#[test]
fn a_changed_manifest_is_refused() {
    let text = String::from_utf8(full().seal().unwrap()).unwrap();
    let check = |from: &str, to: &str, expected: &str| {
        assert!(text.contains(from));
        let error = Manifest::open(text.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("\"raw_bytes\": 300", "\"raw_bytes\": 301", "its checksum is another one");
    check("\"manifest\"", "\"manifes\"", "the manifest is corrupt");
    check("{", "", "the manifest is corrupt");
    let newer = Manifest { version: VERSION + 1, ..full() }.seal().unwrap();
    assert!(Manifest::open(&newer).unwrap_err().to_string().contains("use a newer ocore"));
}

#[test]
fn a_snapshot_of_nothing_has_no_size() {
    assert_eq!(full().size_bytes(), 7_000_100);
    assert_eq!(full().without_clone().size_bytes(), 100);
    assert_eq!(Manifest { data: Held::Absent, ..full() }.size_bytes(), 0);
}

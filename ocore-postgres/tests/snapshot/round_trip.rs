//! What a restore gives back is what there was: two dumps of a database with everything in it are equal.

use std::process::Command;

use ocore_core::{event::Unit, port::Snapshotter as _, secret::Secret};
use ocore_postgres::snapshot::{Fingerprint, PostgresSnapshotter, Strategy};
use sqlx::{AssertSqlSafe, Executor as _};

use crate::site::{PASSWORD, Site};

/// Everything that a plain role can make in a database of its own.
pub(crate) const EVERYTHING: &str = r#"
    CREATE SCHEMA "Odd Name";
    CREATE EXTENSION unaccent;
    CREATE EXTENSION pg_trgm SCHEMA "Odd Name";
    CREATE EXTENSION hstore;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE COLLATION german (provider = icu, locale = 'de-u-co-phonebk');
    CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE SEQUENCE counter INCREMENT 7 START 100 CACHE 3;
    SELECT nextval('counter'), nextval('counter');
    CREATE TABLE partner (
        id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text COLLATE german NOT NULL,
        tag text COLLATE caseless UNIQUE,
        mood mood DEFAULT 'ok',
        size positive,
        pair pair,
        attributes hstore,
        document json,
        binary_document jsonb,
        spot point,
        picture bytea,
        amount numeric(12, 3),
        ratio double precision,
        lower_name text GENERATED ALWAYS AS (lower(name)) STORED,
        words text[],
        written timestamptz NOT NULL DEFAULT '2024-02-29 12:00+00'
    );
    COMMENT ON TABLE partner IS 'who we know; it''s "quoted"';
    COMMENT ON COLUMN partner.name IS 'line one
line two';
    INSERT INTO partner (name, tag, mood, size, pair, attributes, document, binary_document, spot, picture, amount, ratio, words)
        SELECT 'Ärger ' || n, 'T' || n, (ARRAY['sad', 'ok', 'happy'])[1 + n % 3]::mood, n + 1, ROW(n, 'x')::pair,
            hstore('k', n::text), json_build_object('n', n), jsonb_build_object('n', n), point(n, -n),
            decode(md5(n::text), 'hex'), n / 7.0, sqrt(n), ARRAY['a', NULL, 'b,c']
        FROM generate_series(0, 999) AS n;
    CREATE TABLE sale (
        id bigint, day date NOT NULL, partner_id int REFERENCES partner ON DELETE CASCADE, total numeric,
        PRIMARY KEY (id, day)
    ) PARTITION BY RANGE (day);
    CREATE TABLE sale_2023 PARTITION OF sale FOR VALUES FROM ('2023-01-01') TO ('2024-01-01');
    CREATE TABLE sale_rest PARTITION OF sale DEFAULT PARTITION BY HASH (day);
    CREATE TABLE sale_rest_0 PARTITION OF sale_rest FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE sale_rest_1 PARTITION OF sale_rest FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    INSERT INTO sale SELECT n, '2023-06-01'::date + n, 1 + n % 1000, n FROM generate_series(1, 700) AS n;
    CREATE INDEX partner_words ON partner USING gin (words);
    CREATE INDEX partner_name_trgm ON partner USING gist (name "Odd Name".gist_trgm_ops);
    CREATE INDEX partner_partial ON partner (lower_name) INCLUDE (amount) WHERE size > 10;
    CREATE STATISTICS partner_stats (dependencies) ON mood, size FROM partner;
    CREATE VIEW rich AS SELECT id, name, amount FROM partner WHERE amount > 10;
    CREATE VIEW richest WITH (security_barrier) AS SELECT * FROM rich WHERE amount > 100;
    CREATE MATERIALIZED VIEW totals AS SELECT partner_id, sum(total) AS total FROM sale GROUP BY 1;
    CREATE UNIQUE INDEX totals_partner ON totals (partner_id);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.written := now(); RETURN NEW; END $$;
    CREATE TRIGGER partner_note BEFORE UPDATE ON partner FOR EACH ROW EXECUTE FUNCTION note();
    ALTER TABLE partner DISABLE TRIGGER partner_note;
    CREATE RULE no_delete AS ON DELETE TO rich DO INSTEAD NOTHING;
    CREATE TABLE secret (owner name, value text);
    ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON secret USING (owner = current_user);
    INSERT INTO secret VALUES ('somebody', 'x'), ('else', 'y');
    CREATE UNLOGGED TABLE session (id int, data json);
    INSERT INTO session VALUES (1, '{"a": 1}');
    CREATE TABLE "Weird ""Table""" ("Column ; --" int DEFAULT nextval('counter'));
    INSERT INTO "Weird ""Table""" DEFAULT VALUES;
    ALTER TABLE "Weird ""Table""" ADD gone int;
    ALTER TABLE "Weird ""Table""" DROP gone;
    ALTER DEFAULT PRIVILEGES IN SCHEMA "Odd Name" GRANT SELECT ON TABLES TO PUBLIC;
    GRANT SELECT (id, name) ON partner TO PUBLIC;
    SELECT lo_from_bytea(0, decode('00ff', 'hex')), lo_from_bytea(0, convert_to(repeat('large', 100000), 'UTF8'));
    CREATE PROCEDURE tidy() LANGUAGE sql AS 'DELETE FROM session';
    CREATE AGGREGATE joined (text) (sfunc = textcat, stype = text, initcond = '');
    CREATE OPERATOR === (leftarg = int, rightarg = int, function = int4eq, commutator = ===);
"#;

/// A plain `pg_dump` of a database, without what is different in every one.
pub(crate) fn dumped(site: &Site, database: &str) -> String {
    let output = Command::new(ocore_test_postgres::find("pg_dump").unwrap())
        .env("PGPASSWORD", PASSWORD)
        .args(["-h", site.superuser.get_host(), "-p", &site.superuser.get_port().to_string()])
        .args(["-U", &site.role, "-w", database])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines =
        text.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Everything that this server can do: some are built without ICU.
pub(crate) async fn everything(site: &Site) -> String {
    let icu =
        site.one("postgres", "SELECT count(*)::text FROM pg_collation WHERE collname = 'de-x-icu'").await;
    if icu != "0" {
        return EVERYTHING.to_owned();
    }
    let lines = EVERYTHING.lines().map(|line| match line.split_once(" (provider = icu") {
        Some((collation, _)) => format!("{collation} FROM \"C\";"),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

async fn check(strategy: Strategy) {
    let site = Site::with(|it| it.strategy(strategy).fingerprint(Fingerprint::Rows)).await;
    site.sql(&everything(&site).await).await;
    let before = dumped(&site, &site.database);
    assert!(before.contains("CREATE POLICY") && before.lines().count() > 2300, "{}", before.lines().count());
    let snapshot = site.take().await;
    // What a migration does: new tables that refer to old ones, other values, things that are gone.
    site.sql(
        "CREATE TABLE added (partner_id int REFERENCES partner); INSERT INTO added SELECT id FROM partner; \
         UPDATE partner SET name = 'new', document = NULL; DROP TABLE sale CASCADE; DROP VIEW richest; \
         SELECT lo_unlink(oid) FROM pg_largeobject_metadata; DROP TABLE secret; SELECT nextval('counter')",
    )
    .await;
    assert_ne!(dumped(&site, &site.database), before);
    site.restore(&snapshot).await;
    let after = dumped(&site, &site.database);
    let difference = before.lines().zip(after.lines()).find(|(before, after)| before != after);
    assert_eq!(difference, None);
    assert_eq!(before.lines().count(), after.lines().count());
}

#[tokio::test]
async fn a_dump_gives_back_everything() {
    check(Strategy::Dump).await;
}

#[tokio::test]
async fn a_clone_gives_back_everything() {
    check(Strategy::Clone).await;
}

#[tokio::test]
async fn five_hundred_tables_come_back() {
    let site = Site::with(|it| it.strategy(Strategy::Dump).fingerprint(Fingerprint::Rows)).await;
    let tables: String = (0..500)
        .map(|n| {
            let to = if n > 0 { format!("REFERENCES t{}", n - 1) } else { String::new() };
            format!(
                "CREATE TABLE t{n} (id int PRIMARY KEY {to}, data json); \
                 INSERT INTO t{n} SELECT i, '{{\"a\": 1}}' FROM generate_series(1, {}) AS i; ",
                600 - n
            )
        })
        .collect();
    site.sql(&tables).await;
    let before = dumped(&site, &site.database);
    let snapshot = site.take().await;
    assert_eq!(
        site.manifest(&snapshot)["data"]["database"]["dump"]["contents"]["tables"].as_object().unwrap().len(),
        500
    );
    site.sql("DELETE FROM t499; DROP TABLE t0 CASCADE").await;
    site.restore(&snapshot).await;
    assert!(dumped(&site, &site.database) == before, "something is different");
}

/// Odoo makes `unaccent` IMMUTABLE and uses it in indexes. No dump holds that.
#[tokio::test]
async fn an_immutable_unaccent_survives() {
    let site = Site::with(|it| it.strategy(Strategy::Dump)).await;
    let (role, database) = (&site.role, &site.database);
    site.sql("CREATE EXTENSION unaccent; CREATE EXTENSION pg_trgm; CREATE TABLE partner (name text)").await;
    for function in ["unaccent(text)", "unaccent(regdictionary, text)"] {
        site.as_superuser_in(database, &format!("ALTER FUNCTION {function} OWNER TO {role}")).await;
    }
    let indexed = "ALTER FUNCTION unaccent(text) IMMUTABLE; INSERT INTO partner VALUES ('Ärger'); \
                   CREATE INDEX partner_name ON partner USING gin (unaccent(name) gin_trgm_ops)";
    site.sql(indexed).await;
    // Here the functions of a new extension belong to the superuser who made the server: nobody else can alter them. A
    // template in which they are altered is what a platform prepares.
    let template = format!("template_{database}");
    site.as_superuser(&format!("CREATE DATABASE {template} TEMPLATE template0")).await;
    let prepared =
        "CREATE EXTENSION unaccent; CREATE EXTENSION pg_trgm; ALTER FUNCTION unaccent(text) IMMUTABLE";
    site.as_superuser_in(&template, prepared).await;
    site.as_superuser(&format!("ALTER DATABASE {template} IS_TEMPLATE true")).await;
    let options = site.superuser.clone().username(role).password(PASSWORD).database(&site.maintenance);
    let with_template = PostgresSnapshotter::builder(options, Secret::new(PASSWORD), site.snapshots())
        .strategy(Strategy::Dump)
        .template(&template)
        .build();
    let (caller, instance) = (site.caller(), site.caller().instance().clone());
    let refused = site.snapshotter.take(&caller.call(1, 1), &instance).await.unwrap_err();
    let snapshot = with_template.take(&caller.call(1, 2), &instance).await.unwrap();
    site.sql("DROP TABLE partner").await;
    with_template.restore(&caller.call(1, 3), &instance, &snapshot).await.unwrap();
    assert!(
        refused.to_string().contains("unaccent") && refused.to_string().contains("template"),
        "{refused}"
    );
    let volatility = site
        .one(database, "SELECT provolatile::text FROM pg_proc WHERE oid = 'unaccent(text)'::regprocedure")
        .await;
    assert_eq!(volatility, "i");
    let indexes = site
        .one(
            database,
            "SELECT count(*)::text FROM pg_index WHERE indexrelid = 'partner_name'::regclass AND indisvalid",
        )
        .await;
    assert_eq!(indexes, "1");
    site.as_superuser(&format!("ALTER DATABASE {template} IS_TEMPLATE false")).await;
    site.as_superuser(&format!("DROP DATABASE {template}")).await;
}

/// A superuser may repeat what was altered, without a template.
#[tokio::test]
async fn a_superuser_needs_no_template_for_an_immutable_unaccent() {
    let site = Site::with(|it| it.strategy(Strategy::Dump)).await;
    site.as_superuser(&format!("ALTER ROLE {} SUPERUSER", site.role)).await;
    site.sql(
        "CREATE EXTENSION unaccent; ALTER FUNCTION unaccent(text) IMMUTABLE; CREATE TABLE partner (name text); \
         CREATE INDEX partner_name ON partner (unaccent(name))",
    )
    .await;
    let snapshot = site.take().await;
    site.sql("DROP TABLE partner").await;
    site.restore(&snapshot).await;
    let mut session = site.connect(&site.database).await;
    session
        .execute(AssertSqlSafe("INSERT INTO partner VALUES ('ß'); REINDEX INDEX partner_name"))
        .await
        .unwrap();
    drop(session);
    site.as_superuser(&format!("ALTER ROLE {} NOSUPERUSER", site.role)).await;
}

/// H5: a dump computes materialized views anew, a clone copies them as they are; rows of unlogged tables are in both. A
/// fingerprint that compared views would refuse a good restore.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_was_stale_is_fresh_after_a_dump_and_stale_after_a_clone() {
    for (strategy, rows) in [(Strategy::Dump, "11"), (Strategy::Clone, "10")] {
        let site = Site::with(|it| it.strategy(strategy).fingerprint(Fingerprint::Rows)).await;
        site.sql(
            "CREATE TABLE t AS SELECT n FROM generate_series(1, 10) AS n; \
             CREATE MATERIALIZED VIEW v AS SELECT * FROM t; INSERT INTO t VALUES (11); \
             CREATE UNLOGGED TABLE u AS SELECT * FROM t",
        )
        .await;
        let snapshot = site.take().await;
        site.sql("DROP MATERIALIZED VIEW v; TRUNCATE t, u").await;
        site.restore(&snapshot).await;
        for (relation, rows) in [("t", "11"), ("u", "11"), ("v", rows)] {
            let count = format!("SELECT count(*)::text FROM {relation}");
            assert_eq!(site.one(&site.database, &count).await, rows, "{relation} of {strategy:?}");
        }
    }
}

/// H16: how far it is, is seen of the dump, of its verification, of the data that is restored, and of the indexes.
#[tokio::test(flavor = "multi_thread")]
async fn progress_is_shown_in_bytes_and_in_indexes() {
    let site = Site::with(|it| it.strategy(Strategy::Dump)).await;
    site.sql(
        "DO $$ BEGIN FOR n IN 1..120 LOOP EXECUTE format('CREATE TABLE t%s AS SELECT i AS id, i AS a, md5(i::text) AS b \
         FROM generate_series(1, 5000) AS i; ALTER TABLE t%s ADD PRIMARY KEY (id); CREATE INDEX ON t%s (b, a)', n, n, n); \
         END LOOP; END $$",
    )
    .await;
    let caller = site.caller();
    let snapshot = site.snapshotter.take(&caller.call(1, 1), caller.instance()).await.unwrap();
    site.snapshotter.restore(&caller.call(2, 2), caller.instance(), &snapshot).await.unwrap();
    let progress = caller.progress();
    for (what, unit) in [
        ("dumping", Unit::Bytes),
        ("restoring", Unit::Bytes),
        ("building indexes and constraints", Unit::Items),
    ] {
        let shown: Vec<_> = progress.iter().filter(|it| it.what == what).collect();
        assert!(!shown.is_empty(), "{what}: {progress:?}");
        assert!(shown.iter().all(|it| it.unit == unit && it.done <= it.total.unwrap()), "{shown:?}");
        assert!(shown.is_sorted_by_key(|it| it.done), "{shown:?}");
    }
    let indexes = progress.iter().filter(|it| it.unit == Unit::Items).map(|it| it.total.unwrap()).max();
    assert_eq!(indexes, Some(240));
}

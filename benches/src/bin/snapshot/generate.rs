//! Databases like Odoo's: very many small tables, and in the large one a few that hold nearly everything.

/// Small tables that refer to each other, of six files each.
fn small_tables(count: u32) -> String {
    format!(
        "DO $$ BEGIN FOR n IN 1..{count} LOOP
             EXECUTE format('CREATE TABLE model_%s (id serial PRIMARY KEY, name text NOT NULL, parent int, \
                 amount numeric(12, 2), written timestamptz NOT NULL DEFAULT now())', n);
             EXECUTE format('INSERT INTO model_%s (name, parent, amount) SELECT md5(%s || i::text) || md5(%s || (i * 7)::text) || \
                 md5(%s || (i * 13)::text), 1 + i %% 40, i / 3.0 FROM generate_series(1, 40) AS i', n, n, n, n);
             EXECUTE format('CREATE INDEX ON model_%s (name)', n);
             IF n > 1 THEN
                 EXECUTE format('ALTER TABLE model_%s ADD FOREIGN KEY (parent) REFERENCES model_%s', n, n - 1);
             END IF;
         END LOOP; END $$;"
    )
}

/// 460 tables, of which one has most of the text: 56 MB.
pub(crate) fn small() -> Vec<String> {
    vec![
        small_tables(459),
        "CREATE TABLE ir_ui_view (id int PRIMARY KEY, name text, arch text)".to_owned(),
        "INSERT INTO ir_ui_view SELECT i, 'view ' || i, (SELECT string_agg('<field name=\"' || md5((i * 31 + k)::text) || \
         '\" invisible=\"1\"/>', '') FROM generate_series(1, 60) AS k) FROM generate_series(1, 4000) AS i"
            .to_owned(),
        "CREATE TABLE marker AS SELECT 'before' AS value".to_owned(),
        "ANALYZE".to_owned(),
    ]
}

/// 510 tables, 2 GB at a scale of 1: attachments of which most cannot be compressed, messages, and accounting.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "numbers of rows")]
pub(crate) fn large(scale: f64) -> Vec<String> {
    let rows = |full: f64| (full * scale) as u64;
    let (attachments, messages, lines) = (rows(11_000.0), rows(240_000.0), rows(1_400_000.0));
    vec![
        small_tables(505),
        "CREATE TABLE marker AS SELECT 'before' AS value".to_owned(),
        // Random blocks that come again only after more than a compressor remembers.
        "CREATE TEMP TABLE block AS SELECT n, (SELECT string_agg(decode(md5(random()::text || i || n), 'hex'), '') \
         FROM generate_series(1, 4300) AS i) AS bytes FROM generate_series(0, 199) AS n"
            .to_owned(),
        "CREATE TABLE ir_attachment (id int PRIMARY KEY, name text, data bytea)".to_owned(),
        format!(
            "INSERT INTO ir_attachment SELECT i, 'file ' || i, CASE WHEN i % 5 < 3 THEN b.bytes \
             ELSE convert_to(substr(encode(b.bytes, 'hex'), 1 + i % 97, 68000), 'UTF8') END \
             FROM generate_series(1, {attachments}) AS i JOIN block AS b ON b.n = i % 200 ORDER BY i"
        ),
        "CREATE TABLE mail_message (id int PRIMARY KEY, model text, res_id int, body text)".to_owned(),
        format!(
            "INSERT INTO mail_message SELECT i, 'model_' || i % 500, i % 10000, '<p>' || (SELECT string_agg(\
             md5((i * 31 + k)::text) || ' is what they wrote about the order and the invoice ', '') \
             FROM generate_series(1, 20) AS k) || '</p>' FROM generate_series(1, {messages}) AS i"
        ),
        "CREATE INDEX ON mail_message (model, res_id)".to_owned(),
        "CREATE TABLE account_move (id int PRIMARY KEY, name text, day date)".to_owned(),
        format!(
            "INSERT INTO account_move SELECT i, 'INV/' || i, '2020-01-01'::date + i % 1500 \
             FROM generate_series(1, {lines} / 10 + 1) AS i"
        ),
        "CREATE TABLE account_move_line (id int PRIMARY KEY, move int NOT NULL REFERENCES account_move, account int, \
         partner int, name text, debit numeric, credit numeric, day date, state text)"
            .to_owned(),
        format!(
            "INSERT INTO account_move_line SELECT i, 1 + i / 10, i % 600, i % 20000, 'line ' || i || ' of ' || i / 10, \
             i % 1000, i % 777, '2020-01-01'::date + i % 1500, CASE i % 9 WHEN 0 THEN 'draft' ELSE 'posted' END \
             FROM generate_series(1, {lines}) AS i"
        ),
        ["move", "account", "partner", "day", "state", "account, day", "partner, state", "debit, credit"]
            .map(|columns| format!("CREATE INDEX ON account_move_line ({columns});"))
            .concat(),
        "CREATE VIEW balance AS SELECT account, sum(debit - credit) AS amount FROM account_move_line GROUP BY account"
            .to_owned(),
        "CREATE MATERIALIZED VIEW monthly AS SELECT date_trunc('month', day) AS month, sum(debit) AS debit \
         FROM account_move_line GROUP BY 1"
            .to_owned(),
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; \
         CREATE TRIGGER touch BEFORE UPDATE ON account_move FOR EACH ROW EXECUTE FUNCTION touch()"
            .to_owned(),
        "ANALYZE".to_owned(),
    ]
}

//! Where sessions are stepped: each waits at its seams until it is its turn; who waits for another's lock is left out until
//! that is free.

use std::{collections::BTreeSet, time::Duration};

use sqlx::PgConnection;
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Instant, timeout},
};

use super::{
    calls::{Call, LEASE_OVER, Lane, NOTHING, Scene},
    gate::{Gate, Told},
    orders::{Kind, Orders, Ready},
    planted::Mistake,
    seams::{self, Seam},
};
use crate::place::Place;
use ocore_postgres::store::PostgresStore;

/// How long a session may be silent before it is looked up whether it waits for a lock.
const SILENCE: Duration = Duration::from_millis(2);

const PATIENCE: Duration = Duration::from_secs(60);

const TABLES: [&str; 7] = ["environments", "lanes", "workers", "deployments", "events", "snapshots", "pins"];

/// What calls have come to: their answers, and all rows of the store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Outcome {
    pub(crate) answers: Vec<String>,
    pub(crate) rows: String,
}

/// A run in one order.
pub(crate) struct Run {
    pub(crate) outcome: Outcome,
    /// Whose step it was, and from where.
    pub(crate) steps: Vec<String>,
    /// How often somebody waited for another's lock.
    pub(crate) waits: usize,
    pub(crate) is_deadlock: bool,
}

#[derive(Debug)]
enum Status {
    Runs,
    /// For another's lock.
    Waits,
    At(Seam),
    Done(String),
}

struct Session {
    store: PostgresStore,
    gate: Gate,
    role: String,
    status: Status,
    /// The number of the next seam, whose lock is held.
    held: i32,
}

pub(crate) struct Stage {
    place: Place,
    eyes: PgConnection,
    lane: Lane,
    sessions: Vec<Session>,
    teller: UnboundedSender<(usize, Told)>,
    told: UnboundedReceiver<(usize, Told)>,
}

impl Stage {
    /// A schema with seams, with one lane in a scene.
    pub(crate) async fn build(scene: Scene, sessions: usize) -> Self {
        let place = Place::own_database().await;
        let store = place.open().await;
        let mut eyes = place.connect().await;
        seams::cut(&place, &mut eyes, sessions).await;
        let lane = Lane::prepare(&store, scene).await.expect("the scene can be made");
        if scene == Scene::Expired {
            let micros = LEASE_OVER.as_micros();
            let pass = format!("UPDATE ocore.clock SET now = now + {micros} * interval '1 microsecond'");
            place.run(&pass).await.expect("the clock can be moved");
        }
        let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = current_schema() AND tablename NOT IN ('clock', 'schema_version')";
        let tables = tables.replace("current_schema()", &format!("'{}'", place.schema));
        assert_eq!(place.count_on(&mut eyes, &tables).await, 7, "there are other tables than {TABLES:?}");
        let save =
            TABLES.map(|table| format!("CREATE TABLE ocore.saved_{table} AS TABLE ocore.{table};")).concat();
        place.run(&save).await.expect("the scene can be saved");
        let (teller, told) = unbounded_channel();
        let mut stage = Self { place, eyes, lane, sessions: Vec::new(), teller, told };
        for session in 0..sessions {
            stage.enter(session).await;
        }
        stage
    }

    async fn enter(&mut self, session: usize) {
        let gate = Gate::build(session, self.teller.clone(), self.place.address()).await;
        let (role, (_, database)) =
            (seams::role(&self.place, session), self.place.url.rsplit_once('/').expect("it is a URL"));
        let url = format!("postgres://{role}:x@127.0.0.1:{}/{database}", gate.port());
        let place = Place { url, schema: self.place.schema.clone() };
        // Behind a pooler every call is a transaction that the client ends.
        let store = place.builder().behind_pooler().connections_max(1).open().await;
        let store = store.expect("the store can be opened");
        self.sessions.push(Session { store, gate, role, status: Status::Done(String::new()), held: 0 });
    }

    /// Plants a mistake in a function of the schema.
    pub(crate) async fn plant(&mut self, mistake: &Mistake) {
        let text = match mistake {
            Mistake::Claim(text) => (*text).to_owned(),
            Mistake::Instead { function, text, wrong } => {
                let source = seams::definition(&self.place, &mut self.eyes, function).await;
                assert!(source.contains(text), "{function} has another text: {source}");
                source.replace(text, wrong)
            }
        };
        self.place.run(&text).await.expect("the mistake can be planted");
        if let Mistake::Claim(_) = mistake {
            seams::cut_into(&self.place, &mut self.eyes, "claim").await;
        }
    }

    async fn reset(&mut self) {
        let clear = TABLES.iter().rev().map(|table| format!("DELETE FROM ocore.{table};"));
        let fill = TABLES.iter().map(|table| {
            format!("INSERT INTO ocore.{table} OVERRIDING SYSTEM VALUE SELECT * FROM ocore.saved_{table};")
        });
        let seams =
            (0..self.sessions.len()).map(|it| format!("SELECT setval('ocore.seams_{it}', 1, false);"));
        let text: String = clear.chain(fill).chain(seams).collect();
        sqlx::raw_sql(self.place.text(&text))
            .execute(&mut self.eyes)
            .await
            .expect("the scene can be set again");
    }

    /// What the calls come to in every order of whole calls; a claim may also find nothing, because another has the lane.
    pub(crate) async fn allowed(&mut self, calls: &[Call]) -> BTreeSet<Outcome> {
        let mut allowed = BTreeSet::new();
        for order in permutations(calls.len()) {
            for missed in 0..1_u32 << calls.len() {
                let is_missed = |session: usize| missed & (1 << session) != 0;
                if (0..calls.len()).any(|it| is_missed(it) && !matches!(calls[it], Call::Claim(_))) {
                    continue;
                }
                self.reset().await;
                let mut answers = vec![NOTHING.to_owned(); calls.len()];
                for session in order.iter().copied().filter(|session| !is_missed(*session)) {
                    answers[session] = self.lane.answer(calls[session], &self.sessions[session].store).await;
                }
                allowed.insert(Outcome { answers, rows: self.rows().await });
            }
        }
        allowed
    }

    /// All rows of the store, but for the numbers of sequences.
    async fn rows(&mut self) -> String {
        let query = "SELECT jsonb_pretty(jsonb_build_object(
            'environments', (SELECT jsonb_agg(to_jsonb(e) ORDER BY e.name) FROM ocore.environments e),
            'lanes', (SELECT jsonb_agg(to_jsonb(l) || jsonb_build_object('ticket', l.ticket IS NOT NULL) ORDER BY l.name)
                      FROM ocore.lanes l),
            'workers', (SELECT jsonb_agg(to_jsonb(w) ORDER BY w.id) FROM ocore.workers w),
            'deployments', (SELECT jsonb_agg(to_jsonb(d) - 'number' ORDER BY d.number) FROM ocore.deployments d),
            'events', (SELECT jsonb_agg(to_jsonb(e) ORDER BY e.deployment, e.seq) FROM ocore.events e),
            'snapshots', (SELECT jsonb_agg(to_jsonb(s) ORDER BY s.reference) FROM ocore.snapshots s),
            'pins', (SELECT jsonb_agg(to_jsonb(p) ORDER BY p.deployment) FROM ocore.pins p)))";
        let rows = sqlx::query_scalar(self.place.text(query)).fetch_one(&mut self.eyes).await;
        rows.expect("the rows can be read")
    }

    /// Makes the calls in the next order. `None` if the rest of it was seen in other runs.
    pub(crate) async fn run(&mut self, calls: &[Call], orders: &mut Orders) -> Option<Run> {
        self.reset().await;
        let (mut steps, mut waits, mut is_whole, mut is_deadlock) = (Vec::new(), 0, true, false);
        for (session, call) in calls.iter().enumerate() {
            self.begin(session, *call).await;
            self.settle().await;
        }
        loop {
            let ready = self.ready();
            if ready.is_empty() {
                is_deadlock =
                    self.sessions[..calls.len()].iter().any(|it| matches!(it.status, Status::Waits));
                break;
            }
            let Some(session) = orders.choose(&ready) else {
                is_whole = false;
                break;
            };
            let waiting = self.waiting();
            steps.push(self.step(calls, session).await);
            self.settle().await;
            waits += usize::from(self.waiting() > waiting);
        }
        let answers = self.end().await;
        let rows = self.rows().await;
        is_whole.then_some(Run { outcome: Outcome { answers, rows }, steps, waits, is_deadlock })
    }

    fn ready(&self) -> Vec<Ready> {
        let ready = |(session, it): (usize, &Session)| match &it.status {
            Status::At(seam) => Some((session, seam.kind)),
            _ => None,
        };
        self.sessions.iter().enumerate().filter_map(ready).collect()
    }

    fn waiting(&self) -> usize {
        self.sessions.iter().filter(|it| matches!(it.status, Status::Waits)).count()
    }

    async fn begin(&mut self, session: usize, call: Call) {
        let hold = sqlx::query("SELECT pg_advisory_lock($1, 1)").bind(number(session));
        hold.execute(&mut self.eyes).await.expect("nobody has the lock");
        let it = &mut self.sessions[session];
        it.gate.close(true);
        (it.held, it.status) = (1, Status::Runs);
        let (lane, store, teller) = (self.lane.clone(), it.store.clone(), self.teller.clone());
        tokio::spawn(async move {
            let answer = lane.answer(call, &store).await;
            drop(teller.send((session, Told::Done(answer))));
        });
    }

    /// Lets the session go on from its seam.
    async fn step(&mut self, calls: &[Call], session: usize) -> String {
        let it = &mut self.sessions[session];
        let Status::At(seam) = std::mem::replace(&mut it.status, Status::Runs) else {
            panic!("only sessions at seams are chosen")
        };
        match seam.number {
            None => it.gate.pass(),
            Some(seam) => {
                assert_eq!(seam, it.held, "the next seam's lock is held");
                it.held += 1;
                // The target list is evaluated from left to right.
                let pass = sqlx::query("SELECT pg_advisory_lock($1, $2 + 1), pg_advisory_unlock($1, $2)");
                let pass = pass.bind(number(session)).bind(seam);
                pass.execute(&mut self.eyes).await.expect("the lock can be changed");
            }
        }
        // Whoever waits may have got what it waits for.
        if seam.kind == Kind::Ends {
            self.look_again();
        }
        format!("{:?}: {:?} {}", calls[session], seam.kind, seam.place)
    }

    fn look_again(&mut self) {
        for it in &mut self.sessions {
            if matches!(it.status, Status::Waits) {
                it.status = Status::Runs;
            }
        }
    }

    /// Waits until nobody runs: all are at seams, wait for locks, or are done.
    async fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.sessions.iter().any(|it| matches!(it.status, Status::Runs)) {
            if Instant::now() > deadline {
                panic!("a session is neither at a seam nor waits: {:?}", self.activity().await);
            }
            match timeout(SILENCE, self.told.recv()).await {
                Ok(told) => self.hear(told.expect("the stage has a teller itself")),
                Err(_) => self.look_for_locks().await,
            }
        }
    }

    /// What the sessions do, and what the server says of them.
    async fn activity(&mut self) -> Vec<String> {
        let activity = sqlx::query_scalar(
            "SELECT concat_ws(' ', usename, state, wait_event, query) FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        );
        let mut activity: Vec<String> = activity.fetch_all(&mut self.eyes).await.expect("it can be read");
        activity.extend(self.sessions.iter().map(|it| format!("{:?}", it.status)));
        activity
    }

    fn hear(&mut self, (session, told): (usize, Told)) {
        let is_done = matches!(told, Told::Done(_));
        self.sessions[session].status = match told {
            Told::At(seam) => Status::At(seam),
            Told::Done(answer) => Status::Done(answer),
        };
        if is_done {
            self.look_again();
        }
    }

    /// Finds those who wait for a lock that is none of a seam.
    async fn look_for_locks(&mut self) {
        let waiting = sqlx::query_scalar(
            "SELECT a.usename::text FROM pg_locks l JOIN pg_stat_activity a USING (pid)
             WHERE NOT l.granted AND a.datname = current_database() AND NOT (l.locktype = 'advisory' AND l.objsubid = 2)",
        );
        let waiting: Vec<String> = waiting.fetch_all(&mut self.eyes).await.expect("the locks can be read");
        for it in &mut self.sessions {
            if matches!(it.status, Status::Runs) && waiting.contains(&it.role) {
                it.status = Status::Waits;
            }
        }
    }

    /// Opens everything, and waits for the calls' answers.
    async fn end(&mut self) -> Vec<String> {
        for it in &mut self.sessions {
            it.gate.close(false);
            if let Status::At(Seam { number: None, .. }) = it.status {
                it.gate.pass();
            }
        }
        sqlx::query("SELECT pg_advisory_unlock_all()").execute(&mut self.eyes).await.expect("they are free");
        let is_done = |it: &Session| it.held == 0 || matches!(it.status, Status::Done(_));
        while !self.sessions.iter().all(is_done) {
            let told = timeout(PATIENCE, self.told.recv()).await.expect("the calls end");
            let (session, told) = told.expect("the stage has a teller itself");
            if let Told::Done(answer) = told {
                self.sessions[session].status = Status::Done(answer);
            }
        }
        let mut answers = Vec::new();
        for it in self.sessions.iter_mut().filter(|it| it.held > 0) {
            it.held = 0;
            if let Status::Done(answer) = &mut it.status {
                answers.push(std::mem::take(answer));
            }
        }
        answers
    }
}

fn number(session: usize) -> i32 {
    i32::try_from(session).expect("there are few")
}

fn permutations(count: usize) -> Vec<Vec<usize>> {
    let Some(last) = count.checked_sub(1) else { return vec![Vec::new()] };
    let shorter = permutations(last);
    let longer = shorter.iter().flat_map(|it| (0..count).map(|at| [&it[..at], &[last], &it[at..]].concat()));
    longer.collect()
}

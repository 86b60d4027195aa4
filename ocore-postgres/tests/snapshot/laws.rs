//! The laws, for each strategy, as a plain role that owns its database.

use std::time::Duration;

use ocore_postgres::snapshot::{Fingerprint, Strategy};

use crate::site::Site;

/// Whose laws count everything that was made: what a restore replaced is not kept.
async fn site(strategy: Strategy) -> Site {
    Site::with(|it| it.strategy(strategy).fingerprint(Fingerprint::Rows).keep_replaced(Duration::ZERO)).await
}

mod dump {
    use super::{Strategy, site};

    ocore_core::snapshotter_laws!(site(Strategy::Dump).await);
}

mod clone {
    use super::{Strategy, site};

    ocore_core::snapshotter_laws!(site(Strategy::Clone).await);
}

mod clone_then_dump {
    use super::{Strategy, site};

    ocore_core::snapshotter_laws!(site(Strategy::CloneThenDump).await);
}

mod auto_while_the_application_runs {
    use ocore_core::environment::SnapshotWhen;

    use super::{Site, Strategy, site};

    async fn running() -> Site {
        let mut site = site(Strategy::Auto).await;
        site.when = SnapshotWhen::BeforeStop;
        site
    }

    ocore_core::snapshotter_laws!(running().await);
}

//! What is known of a start before anything is stopped for it.

use std::{collections::BTreeMap, path::Path};

use ocore_core::port::{Context, Error, Result};

use super::{
    launch::Resolved,
    network,
    occupants::Place,
    record::{Kind, Records},
};

/// Refuses what could not be started in the environment's instances: a command whose program is not there, or a port
/// that neither is free nor belongs to what runs in the instance now. `tree` is the checkout.
pub(crate) fn refuse_unstartable(
    root: &Path,
    context: &Context,
    tree: &Path,
    web: &str,
    release: Option<&str>,
) -> Result<()> {
    for instance in context.environment().instances() {
        for (kind, line) in [(Kind::Web, Some(web)), (Kind::Release, release)] {
            if let Some(line) = line {
                // The runtime's secrets are not known here: none of them may be in a command.
                Resolved::new(context, instance, tree, kind.as_str(), line, &BTreeMap::new())?;
            }
        }
        let place = Place::new(Records::directory(root, context, instance));
        network::refuse_taken(instance, &place.occupants()?, Error::permanent)?;
    }
    Ok(())
}

//! Every variant of what is stored, against its golden file. `OCORE_BLESS=1` writes the files that are missing;
//! one that exists is never written again.

mod samples;
mod variants;

use std::{collections::BTreeSet, fmt::Debug, fs, path::PathBuf};

use self::{
    samples::{deployments, environments, events, lives},
    variants::Seen,
};
use super::{Stored, Unreadable, VERSION, decode, encode};
use crate::{deployment::Deployment, environment::Environment};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/v{VERSION}"))
}

/// Checks one value against its file; returns the file's name.
fn check<T: Stored + PartialEq + Debug>(name: &str, value: &T) -> String {
    let name = format!("{name}.json");
    let path = folder().join(&name);
    if !path.exists() && std::env::var("OCORE_BLESS").is_ok_and(|bless| bless == "1") {
        fs::create_dir_all(folder()).unwrap();
        fs::write(&path, encode(value) + "\n").unwrap();
    }
    let golden = fs::read_to_string(&path);
    let golden =
        golden.unwrap_or_else(|_| panic!("{name} is missing: run the test with OCORE_BLESS=1, once"));
    assert_eq!(encode(value), golden.trim_end(), "{name}: another form is written; that needs a new version");
    assert_eq!(decode::<T>(&golden).unwrap(), *value, "{name} is read as something else");
    name
}

#[test]
fn every_golden_file_is_read_and_written_as_it_is() {
    let (deployments, events, lives) = (deployments(), events(), lives());
    let environments = environments();
    let files = (deployments.iter().map(|(name, value)| check(name, value)))
        .chain(events.iter().map(|(name, value)| check(name, value)))
        .chain(lives.iter().map(|(name, value)| check(name, value)))
        .chain(environments.iter().map(|(name, value)| check(name, value)));
    let files: Vec<String> = files.collect();
    let distinct: BTreeSet<String> = files.iter().cloned().collect();
    assert_eq!(distinct.len(), files.len(), "two values have one name");
    let entries =
        fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let orphans: Vec<String> = entries.filter(|name| !distinct.contains(name)).collect();
    assert!(orphans.is_empty(), "golden files are kept for ever, and need a value each: {orphans:?}");
}

#[test]
fn every_variant_has_a_golden_file() {
    let mut seen = Seen::default();
    deployments().iter().for_each(|(_, deployment)| seen.deployment(deployment));
    events().iter().for_each(|(_, event)| seen.event(event));
    let missing: Vec<_> = variants::all().into_iter().filter(|name| !seen.0.contains(name)).collect();
    assert!(missing.is_empty(), "variants without a golden file: {missing:?}");
}

#[test]
fn what_cannot_be_read_is_not_guessed_at() {
    let (_, deployment) = deployments().swap_remove(0);
    let newer = encode(&deployment).replacen("{\"v\":1,", "{\"v\":2,\"more\":[],", 1);
    assert!(matches!(decode::<Deployment>(&newer), Err(Unreadable::Newer { found: 2 })), "{newer}");
    let older = newer.replacen("\"v\":2", "\"v\":0", 1);
    for damaged in ["", "{", "{\"v\":1}", "{\"v\":1,\"is\":null}", "{\"v\":-1,\"is\":{}}", &older] {
        assert!(matches!(decode::<Deployment>(damaged), Err(Unreadable::Damaged(_))), "{damaged:?}");
    }
    let more = encode(&deployment).replacen("\"step\":\"", "\"step\":\"later-", 1);
    assert!(matches!(decode::<Deployment>(&more), Err(Unreadable::Unknown(_))), "{more}");
    let whole = encode(&deployment);
    for end in 0..whole.len() {
        assert!(decode::<Deployment>(&whole[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn stored_settings_are_read_whatever_the_rules_are_by_now() {
    let (_, environment) = environments().swap_remove(0);
    let strange = encode(&environment).replacen("\"queue_length_max\":", "\"queue_length_max\":9999", 1);
    let strange = strange.replacen("https://", "https://token@", 1);
    let read = decode::<Environment>(&strange).unwrap();
    assert!(read.policy().queue_length_max > 10_000 && read.repository().contains('@'), "{read:?}");
    let newer = encode(&environment).replacen("\"policy\":{", "\"policy\":{\"freeze\":true,", 1);
    let error = decode::<Environment>(&newer).unwrap_err().to_string();
    assert!(error.contains("`freeze`") && error.contains("a newer one wrote it"), "{error}");
}

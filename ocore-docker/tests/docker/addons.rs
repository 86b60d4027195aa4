//! What is found in a repository of modules, and what is wrong with it.

use std::{fs, os::unix::fs::symlink, path::Path};

use ocore_docker::odoo::{Addons, Wanted};
use tempfile::TempDir;

fn repository(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

fn wanted() -> Wanted {
    Wanted::new("17.0".parse().unwrap(), ["base", "sale"].map(str::to_owned).into())
}

fn reasons(files: &[(&str, &str)], wanted: &Wanted) -> Vec<String> {
    let repository = repository(files);
    let checked = Addons::find(repository.path()).unwrap().check(wanted);
    checked.map_or_else(|faults| faults.reasons, |()| Vec::new())
}

#[test]
fn modules_are_found_wherever_they_lie_and_once() {
    let repository = repository(&[
        ("top/__manifest__.py", "{}"),
        ("addons/first/__manifest__.py", "{}"),
        ("addons/first/tests/inner/__manifest__.py", "{}"),
        ("vendor/oca/web/second/__manifest__.py", "{}"),
        (".hidden/third/__manifest__.py", "{}"),
        ("addons/no_module/README", ""),
    ]);
    fs::create_dir_all(repository.path().join("setup/first/odoo/addons")).unwrap();
    symlink("../../../../addons/first", repository.path().join("setup/first/odoo/addons/first")).unwrap();
    let addons = Addons::find(repository.path()).unwrap();
    let found: Vec<_> = addons.modules().values().map(|it| (it.name, it.folder)).collect();
    let expected = [("first", "addons"), ("second", "vendor/oca/web"), ("top", "")];
    assert_eq!(found, expected.map(|(name, folder)| (name, Path::new(folder))));
    assert_eq!(addons.folders().collect::<Vec<_>>(), ["", "addons", "vendor/oca/web"].map(Path::new));
}

#[test]
fn of_two_modules_with_one_name_the_first_counts() {
    let files =
        [("b/one/__manifest__.py", "{'version': '2.0'}"), ("a/one/__manifest__.py", "{'version': '3.0'}")];
    let repository = repository(&files);
    let addons = Addons::find(repository.path()).unwrap();
    assert_eq!(addons.modules()["one"].manifest.version, "3.0");
    assert_eq!(addons.hidden(), [("b/one".into(), Path::new("a"))]);
}

#[test]
fn a_good_repository_has_no_fault() {
    let files = [
        ("shop/__manifest__.py", "{'depends': ['sale', 'stock'], 'version': '17.0.1.0.0'}"),
        ("stock/__manifest__.py", "{'version': '1.0'}"),
        ("old/__manifest__.py", "{'installable': False, 'depends': ['gone'], 'version': '12.0.1.0.0'}"),
    ];
    assert_eq!(reasons(&files, &wanted().module("shop").module("sale")), [""; 0]);
}

#[test]
fn every_fault_is_named_at_once() {
    let files = [
        ("a/broken/__manifest__.py", "{'depends': [name]}"),
        ("a/later/__manifest__.py", "{'depends': ['old', 'gone']}"),
        ("a/my-module/__manifest__.py", "{}"),
        ("a/old/__manifest__.py", "{'installable': False}"),
        ("a/other/__manifest__.py", "{'version': '16.0.1.0.0'}"),
        ("a/strange/__manifest__.py", "{'version': 'v1'}"),
    ];
    let expected = [
        "a/broken/__manifest__.py: line 1, column 14: name is a name: a manifest is data, which is not run; write its value",
        "a/later: it depends on old, which is not installable",
        "a/later: it depends on gone, which neither the repository nor the base image has",
        "a/my-module: Python cannot import a module of this name: letters, digits and _ are possible",
        "a/other: its version 16.0.1.0.0 is of Odoo 16.0, the base image of 17.0",
        "a/strange: Odoo refuses its version \"v1\": write x.y, x.y.z, 17.0.x.y or 17.0.x.y.z with numbers",
        "module old is asked for, and its manifest says that it is not installable",
        "module none is asked for, and neither the repository nor the base image has it",
    ];
    assert_eq!(reasons(&files, &wanted().module("old").module("none")), expected);
}

#[test]
fn a_circle_is_named_once() {
    let files = [
        ("a/__manifest__.py", "{'depends': ['b']}"),
        ("b/__manifest__.py", "{'depends': ['base', 'c']}"),
        ("c/__manifest__.py", "{'depends': ['b']}"),
        ("d/__manifest__.py", "{'depends': ['a', 'c']}"),
    ];
    assert_eq!(reasons(&files, &wanted()), ["modules depend on each other in a circle: b → c → b"]);
}

#[test]
fn a_manifest_that_is_no_text_is_named() {
    let repository = repository(&[("a/__manifest__.py", "")]);
    fs::write(repository.path().join("a/__manifest__.py"), b"{'version': '\xff'}").unwrap();
    fs::create_dir_all(repository.path().join("b/__manifest__.py")).unwrap();
    let faults = Addons::find(repository.path()).unwrap().check(&wanted()).unwrap_err();
    let expected = [
        "a/__manifest__.py: it is not encoded in UTF-8, first at byte 13",
        "b/__manifest__.py: it is no file",
    ];
    assert_eq!(faults.reasons, expected);
}

//! The rules of this repository that no compiler checks.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// What is under version control, or will be.
fn files() -> Vec<PathBuf> {
    let output =
        Command::new("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "git ls-files failed");
    String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).filter(|f| root().join(f).is_file()).collect()
}

fn text(file: &Path) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_default()
}

fn with_extension<'a>(files: &'a [PathBuf], extension: &str) -> Vec<&'a PathBuf> {
    files.iter().filter(|f| f.extension().is_some_and(|e| e == extension)).collect()
}

#[test]
fn dependencies_point_one_way() {
    let allowed: &[(&str, &[&str])] = &[
        ("model", &[]),
        ("store", &["model"]),
        ("placement", &["model"]),
        ("sandbox", &["model"]),
        ("registry", &["model"]),
        ("edge", &["model"]),
        ("router", &["model", "edge", "placement"]),
        ("loadtest", &[]),
        ("node", &["model", "edge", "store", "placement", "sandbox", "registry"]),
        ("builder", &["model", "store", "sandbox", "registry"]),
        ("cli", &["model", "store", "sandbox", "registry", "placement", "router", "node", "builder", "loadtest"]),
        ("tests", &["model", "edge", "loadtest"]),
    ];
    for (name, may) in allowed {
        let manifest = text(Path::new(&format!("{name}/Cargo.toml")));
        let used = manifest.lines().filter_map(|l| l.strip_prefix("hearth-")?.split([' ', '.', '=']).next());
        for used in used.filter(|u| u != name) {
            assert!(may.contains(&used), "{name} must not depend on {used}");
        }
    }
}

#[test]
fn every_source_file_says_what_it_is_for_and_is_short() {
    let files = files();
    for file in with_extension(&files, "rs") {
        let source = text(file);
        assert!(source.starts_with("//!"), "{} does not begin with what it is for", file.display());
        assert!(source.lines().count() <= 700, "{} has {} lines", file.display(), source.lines().count());
    }
    for file in with_extension(&files, "js") {
        assert!(text(file).lines().count() <= 500, "{} is too long", file.display());
    }
}

#[test]
fn no_unfinished_work_and_no_forbidden_names() {
    // Written in two parts, so that this file does not find itself.
    let forbidden = [
        ["TO", "DO"],
        ["FIX", "ME"],
        ["todo", "!("],
        ["unimplemented", "!("],
        ["#[ign", "ore"],
        ["registry.npm", "js.org"],
        ["crates", ".io/"],
        ["deb.debian", ".org"],
    ];
    for file in files().iter().filter(|f| f.file_name().is_some_and(|n| n != "Cargo.lock" && n != "LICENSE")) {
        let source = text(file);
        for parts in &forbidden {
            let word = parts.concat();
            assert!(!source.contains(&word), "{} contains {word}", file.display());
        }
    }
}

#[test]
fn lock_files_of_npm_name_no_addresses() {
    for file in files().iter().filter(|f| f.file_name().is_some_and(|n| n == "package-lock.json")) {
        assert!(!text(file).contains("\"resolved\""), "{} names addresses", file.display());
    }
}

#[test]
fn the_map_names_every_folder() {
    let map = text(Path::new("ARCHITECTURE.md"));
    let folders: std::collections::BTreeSet<String> = files()
        .iter()
        .filter_map(|f| f.iter().next().filter(|_| f.components().count() > 1).map(|d| d.to_string_lossy().into_owned()))
        .filter(|d| !d.starts_with('.'))
        .collect();
    for folder in folders {
        assert!(map.contains(&format!("`{folder}/`")), "ARCHITECTURE.md does not name {folder}/");
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    for file in with_extension(&files(), "md") {
        let page = text(file);
        let targets = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|t| !t.contains("://") && !t.starts_with('#')) {
            let path = root().join(file.parent().unwrap()).join(target.split('#').next().unwrap_or_default());
            assert!(path.exists(), "{} links to {target}, which does not exist", file.display());
        }
    }
}

#[test]
fn each_promise_names_its_command() {
    let readme = text(Path::new("README.md"));
    for command in ["make up", "make test", "make bench", "make test-modules"] {
        assert!(readme.contains(command), "README.md does not name `{command}`");
    }
}

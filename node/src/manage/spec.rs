//! Checks what a tenant sends before anything of it is kept: each refusal names the field and the remedy.

use super::{containers::Settings, problem::ApiError};
use hearth_model::{FunctionSpec, ModuleName, TenantLimits, limits, module::check_range};
use oxc_allocator::Allocator;
use oxc_parser::{ParseOptions, Parser};
use oxc_span::SourceType;
use serde::Deserialize;
use std::collections::BTreeMap;

/// A function's source, checked.
#[derive(Debug)]
pub(super) struct Source {
    pub files: BTreeMap<String, String>,
    pub main: String,
    /// Of package.json and of the request together; the request's win.
    pub dependencies: BTreeMap<String, String>,
}

/// What matters of a function's package.json.
#[derive(Debug, Default, Deserialize)]
struct Package {
    #[serde(default)]
    main: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    dependencies: BTreeMap<String, String>,
}

/// Checks the code and what it depends on.
pub(super) fn check_source(spec: &FunctionSpec) -> Result<Source, ApiError> {
    let (files, single) = match (&spec.code, &spec.files) {
        (Some(code), None) => (BTreeMap::from([(single_name(code).to_owned(), code.clone())]), true),
        (None, Some(files)) => (files.clone(), false),
        (Some(_), Some(_)) => return Err(ApiError::invalid("code", "send `code` or `files`, not both")),
        (None, None) => return Err(ApiError::invalid("code", "send `code` (one file) or `files` (an object of path to text)")),
    };
    check_files(&files)?;
    let package: Package = match files.get("package.json") {
        None => Package::default(),
        Some(text) => {
            serde_json::from_str(text).map_err(|e| ApiError::invalid("files.package.json", format!("package.json: {e}")))?
        }
    };
    let main = find_main(&files, &package)?;
    for (name, text) in &files {
        let field = if single { "code".to_owned() } else { format!("files.{name}") };
        check_syntax(name, text, package.kind.as_deref())
            .map_err(|detail| ApiError::invalid(field, format!("{name} does not parse: {detail}")))?;
    }
    let mut dependencies = package.dependencies;
    dependencies.extend(spec.dependencies.clone());
    check_dependencies(&dependencies)?;
    Ok(Source { files, main, dependencies })
}

fn check_files(files: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if files.is_empty() || files.len() > limits::BUNDLE_FILES_MAX {
        return Err(ApiError::invalid("files", format!("send 1 to {} files, not {}", limits::BUNDLE_FILES_MAX, files.len())));
    }
    let bytes: usize = files.values().map(String::len).sum();
    if bytes > limits::BUNDLE_BYTES_MAX {
        let detail = format!(
            "{bytes} bytes of files, {} are allowed; what comes from npm belongs into `dependencies`",
            limits::BUNDLE_BYTES_MAX
        );
        return Err(ApiError::invalid("files", detail));
    }
    let mut lower = std::collections::BTreeSet::new();
    for name in files.keys() {
        let field = || format!("files.{}", name.chars().take(80).collect::<String>());
        let parts_ok = name.split('/').all(|part| !matches!(part, "" | "." | ".." | "node_modules"));
        let bytes_ok = name.bytes().all(|b| b > 0x1f && b != 0x7f && b != b'\\' && b != b':');
        if !parts_ok || !bytes_ok || name.len() > limits::BUNDLE_PATH_BYTES_MAX || name.starts_with(".hearth") {
            let detail = "a path is relative, has no `.`, `..`, `node_modules` or empty part, no backslash, colon or control character, and at most 512 bytes";
            return Err(ApiError::invalid(field(), detail));
        }
        if !lower.insert(name.to_lowercase()) {
            return Err(ApiError::invalid(field(), "two paths differ only in upper and lower case"));
        }
        // A file cannot be a directory of another as well.
        if files.keys().any(|other| other.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('/'))) {
            return Err(ApiError::invalid(field(), "this path is a file and a directory at once"));
        }
    }
    Ok(())
}

fn find_main(files: &BTreeMap<String, String>, package: &Package) -> Result<String, ApiError> {
    if let Some(main) = &package.main {
        let main = main.trim_start_matches("./");
        let candidates = [main.to_owned(), format!("{main}.js"), format!("{main}/index.js")];
        let detail = format!("`main` is {main:?}, but there is no such file");
        return candidates
            .into_iter()
            .find(|c| files.contains_key(c))
            .ok_or_else(|| ApiError::invalid("files.package.json", detail));
    }
    let usual = ["index.js", "index.mjs", "index.cjs", "handler.js", "handler.mjs", "handler.cjs"];
    if let Some(main) = usual.into_iter().find(|name| files.contains_key(*name)) {
        return Ok(main.to_owned());
    }
    let scripts: Vec<&String> = files.keys().filter(|n| is_script(n)).collect();
    match scripts[..] {
        [only] => Ok(only.clone()),
        _ => Err(ApiError::invalid(
            "files",
            "which file is the function? Name it index.js, index.mjs or index.cjs, or set `main` in package.json",
        )),
    }
}

fn is_script(name: &str) -> bool {
    [".js", ".mjs", ".cjs"].iter().any(|e| name.ends_with(e))
}

/// One file of code is an ES module when it has a module's syntax, or parses only as one (`await` at the top).
fn single_name(code: &str) -> &'static str {
    let allocator = Allocator::default();
    let parsed = Parser::new(&allocator, code, SourceType::mjs()).parse();
    let as_module = parsed.errors.is_empty() && !parsed.panicked;
    if as_module && (parsed.module_record.has_module_syntax || parse(code, SourceType::cjs()).is_err()) {
        "index.mjs"
    } else {
        "index.js"
    }
}

fn check_syntax(name: &str, text: &str, package_type: Option<&str>) -> Result<(), String> {
    if name.ends_with(".json") {
        return serde_json::from_str::<serde::de::IgnoredAny>(text).map(|_| ()).map_err(|e| e.to_string());
    }
    if !is_script(name) {
        return Ok(());
    }
    // In doubt both ways are tried, as Node does.
    if name.ends_with(".mjs") || (name.ends_with(".js") && package_type == Some("module")) {
        return parse(text, SourceType::mjs());
    }
    if name.ends_with(".cjs") || package_type == Some("commonjs") {
        return parse(text, SourceType::cjs());
    }
    parse(text, SourceType::cjs()).or_else(|as_script| {
        parse(text, SourceType::mjs())
            .map_err(|as_module| if text.contains("import ") || text.contains("export ") { as_module } else { as_script })
    })
}

fn parse(text: &str, kind: SourceType) -> Result<(), String> {
    let allocator = Allocator::default();
    // A webtask may `return` its function at the top level.
    let options = ParseOptions { allow_return_outside_function: !kind.is_module(), ..ParseOptions::default() };
    let parsed = Parser::new(&allocator, text, kind).with_options(options).parse();
    let Some(error) = parsed.errors.first() else { return if parsed.panicked { Err("it cannot be read".into()) } else { Ok(()) } };
    let at = error.labels.as_ref().and_then(|l| l.first()).map(|l| l.offset());
    let place = at.and_then(|at| text.get(..at)).map(|before| {
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        format!(" (line {line}, column {column})")
    });
    Err(format!("{}{}", error.message, place.unwrap_or_default()))
}

fn check_dependencies(dependencies: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if dependencies.len() > limits::DEPENDENCIES_MAX {
        return Err(ApiError::invalid(
            "dependencies",
            format!("{} dependencies, {} are allowed", dependencies.len(), limits::DEPENDENCIES_MAX),
        ));
    }
    for (name, range) in dependencies {
        let field = || format!("dependencies.{}", name.chars().take(80).collect::<String>());
        let name: ModuleName =
            name.parse().map_err(|e: hearth_model::module::ModuleError| ApiError::invalid(field(), e.to_string()))?;
        check_range(&name, range).map_err(|e| ApiError::invalid(field(), e.to_string()))?;
    }
    Ok(())
}

/// Checks names, sizes and numbers of everything beside the code.
pub(super) fn check_configuration(spec: &FunctionSpec) -> Result<(), ApiError> {
    let no_value = String::new();
    let secrets = spec.secrets.iter().map(|(name, value)| ("secrets", name, value.as_ref().unwrap_or(&no_value)));
    let entries: Vec<_> = spec.env.iter().map(|(name, value)| ("env", name, value)).chain(secrets).collect();
    for (section, count) in [("env", spec.env.len()), ("secrets", spec.secrets.len())] {
        if count > limits::ENV_ENTRIES_MAX {
            return Err(ApiError::invalid(section, format!("{count} entries, {} are allowed", limits::ENV_ENTRIES_MAX)));
        }
    }
    let mut total = 0;
    for (section, name, value) in entries {
        let field = || format!("{section}.{}", name.chars().take(80).collect::<String>());
        let mut bytes = name.bytes();
        let starts = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        if !starts || !bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_') || name.len() > limits::ENV_NAME_BYTES_MAX {
            return Err(ApiError::invalid(
                field(),
                "a name has letters, digits and underscores, does not start with a digit, and at most 256 bytes",
            ));
        }
        if value.len() > limits::ENV_VALUE_BYTES_MAX || value.contains('\0') {
            return Err(ApiError::invalid(
                field(),
                format!("a value has at most {} bytes and no NUL", limits::ENV_VALUE_BYTES_MAX),
            ));
        }
        total += name.len() + value.len();
    }
    if total > limits::ENV_TOTAL_BYTES_MAX {
        return Err(ApiError::invalid(
            "env",
            format!("env and secrets have {total} bytes together, {} are allowed", limits::ENV_TOTAL_BYTES_MAX),
        ));
    }
    if let Some(ms) = spec.timeout_ms
        && !(limits::TIMEOUT_MS_MIN..=limits::TIMEOUT_MS_MAX).contains(&ms)
    {
        let detail = format!("{ms} is not between {} and {}", limits::TIMEOUT_MS_MIN, limits::TIMEOUT_MS_MAX);
        return Err(ApiError::invalid("timeout_ms", detail));
    }
    Ok(())
}

/// Checks a container's settings against what its tenant may use.
pub(super) fn check_settings(settings: &Settings, tenant: &TenantLimits) -> Result<(), ApiError> {
    let memory_max = tenant.memory_mb_max.min(limits::MEMORY_MB_MAX);
    if let Some(mb) = settings.memory_mb
        && !(limits::MEMORY_MB_MIN..=memory_max).contains(&mb)
    {
        return Err(ApiError::invalid("memory_mb", format!("{mb} is not between {} and {memory_max}", limits::MEMORY_MB_MIN)));
    }
    if let Some(n) = settings.concurrency
        && !(1..=limits::CONCURRENCY_MAX).contains(&n)
    {
        return Err(ApiError::invalid("concurrency", format!("{n} is not between 1 and {}", limits::CONCURRENCY_MAX)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(files: &[(&str, &str)]) -> FunctionSpec {
        let files = files.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect();
        FunctionSpec { files: Some(files), ..FunctionSpec::default() }
    }

    fn code(text: &str) -> Result<Source, ApiError> {
        check_source(&FunctionSpec { code: Some(text.into()), ..FunctionSpec::default() })
    }

    #[test]
    fn one_file_is_named_by_what_it_is() {
        assert_eq!(code("module.exports = cb => cb()").unwrap().main, "index.js");
        assert_eq!(code("\"use latest\";\nreturn function (cb) { cb() }").unwrap().main, "index.js");
        assert_eq!(code("export default () => new Response()").unwrap().main, "index.mjs");
        assert_eq!(code("const x = await 1; export default x").unwrap().main, "index.mjs");
    }

    #[test]
    fn what_does_not_parse_is_refused_with_its_place() {
        let error = code("const a = 1;\nconst b = (;\n").unwrap_err();
        assert_eq!(error.field.as_deref(), Some("code"));
        assert!(error.detail.contains("line 2"), "{}", error.detail);
        let error = check_source(&spec(&[("index.js", "1"), ("lib/a.mjs", "import x from")])).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("files.lib/a.mjs"));
        assert!(check_source(&spec(&[("index.js", "1"), ("d.json", "{")])).is_err());
        assert!(check_source(&spec(&[("index.js", "1"), ("README.md", "# anything (")])).is_ok());
    }

    #[test]
    fn paths_stay_inside() {
        for bad in [
            "../x.js",
            "/x.js",
            "a/../x.js",
            "a//x.js",
            "a\\x.js",
            "node_modules/x/index.js",
            "a/node_modules/x.js",
            "",
            ".",
            "a\0.js",
            "a\n.js",
            "c:x.js",
        ] {
            assert!(check_source(&spec(&[("index.js", "1"), (bad, "1")])).is_err(), "{bad:?}");
        }
        assert!(check_source(&spec(&[("a.js", "1"), ("A.js", "1")])).is_err());
        assert!(check_source(&spec(&[("index.js", "1"), ("a", "1"), ("a/b.js", "1")])).is_err());
    }

    #[test]
    fn main_comes_from_package_json_or_the_usual_names() {
        assert_eq!(
            check_source(&spec(&[("package.json", r#"{"main": "./src/go"}"#), ("src/go.js", "1")])).unwrap().main,
            "src/go.js"
        );
        assert_eq!(check_source(&spec(&[("index.mjs", "1"), ("other.js", "1")])).unwrap().main, "index.mjs");
        assert_eq!(check_source(&spec(&[("only.js", "1"), ("data.json", "1")])).unwrap().main, "only.js");
        assert!(check_source(&spec(&[("a.js", "1"), ("b.js", "1")])).is_err());
        assert!(check_source(&spec(&[("package.json", r#"{"main": "no.js"}"#), ("a.js", "1")])).is_err());
        let merged = check_source(&spec(&[("package.json", r#"{"dependencies": {"lodash": "^4"}}"#), ("index.js", "1")])).unwrap();
        assert_eq!(merged.dependencies["lodash"], "^4");
        let git = spec(&[("package.json", r#"{"dependencies": {"x": "github:a/b"}}"#), ("index.js", "1")]);
        assert_eq!(check_source(&git).unwrap_err().field.as_deref(), Some("dependencies.x"));
    }

    #[test]
    fn bounds_hold_at_the_bound_and_one_past_it() {
        let big = |n: usize| check_source(&spec(&[("index.js", &" ".repeat(n))]));
        assert!(big(limits::BUNDLE_BYTES_MAX).is_ok() && big(limits::BUNDLE_BYTES_MAX + 1).is_err());
        let env = |name: &str, bytes: usize| {
            check_configuration(&FunctionSpec {
                env: BTreeMap::from([(name.into(), "v".repeat(bytes))]),
                ..FunctionSpec::default()
            })
        };
        assert!(env("A", limits::ENV_VALUE_BYTES_MAX).is_ok() && env("A", limits::ENV_VALUE_BYTES_MAX + 1).is_err());
        for bad in ["", "1A", "A-B", "A B", "Ä"] {
            assert!(env(bad, 1).is_err(), "{bad:?}");
        }
        let timeout = |ms| check_configuration(&FunctionSpec { timeout_ms: Some(ms), ..FunctionSpec::default() }).is_ok();
        assert!(timeout(limits::TIMEOUT_MS_MIN) && !timeout(limits::TIMEOUT_MS_MIN - 1));
        assert!(timeout(limits::TIMEOUT_MS_MAX) && !timeout(limits::TIMEOUT_MS_MAX + 1));
        let memory =
            |mb| check_settings(&Settings { memory_mb: Some(mb), ..Settings::default() }, &TenantLimits::default()).is_ok();
        assert!(memory(64) && !memory(63) && memory(1_024) && !memory(1_025));
    }
}

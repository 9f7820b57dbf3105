//! `hearth doctor`: what is weak about this machine as a place for untrusted code, each with its remedy. It changes nothing.

use crate::config::{self, Flags, Role};
use anyhow::{Context, Result, bail};
use hearth_sandbox::{
    Description, Finding, Sandbox, Severity,
    docker::{self, DockerSandbox},
};
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// Prints the list; 1 where something unsafe was found.
pub async fn run(args: Args) -> Result<ExitCode> {
    let settings = config::load(args.flags, Role::Node)?.settings;
    let docker = DockerSandbox::look(settings.docker)
        .await
        .context("Docker cannot be used: start it (`make up` does) and look at its log")?;
    let description = docker.describe().await.context("asking Docker what it is")?;
    let findings = &description.findings;
    if args.json {
        println!("{}", serde_json::to_string_pretty(findings)?);
    } else {
        println!("{}", description.engine);
        for finding in findings {
            println!("{}", line(finding));
        }
        let (weak, dangerous) = (failed(findings, Severity::Weak), failed(findings, Severity::Unsafe));
        println!("{} checked, {weak} weak, {dangerous} unsafe", findings.len());
    }
    Ok(if failed(findings, Severity::Unsafe) > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn failed(findings: &[Finding], severity: Severity) -> usize {
    findings.iter().filter(|f| !f.passed && f.severity == severity).count()
}

fn line(finding: &Finding) -> String {
    let state = match (finding.passed, finding.severity) {
        (true, _) => "ok    ",
        (false, Severity::Weak) => "weak  ",
        (false, Severity::Unsafe) => "UNSAFE",
    };
    let detail = if finding.passed { String::new() } else { format!("\n         {}", finding.detail) };
    format!("{state}  {}  {}{detail}", finding.id, finding.title)
}

/// Refuses a machine with a known way out of a container, unless the operator has said that it will do.
pub fn require_safe(config: &docker::Config, description: &Description) -> Result<()> {
    let found: Vec<&str> =
        description.findings.iter().filter(|f| !f.passed && f.severity == Severity::Unsafe).map(|f| f.detail.as_str()).collect();
    if found.is_empty() || config.accept_unsafe {
        return Ok(());
    }
    bail!(
        "this machine is not fit for untrusted code; `hearth doctor` tells more, docker.accept_unsafe = true starts all the same:\n  {}",
        found.join("\n  ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unsafe_machine_is_refused_unless_accepted() {
        let finding = |severity, passed| Finding { id: "x.y", title: "t", severity, passed, detail: "mend it".into() };
        let description = |findings| Description {
            engine: String::new(),
            cpu_split: None,
            mounts_propagate: true,
            warnings: Vec::new(),
            findings,
            images: Default::default(),
        };
        let config = docker::Config::default();
        let bad = description(vec![finding(Severity::Unsafe, false)]);
        assert!(require_safe(&config, &bad).unwrap_err().to_string().contains("mend it"));
        assert!(require_safe(&docker::Config { accept_unsafe: true, ..config.clone() }, &bad).is_ok());
        let fair = description(vec![finding(Severity::Unsafe, true), finding(Severity::Weak, false)]);
        assert!(require_safe(&config, &fair).is_ok());
        assert!(line(&bad.findings[0]).contains("UNSAFE") && !line(&fair.findings[0]).contains("mend"));
    }
}

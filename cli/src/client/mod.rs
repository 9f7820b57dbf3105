//! The client commands: what a tenant's developer and an operator type.

mod deploy;
mod http;
mod show;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use hearth_model::{ContainerPath, FunctionPath, TenantName};
use http::{Client, Connection};
use serde_json::{Value, json};
use std::{io::Write, process::ExitCode};

pub use http::exit_code;
pub use show::printable;

/// What can be done with a running Hearth.
#[derive(Subcommand)]
pub enum Command {
    /// Put a function: a file, or a folder with package.json.
    Deploy(deploy::Deploy),
    /// Call a function and print its answer.
    Invoke(Invoke),
    /// List tenants, a tenant's containers, or a container's functions.
    Ls(Ls),
    /// Show a function, with `--code` its files, too.
    Get(Get),
    /// Delete a function, a container or a tenant.
    Rm(Rm),
    /// Show a container's output.
    Logs(Logs),
    /// List a function's versions.
    Versions(OnFunction),
    /// Make an earlier version live again.
    Rollback(Rollback),
    /// Make, list and delete tokens.
    #[command(subcommand)]
    Token(Token),
    /// List modules, or show one (`name@version`) with its build's log.
    Modules(Modules),
    /// What the node does: pool, containers, modules; and its cluster: nodes, loads, placements.
    Status(Status),
    /// Ask a node to leave its cluster: it finishes what runs, and ends.
    Drain(Drain),
}

#[derive(Args)]
pub struct Drain {
    /// The node; where absent, the one that answers at the given address.
    #[arg(long)]
    node: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
pub struct OnFunction {
    /// `tenant/container/function`.
    path: FunctionPath,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
pub struct Invoke {
    /// `tenant/container/function`, and below it: `acme/main/hello/a/b?c=d`.
    target: String,
    /// Body; makes it a POST.
    #[arg(long)]
    data: Option<String>,
    /// Method.
    #[arg(long, short = 'X')]
    method: Option<String>,
    /// `Name: value`; may be given several times.
    #[arg(long = "header", short = 'H')]
    headers: Vec<String>,
    /// Print status and headers, too.
    #[arg(long, short)]
    include: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
pub struct Ls {
    /// Nothing, `tenant`, or `tenant/container`.
    path: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
pub struct Get {
    #[command(flatten)]
    on: OnFunction,
    /// The files, too.
    #[arg(long)]
    code: bool,
}

#[derive(Args)]
pub struct Rm {
    /// `tenant`, `tenant/container` or `tenant/container/function`.
    path: String,
    /// What is inside a tenant or container, too.
    #[arg(long, short)]
    recursive: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
pub struct Logs {
    /// `tenant/container`.
    path: ContainerPath,
    /// Wait for what comes.
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
pub struct Rollback {
    /// `tenant/container/function`.
    path: FunctionPath,
    /// The version to make live.
    version: u64,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Subcommand)]
pub enum Token {
    /// Make a token; its text is shown once.
    Create {
        /// For which tenant; an operator's token without.
        #[arg(long)]
        tenant: Option<TenantName>,
        /// `admin`, `write`, `read` or `invoke`.
        #[arg(long)]
        scope: String,
        /// Seconds until it expires.
        #[arg(long)]
        expires_in_s: Option<u64>,
        /// For those who read the list.
        #[arg(long, default_value = "")]
        note: String,
        #[command(flatten)]
        connection: Connection,
    },
    /// List tokens, never their texts.
    Ls {
        #[command(flatten)]
        connection: Connection,
    },
    /// Delete a token by its id.
    Rm {
        /// As the list shows it.
        id: String,
        #[command(flatten)]
        connection: Connection,
    },
}

#[derive(Args)]
pub struct Modules {
    /// `name@version`.
    module: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    connection: Connection,
}

impl Command {
    /// Does it.
    pub async fn run(self) -> Result<ExitCode> {
        match self {
            Self::Deploy(deploy) => deploy.run().await?,
            Self::Invoke(invoke) => return invoke.run().await,
            Self::Ls(ls) => ls.run().await?,
            Self::Get(get) => {
                let client = Client::new(&get.on.connection)?;
                let value = client.get(&format!("{}?code={}", function_url(&get.on.path), get.code)).await?;
                show::json(&value)?;
            }
            Self::Rm(rm) => rm.run().await?,
            Self::Logs(logs) => show::logs(&Client::new(&logs.connection)?, &logs.path, logs.follow, logs.connection.json).await?,
            Self::Versions(on) => {
                let client = Client::new(&on.connection)?;
                let versions = client.all(&format!("{}/versions", function_url(&on.path))).await?;
                show::table(
                    &versions,
                    on.connection.json,
                    &["version", "status", "live", "model", "modules", "created_at", "reason"],
                )?;
            }
            Self::Rollback(rollback) => {
                let client = Client::new(&rollback.connection)?;
                let url = format!("{}/rollback", function_url(&rollback.path));
                let value = client.send("POST", &url, Some(&json!({ "version": rollback.version }))).await?;
                show::done(&value, rollback.connection.json, &format!("{} serves version {}", rollback.path, rollback.version))?;
            }
            Self::Token(token) => token.run().await?,
            Self::Modules(modules) => modules.run().await?,
            Self::Status(status) => {
                let value = Client::new(&status.connection)?.get("/v1/status").await?;
                show::status(&value, status.connection.json)?;
            }
            Self::Drain(drain) => drain.run().await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn function_url(path: &FunctionPath) -> String {
    format!("/v1/tenants/{}/containers/{}/functions/{}", path.tenant, path.container, path.function)
}

impl Drain {
    async fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let node = match self.node {
            Some(node) => node,
            None => {
                let status = client.get("/v1/status").await?;
                let own = status["cluster"]["node"].as_str();
                own.context("this is a machine by itself and not one of a cluster; SIGTERM ends it")?.to_owned()
            }
        };
        client.send("POST", &format!("/v1/nodes/{node}/drain"), None).await?;
        show::done(&Value::Null, self.connection.json, &format!("{node} leaves; `hearth status` shows when it has left"))
    }
}

impl Invoke {
    async fn run(self) -> Result<ExitCode> {
        let client = Client::new(&self.connection)?;
        let method = self.method.unwrap_or_else(|| if self.data.is_some() { "POST" } else { "GET" }.into());
        let mut request = client.raw(method.parse().context("--method")?, &format!("/run/{}", self.target));
        for header in &self.headers {
            let Some((name, value)) = header.split_once(':') else { bail!("--header takes `Name: value`, not {header:?}") };
            request = request.header(name.trim(), value.trim());
        }
        if let Some(data) = self.data {
            if !self.headers.iter().any(|h| h.to_lowercase().starts_with("content-type")) {
                request = request.header("content-type", "application/json");
            }
            request = request.body(data);
        }
        let mut response = client.perform(request).await?;
        let mut out = std::io::stdout().lock();
        if self.include {
            writeln!(out, "{:?} {}", response.version(), response.status())?;
            for (name, value) in response.headers() {
                writeln!(out, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
            }
            writeln!(out)?;
        }
        let ok = response.status().is_success();
        while let Some(chunk) = response.chunk().await? {
            out.write_all(&chunk)?;
            out.flush()?;
        }
        if std::io::IsTerminal::is_terminal(&out) {
            writeln!(out)?;
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Ls {
    async fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let json = self.connection.json;
        let parts: Vec<&str> = self.path.iter().flat_map(|p| p.split('/')).filter(|p| !p.is_empty()).collect();
        match parts[..] {
            [] => show::table(&client.all("/v1/tenants").await?, json, &["name", "generation", "created_at"]),
            [tenant] => {
                let containers = client.all(&format!("/v1/tenants/{tenant}/containers")).await?;
                show::table(&containers, json, &["name", "memory_mb", "concurrency", "node", "created_at"])
            }
            [tenant, container] => {
                let functions = client.all(&format!("/v1/tenants/{tenant}/containers/{container}/functions")).await?;
                show::table(&functions, json, &["name", "live", "latest", "url", "updated_at"])
            }
            _ => bail!("ls takes nothing, a tenant, or tenant/container; `hearth get` shows a function"),
        }
    }
}

impl Rm {
    async fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let suffix = if self.recursive { "?recursive=true" } else { "" };
        let url = match self.path.split('/').collect::<Vec<_>>()[..] {
            [tenant] => format!("/v1/tenants/{tenant}{suffix}"),
            [tenant, container] => format!("/v1/tenants/{tenant}/containers/{container}{suffix}"),
            [tenant, container, function] => format!("/v1/tenants/{tenant}/containers/{container}/functions/{function}"),
            _ => bail!("{:?} is not tenant, tenant/container or tenant/container/function", self.path),
        };
        client.send("DELETE", &url, None).await?;
        show::done(&Value::Null, self.connection.json, &format!("{} is deleted", self.path))
    }
}

impl Token {
    async fn run(self) -> Result<()> {
        match self {
            Self::Create { tenant, scope, expires_in_s, note, connection } => {
                let body = json!({ "tenant": tenant, "scope": scope, "expires_in_s": expires_in_s, "note": note });
                let value = Client::new(&connection)?.send("POST", "/v1/tokens", Some(&body)).await?;
                // The token alone on standard output, so that it can be put into a variable.
                show::done(&value, connection.json, value["token"].as_str().unwrap_or_default())
            }
            Self::Ls { connection } => {
                let tokens = Client::new(&connection)?.all("/v1/tokens").await?;
                show::table(&tokens, connection.json, &["id", "tenant", "scope", "created_at", "expires_at", "note"])
            }
            Self::Rm { id, connection } => {
                Client::new(&connection)?.send("DELETE", &format!("/v1/tokens/{id}"), None).await?;
                show::done(&Value::Null, connection.json, &format!("{id} is deleted"))
            }
        }
    }
}

impl Modules {
    async fn run(self) -> Result<()> {
        let client = Client::new(&self.connection)?;
        let json = self.connection.json;
        match &self.module {
            None => {
                let modules = client.all("/v1/modules").await?;
                let columns =
                    ["module", "state", "node", "functions", "unpacked_bytes", "saved_bytes", "build_ms", "attempts", "reason"];
                show::table(&modules, json, &columns)
            }
            Some(module) => {
                let builds = client.get(&format!("/v1/modules/{}", module.replace('/', "%2f"))).await?;
                show::json(&builds)
            }
        }
    }
}

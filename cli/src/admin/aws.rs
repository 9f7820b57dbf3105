//! `hearth admin init-aws`: makes the resources of the configuration for development, or prints what they must look like.

use super::ConfigArgs;
use anyhow::{Context, Result, bail};
use clap::Args;
use hearth_store::{
    aws::{
        Connector, Place,
        design::{self, Design, RECEIVES_MAX},
        http_client,
        init::{self, Places},
    },
    config::{ArtifactsConfig, KeysConfig, QueueConfig, RecordsConfig},
    keyring::FileKeyring,
};
use std::path::PathBuf;

#[derive(Args)]
pub struct InitArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only print tables, keys, bucket, queues and permissions as JSON; calls nothing.
    #[arg(long)]
    print: bool,
    /// Also make the first operator's token and write it to this file (mode 0600).
    #[arg(long)]
    token_file: Option<PathBuf>,
}

/// Makes or prints the resources.
pub async fn init(args: InitArgs) -> Result<()> {
    let print = args.print;
    let settings = args.config.load()?;
    let Some(store) = settings.store.clone() else {
        if print {
            return show(&design::design("hearth", "hearth", "hearth-builds", "hearth-builds-dead", RECEIVES_MAX));
        }
        bail!(
            "the configuration has no section store: name the table, bucket and queues to make (docs/store-aws.md has an example)"
        );
    };
    store.validate()?;
    let (design, places) = wanted(&store)?;
    if print {
        return show(&design);
    }
    let connector = Connector::new(http_client(), store.timeouts);
    init::init(&connector, &places, &design).await?;
    if let KeysConfig::File { path } = &store.keys
        && !path.exists()
    {
        FileKeyring::open_or_create(path)?;
        eprintln!("made {}: every node needs a copy of it, and so does your backup", path.display());
    }
    // The first to open them says that table and bucket belong together.
    let stores = hearth_store::open(&store).await.context("opening what was made")?;
    if let Some(file) = &args.token_file {
        hearth_node::manage::bootstrap_admin_token(&*stores.functions, file).await?;
        eprintln!("admin token in {}", file.display());
    }
    let (table, bucket, queue) = (&design.table.name, &design.bucket.name, &design.queue.name);
    eprintln!("made table {table}, bucket {bucket}, queues {queue} and {}", design.dead_letter_queue.name);
    Ok(())
}

fn show(design: &Design) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(design)?);
    Ok(())
}

fn wanted(store: &hearth_store::Config) -> Result<(Design, Places)> {
    let place = |region: &Option<String>, endpoint_url: &Option<String>| Place {
        region: region.clone(),
        endpoint_url: endpoint_url.clone(),
    };
    let (
        RecordsConfig::Dynamodb { table, region, endpoint_url },
        ArtifactsConfig::S3 { bucket, region: bucket_region, endpoint_url: bucket_url, .. },
        Some(QueueConfig::Sqs { queue, dead_letter_queue, region: queue_region, endpoint_url: queue_url }),
    ) = (&store.records, &store.artifacts, &store.queue)
    else {
        bail!("store.records is not dynamodb: there is nothing to make on AWS for embedded backends");
    };
    let places = Places {
        table: place(region, endpoint_url),
        bucket: place(bucket_region, bucket_url),
        queue: place(queue_region, queue_url),
    };
    Ok((design::design(table, bucket, queue, dead_letter_queue, RECEIVES_MAX), places))
}

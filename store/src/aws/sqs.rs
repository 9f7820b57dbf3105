//! [`BuildQueue`] on SQS with a dead-letter queue. SQS says only that there may be something to do; whether there is, the module's record
//! says. A message is sent at least once (a lost answer may double it), and deleted only when its worker says that its result is durable.
//!
//! SQS lets a worker whose time-out has passed still delete a message that another one has by now. So each receipt is good here only until
//! the time-out that it was last given, counted from before the call that gave it: past that moment nothing is asked of SQS for it.

use super::{
    Connector, Place, Timeouts,
    call::{CallError, Caller, Deadlines},
};
use crate::{BuildJob, BuildQueue, Delivery, QueueError};
use async_trait::async_trait;
use aws_sdk_sqs::{
    Client,
    error::ProvideErrorMetadata,
    types::{Message, MessageSystemAttributeName, QueueAttributeName},
};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Longest wait of one receive.
const WAIT_MAX_S: u64 = 20;
/// Longest delay of a message.
const DELAY_MAX_S: u64 = 900;
/// Longest visibility time-out.
const VISIBILITY_MAX_S: u64 = 12 * 3_600;
/// Receipts remembered at once; a process has a few workers.
const RECEIPTS_MAX: usize = 10_000;

/// None for what is no job.
fn as_delivery(message: &Message) -> Option<Delivery> {
    let job = serde_json::from_str(message.body()?).ok()?;
    let count = message.attributes().and_then(|a| a.get(&MessageSystemAttributeName::ApproximateReceiveCount));
    let attempt = count.and_then(|c| c.parse().ok()).unwrap_or(1);
    Some(Delivery { job, receipt: message.receipt_handle()?.to_owned(), attempt })
}

/// A queue and its dead-letter queue.
#[derive(Debug)]
pub struct SqsQueue {
    client: Client,
    name: String,
    url: String,
    dead_name: String,
    dead_url: String,
    caller: Caller,
    timeouts: Timeouts,
    /// Until when each receipt of this process is good.
    receipts: Mutex<HashMap<String, Instant>>,
}

/// SQS counts in whole seconds: a time-out that is too long is late, one that is too short takes work away.
fn seconds(duration: Duration, most: u64) -> i32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(seconds.min(most)).unwrap_or(i32::MAX)
}

impl SqsQueue {
    /// Finds both queues.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] names queue, call and remedy.
    pub async fn open(connector: &Connector, place: &Place, name: &str, dead_name: &str) -> Result<Self, QueueError> {
        let mut queue = Self {
            client: Client::new(&connector.sdk(place).await),
            name: name.to_owned(),
            url: String::new(),
            dead_name: dead_name.to_owned(),
            dead_url: String::new(),
            caller: connector.caller("sqs"),
            timeouts: connector.timeouts,
            receipts: Mutex::default(),
        };
        queue.url = queue.find(name).await?;
        queue.dead_url = queue.find(dead_name).await?;
        queue.check_redrive().await?;
        Ok(queue)
    }

    async fn find(&self, name: &str) -> Result<String, QueueError> {
        let request = || self.client.get_queue_url().queue_name(name).send();
        let answer = self.caller.repeat("GetQueueUrl", self.small(), request).await;
        let answer = answer.map_err(|e| Self::failed("GetQueueUrl", name, &e))?;
        answer.queue_url.ok_or_else(|| Self::unclear("GetQueueUrl", name, &"the answer has no URL"))
    }

    /// Without a dead-letter queue a poisonous message would go round for ever.
    async fn check_redrive(&self) -> Result<(), QueueError> {
        let policy = self.attribute(QueueAttributeName::RedrivePolicy).await?.unwrap_or_default();
        let policy: serde_json::Value = serde_json::from_str(&policy).unwrap_or_default();
        let target = policy["deadLetterTargetArn"].as_str().unwrap_or_default();
        if target.rsplit(':').next() == Some(self.dead_name.as_str()) {
            return Ok(());
        }
        let detail =
            format!("its redrive policy does not name {} as its dead-letter queue: set it, or correct store.queue", self.dead_name);
        Err(Self::unclear("GetQueueAttributes", &self.name, &detail))
    }

    async fn attribute(&self, name: QueueAttributeName) -> Result<Option<String>, QueueError> {
        Ok(self.attributes(std::slice::from_ref(&name)).await?.remove(&name))
    }

    async fn attributes(&self, names: &[QueueAttributeName]) -> Result<HashMap<QueueAttributeName, String>, QueueError> {
        let request = || self.client.get_queue_attributes().queue_url(&self.url).set_attribute_names(Some(names.to_vec())).send();
        let answer = self.caller.repeat("GetQueueAttributes", self.small(), request).await;
        Ok(answer.map_err(|e| Self::failed("GetQueueAttributes", &self.name, &e))?.attributes.unwrap_or_default())
    }

    fn small(&self) -> Deadlines {
        Deadlines { total: self.timeouts.write, attempt: self.timeouts.attempt }
    }

    fn failed<E>(call: &'static str, queue: &str, error: &CallError<E>) -> QueueError
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let resource = format!("queue {queue}");
        let detail = error.explain("sqs", call, &resource);
        QueueError::Unavailable { call, resource, detail }
    }

    fn unclear(call: &'static str, queue: &str, detail: &dyn std::fmt::Display) -> QueueError {
        QueueError::Unavailable { call, resource: format!("queue {queue}"), detail: detail.to_string() }
    }

    fn receipts(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, receipt: &str, until: Instant) {
        let mut receipts = self.receipts();
        if receipts.len() >= RECEIPTS_MAX {
            let now = Instant::now();
            receipts.retain(|_, until| *until > now);
        }
        receipts.insert(receipt.to_owned(), until);
    }

    fn is_ours(&self, receipt: &str) -> bool {
        self.receipts().get(receipt).is_some_and(|until| *until > Instant::now())
    }

    async fn take(
        &self,
        url: &str,
        queue: &str,
        wait: Duration,
        visibility: Duration,
        most: i32,
    ) -> Result<Vec<Message>, QueueError> {
        let wait_s = seconds(wait, WAIT_MAX_S);
        // A message whose delivery was lost on the way is hidden until its time-out, and comes again then: at least once.
        let attempt = self.timeouts.attempt + Duration::from_secs(u64::from(wait_s.unsigned_abs()));
        let request = self
            .client
            .receive_message()
            .queue_url(url)
            .max_number_of_messages(most)
            .wait_time_seconds(wait_s)
            .visibility_timeout(seconds(visibility, VISIBILITY_MAX_S))
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
        let deadlines = Deadlines { total: attempt + self.timeouts.write, attempt };
        let answer = self.caller.repeat("ReceiveMessage", deadlines, || request.clone().send()).await;
        Ok(answer.map_err(|e| Self::failed("ReceiveMessage", queue, &e))?.messages.unwrap_or_default())
    }

    async fn delete(&self, url: &str, queue: &str, receipt: &str) -> Result<(), QueueError> {
        let request = || self.client.delete_message().queue_url(url).receipt_handle(receipt).send();
        match self.caller.repeat("DeleteMessage", self.small(), request).await {
            Ok(_) => Ok(()),
            // Gone already.
            Err(error) if error.code().is_some_and(|c| c.ends_with("ReceiptHandleIsInvalid")) => Ok(()),
            Err(error) => Err(Self::failed("DeleteMessage", queue, &error)),
        }
    }

    async fn hide(&self, delivery: &Delivery, duration: Duration) -> Result<Instant, QueueError> {
        if !self.is_ours(&delivery.receipt) {
            return Err(QueueError::Stale);
        }
        let seconds = seconds(duration, VISIBILITY_MAX_S);
        let began = Instant::now();
        let request = || {
            let change = self.client.change_message_visibility().queue_url(&self.url);
            change.receipt_handle(&delivery.receipt).visibility_timeout(seconds).send()
        };
        match self.caller.repeat("ChangeMessageVisibility", self.small(), request).await {
            Ok(_) => Ok(began + Duration::from_secs(u64::from(seconds.unsigned_abs()))),
            Err(error)
                if error.code().is_some_and(|code| {
                    code.ends_with("MessageNotInflight")
                        || code.ends_with("ReceiptHandleIsInvalid")
                        || code.ends_with("InvalidParameterValue")
                }) =>
            {
                self.receipts().remove(&delivery.receipt);
                Err(QueueError::Stale)
            }
            Err(error) => Err(Self::failed("ChangeMessageVisibility", &self.name, &error)),
        }
    }
}

#[async_trait]
impl BuildQueue for SqsQueue {
    async fn ping(&self) -> Result<(), QueueError> {
        self.attributes(&[QueueAttributeName::QueueArn]).await.map(|_| ())
    }

    async fn send(&self, job: &BuildJob, delay: Duration) -> Result<(), QueueError> {
        let body = serde_json::to_string(job).map_err(|e| Self::unclear("SendMessage", &self.name, &e))?;
        let request = || {
            let send = self.client.send_message().queue_url(&self.url).message_body(&body);
            send.delay_seconds(seconds(delay, DELAY_MAX_S)).send()
        };
        let answer = self.caller.repeat("SendMessage", self.small(), request).await;
        answer.map(|_| ()).map_err(|e| Self::failed("SendMessage", &self.name, &e))
    }

    async fn receive(&self, wait: Duration, visibility: Duration) -> Result<Option<Delivery>, QueueError> {
        // The time-out counts from when SQS hands the message out, at some moment of the call; here it counts from before the call, so that
        // this worker never believes in it for too long. What the wait may take of it is added.
        let began = Instant::now();
        let hidden = Duration::from_secs(
            u64::from(seconds(visibility, VISIBILITY_MAX_S).unsigned_abs()) + u64::from(seconds(wait, WAIT_MAX_S).unsigned_abs()),
        );
        let message = self.take(&self.url, &self.name, wait, hidden, 1).await?.into_iter().next();
        let Some(message) = message else { return Ok(None) };
        let Some(delivery) = as_delivery(&message) else {
            // Not ours, or of a newer Hearth: it goes round until the dead-letter queue has it, where a person can look at it.
            tracing::error!(queue = self.name, "a message is no build job; it is left to the dead-letter queue");
            return Ok(None);
        };
        self.remember(&delivery.receipt, began + hidden);
        Ok(Some(delivery))
    }

    async fn extend(&self, delivery: &Delivery, visibility: Duration) -> Result<(), QueueError> {
        let until = self.hide(delivery, visibility).await?;
        self.remember(&delivery.receipt, until);
        Ok(())
    }

    async fn settle(&self, delivery: &Delivery) -> Result<(), QueueError> {
        if !self.is_ours(&delivery.receipt) {
            return Ok(());
        }
        self.delete(&self.url, &self.name, &delivery.receipt).await?;
        self.receipts().remove(&delivery.receipt);
        Ok(())
    }

    async fn release(&self, delivery: &Delivery, delay: Duration) -> Result<(), QueueError> {
        self.hide(delivery, delay).await?;
        self.receipts().remove(&delivery.receipt);
        Ok(())
    }

    async fn depth(&self) -> Result<u64, QueueError> {
        let names = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ];
        let counts = self.attributes(&names).await?;
        Ok(counts.values().filter_map(|n| n.parse::<u64>().ok()).sum())
    }

    async fn receive_dead(&self, limit: usize, visibility: Duration) -> Result<Vec<Delivery>, QueueError> {
        let mut dead = Vec::new();
        while dead.len() < limit {
            let most = i32::try_from((limit - dead.len()).min(10)).unwrap_or(10);
            let messages = self.take(&self.dead_url, &self.dead_name, Duration::ZERO, visibility, most).await?;
            if messages.is_empty() {
                break;
            }
            // What is no job of ours stays for a person to look at, until the queue forgets it.
            dead.extend(messages.iter().filter_map(as_delivery));
        }
        Ok(dead)
    }

    // Whoever else has it by now writes down the same, so that the age of the receipt does not matter.
    async fn settle_dead(&self, delivery: &Delivery) -> Result<(), QueueError> {
        self.delete(&self.dead_url, &self.dead_name, &delivery.receipt).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_seconds_are_rounded_up_and_bounded() {
        assert_eq!(seconds(Duration::ZERO, 20), 0);
        assert_eq!(seconds(Duration::from_millis(300), 20), 1);
        assert_eq!(seconds(Duration::from_secs(20), 20), 20);
        assert_eq!(seconds(Duration::from_millis(20_001), 20), 20);
    }
}

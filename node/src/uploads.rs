//! Bodies of requests that are still on their way: the client has not sent all, or the function has not taken all. What has places for
//! requests lets such hold half of them at most, so that clients who dawdle never hold all.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

/// As many bodies are coming as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// How many that are.
    pub limit: u32,
}

/// Those of one tenant or one container.
#[derive(Debug, Default)]
pub struct Uploads(AtomicU32);

impl Uploads {
    /// One of so many `places` is held by a request whose body is coming, until what is returned is dropped.
    ///
    /// # Errors
    /// [`Full`] when half of them are.
    pub fn take(self: &Arc<Self>, places: u32) -> Result<UploadPlace, Full> {
        let limit = places.div_ceil(2).max(1);
        if self.0.fetch_add(1, Relaxed) >= limit {
            self.0.fetch_sub(1, Relaxed);
            return Err(Full { limit });
        }
        Ok(UploadPlace(Arc::clone(self)))
    }
}

/// The place of one body that is coming.
#[derive(Debug)]
pub struct UploadPlace(Arc<Uploads>);

impl Drop for UploadPlace {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_places_and_one_past_it() {
        let uploads = Arc::<Uploads>::default();
        let (first, _second) = (uploads.take(4).unwrap(), uploads.take(3).unwrap());
        assert_eq!(uploads.take(4).unwrap_err(), Full { limit: 2 });
        drop(first);
        assert!(uploads.take(4).is_ok());
        let one = Arc::<Uploads>::default();
        let _only = one.take(1).unwrap();
        assert_eq!(one.take(1).unwrap_err(), Full { limit: 1 }, "where there is one place, a body may hold it");
    }
}

//! How many run at a time.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// So many seats for each key.
#[derive(Debug, Clone)]
pub struct Seats<K: Hash + Eq> {
    each: usize,
    taken: Arc<Mutex<HashMap<K, usize>>>,
}

/// One seat, until it is dropped.
#[derive(Debug)]
pub struct Seat<K: Hash + Eq> {
    key: K,
    seats: Seats<K>,
}

impl<K: Hash + Eq + Clone> Seats<K> {
    /// All free.
    pub fn new(each: usize) -> Self {
        Self {
            each,
            taken: Arc::default(),
        }
    }

    /// None: all of this key's are taken.
    pub fn take(&self, key: &K) -> Option<Seat<K>> {
        let mut taken = self.lock();
        let count = taken.entry(key.clone()).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        Some(Seat {
            key: key.clone(),
            seats: self.clone(),
        })
    }
}

impl<K: Hash + Eq> Seats<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for Seat<K> {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats__should_be_counted_for_each_key_and_given_back() {
        let seats = Seats::new(2);
        let (first, second) = (seats.take(&"one"), seats.take(&"one"));
        assert!(first.is_some() && second.is_some() && seats.take(&"one").is_none());
        assert!(seats.take(&"other").is_some());
        drop(first);
        let third = seats.take(&"one");
        assert!(third.is_some());
        drop((second, third));
        assert!(seats.lock().is_empty());
    }
}

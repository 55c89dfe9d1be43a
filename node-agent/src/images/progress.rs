//! How far a pull has come, from what Docker tells of each layer. Pure.

use std::collections::BTreeMap;

use crabshack_shared::agent_api::v1::PullProgress;

/// The layers of one image.
#[derive(Debug, Default)]
pub(crate) struct Layers(BTreeMap<String, PullProgress>);

impl Layers {
    /// Takes in one line of Docker's: a layer, what happens to it, and where it is.
    pub(crate) fn note(&mut self, layer: &str, status: &str, current: Option<i64>, total: Option<i64>) {
        let bytes = |number: Option<i64>| u64::try_from(number.unwrap_or_default()).unwrap_or_default();
        match status {
            "Downloading" => {
                let (done, total) = (bytes(current), bytes(total));
                let total = total.max(done);
                self.0.insert(layer.to_owned(), PullProgress { done, total });
            }
            // Unpacking tells bytes of its own.
            "Verifying Checksum" | "Download complete" | "Extracting" | "Pull complete" => {
                if let Some(known) = self.0.get_mut(layer) {
                    known.done = known.total;
                }
            }
            _ => {}
        }
    }

    /// All of them together.
    pub(crate) fn sum(&self) -> PullProgress {
        self.0.values().fold(PullProgress::default(), |sum, layer| PullProgress {
            done: sum.done + layer.done,
            total: sum.total + layer.total,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers__should_add_up_and_count_a_finished_one_as_whole() {
        let mut layers = Layers::default();
        layers.note("1.0", "Pulling from owner/name", None, None);
        layers.note("a", "Pulling fs layer", None, None);
        layers.note("b", "Already exists", None, None);
        assert_eq!(layers.sum(), PullProgress::default());
        layers.note("a", "Downloading", Some(30), Some(100));
        layers.note("c", "Downloading", Some(50), Some(-1));
        assert_eq!(layers.sum(), PullProgress { done: 80, total: 150 });
        layers.note("a", "Download complete", None, None);
        layers.note("a", "Extracting", Some(5), Some(100));
        assert_eq!(layers.sum(), PullProgress { done: 150, total: 150 });
    }
}

//! What instances printed, also in containers that are gone: a container's log ends with it, so its
//! end is saved beside the volume before the container is removed.

mod follow;
mod saved;

use crabshack_shared::{ids::InstanceId, telemetry::Chain};

use crate::{
    docker::{Docker, DockerError, LogEnd},
    volume::InstanceFolder,
};

pub(crate) use follow::follow;

/// Lines that are saved of a container, and the most that are given at once.
pub(crate) const MOST_LINES: u32 = 10_000;
/// Lines and bytes of the log in a report.
const LAST_LINES: u32 = 20;
const LAST_BYTES: usize = 4096;
/// Characters of a command's output in a reason.
const LAST_WORDS: usize = 300;

/// Saves the end of the container's log, if there is a container and a folder. Idempotent. Never
/// fails: an unreadable log or a full disk must not keep an instance from its next container.
pub(crate) async fn save(docker: &Docker, folder: &InstanceFolder, instance: InstanceId) {
    let text = async {
        let Some(source) = docker.log_source(instance).await? else {
            return Ok(None);
        };
        Ok::<_, DockerError>(Some((source, docker.logs(instance, MOST_LINES).await?.text)))
    };
    match text.await {
        Ok(Some((source, text))) => {
            if let Err(error) = saved::write(folder, &source, text).await {
                tracing::warn!(%instance, %error, "the log of the container that goes cannot be saved");
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%instance, error = %Chain(&error), "the log of the container that goes cannot be read"),
    }
}

/// The last lines of the container and, where it has fewer, of those before it. Oldest first.
pub(crate) async fn tail(
    docker: &Docker,
    folder: &InstanceFolder,
    instance: InstanceId,
    lines: u32,
) -> Result<String, DockerError> {
    let source = docker.log_source(instance).await?;
    let own = match &source {
        Some(_) => docker.logs(instance, lines).await?,
        None => LogEnd::default(),
    };
    let missing = (lines as usize).saturating_sub(own.text.lines().count());
    if missing == 0 || own.cut {
        return Ok(own.text);
    }
    // The container that is there may be saved already.
    let before = saved::read(folder, source.map(|source| source.docker_id)).await;
    let mut text = last_lines(&before, missing).to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&own.text);
    Ok(text)
}

/// The log's end for a report: few lines, few bytes, nothing that a terminal would act on.
pub(crate) async fn ending(docker: &Docker, instance: InstanceId) -> String {
    match docker.logs(instance, LAST_LINES).await {
        Ok(end) => plain(&end.text),
        Err(error) => {
            tracing::debug!(%instance, error = %Chain(&error), "the log of an ended container cannot be read");
            String::new()
        }
    }
}

/// The end of what a tenant's program said, fit for a report: one line, bounded, nothing that moves a
/// terminal's cursor.
pub(crate) fn last_words(output: &str) -> String {
    let line = plain(output).split_whitespace().collect::<Vec<_>>().join(" ");
    let skipped = line.chars().count().saturating_sub(LAST_WORDS);
    line.chars().skip(skipped).collect()
}

fn plain(text: &str) -> String {
    let kept: String = text
        .chars()
        .map(|character| if character == '\t' { ' ' } else { character })
        .filter(|character| *character == '\n' || !character.is_control())
        .collect();
    let mut start = kept.len().saturating_sub(LAST_BYTES);
    while !kept.is_char_boundary(start) {
        start += 1;
    }
    let end = &kept[start..];
    // What was cut starts with a whole line, unless there is but one.
    let whole = if start == 0 {
        end
    } else {
        end.split_once('\n').map_or(end, |(_, rest)| rest)
    };
    whole.trim_end().to_owned()
}

fn last_lines(text: &str, count: usize) -> &str {
    let body = text.strip_suffix('\n').unwrap_or(text);
    match body.rmatch_indices('\n').nth(count.saturating_sub(1)) {
        _ if count == 0 => "",
        Some((at, _)) => &text[at + 1..],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines__should_be_the_last_ones() {
        for (count, expected) in [(0, ""), (1, "c\n"), (2, "b\nc\n"), (3, "a\nb\nc\n"), (9, "a\nb\nc\n")] {
            assert_eq!(last_lines("a\nb\nc\n", count), expected, "{count}");
        }
        assert_eq!(last_lines("a\nb", 1), "b");
    }

    #[test]
    fn log_of_a_report__should_be_short_and_without_control_characters() {
        assert_eq!(plain("\u{1b}[31mred\u{1b}[0m\r\nnext\tword\0\n"), "[31mred[0m\nnext word");
        let long = format!("{}\n", "ä".repeat(40)).repeat(100);
        let short = plain(&long);
        assert!(short.len() <= LAST_BYTES && short.starts_with('ä') && short.ends_with('ä'));
        assert!(short.lines().all(|line| line.chars().count() == 40));
    }
}

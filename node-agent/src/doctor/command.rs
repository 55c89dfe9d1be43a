//! `crabshack-node-agent doctor`: asks the daemon, or looks from outside when there is none.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use super::{Checkup, outside::Outside};
use crate::config::Settings;

/// A check-up of a large node on a busy Docker takes its time.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// Looks, and tells the person. Success: nothing is left to do.
pub(crate) async fn run(settings: &Settings, json: bool) -> ExitCode {
    let address = settings.health_listen;
    let checkup = match ask(&format!("http://{address}/doctor")).await {
        Ok(checkup) => checkup,
        Err(error) => {
            let why = if error.is_connect() {
                format!(
                    "nobody answers on {address} (CRABSHACK_HEALTH_LISTEN): instances run on without it, but nothing is repaired; \
                     start it (`systemctl start crabshack-node-agent`)"
                )
            } else {
                format!("what answers on {address} (CRABSHACK_HEALTH_LISTEN) gives no check-up: look into the node agent's log")
            };
            Outside::new(settings).check_up(why).await
        }
    };
    let text = if json {
        serde_json::to_string_pretty(&checkup).unwrap_or_default()
    } else {
        table(&checkup)
    };
    // Whoever closed the stream does not want to know.
    drop(writeln!(io::stdout(), "{}", text.trim_end()));
    if checkup.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn ask(url: &str) -> Result<Checkup, reqwest::Error> {
    let http = reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN).build()?;
    http.get(url).send().await?.error_for_status()?.json().await
}

/// A line per subject, or per finding of it.
fn table(checkup: &Checkup) -> String {
    let mut text = String::new();
    let extra = checkup.findings.iter().map(|finding| &finding.subject);
    let mut subjects: Vec<&String> = checkup.subjects.iter().collect();
    for subject in extra {
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
    }
    let mut line = |state: &str, subject: &str, rest: &str| text.push_str(&format!("{state:<9} {subject:<18} {rest}\n"));
    for subject in subjects {
        let mut findings = checkup
            .findings
            .iter()
            .filter(|finding| finding.subject == *subject)
            .peekable();
        if findings.peek().is_none() {
            line("ok", subject, "");
        }
        for finding in findings {
            let state = if finding.repaired { "repaired" } else { "PROBLEM" };
            let whose = finding.instance.map(|id| format!("instance {id}: ")).unwrap_or_default();
            line(state, subject, &format!("{whose}{}", finding.text));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::found;

    #[test]
    fn table__should_have_a_line_for_everything_that_was_looked_at() {
        let checkup = Checkup::new(
            &["Docker", "disk"],
            vec![
                found("disk", None, "it is full".to_owned()),
                found("other", None, "odd".to_owned()),
            ],
        );
        let lines: Vec<String> = table(&checkup)
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(lines, ["ok Docker", "PROBLEM disk it is full", "PROBLEM other odd"]);
    }
}

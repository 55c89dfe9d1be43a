//! The figures of the issues, one file per name. Suites assert on the same code at a small size.

pub mod crash;
pub mod create;
pub mod density;
pub mod egress_first;
pub mod exec;
pub mod gateway;
pub mod product_upgrade;
pub mod quota;
pub mod storm;
pub mod types;

use serde_json::{Map, Value, json};

/// Named numbers and truths, in the order they were taken.
#[derive(Debug, Default)]
pub struct Figures(Map<String, Value>);

impl Figures {
    /// Adds one.
    pub fn add(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// Adds a number, rounded to two places.
    pub fn add_rounded(&mut self, name: &str, value: f64) {
        self.add(name, (value * 100.0).round() / 100.0);
    }

    /// A whole number; 0 when it is missing.
    pub fn number(&self, name: &str) -> u64 {
        self.0.get(name).and_then(Value::as_u64).unwrap_or_default()
    }

    /// A truth; false when it is missing.
    pub fn holds(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or_default()
    }

    /// True once it was added.
    pub fn knows(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A table for people, then one JSON object on the last line.
    pub fn render(&self, name: &str) -> String {
        let width = self.0.keys().map(String::len).max().unwrap_or_default();
        let rows: String = self
            .0
            .iter()
            .map(|(key, value)| format!("  {key:width$}  {value}\n"))
            .collect();
        format!("{name}\n{rows}{}\n", json!({"name": name, "figures": self.0}))
    }
}

#[cfg(test)]
mod tests {
    use super::Figures;

    #[test]
    fn figures__should_end_in_one_line_of_json() {
        let mut figures = Figures::default();
        figures.add("longer_name", 1);
        figures.add_rounded("ratio", 1.2345);
        let text = figures.render("sample");
        assert_eq!(
            text.lines().last(),
            Some(r#"{"figures":{"longer_name":1,"ratio":1.23},"name":"sample"}"#)
        );
        assert!(text.contains("  ratio        1.23\n"), "{text}");
    }
}

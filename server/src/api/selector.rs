//! Label and field selectors.
use super::status::ApiStatus;
use serde_json::Value;

/// Which objects of a kind are meant. The default selects all.
#[derive(Debug, Clone, Default)]
pub struct Selectors {}

impl Selectors {
    /// Parses the two query parameters; 400 on nonsense.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, ApiStatus> {
        let _ = (labels, fields);
        Ok(Self::default())
    }
    /// From a `LabelSelector` object (matchLabels, matchExpressions).
    pub fn from_label_selector(selector: &Value) -> Self {
        let _ = selector;
        Self::default()
    }
    pub fn matches(&self, object: &Value) -> bool {
        let _ = object;
        true
    }
}

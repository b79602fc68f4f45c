//! Resource quantities: enough of `resource.Quantity` to check, compare and class them.

use std::collections::BTreeMap;

use serde_json::Value;

/// A quantity in thousandths, or `None` if the text is not one.
pub fn parse_milli(text: &str) -> Option<i128> {
    const SUFFIXES: &[(&str, i128, i128)] = &[
        ("Ki", 1 << 10, 1),
        ("Mi", 1 << 20, 1),
        ("Gi", 1 << 30, 1),
        ("Ti", 1 << 40, 1),
        ("Pi", 1 << 50, 1),
        ("Ei", 1 << 60, 1),
        ("n", 1, 1_000_000_000),
        ("u", 1, 1_000_000),
        ("m", 1, 1000),
        ("k", 1000, 1),
        ("M", 1_000_000, 1),
        ("G", 1_000_000_000, 1),
        ("T", 1_000_000_000_000, 1),
        ("P", 1_000_000_000_000_000, 1),
        ("E", 1_000_000_000_000_000_000, 1),
    ];
    let found = SUFFIXES.iter().find_map(|(s, up, down)| text.strip_suffix(s).map(|n| (n, *up, *down)));
    let (number, up, down) = found.unwrap_or((text, 1, 1));
    let (number, exponent) = match number.split_once(['e', 'E']) {
        Some((number, exponent)) if up == 1 && down == 1 => (number, exponent.parse::<i32>().ok()?),
        Some(_) => return None,
        None => (number, 0),
    };
    let (sign, digits) = match number.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let numeric = |s: &str| s.chars().all(|c| c.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !numeric(whole) || !numeric(fraction) || fraction.len() > 15 {
        return None;
    }
    let all: i128 = format!("{whole}{fraction}").parse().ok()?;
    let mut numerator = all.checked_mul(up)?.checked_mul(1000)?;
    let mut denominator = down.checked_mul(10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let scale = 10_i128.checked_pow(exponent.unsigned_abs())?;
    if exponent < 0 {
        denominator = denominator.checked_mul(scale)?
    } else {
        numerator = numerator.checked_mul(scale)?
    }
    // Rounded up, as the API does below its precision.
    let rounded = if numerator % denominator == 0 { numerator / denominator } else { numerator / denominator + 1 };
    Some(sign * rounded)
}

/// A quantity given as text or as a plain number.
pub fn of(value: &Value) -> Option<i128> {
    match value {
        Value::String(text) => parse_milli(text),
        Value::Number(number) => parse_milli(&number.to_string()),
        _ => None,
    }
}

/// The pod's class by the cpu and memory of all its containers.
pub fn qos_class(spec: &Value) -> &'static str {
    let mut requests: BTreeMap<&str, i128> = BTreeMap::new();
    let mut limits: BTreeMap<&str, i128> = BTreeMap::new();
    let mut guaranteed = true;
    let lists = ["containers", "initContainers"];
    let containers = lists.iter().flat_map(|l| spec[*l].as_array().into_iter().flatten());
    for container in containers {
        let mut limited = 0;
        for (field, sums) in [("requests", &mut requests), ("limits", &mut limits)] {
            for name in ["cpu", "memory"] {
                let amount = of(&container["resources"][field][name]).unwrap_or(0);
                if amount > 0 {
                    *sums.entry(name).or_default() += amount;
                    limited += usize::from(field == "limits");
                }
            }
        }
        guaranteed &= limited == 2;
    }
    if requests.is_empty() && limits.is_empty() {
        "BestEffort"
    } else if guaranteed && requests == limits {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_parse_as_kubernetes_reads_them() {
        let rows = [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("128Mi", Some(134_217_728_000)),
            ("1e3", Some(1_000_000)),
            ("2k", Some(2_000_000)),
            ("1n", Some(1)),
            ("", None),
            ("abc", None),
            ("1.2.3", None),
            ("10MB", None),
        ];
        for (text, expected) in rows {
            assert_eq!(parse_milli(text), expected, "{text}");
        }
    }

    #[test]
    fn classes() {
        let with = |r: Value| json!({"containers": [{"resources": r}]});
        assert_eq!(qos_class(&with(json!({}))), "BestEffort");
        assert_eq!(qos_class(&with(json!({"requests": {"cpu": "1"}}))), "Burstable");
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(qos_class(&with(json!({"requests": both, "limits": both}))), "Guaranteed");
    }
}

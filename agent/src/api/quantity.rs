//! Kubernetes resource quantities: `250m`, `64Mi`, `1.5`, `1e3`.
//!
//! Grammar and rounding of apimachinery's `resource.Quantity`: numbers are exact down to 10⁻⁹ and asked for as whole
//! units or thousandths, always rounded up (away from zero).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An amount as written. Compares by text; see [`Quantity::nano`] to compare values.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Quantity(String);

const NANO: i128 = 1_000_000_000;

/// A text that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a quantity such as 250m, 64Mi or 1.5")]
pub struct NotAQuantity {
    text: String,
}

impl Quantity {
    /// The text as it came.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// In 10⁻⁹ of the unit; 0 for an empty or malformed text (the server validates).
    pub fn nano(&self) -> i128 {
        parse(&self.0).unwrap_or(0)
    }

    /// Whole units, rounded up: bytes, processes, cores.
    pub fn value(&self) -> i64 {
        narrow(ceil_div(self.nano(), NANO))
    }

    /// Thousandths, rounded up: millicores.
    pub fn milli(&self) -> i64 {
        narrow(ceil_div(self.nano(), NANO / 1000))
    }

    /// Whether the amount is zero.
    pub fn is_zero(&self) -> bool {
        self.nano() == 0
    }

    /// Canonical decimal form of thousandths: 250 → `250m`, 2000 → `2`.
    pub fn from_milli(milli: i64) -> Quantity {
        if milli % 1000 == 0 { decimal(milli / 1000) } else { Quantity(format!("{milli}m")) }
    }

    /// Canonical binary form of whole units: 67108864 → `64Mi`, 1000 → `1000`.
    pub fn from_bytes(bytes: i64) -> Quantity {
        const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        let mut rest = bytes;
        let mut steps = 0;
        while rest != 0 && rest % 1024 == 0 && steps + 1 < SUFFIXES.len() {
            rest /= 1024;
            steps += 1;
        }
        Quantity(format!("{rest}{}", SUFFIXES[steps]))
    }

    /// Sum in the form of `self`: binary stays binary, decimal stays decimal.
    pub fn plus(&self, other: &Quantity) -> Quantity {
        if self.is_zero() {
            return other.clone();
        }
        if other.is_zero() {
            return self.clone();
        }
        let sum = self.nano() + other.nano();
        if self.0.ends_with('i') {
            return Quantity::from_bytes(narrow(ceil_div(sum, NANO)));
        }
        let milli = narrow(ceil_div(sum, NANO / 1000));
        Quantity::from_milli(milli)
    }
}

/// Whole decimal units with `k`, `M`, … where the number is round.
fn decimal(units: i64) -> Quantity {
    const SUFFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let mut rest = units;
    let mut steps = 0;
    while rest != 0 && rest % 1000 == 0 && steps + 1 < SUFFIXES.len() {
        rest /= 1000;
        steps += 1;
    }
    Quantity(format!("{rest}{}", SUFFIXES[steps]))
}

fn narrow(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn ceil_div(value: i128, by: i128) -> i128 {
    if value > 0 { (value + by - 1) / by } else { -((-value + by - 1) / by) }
}

fn parse(text: &str) -> Option<i128> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(digits);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    // The number without its point, and how many decimal places that shifted it.
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let places = i32::try_from(fraction.len()).ok()?;
    let binary = |power: u32| mantissa.checked_mul(1024i128.checked_pow(power)?)?.checked_mul(NANO).map(|n| scale_down(n, places));
    let ten = |power: i32| scale(mantissa, power + 9 - places);
    let nano = match suffix {
        "" => ten(0),
        "n" => ten(-9),
        "u" => ten(-6),
        "m" => ten(-3),
        "k" => ten(3),
        "M" => ten(6),
        "G" => ten(9),
        "T" => ten(12),
        "P" => ten(15),
        "E" => ten(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        other => {
            let power = other.strip_prefix(['e', 'E'])?;
            ten(power.parse::<i32>().ok().filter(|p| p.abs() <= 24)?)
        }
    }?;
    Some(if negative { -nano } else { nano })
}

fn scale(mantissa: i128, power: i32) -> Option<i128> {
    if power >= 0 { mantissa.checked_mul(10i128.checked_pow(power.unsigned_abs())?) } else { Some(scale_down(mantissa, -power)) }
}

fn scale_down(mantissa: i128, places: i32) -> i128 {
    match 10i128.checked_pow(places.max(0).unsigned_abs()) {
        Some(by) => ceil_div(mantissa, by),
        None => i128::from(mantissa > 0),
    }
}

impl FromStr for Quantity {
    type Err = NotAQuantity;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match parse(text) {
            Some(_) => Ok(Quantity(text.to_owned())),
            None => Err(NotAQuantity { text: text.to_owned() }),
        }
    }
}

impl From<&str> for Quantity {
    /// Unchecked: for literals.
    fn from(text: &str) -> Self {
        Quantity(text.to_owned())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    /// Text or a bare number, as the API accepts both.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
                Ok(Quantity(text.to_owned()))
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_up_and_keep_their_scale() {
        // text, whole units, thousandths
        let table = [
            ("0", 0, 0),
            ("1", 1, 1000),
            ("250m", 1, 250),
            ("1.5", 2, 1500),
            ("0.1", 1, 100),
            ("100u", 1, 1),
            ("64Mi", 64 << 20, (64 << 20) * 1000),
            ("1.5Gi", 3 << 29, (3i64 << 29) * 1000),
            ("1k", 1000, 1_000_000),
            ("1e3", 1000, 1_000_000),
            ("12E2", 1200, 1_200_000),
            ("2E", 2_000_000_000_000_000_000, i64::MAX),
            ("-1500m", -2, -1500),
        ];
        for (text, value, milli) in table {
            let quantity: Quantity = text.parse().unwrap();
            assert_eq!((quantity.value(), quantity.milli()), (value, milli), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "m", "1.2.3", "1x", "Mi", "one", "1e", "1 Mi", "--1"] {
            assert!(text.parse::<Quantity>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn sums_keep_the_form_of_the_first() {
        let table = [
            ("64Mi", "64Mi", "128Mi"),
            ("64Mi", "1Ki", "65537Ki"),
            ("250m", "750m", "1"),
            ("100m", "50m", "150m"),
            ("1G", "1G", "2G"),
            ("0", "32Mi", "32Mi"),
        ];
        for (a, b, sum) in table {
            assert_eq!(Quantity::from(a).plus(&Quantity::from(b)).as_str(), sum, "{a} + {b}");
        }
    }

    #[test]
    fn canonical_forms() {
        assert_eq!(Quantity::from_bytes(67_108_864).as_str(), "64Mi");
        assert_eq!(Quantity::from_bytes(1000).as_str(), "1000");
        assert_eq!(Quantity::from_milli(2000).as_str(), "2");
        assert_eq!(Quantity::from_milli(1_000_000).as_str(), "1k");
        assert_eq!(Quantity::from_milli(250).as_str(), "250m");
    }
}
